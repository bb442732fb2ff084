"""Run the demonstration over five seeds, into one table: ``python -m simulations.seeds --out DIR``.

One run of a federation is one draw: who owns how many rows, in which order they are seen, which rows are held out. So
the table of the README is the mean and the range over the seeds 1 to 5, which were fixed before any of them was run.

The learning rate of `local` is not chosen on them, but before, in a rehearsal with another client and another seed
(`simulations.rehearsal`).

Every run has a directory of its own: ``DIR/rehearsal``, ``DIR/seed-1``, ... Started again, the command keeps finished
runs and goes on with those that were interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from oblivion.config import load_config
from oblivion.data.federation import resolve
from oblivion.files import write_atomically
from oblivion.metrics.engine.suite import Suite
from oblivion.metrics.suites import suite_of
from oblivion.report.comparison import others_mean, others_name
from oblivion.report.reading import read_run
from oblivion.run.records import ModelRecord, RequestRecord
from oblivion.run.scenarios import scenario_path
from simulations.rehearsal import Settings, choose, exit_code, finished, rehearsal_table, rehearse

SEEDS = (1, 2, 3, 4, 5)
REHEARSAL_SEED = 0
REHEARSAL_CLIENT = "client-2"
"""The client that joins late and leaves in the rehearsal, in place of the demonstration's client."""
RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


def run_seed(scenario: Path, seed: int, rate: float, out: Path, settings: Settings) -> RequestRecord:
    """Run the demonstration with a seed and a rate of `local`; if it is done already, only read its result."""
    changes = {"seed": seed, "engine": "inline", "forget.methods.local.learning-rate": rate}
    run = finished(scenario, out, {**settings, **changes})
    (request,) = read_run(run.directory).metrics.requests
    return request


def share(scenario: Path, seed: int, settings: Settings) -> dict[str, int]:
    """Return the rows of the client that leaves, its rank among clients by rows (1 has the most), and their number."""
    config = load_config(scenario, {**settings, "seed": seed})
    rows = {client: len(owned) for client, owned in resolve(config).clients.items()}
    own = rows[config.forget.client]
    return {"rows": own, "rank": 1 + sum(count > own for count in rows.values()), "of": len(rows)}


Measured = Callable[[RequestRecord, ModelRecord], float | None]


def _lines(suite: Suite) -> list[tuple[str, Measured]]:
    """Return what the table says of every model: a label, and where the number stands."""
    return [
        *((label, partial(_central, metric)) for label, metric in suite.brief.items()),
        (others_name(suite).replace("’", "'"), partial(_others, suite)),
        ("cost in client-steps, as a fraction of retraining", lambda _, model: model.cost.fraction),
        ("cost in tokens, as a fraction of retraining", lambda _, model: model.cost.token_fraction),
    ]


def _central(metric: str, request: RequestRecord, model: ModelRecord) -> float | None:
    measure = model.central.get(metric)
    return measure.value if measure else None


def _others(suite: Suite, request: RequestRecord, model: ModelRecord) -> float | None:
    return others_mean(request, model, suite)


def table(requests: Mapping[int, RequestRecord], shares: Mapping[int, Mapping[str, int]], suite: Suite) -> str:
    """Write mean and range over the seeds in Markdown, and how many rows left with each seed.

    Parameters
    ----------
    requests : mapping of int to RequestRecord
        Seed to the one request of its run.
    shares : mapping of int to mapping
        Seed to what `share` says.
    suite : Suite
        With which the runs measure.
    """
    models = list(next(iter(requests.values())).models)
    shown = sorted(models, key=lambda name: (name != "original", name != "oracle"))
    lines = ["| | " + " | ".join(name if name in ("original", "oracle") else f"`{name}`" for name in shown) + " |"]
    lines.append("|---|" + "---|" * len(shown))
    for label, measured in _lines(suite):
        values = {name: [measured(request, request.models[name]) for request in requests.values()] for name in shown}
        lines.append(f"| {label} | " + " | ".join(_range(values[name]) for name in shown) + " |")
    lines += ["", "| seed | rows that leave | rank among the clients by rows |", "|---|---|---|"]
    for seed, own in sorted(shares.items()):
        named = " (the most)" if own["rank"] == 1 else ""
        lines.append(f"| {seed} | {own['rows']} | {own['rank']} of {own['of']}{named} |")
    return "\n".join(lines) + "\n"


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean, least, most = (f"{value:.2f}" for value in (sum(known) / len(known), min(known), max(known)))
    return mean if least == most else f"{mean} ({least} to {most})"


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> int:
    """Run the rehearsal and the five seeds; write ``seeds.json`` and ``seeds.md`` into the directory.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line; by default that of the process.
    settings : mapping, optional
        Changes to the demonstration, by dotted key, for a shorter one.
    """
    parser = argparse.ArgumentParser(prog="python -m simulations.seeds", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="the number of seeds that run at a time, one core each")
    options = parser.parse_args(arguments)
    scenario, changes = scenario_path("demo"), settings or {}
    options.out.mkdir(parents=True, exist_ok=True)
    late = {"seed": REHEARSAL_SEED, "federation.joins": {REHEARSAL_CLIENT: 4}}
    tried = rehearse(
        scenario, options.out / "rehearsal", REHEARSAL_CLIENT, "learning-rate", RATES, settings={**changes, **late}
    )
    rate = choose(tried)
    _say(f"rehearsal: {rate:g} is taken")
    requests = {}
    with ProcessPoolExecutor(options.workers) as pool:
        waiting = {
            seed: pool.submit(run_seed, scenario, seed, rate, options.out / f"seed-{seed}", changes) for seed in SEEDS
        }
        for seed, future in waiting.items():
            try:
                requests[seed] = future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else the error would only appear when all other seeds are done
                raise
            _say(f"seed {seed}: done")
    shares = {seed: share(scenario, seed, changes) for seed in SEEDS}
    found = {
        "rehearsal": {"auc": {f"{rate:g}": area for rate, area in tried.items()}, "taken": rate},
        "seeds": {seed: {**shares[seed], **request.model_dump(mode="json")} for seed, request in requests.items()},
    }
    write_atomically(options.out / "seeds.json", f"{json.dumps(found, indent=2, allow_nan=False)}\n".encode())
    suite = suite_of(load_config(scenario, changes).evaluate)
    text = f"{rehearsal_table('learning rate', tried, suite)}\n{table(requests, shares, suite)}"
    write_atomically(options.out / "seeds.md", text.encode())
    _say(f"table: {options.out / 'seeds.md'}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(exit_code(main))
