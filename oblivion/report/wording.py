"""The answer in two sentences, made from the numbers alone, and the sentences under the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from oblivion.report.comparison import LEVEL, NO_GAP, Comparison, Standing, client_probability, own_entries
from oblivion.report.formatting import count, in_words, number, percent, plural
from oblivion.report.reading import Metrics, RequestRecord

SPOKEN = 3
"""With more methods than this the answer names the closest and the farthest; the table has all of them."""
HURT = 0.01
"""A client whose probability fell by more than this against the oracle is named."""


def code(name: str) -> Markup:
    """A name as it is typed, escaped."""
    return Markup("<code>{}</code>").format(name)


def _series(parts: Sequence[Markup]) -> Markup:
    if len(parts) < 2:
        return parts[0] if parts else Markup("")
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


def _questions(request: RequestRecord, spoken_to: str) -> Markup:
    rows = request.rows or 0
    if request.samples is not None:
        part = f"the {plural(request.samples, 'sample')} that {request.client} withdrew"
        return Markup("{}").format(f"{part} ({plural(rows, 'question')})" if rows else part)
    return Markup("{}’s {}").format(spoken_to, plural(rows, "question") if rows else "questions")


def _before(comparison: Comparison) -> Markup:
    request = comparison.request
    about = _questions(request, request.client)
    original = comparison.original.forget.value if comparison.original else None
    oracle = comparison.oracle.forget.value if comparison.oracle else None
    if original is None:
        return Markup("How well the model answered {} before the request was not measured.").format(about)
    first = Markup("Before the request, the model answered {} with probability {}").format(about, number(original))
    if oracle is None:
        return first + Markup("; without an oracle, nothing here says how much of that is memory of the data.")
    return first + Markup("; a model that never saw them gives {}.").format(number(oracle))


def _moved(standing: Standing, comparison: Comparison, note: str = "") -> Markup:
    name, value = code(standing.key), standing.forget.value
    if note:
        name += Markup(", {},").format(note)
    if value is None:
        return Markup("{} was not measured").format(name)
    if standing.closed is None:
        said = Markup("{} ended at {}").format(name, number(value))
    elif standing.below:
        said = Markup("{} went below the oracle, to {}").format(name, number(value))
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
        more = "" if tokens is None else f" in client-steps, {number(tokens)} in tokens"
        said += Markup(" (at {} of the cost of retraining{})").format(number(fraction), more)
    if standing.collapsed:
        said += Markup(" <strong>but its utility collapsed</strong> ({} {}").format(
            comparison.utility_name, number(standing.utility)
        )
        if comparison.oracle and comparison.oracle.utility is not None:
            said += Markup(", the oracle has {}").format(number(comparison.oracle.utility))
        said += Markup(")")
    return said


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
    # A collapse is never left to the table.
    known = {standing.key for standing, _ in spoken}
    spoken += [(standing, "") for standing in methods if standing.collapsed and standing.key not in known]
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
    said = Markup(", while the other clients’ probability moved from {} {}").format(number(start), _series(moved))
    if comparison.oracle and comparison.oracle.others is not None:
        said += Markup(" (the oracle’s is {})").format(number(comparison.oracle.others))
    return said


def committed(request: RequestRecord) -> Markup | None:
    """What was done about the request for good; None where it is still open."""
    if request.committed is None:
        return None
    said = "{} is the run’s model since {}. What held the data of {} was erased: the original model can no longer be "
    said += "evaluated, and its numbers here were measured before. Signed evidence: {}."
    return Markup(said).format(
        code(request.committed),
        request.committed_at or "(unknown)",
        request.client,
        code(f"forgets/{request.id}/{request.committed}/evidence.json"),
    )


def answer(comparison: Comparison) -> Markup:
    """What the request came to, in two sentences.

    Distance to the oracle is what counts: a model that went below it is said to have gone below it, never to
    be better, and a removal whose utility collapsed is said to have collapsed.

    Parameters
    ----------
    comparison : Comparison
        The request's models beside its oracle.

    Returns
    -------
    Markup
        HTML in which everything that came from the run is escaped.
    """
    spoken, unspoken = _spoken(comparison)
    first = _before(comparison)
    if not spoken:
        return first + Markup(" No removal has been tried yet.")
    gap = comparison.gap
    if gap is None:
        opening = Markup(" Of the removals, ") if len(spoken) > 1 else Markup(" The removal ")
    elif gap < NO_GAP:
        opening = Markup(" That leaves no gap to close by this measure: ")
    else:
        opening = Markup(" Of that gap, ")
    parts = [_moved(standing, comparison, note) for standing, note in spoken]
    said = first + opening + _series(parts) + _others(comparison, [standing for standing, _ in spoken])
    if unspoken:
        said += Markup(" (the table has {} more)").format(in_words(unspoken))
    return said + Markup(".")


def learned(metrics: Metrics) -> Markup:
    """What a run without requests came to, in two sentences."""
    branch = metrics.history[0].branch if metrics.history else ""
    rounds = [entry for entry in metrics.history if entry.branch == branch]
    losses = [entry.loss for entry in rounds if entry.loss is not None]
    clients = max((int(entry.clients) for entry in rounds if entry.clients is not None), default=0)
    if not rounds:
        return Markup("No round has been recorded, and nobody has asked to be forgotten.")
    who = plural(clients, "client") if clients else "The clients"
    said = Markup("{} taught the model for {}").format(who, plural(len(rounds), "round"))
    if len(losses) > 1:
        said += Markup("; the mean loss went from {} to {}").format(number(losses[0]), number(losses[-1]))
    return said + Markup(". Nobody has asked to be forgotten yet.")


def hurt(comparison: Comparison) -> list[Markup]:
    """Per method, the client that stays and lost most against the oracle."""
    oracle, own = comparison.oracle, own_entries(comparison.request)
    if oracle is None:
        return []
    said = []
    for standing in comparison.methods:
        losses = [
            (value - reference, name, value, reference)
            for name in sorted(set(standing.model.clients) - set(own))
            if (value := client_probability(standing.model, name)) is not None
            and (reference := client_probability(oracle.model, name)) is not None
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
    """How far oracles with other seeds lie apart: what a difference must exceed to mean something."""
    values = [standing.forget.value for standing in comparison.oracles if standing.forget.value is not None]
    if len(values) < 2:
        return ""
    spread = max(values) - min(values)
    return (
        f"{count(len(values))} oracles that differ only in their seed lie {number(max(spread, 0.0))} apart "
        f"in forget probability; a distance below that is noise."
        if spread >= LEVEL
        else f"{count(len(values))} oracles that differ only in their seed agree to within {number(LEVEL)}."
    )


def opening(metrics: Sequence[Metrics]) -> str:
    """What the page is about, in one sentence, for the requests that are there."""
    clients = 0
    for one in metrics:
        for entry in one.history:
            clients = max(clients, int(entry.clients or 0))
        for request in one.requests:
            names = {name for model in request.models.values() for name in model.clients}
            own = set(own_entries(request)) & names
            clients = max(clients, len(names) - max(0, len(own) - 1))
    requests = max((len(one.requests) for one in metrics), default=0)
    who = f"{in_words(clients).capitalize()} clients taught a language model" if clients > 1 else "A language model"
    if not requests:
        return f"{who}." if clients > 1 else ""
    many = requests > 1
    asked = f"{in_words(requests)} {'requests' if many else 'request'} to be forgotten followed"
    asked = "one asked to be forgotten" if clients > 1 and not many else asked
    it = "them" if many else "it"
    return (
        f"{who}, {asked}: this is what remained of {it} by each method, beside a model that never saw {it}, "
        "for the federation as a whole and for every client."
    )


def request_title(request: RequestRecord) -> str:
    """The heading of a request."""
    if request.samples is None:
        return f"{request.client} asked to be forgotten"
    return f"{request.client} asked that {plural(request.samples, 'sample')} be forgotten"


def request_facts(request: RequestRecord) -> list[str]:
    """What is known of a request besides its id."""
    facts = []
    if request.rows:
        facts.append(f"measured on {plural(request.rows, 'question')}")
    if request.t_u is not None:
        facts.append(f"in training from round {request.t_u}")
    elif "t_u" in request.model_fields_set:
        # Written as null; a file that does not say leaves it open.
        facts.append("never selected in training")
    return facts
