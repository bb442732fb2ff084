"""Choose a setting of `local` on a client other than the one that is then forgotten.

``python -m simulations.rehearsal SCENARIO --client ID --key learning-rate --values 1e-4 3e-4 1e-3 --out DIR``

To tune a setting until the removal comes close to the oracle is to tune it on its judge; and in practice nobody who
has to forget has an oracle. So another client leaves in a rehearsal, and every value is tried on it. The value is taken
after which an attacker is worst at telling the forgotten rows from held-out ones, that is, whose membership AUC (min-k)
is nearest to 0.5. This needs held-out rows, but no oracle. Started again, the command does not repeat what is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oblivion.config import load_config, parse_assignment
from oblivion.data.federation import resolve
from oblivion.errors import InputError, OblivionError
from oblivion.metrics.engine.suite import Number, Suite
from oblivion.metrics.suites import suite_of
from oblivion.run.directory import RunDirectory
from oblivion.run.records import Measure
from oblivion.run.scenarios import scenario_path
from server.prepare import absolute_paths, prepare
from simulations.simulate import RunResult, resume, simulate

Settings = Mapping[str, Any]


def rehearse(
    scenario: Path,
    out: Path,
    client: str,
    key: str,
    values: Sequence[float],
    samples: str = "",
    settings: Settings | None = None,
) -> dict[float, float]:
    """Let a client leave, with `local` at every value of one setting.

    Parameters
    ----------
    scenario : Path
        A scenario's file.
    out : Path
        The run directory; what it already holds is not run again.
    client : str
        The client that leaves, in place of the scenario's.
    key : str
        A setting of ``forget.methods.local``, such as ``"learning-rate"``.
    values : sequence of float
        The values that are tried for it.
    samples : str, default ""
        Which of the client's samples, as in ``forget.samples``; empty for all.
    settings : mapping, optional
        Changes to the scenario, by dotted key.

    Returns
    -------
    dict of float to float
        Value to the membership AUC that it leaves.

    Raises
    ------
    InputError
        If the data set has no held-out rows, `out` holds a run with other settings, or the suite has no membership
        attack.
    """
    nobody = {"forget.client": "", "forget.samples": "", "forget.methods": [], "evaluate.oracle-seeds": 0}
    changes = {"engine": "inline", **(settings or {}), **nobody}
    if not resolve(absolute_paths(load_config(scenario, changes))).groups.get("holdout"):
        raise InputError(
            f"{scenario}: there are no held-out rows to compare the forgotten ones with (for your own data: "
            "data.parameters.holdout)"
        )
    run = finished(scenario, out, changes)
    attack = _attack(suite_of(run.config.evaluate))
    others = load_config(scenario, settings or {}).forget.methods.get("local", {})
    areas = {}
    for value in values:
        trial = run.forget(client, samples, method="local", parameters={**others, key: value})
        request, _, name = trial.model.partition("/")
        found = run.record.request(request)
        measured = (found.models[name].central.get(attack.metric) if found else None) or Measure()
        if measured.value is None:
            raise InputError(f"{out}: {attack.metric} was not measured: {measured.reason or 'no row could be scored'}")
        areas[value] = float(measured.value)
    return areas


def choose(areas: Mapping[float, float]) -> float:
    """Return the value whose membership AUC is nearest to 0.5; of two that are as near, the smaller one."""
    return min(areas, key=lambda value: (abs(areas[value] - 0.5), value))


def _attack(suite: Suite) -> Number:
    """Return the suite's membership attack."""
    if suite.headline.membership is None:
        raise InputError("evaluate.suite: the suite has no membership attack by which a value could be chosen")
    return suite.headline.membership


def rehearsal_table(name: str, areas: Mapping[float, float], suite: Suite) -> str:
    """Write the membership AUC by value in Markdown, and the value that is taken."""
    attack = _attack(suite)
    column = suite.column(attack.metric)
    title = column.title[:1].lower() + column.title[1:] if column else attack.noun
    lines = [f"| {name} of `local` | {title} in the rehearsal |", "|---|---|"]
    lines += [f"| {value:g} | {area:.3f} |" for value, area in areas.items()]
    return "\n".join([*lines, "", f"Taken: {choose(areas):g}."]) + "\n"


def finished(scenario: Path, out: Path, changes: Settings) -> RunResult:
    """Return the finished run of a scenario with some changes; it is run, resumed, or taken as it is.

    Raises
    ------
    InputError
        If the directory holds a run with other settings.
    """
    config = load_config(scenario, changes)
    if not out.exists():
        return simulate(config, out)
    if RunDirectory.open(out)[1] != prepare(config)[0]:
        raise InputError(f"{out} was run with other settings; choose another --out, or remove it")
    return resume(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the values and print what each leaves, and which one is taken."""
    parser = argparse.ArgumentParser(prog="python -m simulations.rehearsal", description=__doc__)
    parser.add_argument("scenario", help="the name of a scenario, or its file")
    parser.add_argument("--client", required=True, help="the client that leaves in the rehearsal")
    parser.add_argument("--samples", default="", help="which of its samples, as in forget.samples; all by default")
    parser.add_argument("--key", default="learning-rate", help="the setting of local that is chosen")
    parser.add_argument("--values", type=float, nargs="+", required=True, help="the values that are tried for it")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="the run directory")
    options = parser.parse_args(arguments)
    values = [int(value) if value.is_integer() else value for value in options.values]
    settings = dict(parse_assignment(text) for text in options.settings)
    scenario = scenario_path(options.scenario)
    areas = rehearse(scenario, options.out, options.client, options.key, values, options.samples, settings)
    sys.stdout.write(rehearsal_table(options.key, areas, suite_of(load_config(scenario, settings).evaluate)))
    return 0


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; an error that the user can act on becomes one line on standard error, and its exit code."""
    try:
        return command()
    except OblivionError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(exit_code(main))
