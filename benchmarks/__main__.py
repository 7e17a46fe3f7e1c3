"""Run the benchmarks and print one JSON line each; the exit code says whether all limits hold."""

from __future__ import annotations

import importlib
import json
import sys

from discernment.cli.console import prepare_process

NAMES = (
    "precision", "stage1_step", "unlike_lengths", "held_layers", "rejection", "evaluation", "harness", "kernel", "growth",
    "duplicates", "startup", "side_by_side",
)  # fmt: skip
AT_LEAST = {"precision", "held_layers", "evaluation", "harness", "kernel", "side_by_side"}


def main() -> int:
    """Run what the command line names, or everything."""
    prepare_process()
    wanted, held = sys.argv[1:] or NAMES, True
    if unknown := set(wanted) - set(NAMES):
        print(
            f"There is no benchmark {', '.join(sorted(unknown))}; take some of {', '.join(NAMES)}.",
            file=sys.stderr,
        )
        return 2
    for name in wanted:
        found = importlib.import_module(f"benchmarks.{name}").measure()
        for part in (found, *(value for value in found.values() if isinstance(value, dict))):
            if "limit" in part:
                part["holds"] = (
                    part["ratio"] >= part["limit"] if name in AT_LEAST else part["ratio"] <= part["limit"]
                )
                held = held and bool(part["holds"])
        print(json.dumps({"benchmark": name, **found}), flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
