"""Chooses hosts: those of a bay as it is made or resized, and the one of a bay's that a workload runs on.

A host fits if it is up, has the engine and the labels asked for, and room for
the memory, cores and ports. Of those that fit, the one with the least on it is
taken. When none fits, the refusal says of each host why.
"""

import collections
import random
from typing import Any

import msgspec

from magnum import errors, objects
from magnum.db import store, tables
from magnum.objects import base, bay, bay_model
from magnum.objects import host as hosts

HOST_LABEL = "host."
"""A bay model's label ``host.<name>=<value>`` asks for hosts with that label."""


def why_not(machine: hosts.Host, engine: str, wanted: dict[str, str]) -> str | None:
    """Return why ``machine`` cannot take anything now, None if it can."""
    if machine.disabled:
        return "is disabled"
    if machine.status != "up":
        return f"is {machine.status}" + (f": {machine.status_reason}" if machine.status_reason else "")
    if engine not in machine.facts.engines:
        return f"has no {engine} engine" + (f": {machine.facts.problem}" if machine.facts.problem else "")
    for name, value in wanted.items():
        if machine.facts.labels.get(name) != value:
            return f"has not the label {name}={value}"
    return None


def refusal(words: str, reasons: dict[str, str]) -> errors.NoHostFits:
    """Return the error that says of each host why it cannot take something."""
    detail = "; ".join(f"{name} {reason}" for name, reason in sorted(reasons.items()))
    return errors.NoHostFits(f"{words}: {detail}" if detail else f"{words}: there is no host", hosts=reasons)


def labels(spec: bay.BaySpec) -> dict[str, str]:
    """Return the labels that a bay's hosts must have."""
    return {k.removeprefix(HOST_LABEL): v for k, v in spec.labels.items() if k.startswith(HOST_LABEL)}


def nodes(spec: bay.BaySpec) -> int:
    """Return how many of our hosts a bay needs: a slice of a cluster needs one that reaches it."""
    return 1 if spec.engine == "kubernetes" else spec.node_count


NO_NETWORKS = "does not work with Neutron"


def networks(machine: hosts.Host, spec: bay.BaySpec) -> bool:
    """Return whether a host can have the network of a bay."""
    return spec.network_driver != bay_model.NEUTRON or bay_model.NEUTRON in machine.facts.networks


async def members(tx: store.Transaction, spec: bay.BaySpec) -> list[str]:
    """Return the hosts of a bay: those that it has, and further ones up to what it needs. Raises NoHostFits."""
    wanted, chosen = nodes(spec), list(spec.members)
    missing = wanted - len(chosen)
    if missing <= 0:
        return chosen
    found, reasons = [], {}
    for machine in await tx.hosts():
        if machine.name in chosen:
            continue
        reason = why_not(machine, spec.engine, labels(spec))
        if reason is None and not networks(machine, spec):
            reason = NO_NETWORKS
        if reason is None:
            found.append(machine.name)
        else:
            reasons[machine.name] = reason
    if len(found) < missing:
        raise refusal(f"{wanted} hosts are asked for and {len(found) + len(chosen)} fit", reasons)
    usage = await tx.placed(found)
    found.sort(key=lambda name: (usage[name].nodes, usage[name].count, random.random()))  # noqa: S311
    return chosen + sorted(found[:missing])


def _lacks(machine: hosts.Host, usage: store.Usage, demand: base.Demand, taken: dict[str, str]) -> str | None:
    """Return what ``machine`` has too little of, None if ``demand`` fits."""
    free = machine.facts.memory - usage.memory
    if demand.memory > free:
        return f"has {max(free, 0) // 2**20} MiB of memory left, {demand.memory // 2**20} MiB are asked for"
    cores = machine.facts.cpus - usage.cpus
    if demand.cpus > cores + 1e-9:
        return f"has {max(cores, 0):g} cores left, {demand.cpus:g} are asked for"
    for protocol, port in demand.ports:
        if f"{protocol}/{port}" in taken:
            return f"has port {port}/{protocol} taken"
    return None


async def place(tx: store.Transaction, kind: base.Kind, item: Any, where: bay.Bay) -> str:
    """Return the host of ``where`` that ``item`` is to run on. Raises NoHostFits.

    In a slice of a cluster that is the one which keeps the bay: the cluster has its own scheduler.
    """
    if where.spec.cluster is not None:
        return where.spec.members[0]
    demand = kind.demand(item.spec)
    names = where.spec.members
    # what is counted must not be counted twice at once
    counted = bool(demand.memory or demand.cpus)
    machines = await tx.hosts_named(names, lock=counted)
    usage = await tx.placed(names)
    taken = await tx.claims([f"port:{name}" for name in names]) if demand.ports else {}
    fits, reasons = [], {}
    for name in names:
        machine = machines.get(name)
        if machine is None:
            reasons[name] = "is not known"
            continue
        reason = why_not(machine, where.spec.engine, {}) or _lacks(
            machine, usage[name], demand, taken.get(f"port:{name}", {})
        )
        if reason is None:
            fits.append(name)
        else:
            reasons[name] = reason
    if not fits:
        raise refusal(f"no host of bay {where.name} fits", reasons)
    return min(fits, key=lambda name: (usage[name].count, usage[name].memory, random.random()))  # noqa: S311


async def resize(tx: store.Transaction, item: bay.Bay, spec: bay.BaySpec) -> bay.BaySpec:
    """Return ``spec`` with the members that its number of nodes needs, of a bay on Docker, whose parts are written.

    Raises NoHostFits, Conflict (none is empty, or what is in it would lose its network).
    """
    kind = objects.KINDS["bay"]
    before = set(item.spec.members)
    wanted = nodes(spec)
    if wanted < len(before):
        busy: collections.Counter[str] = collections.Counter()
        for other in objects.KINDS.values():
            if other.spread == "one":
                table = tables.KINDS[other.name]
                for record in await tx.records(other, table.c.bay_uuid == item.uuid):
                    busy[record.item.host] += 1
        # what the owner named goes first, and first of all
        named = [name for name in spec.leave_first if name in before]
        if taken := [f"{name} ({busy[name]})" for name in named if busy[name]]:
            raise errors.Conflict(f"there is something on {', '.join(taken)}", field="nodes_to_remove")
        empty = named + [n for n in reversed(item.spec.members) if not busy[n] and n not in named]
        going = empty[: len(before) - wanted]
        if len(going) < len(before) - wanted:
            full = ", ".join(f"{name} ({busy[name]})" for name in item.spec.members if busy[name])
            raise errors.Conflict(
                f"{len(before) - wanted} hosts would have to go and only {len(empty)} run nothing of this bay; "
                f"on others there is something: {full}",
                field="node_count",
            )
        left = [name for name in item.spec.members if name not in going]
        spec = msgspec.structs.replace(spec, members=left, leave_first=[])
    else:
        chosen = await members(tx, spec)
        if len(chosen) > 1 and not bay.spans(item.spec):
            await _must_be_empty(tx, item)
        spec = msgspec.structs.replace(spec, members=chosen, leave_first=[])
    spec.overlay = bay.spans(item.spec) or bay.spans(spec)
    after = set(spec.members)
    spread = [(kind, item.uuid)]
    for other in objects.KINDS.values():
        if other.spread == "members" and other.in_bay:
            table = tables.KINDS[other.name]
            for record in await tx.records(other, table.c.bay_uuid == item.uuid, lock="write"):
                spread.append((other, record.item.uuid))
    for other, uuid in spread:
        there = {share.host: share for share in (await tx.shares([uuid], lock=True))[uuid]}
        await tx.place(other, uuid, sorted(after - set(there)))
        for name, share in there.items():
            if share.deleting != (name not in after):
                share.deleting = name not in after
                await tx.save_share(share)
        for name in before | after:
            tx.kicks.setdefault(name, set()).add(uuid)
    return spec


async def _must_be_empty(tx: store.Transaction, item: bay.Bay) -> None:
    """Raise Conflict if anything of ``item`` would lose the network that its only host made for it."""
    there = {}
    for kind in objects.KINDS.values():
        if kind.in_bay and (count := await tx.count(kind, tables.KINDS[kind.name].c.bay_uuid == item.uuid)):
            there[kind.plural] = count
    if there:
        raise errors.Conflict(
            f"bay {item.name} is on one host, and what is in it is on that host's own bridge: "
            + ", ".join(f"{count} {plural}" for plural, count in there.items())
            + "; only an empty bay can grow from one host to several",
            field="node_count",
        )
