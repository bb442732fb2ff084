"""Write the sentences about a run as a whole: what it is made of, what it learned, and what a page is about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import PurePath

from markupsafe import Markup

from oblivion.report.comparison import own_entries
from oblivion.report.formatting import capital, in_words, number, plural
from oblivion.report.reading import Run
from oblivion.run.records import RunRecord

MADE_OF = (
    ("data.name", "data"),
    ("data.path", "from"),
    ("model.name", "model"),
    ("federation.aggregator", "rule"),
    ("lora.scheme", "scheme"),
    ("seed", "seed"),
)
"""The settings that say what a run is, with the word that is written before each."""
MOST_SETTINGS = 6


def learned(metrics: RunRecord) -> Markup:
    """Say what came of a run without requests, in two sentences."""
    branch, clients = metrics.history[0].branch if metrics.history else "", clients_of(metrics)
    rounds = [entry for entry in metrics.history if entry.branch == branch]
    losses = [entry.loss for entry in rounds if entry.loss is not None]
    if not rounds:
        return Markup("No round has been recorded, and nobody has asked to be forgotten.")
    who = plural(clients, "client") if clients else "The clients"
    said = Markup("{} taught the model for {}").format(who, plural(len(rounds), "round"))
    if len(losses) > 1:
        said += Markup("; the mean loss went from {} to {}").format(number(losses[0]), number(losses[-1]))
    return said + Markup(". Nobody has asked to be forgotten yet.")


def clients_of(metrics: RunRecord) -> int:
    """Return how many clients a run had: those that were measured, and at least as many as took part in one round."""
    clients = max((int(entry.clients or 0) for entry in metrics.history), default=0)
    for request in metrics.requests:
        names = {name for model in request.models.values() for name in model.clients}
        own = set(own_entries(request)) & names
        clients = max(clients, len(names) - max(0, len(own) - 1))
    return max(clients, len(metrics.learned.clients) if metrics.learned else 0)


def opening(metrics: RunRecord, model: str = "a language model") -> str:
    """Say what the page of one run is about, in one sentence; `model` is what the run's suite calls its model."""
    clients, requests = clients_of(metrics), len(metrics.requests)
    who = f"{in_words(clients).capitalize()} clients taught {model}" if clients > 1 else capital(model)
    if not requests:
        return f"{who}." if clients > 1 else ""
    many, it = requests > 1, "them" if requests > 1 else "it"
    asked = f"{in_words(requests)} {'requests' if many else 'request'} to be forgotten followed"
    asked = "one asked to be forgotten" if clients > 1 and not many else asked
    return (
        f"{who}, {asked}: this is what remained of {it} by each method, beside a model that never saw {it}, "
        "for the federation as a whole and for every client."
    )


def opening_of_several(runs: Sequence[tuple[str, Run]]) -> str:
    """Say what a page with several runs is about: each by name, with its clients, rounds and requests."""
    each = []
    for name, run in runs:
        asked = plural(len(run.metrics.requests), "request") if run.metrics.requests else "no request"
        each.append(f"{name} ({plural(clients_of(run.metrics), 'client')}, {_rounds(run)}, {asked})")
    configs = [dict(run.config) for _, run in runs if run.config is not None]
    differ = [key for key in dict.fromkeys(chain(*configs)) if len({config.get(key) for config in configs}) > 1]
    if len(configs) < len(runs):
        said = ""
    elif not differ:
        said = "They have the same settings. "
    else:
        more = f" and {plural(len(differ) - MOST_SETTINGS, 'other')}" if len(differ) > MOST_SETTINGS else ""
        said = f"They differ in {', '.join(differ[:MOST_SETTINGS])}{more}. "
    return (
        f"{in_words(len(runs)).capitalize()} runs beside each other: {'; '.join(each)}. {said}"
        "Every number is beside the oracle of its own run."
    )


def _rounds(run: Run) -> str:
    """Return how many rounds the run learned; after a commit, some of them are on the branch of the removal."""
    history, asked = run.metrics.history, dict(run.config or ()).get("federation.rounds", "")
    if not asked.isdecimal():
        return plural(sum(entry.branch == history[0].branch for entry in history), "round")
    return plural(len({entry.round for entry in history if entry.round <= int(asked)}), "round")


def made_of(run: Run) -> str:
    """Say what a run is made of: clients, rounds, data, model, rule, seed; what its files do not say is left out."""
    settings = dict(run.config or ())
    facts = [plural(clients_of(run.metrics), "client")] if clients_of(run.metrics) else []
    facts += [_rounds(run)] if run.metrics.history else []
    for key, title in MADE_OF:
        if settings.get(key):
            facts.append(f"{title} {PurePath(settings[key]).name if '/' in settings[key] else settings[key]}")
    return ", ".join(facts) + "." if facts else ""
