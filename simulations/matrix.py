"""Run rules times LoRA schemes times removals, into one table: ``python -m simulations.matrix MATRIX.toml --out DIR``.

Every cell is a run of its own, ``DIR/<rule>+<scheme>``, and what it came to is written to ``cell.json`` beside it
when it is done. Started again with the same files, the matrix takes finished cells as they are and goes on with one
that was interrupted from the last cohort that it stored.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from oblivion.config import RunConfig, assign, config_from_mapping
from oblivion.errors import ConfigError, InputError, PlanRefusedError
from oblivion.files import write_atomically
from oblivion.metrics.engine.suite import Number
from oblivion.metrics.suites import suite_of
from oblivion.types import Adapter
from oblivion.untrusted import read_json, read_toml
from server.prepare import check, check_names
from simulations.simulate import RunResult, resume, simulate

CELL = "cell.json"


def product_distance(one: Adapter, other: Adapter) -> float:
    """Compute the Frobenius distance of what two adapters add to the base, ``||B A - B' A'||`` over all layers.

    It is computed from the factors, without the dense matrices: with ``L = [B, -B']`` and ``R = [A; A']`` it is
    ``sqrt(tr(L'L R R'))``. Adapters of different ranks can be compared. A distance between the A's or the B's alone
    says nothing, since ``B G`` and ``G^-1 A`` are the same model.

    Parameters
    ----------
    one, other : Adapter
        With the same layers and the same alpha / rank.

    Returns
    -------
    float
        The distance in the unit of ``B A``, before alpha / rank.
    """
    import torch

    total = 0.0
    for name in sorted(name for name in one if ".lora_A." in name):
        pair = name.replace(".lora_A.", ".lora_B.")
        left = torch.cat([one[pair].double(), -other[pair].double()], dim=1)
        right = torch.cat([one[name].double(), other[name].double()], dim=0)
        total += float(torch.sum((left.T @ left) * (right @ right.T)))
    return math.sqrt(max(0.0, total))


def cell_config(matrix: Mapping[str, Any], rule: str, scheme: str) -> RunConfig:
    """Make the scenario of one cell.

    Raises
    ------
    ConfigError
        If a key is unknown or a value is not allowed.
    """
    tree: dict[str, Any] = {}
    for part in (matrix["scenario"], matrix["schemes"][scheme], matrix["rules"][rule]):
        for key, value in _leaves(part):
            assign(tree, key, value, "matrix")
    assign(tree, "federation.aggregator", rule, "matrix")
    assign(tree, "lora.scheme", scheme, "matrix")
    return config_from_mapping(tree, f"matrix, {rule}+{scheme}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return pairs


def run_cell(matrix: Mapping[str, Any], rule: str, scheme: str, out: Path) -> dict[str, Any]:
    """Run one cell, or go on with it, or read what it came to.

    Returns
    -------
    dict
        ``rule``, ``scheme`` and either ``refused`` (why the combination is none) or ``before`` and ``methods``: per
        removal ``refused``, or ``distance`` (to the oracle, of what adapters add to the base, relative to what the
        oracle's adds), ``exact`` (the bits of the oracle), ``guarantee``, ``cost`` (a fraction of retraining),
        ``not_covered`` (items of the checklist), ``forget`` and ``retain`` (mean answer probability less the
        oracle's). ``before`` is the distance of the model that still holds the client.
    """
    root = out / f"{rule}+{scheme}"
    done = root / CELL
    if done.is_file():
        known: dict[str, Any] = read_json(done, "a cell of the matrix: remove it, and it is run again")
        return known
    cell: dict[str, Any] = {"rule": rule, "scheme": scheme}
    try:
        config = cell_config(matrix, rule, scheme)
        check_names(config)
        refused = _refused_methods(config)
    except ConfigError as error:
        return {**cell, "refused": str(error)}
    offered = [method for method in config.forget.methods if method not in refused]
    if not offered:
        return {**cell, "refused": "; ".join(refused.values())}
    forget = config.forget.model_copy(update={"methods": {name: config.forget.methods[name] for name in offered}})
    config = config.model_copy(update={"forget": forget})
    result = resume(root) if root.exists() else simulate(config, root)
    methods: dict[str, Any] = {method: {"refused": why} for method, why in refused.items()}
    methods |= {method: _measure(result, method) for method in offered}
    cell["before"] = _distance(result, result)
    cell["methods"] = {method: methods[method] for method in sorted(methods)}
    write_atomically(done, f"{json.dumps(cell, indent=2)}\n".encode())
    return cell


def _refused_methods(config: RunConfig) -> dict[str, str]:
    refused = {}
    for method, table in config.forget.methods.items():
        try:
            check(config.model_copy(update={"forget": config.forget.model_copy(update={"methods": {method: table}})}))
        except PlanRefusedError as error:
            refused[method] = str(error)
    return refused


def _oracle(result: RunResult) -> RunResult:
    (request,) = result.record.requests
    return RunResult(result.directory, f"{request.id}/oracle")


def _distance(result: RunResult, model: RunResult) -> float:
    oracle = _oracle(result).adapter
    nothing = {name: tensor * 0 for name, tensor in oracle.items()}
    return product_distance(model.adapter, oracle) / product_distance(nothing, oracle)


def _measure(result: RunResult, method: str) -> dict[str, Any]:
    import torch

    (request,) = result.record.requests
    tried, trained = request.models[method], request.models["oracle"]
    headline = suite_of(result.config.evaluate).headline
    model, oracle = RunResult(result.directory, f"{request.id}/{method}"), _oracle(result).adapter
    adapter = model.adapter

    def beside_oracle(number: Number | None) -> float | None:
        if number is None:
            return None
        metric = number.metric
        one, other = tried.central[metric].value, trained.central[metric].value
        if one is None or other is None:
            raise InputError(f"{result.directory}: {metric} of {method} or of its oracle was not measured")
        return one - other

    return {
        "distance": _distance(result, model),
        "exact": list(adapter) == list(oracle) and all(torch.equal(adapter[n], oracle[n]) for n in oracle),
        "guarantee": tried.guarantee,
        "cost": tried.cost.fraction,
        "not_covered": [item.item for item in tried.checklist if item.status == "not covered"],
        "forget": beside_oracle(headline.forget),
        "retain": beside_oracle(headline.kept),
    }


def table(cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """Write the matrix in Markdown: distances to the oracle, costs of the removals, and what is not covered."""
    lines = [
        "| rule | scheme | before | " + " | ".join(f"`{method}`" for method in methods) + " | not covered |",
        "|---|---|---|" + "---|" * (len(methods) + 1),
    ]
    refused: dict[str, list[str]] = {}
    for cell in cells:
        if "refused" in cell:
            refused.setdefault(cell["rule"], []).append(cell["scheme"])
            continue
        texts = [f"{cell['before']:.2f}", *(_text(cell["methods"][method]) for method in methods)]
        open_items = [f"`{m}`: {', '.join(f)}" for m in methods if (f := cell["methods"][m].get("not_covered"))]
        texts.append("; ".join(open_items) or "nothing")
        lines.append(f"| `{cell['rule']}` | `{cell['scheme']}` | " + " | ".join(texts) + " |")
    if refused:
        named = "; ".join(f"`{rule}` with {', '.join(f'`{s}`' for s in names)}" for rule, names in refused.items())
        lines += ["", f"Refused before anything ran: {named}."]
    return "\n".join(lines) + "\n"


def _text(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return "refused"
    distance = "**exact**" if found["exact"] else f"{found['distance']:.2f}"
    return f"{distance} at {found['cost']:.2f}"


def read_matrix(path: Path) -> dict[str, Any]:
    """Read a matrix file.

    Raises
    ------
    InputError
        If it cannot be read, or is not TOML.
    ConfigError
        If one of its three tables is missing.
    """
    matrix = read_toml(path, "a matrix in TOML")
    for name in ("scenario", "rules", "schemes"):
        if not isinstance(matrix.get(name), dict):
            raise ConfigError(f"{path}: the table [{name}] is missing")
    return matrix


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a matrix and write ``matrix.json`` and ``matrix.md`` into its directory."""
    parser = argparse.ArgumentParser(prog="python -m simulations.matrix", description=__doc__)
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="the number of cells that run at a time, one core each")
    options = parser.parse_args(arguments)
    matrix = read_matrix(options.matrix)
    names = [(rule, scheme) for rule in matrix["rules"] for scheme in matrix["schemes"]]
    options.out.mkdir(parents=True, exist_ok=True)
    cells = []
    with ProcessPoolExecutor(options.workers) as pool:
        waiting = [pool.submit(run_cell, matrix, rule, scheme, options.out) for rule, scheme in names]
        for (rule, scheme), future in zip(names, waiting, strict=True):
            try:
                cells.append(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else the error would only appear when all other cells are done
                raise
            sys.stdout.write(f"{rule}+{scheme}: {'refused' if 'refused' in cells[-1] else 'done'}\n")
            sys.stdout.flush()
    methods = matrix["scenario"]["forget"]["methods"]
    write_atomically(options.out / "matrix.json", f"{json.dumps(cells, indent=2)}\n".encode())
    write_atomically(options.out / "matrix.md", table(cells, methods).encode())
    sys.stdout.write(f"table: {options.out / 'matrix.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
