"""The rules of services in the namespaces of a bay's workloads on Neutron: each sends to endpoints itself, a door others.

What the rules are is ``networks.services``' business; here is where they go. There is
no host in between, so a pod behind a service sees who asks, and its security
groups count as if it had been asked itself.

Who calls: the services and doors of ``engines.docker``, ``engines.kubernetes.virtual_ips``.
"""

import asyncio
import collections.abc
from typing import Any

import msgspec

from magnum import errors
from magnum.clients import nftables
from magnum.networks import services, wires
from magnum.objects import service

MEMBER = services.Place(member=True)
DOOR = services.Place()
"""A door's rules are an anchor's: whoever is for its address is sent on, and answers come back by it."""
AT_ONCE = 8
"""Namespaces whose rules are changed at the same time."""

Finds = collections.abc.Callable[[wires.Record], nftables.Where | None]


def process(record: wires.Record) -> nftables.Where | None:
    """Return the namespace of a workload by the process that is known of it, None if that has ended."""
    return record.pid if record.alive else None


class Members:
    """``table``: of the deployment. ``where``: finds the namespace of a workload. Calls must not overlap: the caller sees to it."""

    def __init__(self, table: str, wired: wires.Wires, where: Finds = process) -> None:
        self._table = table
        self._wires = wired
        self._where = where

    async def enter(self, where: nftables.Where, items: collections.abc.Iterable[service.Service]) -> None:
        """Give a namespace that is new the rules of all ``items``. Raises EngineError."""
        rules = [services.apply(self._table, MEMBER, None, item) for item in items if item.spec.virtual_ip]
        await nftables.Namespace(where).change("".join(rules))

    async def each(
        self, bay: str | None, what: collections.abc.Callable[[nftables.Namespace], collections.abc.Awaitable[Any]]
    ) -> list[Any]:
        """Return what ``what`` gives for each namespace of ``bay`` (None: of all) here; None for one that ends meanwhile."""
        hands = asyncio.Semaphore(AT_ONCE)

        async def one(record: wires.Record) -> Any:
            async with hands:
                where = self._where(record)
                try:
                    return await what(nftables.Namespace(where)) if where is not None else None
                except errors.EngineError:
                    if self._where(record) is not None:
                        raise
                    return None

        found = [r for r in self._wires.records() if bay in (None, r.bay) and r.kind != "service"]
        return list(await asyncio.gather(*(one(r) for r in found if self._where(r) is not None)))

    async def apply(self, item: service.Service) -> None:
        """Have the rules of ``item`` in every namespace of its bay here. Raises EngineError."""
        if not item.spec.virtual_ip or item.spec.headless:
            return

        async def change(namespace: nftables.Namespace) -> None:
            await put(namespace, self._table, MEMBER, item)
            await cut(namespace, item)

        await self.each(item.bay_uuid, change)

    async def remove(self, uuid: str) -> None:
        """Have no rule of the service ``uuid`` in any namespace here. Raises EngineError."""

        async def leave(namespace: nftables.Namespace) -> None:
            table = await namespace.table(self._table)
            if uuid in services.owners(table):
                addresses = services.addresses(table, uuid)
                await namespace.change(services.remove(self._table, table, uuid))
                await forget(namespace, addresses)

        await self.each(None, leave)

    async def owners(self, bay: str | None) -> list[set[str]]:
        """Return the uuids of the services that each namespace of ``bay`` (None: of all) here has rules of."""
        return await self.each(bay, self._owners)

    async def _owners(self, namespace: nftables.Namespace) -> set[str]:
        return services.owners(await namespace.table(self._table))


async def put(namespace: nftables.Namespace, table: str, place: services.Place, item: service.Service) -> None:
    """Have the rules of ``item`` in ``table`` of a namespace, and leave others' alone. Raises EngineError."""
    await namespace.change(services.apply(table, place, await namespace.table(table), item))


async def lead(where: nftables.Where, table: str, address: str, item: service.Service) -> None:
    """Have a door, whose own address is ``address``, send whoever comes on to the endpoints of ``item``. Raises EngineError."""
    namespace = nftables.Namespace(where)
    await namespace.forward()
    spec = msgspec.structs.replace(item.spec, virtual_ip=address)
    await put(namespace, table, DOOR, msgspec.structs.replace(item, spec=spec))


async def cut(namespace: nftables.Namespace, item: service.Service, relay: str | None = None) -> None:
    """Forget UDP flows to pods that are no endpoints now: without it they would go on while the client sends.

    ``relay``: an address that hands on to endpoints, and is none itself.
    """
    if not any(port.protocol.lower() == "udp" for port in item.spec.ports):
        return
    mine = frozenset(address.partition("/")[0] for address in await namespace.addresses())
    stale = {
        (flow.address, flow.port, flow.answering) for flow in await namespace.flows("udp")
        if flow.answering != relay and services.stale(flow, item, mine)
    }  # fmt: skip
    for address, port, answering in sorted(stale):
        await namespace.forget(address, "udp", port=port, answering=answering)


async def forget(namespace: nftables.Namespace, addresses: list[str]) -> None:
    """Forget every flow to virtual addresses that are nobody's any more."""
    for address in addresses:
        for protocol in ("tcp", "udp"):
            await namespace.forget(address, protocol)
