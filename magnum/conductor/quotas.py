"""What a project may take in all: counted in the transaction that writes the intent, under the project's lock.

Limits are the configuration's ``[quotas]`` unless an admin gave the project its
own. Called by ``conductor.changes`` for every create, by ``server`` for every update.
"""

from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.db import store
from magnum.objects import base
from magnum.rpc import conductor as rpc

RESOURCES = ("bays", "nodes", "pods", "services", "containers", "memory", "cpus")


def limits(conf: cfg.ConfigOpts, own: dict[str, int]) -> dict[str, int]:
    """Return resource → limit (-1: none)."""
    return {name: own.get(name, getattr(conf.quotas, name)) for name in RESOURCES}


def used(taken: dict[str, store.Usage]) -> dict[str, float]:
    """Return resource → what is taken, of what the project's objects take by kind."""
    found: dict[str, float] = dict.fromkeys(RESOURCES, 0)
    for kind, usage in taken.items():
        plural = f"{kind}s"
        if plural in found:
            found[plural] += usage.count
        found["nodes"] += usage.nodes
        found["memory"] += usage.memory
        found["cpus"] += usage.cpus
    return found


def _asked(kind: base.Kind, spec: Any, old: Any | None) -> dict[str, float]:
    wants = kind.demand(spec)
    has = kind.demand(old) if old is not None else base.Demand()
    asked: dict[str, float] = {
        "nodes": wants.nodes - has.nodes, "memory": wants.memory - has.memory, "cpus": wants.cpus - has.cpus,
    }  # fmt: skip
    if old is None and kind.plural in RESOURCES:
        asked[kind.plural] = 1
    return {name: number for name, number in asked.items() if number > 0}


async def check(
    tx: store.Transaction, conf: cfg.ConfigOpts, project: str, kind: base.Kind, spec: Any, old: Any | None = None
) -> None:
    """Hold the project's count until the commit. Raises QuotaExceeded if ``spec`` (instead of ``old``) is too much.

    What is asked for is to be written in the same transaction: it counts for its next check.
    """
    asked = _asked(kind, spec, old)
    if not asked:
        return
    if (count := tx.counted.get(project)) is None:
        await tx.lock_project(project)
        count = tx.counted[project] = store.Count(limits=await tx.limits(project))
    allowed = limits(conf, count.limits)
    if count.used is None and any(allowed[name] >= 0 for name in asked):
        count.used = used(await tx.taken(project))
    if count.used is None:
        return
    taken = count.used
    for name, number in asked.items():
        if 0 <= allowed[name] < taken[name] + number:
            raise errors.QuotaExceeded(
                f"the project may have {allowed[name]} {name}, uses {taken[name]:g}, and {number:g} more is asked for",
                resource=name, limit=allowed[name], used=taken[name], asked=number,
            )  # fmt: skip
    for name, number in asked.items():
        taken[name] += number


async def show(tx: store.Transaction, conf: cfg.ConfigOpts, project: str) -> rpc.Quota:
    """Return a project's limits and use."""
    own = await tx.limits(project)
    return rpc.Quota(project_id=project, limits=limits(conf, own), used=used(await tx.taken(project)), own=sorted(own))


def check_limits(given: dict[str, int | None]) -> None:
    """Raise Invalid for a resource that has no limit, or a limit that is none."""
    for name, limit in given.items():
        if name not in RESOURCES:
            raise errors.Invalid(f"must be one of {', '.join(RESOURCES)}, not {name!r}", field="resource")
        if limit is not None and limit < -1:
            raise errors.Invalid("must be -1 (no limit) or more", field="hard_limit")
