"""Bays on clusters: which host keeps one, and that another does when that host is lost.

A bay that is a slice of a cluster is kept by one backend at a time. When that is down,
or no longer reaches the cluster, any other that does can go on with it, since nothing
of it is on the machine itself; the one that lost it is told so by every answer to its
reports.

Called by ``conductor.changes``, ``choose`` when a bay is made, and by ``rounds``, ``sweep`` each second.
"""

from typing import Any

import structlog

from magnum import context as contexts
from magnum import errors, objects
from magnum.conductor import scheduler
from magnum.db import store, tables
from magnum.objects import base, bay
from magnum.objects import host as hosts

LOG = structlog.get_logger(__name__)

LABEL = "cluster"
"""A bay's label that names the cluster which it is to be a slice of."""


def _has(machine: hosts.Host, spec: bay.BaySpec) -> bool:
    return machine.status == "up" and not machine.disabled and _serves(machine, spec)


def _serves(machine: hosts.Host, spec: bay.BaySpec) -> bool:
    return spec.cluster in machine.facts.clusters and scheduler.networks(machine, spec)


def _keeps(machine: hosts.Host | None, spec: bay.BaySpec) -> bool:
    """Return whether a host goes on with what it keeps in a cluster: one that is disabled does."""
    return machine is not None and machine.status != "down" and _serves(machine, spec)


def _counts(records: list[store.Record]) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many of the bays each cluster and each host has."""
    clusters: dict[str, int] = {}
    kept: dict[str, int] = {}
    for record in records:
        spec = record.item.spec
        if spec.cluster is not None:
            clusters[spec.cluster] = clusters.get(spec.cluster, 0) + 1
            for name in spec.members:
                kept[name] = kept.get(name, 0) + 1
    return clusters, kept


async def choose(tx: store.Transaction, spec: bay.BaySpec) -> tuple[str, list[str]]:
    """Return the cluster of a new bay and the host that keeps it. Raises NoHostFits, which says of each host why."""
    machines = await tx.hosts()
    bays, kept = _counts(await tx.records(objects.KINDS["bay"]))
    wanted = spec.labels.get(LABEL)
    reasons: dict[str, str] = {}
    fits: list[tuple[int, int, str, str]] = []
    for machine in machines:
        reason = scheduler.why_not(machine, "kubernetes", scheduler.labels(spec))
        if reason is None and not scheduler.networks(machine, spec):
            reason = scheduler.NO_NETWORKS
        if reason is None and wanted is not None and wanted not in machine.facts.clusters:
            reason = f"has no cluster {wanted!r} that answers"
        if reason is None:
            sizes = {n: c.nodes for n, c in machine.facts.clusters.items() if wanted in (None, n)}
            enough = [name for name, nodes in sizes.items() if nodes >= spec.node_count]
            fits += [(bays.get(name, 0), kept.get(machine.name, 0), name, machine.name) for name in enough]
            if not enough:
                shown = ", ".join(f"{name} {nodes}" for name, nodes in sorted(sizes.items())) or "none"
                reason = f"has no cluster with {spec.node_count} nodes that are ready ({shown})"
        if reason is not None:
            reasons[machine.name] = reason
    if not fits:
        raise scheduler.refusal("no cluster fits", reasons)
    _, _, cluster, name = min(fits)
    return cluster, [name]


async def resize(tx: store.Transaction, item: bay.Bay, spec: bay.BaySpec) -> None:
    """Raise NoHostFits unless the bay's cluster has as many nodes as ``spec`` asks for."""
    for machine in (await tx.hosts_named(item.spec.members)).values():
        found = machine.facts.clusters.get(item.spec.cluster or "")
        if found is not None and found.nodes < spec.node_count:
            raise errors.NoHostFits(
                f"cluster {item.spec.cluster} has {found.nodes} nodes that are ready, {spec.node_count} are asked for",
                field="node_count",
            )


async def sweep(db: store.Store) -> None:
    """Give the bays of hosts that are lost to others that have their clusters. Raises Unavailable, Conflict."""
    context = contexts.service()

    async def look(tx: store.Transaction) -> list[tuple[str, str]]:
        machines = {machine.name: machine for machine in await tx.hosts()}
        everything = {name for machine in machines.values() for name in machine.facts.clusters}
        drivers = {name for machine in machines.values() for name in machine.facts.networks}
        if not everything or all(
            m.status != "down" and everything <= set(m.facts.clusters) and drivers <= set(m.facts.networks)
            for m in machines.values()
        ):
            return []
        records = await tx.records(objects.KINDS["bay"])
        _, kept = _counts(records)
        found = []
        for record in records:
            spec = record.item.spec
            if spec.cluster is None or any(_keeps(machines.get(name), spec) for name in spec.members):
                continue
            others = [name for name, machine in machines.items() if _has(machine, spec)]
            if others:
                name = min(others, key=lambda each: (kept.get(each, 0), each))
                kept[name] = kept.get(name, 0) + 1
                found.append((record.item.uuid, name))
        return found

    for uuid, name in await db.read(context, look):

        async def work(tx: store.Transaction, uuid: str = uuid, name: str = name) -> None:
            await _move(tx, uuid, name)

        await db.write(context, work)


async def _move(tx: store.Transaction, uuid: str, name: str) -> None:
    """Have host ``name`` keep the bay ``uuid`` with everything in it."""
    kind = objects.KINDS["bay"]
    record = await tx.by_uuid(kind, uuid, lock="write")
    if record is None or record.item.spec.members == [name]:
        return
    item = record.item
    before = ", ".join(item.spec.members)
    item.spec.members = [name]
    await _share(tx, kind, item.uuid, name)
    await tx.save(kind, record)
    reason = f"host {before} does not reach cluster {item.spec.cluster}: {name} keeps it now"
    tx.note(kind, item, "observed", was=item.status, reason=reason)
    for other in objects.KINDS.values():
        if not other.in_bay:
            continue
        for inner in await tx.records(other, tables.KINDS[other.name].c.bay_uuid == uuid, lock="write"):
            if other.spread == "members":
                await _share(tx, other, inner.item.uuid, name)
            elif inner.item.host is not None:
                inner.item.host, inner.seq, inner.lost = name, 0, False
                await tx.save(other, inner)
            tx.kicks.setdefault(name, set()).add(inner.item.uuid)
    tx.kicks.setdefault(name, set()).add(uuid)
    LOG.info("a bay has another keeper", bay=uuid, host=name, before=before)


async def _share(tx: store.Transaction, kind: base.Kind, uuid: str, name: str) -> None:
    shares: list[Any] = (await tx.shares([uuid], lock=True))[uuid]
    for share in shares:
        if share.host != name:
            await tx.drop_share(share)
    if all(share.host != name for share in shares):
        await tx.place(kind, uuid, [name])
