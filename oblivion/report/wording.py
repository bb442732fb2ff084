"""Write the answer in two sentences, from the numbers alone, and the sentences under the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from oblivion.report.comparison import LEVEL, NO_GAP, Comparison, Standing, client_measure, others_name, own_entries
from oblivion.report.formatting import count, in_words, number, percent, plural
from oblivion.run.records import RequestRecord

NEARLY = 0.9
"""From this share of the gap on, the sentence says "but" before rows that can be recognised, else "and"."""
SPOKEN = 3
"""With more methods than this the answer names the closest and the farthest; the table has all of them."""
SHARED = 20
"""How many of the rows that others also hold are named on the page; ``metrics.json`` has all of them."""
HURT = 0.01
"""A client whose own number fell by more than this against the oracle is named."""


def code(name: str) -> Markup:
    """Return a name as it is typed, escaped."""
    return Markup("<code>{}</code>").format(name)


def _series(parts: Sequence[Markup]) -> Markup:
    if len(parts) < 2:
        return parts[0] if parts else Markup("")
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


def _measured_rows(comparison: Comparison) -> list[int]:
    """Return on how many rows the forget numbers of the models rest, each count once; empty if it is not known."""
    return sorted({int(standing.forget.n) for standing in comparison.standings if standing.forget.n is not None})


def _questions(comparison: Comparison) -> Markup:
    request, (few, total) = comparison.request, _rows(comparison)
    if request.samples is not None:
        part = f"the {plural(request.samples, 'sample')} that {request.client} withdrew"
        return Markup("{}").format(f"{part} ({few}{total})" if total else part)
    return Markup("{}{}’s {}").format(few, request.client, total or f"{comparison.suite.headline.question}s")


def _rows(comparison: Comparison) -> tuple[str, str]:
    """Return how many questions there are, and before it on how many of them the forget numbers rest, if fewer."""
    counts, noun = _measured_rows(comparison), comparison.suite.headline.question
    rows = comparison.request.rows if comparison.number.of_rows else None
    if not rows:
        return "", plural(counts[0], noun) if len(counts) == 1 else ""
    return f"{_span(counts)} of " if counts and counts != [rows] else "", plural(rows, noun)


def _span(counts: Sequence[int]) -> str:
    return count(counts[0]) if len(counts) == 1 else f"{count(counts[0])} to {count(counts[-1])}"


def _before(comparison: Comparison) -> Markup:
    request = comparison.request
    if request.shared and len(request.shared) == request.rows:
        return Markup(
            "Everything that {} asked to be forgotten is also held by others, so no row can be forgotten."
        ).format(request.client)
    about, did = _questions(comparison), comparison.suite.headline.answered
    original = comparison.original.forget.value if comparison.original else None
    oracle = comparison.oracle.forget.value if comparison.oracle else None
    if original is None:
        return Markup("How well the model {} {} before the request was not measured.").format(did, about)
    first = Markup("Before the request, the model {} {} with {} {}").format(
        did, about, comparison.number.noun, number(original)
    )
    if oracle is None:
        return first + Markup("; without an oracle, nothing here says how much of that is memory of the data.")
    return first + Markup("; a model that never saw them gives {}.").format(number(oracle))


def _moved(standing: Standing, comparison: Comparison, note: str = "") -> Markup:
    name, value = code(standing.key), standing.forget.value
    if note:
        name += Markup(", {},").format(note)
    if value is None:
        return Markup("{} was not measured").format(name)
    if standing.passed:
        said = Markup("{} {} the oracle, to {}").format(name, went_past(comparison), number(value))
    elif standing.closed is None:
        said = Markup("{} ended at {}").format(name, number(value))
    elif standing.closed < 0:
        said = Markup("{} moved away from the oracle, to {}").format(name, number(value))
    elif standing.closed >= 0.995:
        said = Markup("{} closed all of it").format(name)
    else:
        said = Markup("{} closed {}").format(name, percent(standing.closed))
    fraction = standing.model.cost.fraction
    if fraction is not None and abs(fraction - 1) < LEVEL:
        said += Markup(" (at the full cost of retraining)")
    elif fraction:
        tokens = standing.model.cost.token_fraction
        more = "" if tokens is None else f" in client-steps, {number(tokens)} in {comparison.suite.headline.token}s"
        said += Markup(" (at {} of the cost of retraining{})").format(number(fraction), more)
    if standing.recognised:
        good = standing.closed is not None and standing.closed >= NEARLY and not standing.passed
        how = "can still be recognised"
        if standing.recognised != "still":
            how = "can be recognised because the model avoids them: over-forgotten"
        membership = comparison.suite.headline.membership
        said += Markup(", {} its rows {} ({} {}, the oracle’s {})").format(
            "but" if good else "and",
            how,
            membership.noun if membership else "",
            number(standing.membership),
            number(comparison.oracle.membership if comparison.oracle else None),
        )
    if standing.collapsed:
        value_now = "has no value any more" if standing.utility is None else number(standing.utility)
        said += Markup(" <strong>but its utility collapsed</strong> ({} {}").format(comparison.utility_name, value_now)
        if comparison.oracle and comparison.oracle.utility is not None:
            said += Markup(", the oracle has {}").format(number(comparison.oracle.utility))
        said += Markup(")")
    return said


def went_past(comparison: Comparison) -> str:
    """Return what a model did that knows less than every oracle."""
    return "went below" if comparison.number.higher_remembers else "went above"


def _spoken(comparison: Comparison) -> tuple[list[tuple[Standing, str]], int]:
    methods = comparison.methods
    ranked = [standing for standing in methods if standing.distance is not None]
    if len(methods) <= SPOKEN or len(ranked) < 2:
        return [(standing, "") for standing in methods[:SPOKEN]], max(0, len(methods) - SPOKEN)
    ranked.sort(key=lambda standing: abs(standing.distance or 0.0))
    sound = [standing for standing in ranked if not standing.collapsed]
    closest, farthest = (sound or ranked)[0], ranked[-1]
    spoken = [(closest, "the closest to the oracle with its utility kept" if sound else "the closest to the oracle")]
    if farthest is not closest:
        spoken.append((farthest, "the farthest"))
    # The sentence itself always says that a utility collapsed, or that a removal overdid it.
    known = {standing.key for standing, _ in spoken}
    grave = [standing for standing in methods if standing.collapsed or standing.recognised == "by avoidance"]
    spoken += [(standing, "") for standing in grave if standing.key not in known]
    return spoken, len(methods) - len(spoken)


def _others(comparison: Comparison, spoken: Sequence[Standing]) -> Markup:
    start = comparison.original.others if comparison.original else None
    moved = [
        Markup("to {} under {}").format(number(standing.others), code(standing.key))
        for standing in spoken
        if standing.others is not None
    ]
    if start is None or not moved:
        return Markup("")
    if len(spoken) == 1:
        moved = [Markup("to {}").format(number(spoken[0].others))]
    said = Markup(", while {} moved from {} {}").format(others_name(comparison.suite), number(start), _series(moved))
    if comparison.oracle and comparison.oracle.others is not None:
        said += Markup(" (the oracle’s is {})").format(number(comparison.oracle.others))
    return said


def committed(request: RequestRecord) -> Markup | None:
    """Say how the request was answered for good; return None if it is still open."""
    if request.committed is None:
        return None
    said = "{} is the run’s model since {}. What held the data of {} was erased: the original model can no longer be "
    said += "evaluated, and its numbers here were measured before. Signed evidence: {}."
    model = request.models.get(request.committed)
    if model is not None and model.guarantee == "none":
        said += " Guarantee: none. What the model had learned of the data was not removed from it, and whoever "
        said += "committed this accepted that."
    return Markup(said).format(
        code(request.committed),
        request.committed_at or "(unknown)",
        request.client,
        code(f"forgets/{request.id}/{request.committed}/evidence.json"),
    )


def answer(comparison: Comparison) -> Markup:
    """Say what came of the request, in two sentences.

    Distance to the oracle is what counts, in knowledge and in membership: a model that went past it is said to have
    gone past it, never to be better; one whose forgotten rows an attack tells apart where it could not on the oracle
    is said to show them still, or to be over-forgotten; and one whose utility collapsed is said to have collapsed.

    Parameters
    ----------
    comparison : Comparison
        The request's models beside its oracle.

    Returns
    -------
    Markup
        HTML in which everything that came from the run is escaped.
    """
    if comparison.request.never:
        text = "{}. No removal was run, because the model never learned from it."
        return Markup(text).format(comparison.request.never)
    spoken, unspoken = _spoken(comparison)
    first = _before(comparison)
    if not spoken:
        return first + Markup(" No removal has been tried yet.")
    gap = comparison.gap
    if gap is None:
        opening = Markup(" Of the removals, ") if len(spoken) > 1 else Markup(" The removal ")
    elif gap < NO_GAP:
        opening = Markup(" That leaves no gap to close by this measure: ")
    elif not comparison.measurable:
        opening = Markup(" The first lies within the 95 % interval of the second, so no share of a gap is given: ")
    else:
        opening = Markup(" Of that gap, ")
    parts = [_moved(standing, comparison, note) for standing, note in spoken]
    said = first + opening + _series(parts) + _others(comparison, [standing for standing, _ in spoken])
    if unspoken:
        said += Markup(" (the table has {} more)").format(in_words(unspoken))
    return said + Markup(".")


def hurt(comparison: Comparison) -> list[Markup]:
    """Name, for each method, the client that stays and lost most against the oracle."""
    oracle, own, suite = comparison.oracle, own_entries(comparison.request), comparison.suite
    if oracle is None:
        return []
    said = []
    for standing in comparison.methods:
        losses = [
            (value - reference, name, value, reference)
            for name in sorted(set(standing.model.clients) - set(own))
            if (value := client_measure(standing.model, name, suite).value) is not None
            and (reference := client_measure(oracle.model, name, suite).value) is not None
        ]
        if not losses:
            continue
        _, name, value, reference = min(losses)
        hurt_clients = sum(1 for loss, *_ in losses if round(loss, 6) < -HURT)
        if not hurt_clients:
            text = Markup("{}: no other client lost more than {} against the oracle.")
            said.append(text.format(code(standing.key), number(HURT)))
            continue
        text = Markup("{}: {} of {} other clients lost more than {}; most {} ({}, the oracle gives {}).")
        said.append(
            text.format(
                code(standing.key),
                hurt_clients,
                len(losses),
                number(HURT),
                name,
                number(value),
                number(reference),
            )
        )
    return said


def noise(comparison: Comparison) -> str:
    """Say how far oracles with other seeds lie apart: a difference must exceed that to mean something."""
    values = [standing.forget.value for standing in comparison.oracles if standing.forget.value is not None]
    if len(values) < 2:
        return ""
    spread = max(values) - min(values)
    return (
        f"{count(len(values))} oracles that differ only in their seed lie {number(max(spread, 0.0))} apart "
        f"in forget {comparison.number.noun}; a distance below that is noise."
        if spread >= LEVEL
        else f"{count(len(values))} oracles that differ only in their seed agree to within {number(LEVEL)}."
    )


def request_title(request: RequestRecord) -> str:
    """Return the heading of a request."""
    if request.samples is None:
        return f"{request.client} asked to be forgotten"
    return f"{request.client} asked that {plural(request.samples, 'sample')} be forgotten"


def shared(comparison: Comparison) -> Markup | None:
    """Say which of the rows to be forgotten others also hold; return None if there are none."""
    request, result = comparison.request, comparison.suite.headline.shared
    if not request.shared:
        return None
    said = "Others also hold {} that {} asked to be forgotten: {}. No removal forgets such rows, and the oracle has "
    said += "learned them as well. They are measured separately{}, and count neither as forgotten nor as kept."
    where = Markup(" ({})").format(code(result)) if result else ""
    ids = list(dict.fromkeys(request.shared))
    names = _series([code(name) for name in ids[:SHARED]] + [Markup(f"{len(ids) - SHARED} more")] * (len(ids) > SHARED))
    rows = f"{len(request.shared)} of {plural(request.rows, 'row')}" if request.rows else plural(len(ids), "row")
    return Markup(said).format(rows, request.client, names, where)


def measured_on(comparison: Comparison) -> str:
    """Say on how many questions the forget numbers rest; return an empty text if it is not known."""
    few, total = _rows(comparison)
    return f"measured on {few}{total}" if _measured_rows(comparison) else total


def request_facts(comparison: Comparison) -> list[str]:
    """Return what is known of a request besides its id."""
    request, facts = comparison.request, [said for said in [measured_on(comparison)] if said]
    if request.never:
        facts.append("never took part in training")
    elif request.t_u is not None:
        asked = f" (asked from round {request.t_u})" if (request.first_update or request.t_u) != request.t_u else ""
        facts.append(f"in training from round {request.first_update or request.t_u}{asked}")
    elif "t_u" in request.model_fields_set:  # null says that it was never selected, and a missing key says nothing
        facts.append("never selected in training")
    return facts
