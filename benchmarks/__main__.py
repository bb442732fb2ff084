"""Run a benchmark: ``python -m benchmarks ledger [--json]``."""

from __future__ import annotations

import importlib
import json
import sys

NAMES = ("aggregation", "evaluation", "gpu", "ledger", "overhead", "rounds", "scaling")


def main() -> int:
    """Print a line for each case; return 1 if a bound is not kept."""
    names = [argument for argument in sys.argv[1:] if argument != "--json"]
    if not names or set(names) - set(NAMES):
        sys.stderr.write(f"usage: python -m benchmarks {'|'.join(NAMES)} [--json]\n")
        return 2
    kept = True
    for name in names:
        for result in importlib.import_module(f"benchmarks.{name}").run():
            kept = kept and result.kept
            if "--json" in sys.argv:
                print(json.dumps(result.to_json()), flush=True)
                continue
            bound = f", at most {result.bound_s:g} s" if result.bound_s is not None else ""
            other = f"; {result.other}: {result.other_s:.4f} s, {result.ratio:.2f}x" if result.ratio is not None else ""
            bound += f" (at least {result.bound_ratio:g}x)" if result.bound_ratio is not None else ""
            print(f"{result.case}: {result.ours_s:.4f} s{bound}{other}", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
