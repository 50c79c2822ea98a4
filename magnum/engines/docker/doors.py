"""The doors of services that are reached from outside a bay on Neutron: a floating IP, and what it leads to.

A door is a port of the service on the bay's network, in a sandbox on one of the
bay's hosts (the conductor says which, and another when that is lost). Who comes
by the floating IP is let in by the service's own security group, as its owner's
source ranges say, and is sent on to a ready pod by rules in the sandbox's
namespace; pods see the door, which their bay's group lets in, so nothing else of
theirs opens.

Who calls: ``engines.docker.service``.
"""

import contextlib
from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.clients import docker
from magnum.engines import base
from magnum.engines.docker import wiring
from magnum.networks import members, neutron
from magnum.objects import service as service_objects


class Doors:
    """``table``: the name of the packet tables of this deployment."""

    def __init__(self, client: docker.Client, conf: cfg.ConfigOpts, wired: wiring.Wiring, table: str) -> None:
        self._client = client
        self._conf = conf
        self._wired = wired
        self._wires = wired.wires
        self._table = table

    def wanted(self, item: service_objects.Service) -> bool:
        """Return whether the door of ``item`` is to be on this host."""
        return item.spec.external and item.spec.door == self._conf.host

    def stands(self, item: service_objects.Service) -> bool:
        """Return whether what this host is to have of the door of ``item``, or not to have, is so."""
        record = self._wires.record(item.uuid)
        if not self.wanted(item):
            return record is None
        return record is not None and self._wired.attached(item.uuid) and record.published is not None

    def state(self, item: service_objects.Service) -> dict[str, Any]:
        """Return what the service's state shows of its door here."""
        record = self._wires.record(item.uuid)
        found = record.published if record is not None else None
        return {"external_ip": found.address} if found is not None and self.wanted(item) else {}

    async def open(self, item: service_objects.Service, facts: neutron.Facts, progress: base.Progress) -> None:
        """Have the door of ``item``. Raises neutron.Waits, QuotaExceeded, EngineError."""
        record = self._wires.record(item.uuid)
        wish = neutron.publication(item)
        published = record.published if record is not None else None
        group = published.group if published is not None and published.wish == wish else None
        if group is None:
            group = await self._wires.publish(facts, item)
        sandbox = await self._wired.hold(item, "service", facts.nameservers, progress)
        record = await self._wires.ports(item, "service", facts, [], [facts.group, group])
        await self._wires.plug(record, sandbox.state.pid, wiring.tag(sandbox), self._conf.docker.service_cidr)
        await members.lead(sandbox.state.pid, self._table, record.wires[0].addresses[0], item)
        await self._wires.open(facts, item, record, wish, group)

    async def close(self, item: service_objects.Service) -> None:
        """Have no door of ``item`` here: the port is another host's now, or goes with all that opened it. As ``remove``."""
        if self._wires.record(item.uuid) is None:
            return
        await (self._leave(item.uuid) if item.spec.external else self._drop(item.uuid))

    async def remove(self, uuid: str, item: service_objects.Service | None) -> None:
        """Remove the door of a service that is deleted, wherever it is, or what this host has of another's.

        ``item`` None: this host has left the bay, or was away when the service went. Raises neutron.Waits, EngineError.
        """
        here = self._wires.record(uuid) is not None
        if item is not None and item.deleting:
            if here or item.spec.external:
                await self._drop(uuid)
        elif here:
            await self._leave(uuid)

    async def _leave(self, uuid: str) -> None:
        await self._wires.leave(uuid)
        await self._end(uuid)

    async def _drop(self, uuid: str) -> None:
        await self._end(uuid)
        await self._wires.remove(uuid)
        await self._wires.unpublish(uuid)

    async def _end(self, uuid: str) -> None:
        marks = [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{base.UUID}={uuid}"]
        for row in await self._client.containers(marks):
            with contextlib.suppress(errors.NotFound):
                await self._client.remove(row.id)
