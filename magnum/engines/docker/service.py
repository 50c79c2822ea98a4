"""Services of Docker bays: kernel rules on every member host, kept as the conductor has the endpoints.

On a bay of one host the rules stand in the engine's own network namespace, where
the bay's bridge is routed; on one of several, in that of the bay's anchor
(``networks.overlay``), and the engine's namespace only hands on what the host
itself and node ports send. What the rules are is ``networks.services``' business.

Who calls: the Docker engine, which has this as its driver of services.
"""

import asyncio
import contextlib
import ipaddress
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker, nftables
from magnum.engines import base
from magnum.engines.docker import doors, wiring
from magnum.networks import members, names, neutron, overlay, services
from magnum.objects import base as objects
from magnum.objects import service as service_objects

LOG = structlog.get_logger(__name__)


class _Site(msgspec.Struct):
    """Where one bay's services are on this host. ``anchor`` and what follows is of an overlay bay alone."""

    place: services.Place
    network: str
    bridge: str | None = None
    anchor: nftables.Namespace | None = None
    anchor_place: services.Place | None = None
    interface: str = ""


class Service(base.Driver):
    """``hosts``: the bays' hosts files of this machine. ``wired``: the workloads of bays on Neutron."""

    def __init__(self, client: docker.Client, conf: cfg.ConfigOpts, hosts: names.Names, wired: wiring.Wiring) -> None:
        self._wires = wired.wires
        wired.entered = self.enter
        self._of_bay: dict[str, dict[str, service_objects.Service]] = {}
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self._table = f"magnum-{conf.deployment}"
        self._members = members.Members(self._table, self._wires)
        self._doors = doors.Doors(client, conf, wired, self._table)
        # a change is read, made and written; those of a host are few and take milliseconds
        self._lock = asyncio.Lock()

    async def apply(self, item: Any, progress: base.Progress) -> base.Outcome:
        try:
            async with self._lock:
                await self._apply(item)
            facts = self._wires.bay(item.bay_uuid)
            if facts is not None:
                wanted = self._doors.wanted(item)
                await (self._doors.open(item, facts, progress) if wanted else self._doors.close(item))
        except errors.Unavailable:
            raise
        except neutron.Waits as error:
            # its rules stand all the same
            status = item.status if item.status in ("Creating", "Updating") else "Active"
            return base.Outcome(
                status=status, reason=f"waits: {error.detail}", state=self._shown(item), pending=True, retry_after=2.0
            )
        except errors.MagnumError as error:
            return base.Outcome(status="Error", reason=str(error), state=self._shown(item), retry_after=2.0)
        return base.Outcome(status="Active", state=self._shown(item))

    def _shown(self, item: service_objects.Service) -> dict[str, Any]:
        return _state(item) | self._doors.state(item)

    async def observe(self, item: Any) -> base.Outcome:
        try:
            async with self._lock:
                standing = await self._stands(item)
            if self._wires.bay(item.bay_uuid) is not None:
                standing = standing and self._doors.stands(item)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            return base.Outcome(status="Error", reason=str(error), state=self._shown(item), retry_after=2.0)
        if not standing:
            return base.Outcome(status="Error", reason="its rules are gone", state=self._shown(item), retry_after=0.0)
        return base.Outcome(status="Active", state=self._shown(item))

    async def remove(self, uuid: str, item: Any | None) -> base.Outcome:
        try:
            async with self._lock:
                await self._remove(uuid)
            await self._doors.remove(uuid, item)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            return base.Outcome(status="Deleting", reason=str(error), retry_after=1.0)
        return base.Outcome(gone=True)

    async def seen(self) -> list[base.Seen]:
        """Return every service that has rules on this host."""
        if self._socket() is None:
            return []
        async with self._lock:
            found = services.owners(await self._engine().table(self._table))
            for held in await self._members.owners(None):
                found |= held or set()
        return [base.Seen(kind="service", uuid=uuid) for uuid in sorted(found) if objects.is_uuid(uuid)]

    def _socket(self) -> str | None:
        scheme, _, path = self._client.url.partition("://")
        return path if scheme == "unix" else None

    def _engine(self) -> nftables.Namespace:
        path = self._socket()
        if path is None:
            raise errors.NotSupported("services need the Docker Engine on the backend's own machine (a unix:// URL)")
        return nftables.Namespace(nftables.engine_process(path))

    async def _site(self, item: service_objects.Service, engine: nftables.Namespace) -> _Site:
        bay = item.bay_uuid or ""
        labels = [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{base.BAY}={bay}"]
        anchors = [
            row for row in await self._client.containers([*labels, f"{overlay.ROLE}={overlay.ANCHOR}"])
            if row.state == "running"
        ]  # fmt: skip
        if anchors:
            return await self._overlay(item, anchors[0].id)
        for network in await self._client.networks(labels):
            if network.driver != "bridge":
                continue
            raw = await self._client.request("GET", f"/networks/{network.id}", into=dict[str, Any])
            bridge = (raw.get("Options") or {}).get("com.docker.network.bridge.name") or f"br-{network.id[:12]}"
            strangers = tuple(dict.fromkeys([self._conf.docker.bay_cidr, self._conf.docker.service_cidr]))
            return _Site(place=services.Place(bridge=bridge, strangers=strangers), network=network.id, bridge=bridge)
        raise errors.EngineError("the bay's network is not on this host")

    async def _overlay(self, item: service_objects.Service, ident: str) -> _Site:
        found = await self._client.inspect(ident)
        own = overlay.addresses_of(found)
        anchor = nftables.Namespace(found.state.pid)
        inner, outer, interface = "", "", ""
        for address, name in (await anchor.addresses()).items():
            if address.partition("/")[0] in own:
                inner, interface = address, name
            elif name != "lo" and not address.endswith("/32"):
                outer = address
        gateway = await anchor.gateway()
        if not inner or not outer or gateway is None:
            raise errors.EngineError("the bay's anchor is not on its network")
        subnet = ipaddress.ip_interface(inner).network
        if item.spec.virtual_ip and ipaddress.ip_address(item.spec.virtual_ip) not in subnet:
            raise errors.EngineError(f"virtual address {item.spec.virtual_ip} is not of the bay's network {subnet}")
        outside = str(ipaddress.ip_interface(outer).network)
        strangers = tuple(dict.fromkeys([self._conf.docker.bay_cidr, self._conf.docker.service_cidr, outside]))
        return _Site(
            place=services.Place(relay=outer.partition("/")[0], strangers=strangers),
            network="",
            anchor=anchor,
            anchor_place=services.Place(strangers=(outside,), admitted=gateway),
            interface=interface,
        )

    # bays on Neutron: each workload sends to endpoints itself, by rules in its own namespace

    async def enter(self, bay: str, pid: int) -> None:
        """Give a namespace that has joined ``bay`` the rules of all its services, before anything runs there."""
        async with self._lock:
            await self._members.enter(pid, self._of_bay.get(bay, {}).values())

    async def _apply(self, item: service_objects.Service) -> None:
        spec = item.spec
        if self._wires.bay(item.bay_uuid) is not None:
            self._of_bay.setdefault(item.bay_uuid or "", {})[item.uuid] = item
            await self._members.apply(item)
            await self._hosts.write(item.bay_uuid or "", item.uuid, item)
            return
        if spec.headless or not spec.virtual_ip:
            await self._hosts.write(item.bay_uuid or "", item.uuid, item)
            return
        engine = self._engine()
        site = await self._site(item, engine)
        if site.anchor is not None and site.anchor_place is not None:
            await site.anchor.forward()
            await members.put(site.anchor, self._table, site.anchor_place, item)
            await site.anchor.add_address(spec.virtual_ip, site.interface)
            await engine.route(spec.virtual_ip, via=site.place.relay or "")
        await members.put(engine, self._table, site.place, item)
        if site.bridge is not None:
            await engine.hairpin(site.bridge)
        await self._admit(engine, site.place, item)
        await members.cut(engine, item, site.place.relay)
        if site.anchor is not None:
            await members.cut(site.anchor, item)
        await self._hosts.write(item.bay_uuid or "", item.uuid, item)

    async def _admit(self, engine: nftables.Namespace, place: services.Place, item: service_objects.Service) -> None:
        have = await engine.admissions(services.comment(self._conf.deployment, item.uuid))
        want = services.admissions(place, self._conf.deployment, item)
        for rule in want:
            if rule not in have:
                await engine.admit(rule)
        for rule in have:
            if rule not in want:
                await engine.dismiss(rule)

    async def _stands(self, item: service_objects.Service) -> bool:
        if item.spec.headless or not item.spec.virtual_ip:
            return True
        if self._wires.bay(item.bay_uuid) is not None:
            owned = await self._members.owners(item.bay_uuid)
            return item.uuid in self._of_bay.get(item.bay_uuid or "", {}) and all(
                found is None or item.uuid in found for found in owned
            )
        engine = self._engine()
        site = await self._site(item, engine)
        held = item.uuid in services.owners(await engine.table(self._table))
        if site.anchor is not None:
            held = held and item.uuid in services.owners(await site.anchor.table(self._table))
        return held

    async def _remove(self, uuid: str) -> None:
        await self._hosts.forget(uuid)
        for known in self._of_bay.values():
            known.pop(uuid, None)
        if self._socket() is None:
            return
        await self._members.remove(uuid)
        engine = self._engine()
        for rule in await engine.admissions(services.comment(self._conf.deployment, uuid)):
            await engine.dismiss(rule)
        found = await engine.table(self._table)
        addresses = services.addresses(found, uuid)
        await engine.change(services.remove(self._table, found, uuid))
        # also of a bay that has a bridge, where there is no such route
        for address in addresses:
            await engine.unroute(address)
        await members.forget(engine, addresses)
        labels = [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{overlay.ROLE}={overlay.ANCHOR}"]
        for row in await self._client.containers(labels):
            with contextlib.suppress(errors.NotFound):
                pid = (await self._client.inspect(row.id)).state.pid
                if pid:
                    await self._leave(nftables.Namespace(pid), uuid)

    async def _leave(self, anchor: nftables.Namespace, uuid: str) -> None:
        found = await anchor.table(self._table)
        addresses = services.addresses(found, uuid)
        if uuid not in services.owners(found):
            return
        await anchor.change(services.remove(self._table, found, uuid))
        held = await anchor.addresses()
        for address in addresses:
            interface = held.get(f"{address}/32")
            if interface:
                await anchor.remove_address(address, interface)
        await members.forget(anchor, addresses)


def _state(item: service_objects.Service) -> dict[str, Any]:
    spec = item.spec
    return {
        "ip": spec.virtual_ip,
        "addresses": [spec.virtual_ip] if spec.virtual_ip else [],
        "node_ports": {str(p.port): p.node_port for p in spec.ports if p.node_port},
    }
