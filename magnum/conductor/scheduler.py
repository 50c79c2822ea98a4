"""Chooses hosts: those of a bay, and the one of a bay's that a workload runs on.

A host fits if it is up, has the engine and the labels asked for, and room for
the memory, cores and ports. Of those that fit, the one with the least on it is
taken. When none fits, the refusal says of each host why.
"""

import random
from typing import Any

from magnum import errors
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
    machines = {m.name: m for m in await tx.hosts(tables.HOSTS.c.name.in_(names), lock=counted)}
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
