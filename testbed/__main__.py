"""``python3 -m testbed up|down|status [component…] [--hosts N]``: see ``base`` for what a component is."""

import argparse
import concurrent.futures
import contextlib
import importlib
import os
import pkgutil
import sys
import time
import types

from testbed import base, register

COMPONENTS = sorted(
    {module.name for module in pkgutil.iter_modules([os.path.dirname(__file__)])}
    - {"__main__", "base", "environments", "faults", "images", "kubernetes_build", "register"}
)


def _up(component: types.ModuleType, hosts: int, before: list[concurrent.futures.Future[None]]) -> None:
    concurrent.futures.wait(before)
    started = time.monotonic()
    component.install()
    component.up(hosts)
    base.say(f"{component.__name__.rpartition('.')[2]}: up ({time.monotonic() - started:.1f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m testbed", description=f"The test bed in {base.FOLDER}.")
    parser.add_argument("verb", choices=["up", "down", "status"])
    parser.add_argument(
        "components", nargs="*", metavar="component", help=f"of {', '.join(COMPONENTS)}; all by default"
    )
    parser.add_argument("--hosts", type=int, default=3, help="Docker engines, each a host of its own (3)")
    asked = parser.parse_args()
    if unknown := set(asked.components) - set(COMPONENTS):
        parser.error(f"no such component: {', '.join(sorted(unknown))}")
    names = asked.components or COMPONENTS
    found = {name: importlib.import_module(f"testbed.{name}") for name in names}
    if asked.verb == "status":
        states = {name: component.status() for name, component in found.items()}
        for name, state in states.items():
            print(f"{name}: {state}")
        return 0 if all(state == "up" for state in states.values()) else 3
    failed = False
    with base.lock(base.FOLDER / "lock"), concurrent.futures.ThreadPoolExecutor() as pool:
        if asked.verb == "up":
            register.enter()
            tasks = {}
            # what needs others starts them itself if they are not asked for; it waits for those that are
            for name, component in sorted(found.items(), key=lambda each: hasattr(each[1], "NEEDS")):
                before = [task for task, other in tasks.items() if other in getattr(component, "NEEDS", ())]
                tasks[pool.submit(_up, component, asked.hosts, before)] = name
        else:
            tasks = {pool.submit(component.down): name for name, component in found.items()}
        for task in concurrent.futures.as_completed(tasks):
            try:
                task.result()
            except base.Failed as error:
                failed = True
                base.say(f"{tasks[task]}: {error}")
    if asked.verb == "down" and not failed:
        with contextlib.suppress(OSError):
            (base.FOLDER / "lock").unlink()
            base.FOLDER.rmdir()
        register.leave()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
