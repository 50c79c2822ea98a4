"""What Magnum costs, each figure beside its floor or peer in the same run: ``python -m benchmarks [GROUP …] [--seconds N]``.

Groups: GROUPS. Without any, all. Prints a table and writes it, with the machine and its versions, as JSON
below ``.state``; a ratio that is worse than the kept one (``benchmarks/kept.json``) by more than noise is said.
"""

import argparse
import importlib
import sys
import time

from benchmarks import table
from testbed import base

GROUPS = ("containers", "pods", "calls", "scale", "fleet", "followers", "processes", "peer")


def main() -> int:
    text = (__doc__ or "").replace("GROUPS", ", ".join(GROUPS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", choices=[*GROUPS, []], help="what to measure")
    parser.add_argument("--seconds", type=float, default=20, help="about how long each figure is taken (20)")
    parser.add_argument("--keep", action="store_true", help="keep these figures as the ones to be compared with")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/performance.md has it")
    asked = parser.parse_args()
    rows: list[table.Row] = []
    for name in asked.groups or GROUPS:
        group = importlib.import_module(f"benchmarks.{name}")
        with base.lock(base.FOLDER / "lock"):
            for component in group.NEEDS:
                component.install()
                component.up(1)
        began = time.monotonic()
        found = group.measure(asked.seconds)
        base.say(f"{name}: {time.monotonic() - began:.0f} s")
        print(table.show(found), flush=True)
        rows += found
        table.keep(found)
    if len(asked.groups) != 1:
        print("\n" + table.show(rows, markdown=asked.markdown))
    for line in table.worse(rows):
        print(f"worse than the kept ratio: {line}")
    if asked.keep:
        table.keep(rows, table.KEPT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
