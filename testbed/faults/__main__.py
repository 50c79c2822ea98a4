"""``python3 -m testbed.faults``: see the package. Ends with 0 if no run had a violation."""

import argparse
import asyncio
import sys

from testbed import base
from testbed.faults import bench, injector, stand


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m testbed.faults", description="The fault bench.")
    parser.add_argument("verb", nargs="?", choices=["run", "report", "down"], default="run")
    parser.add_argument("--seeds", default="1", help="one number, or first-last (1)")
    parser.add_argument("--operations", type=int, default=1000, help="operations of a run at least (1000)")
    parser.add_argument("--each", type=int, default=2, help="times that a run has each fault (2)")
    parser.add_argument("--faults", default=",".join(injector.KINDS), help="kinds, comma separated")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (8)")
    parser.add_argument(
        "--pause", type=float, default=1.0, help="seconds between a client's operations, on average (1)"
    )
    parser.add_argument("--database", choices=[*stand.DATABASES, "both"], default="postgresql", help="both: in turns")
    asked = parser.parse_args()
    if asked.verb == "down":
        stand.down()
        return 0
    if asked.verb == "report":
        print(bench.report(bench.kept()))
        return 0
    kinds = [kind for kind in asked.faults.split(",") if kind]
    if unknown := set(kinds) - set(injector.KINDS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    first, _, last = asked.seeds.partition("-")
    results = []
    for number, seed in enumerate(range(int(first), int(last or first) + 1)):
        database = asked.database if asked.database != "both" else list(stand.DATABASES)[number % 2]
        stand.up(database)
        options = bench.Options(
            operations=asked.operations, each=asked.each, kinds=kinds, clients=asked.clients, pause=asked.pause,
            database=database,
        )  # fmt: skip
        result = asyncio.run(bench.run(seed, options))
        bench.keep(result)
        results.append(result)
        print(bench.report([result]), flush=True)
    if len(results) > 1:
        print(bench.report(results))
    return 1 if any(result["violations"] for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except base.Failed as error:
        sys.exit(str(error))
