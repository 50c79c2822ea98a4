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
from magnum.networks import names, overlay, services
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
    """``hosts``: the bays' hosts files of this machine."""

    def __init__(self, client: docker.Client, conf: cfg.ConfigOpts, hosts: names.Names) -> None:
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self._table = f"magnum-{conf.deployment}"
        # a change is read, made and written; those of a host are few and take milliseconds
        self._lock = asyncio.Lock()

    async def apply(self, item: Any, progress: base.Progress) -> base.Outcome:
        try:
            async with self._lock:
                await self._apply(item)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            return base.Outcome(status="Error", reason=str(error), state=_state(item), retry_after=2.0)
        return base.Outcome(status="Active", state=_state(item))

    async def observe(self, item: Any) -> base.Outcome:
        try:
            async with self._lock:
                standing = await self._stands(item)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            return base.Outcome(status="Error", reason=str(error), state=_state(item), retry_after=2.0)
        if not standing:
            return base.Outcome(status="Error", reason="its rules are gone", state=_state(item), retry_after=0.0)
        return base.Outcome(status="Active", state=_state(item))

    async def remove(self, uuid: str, item: Any | None) -> base.Outcome:
        try:
            async with self._lock:
                await self._remove(uuid)
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
        own = {e.ip_address for e in (found.network_settings.networks or {}).values() if e.ip_address}
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

    async def _apply(self, item: service_objects.Service) -> None:
        spec = item.spec
        if spec.headless or not spec.virtual_ip:
            await self._hosts.write(item.bay_uuid or "", item.uuid, item)
            return
        engine = self._engine()
        site = await self._site(item, engine)
        if site.anchor is not None and site.anchor_place is not None:
            await site.anchor.forward()
            await self._change(site.anchor, site.anchor_place, item)
            await site.anchor.add_address(spec.virtual_ip, site.interface)
            await engine.route(spec.virtual_ip, via=site.place.relay or "")
        await self._change(engine, site.place, item)
        if site.bridge is not None:
            await engine.hairpin(site.bridge)
        await self._admit(engine, site.place, item)
        if any(port.protocol.lower() == "udp" for port in spec.ports):
            for namespace in (engine, site.anchor):
                if namespace is not None:
                    await self._cut(namespace, site, item)
        await self._hosts.write(item.bay_uuid or "", item.uuid, item)

    async def _change(
        self, namespace: nftables.Namespace, place: services.Place, item: service_objects.Service
    ) -> None:
        found = await namespace.table(self._table)
        await namespace.change(services.apply(self._table, place, found, item))

    async def _admit(self, engine: nftables.Namespace, place: services.Place, item: service_objects.Service) -> None:
        have = await engine.admissions(services.comment(self._conf.deployment, item.uuid))
        want = services.admissions(place, self._conf.deployment, item)
        for rule in want:
            if rule not in have:
                await engine.admit(rule)
        for rule in have:
            if rule not in want:
                await engine.dismiss(rule)

    async def _cut(self, namespace: nftables.Namespace, site: _Site, item: service_objects.Service) -> None:
        """Forget UDP flows to pods that are no endpoints now: without it they would go on while the client sends."""
        mine = frozenset(address.partition("/")[0] for address in await namespace.addresses())
        relay = site.place.relay if namespace is not site.anchor else None
        stale = {
            (flow.address, flow.port, flow.answering) for flow in await namespace.flows("udp")
            if flow.answering != relay and services.stale(flow, item, mine)
        }  # fmt: skip
        for address, port, answering in sorted(stale):
            await namespace.forget(address, "udp", port=port, answering=answering)

    async def _stands(self, item: service_objects.Service) -> bool:
        if item.spec.headless or not item.spec.virtual_ip:
            return True
        engine = self._engine()
        site = await self._site(item, engine)
        held = item.uuid in services.owners(await engine.table(self._table))
        if site.anchor is not None:
            held = held and item.uuid in services.owners(await site.anchor.table(self._table))
        return held

    async def _remove(self, uuid: str) -> None:
        await self._hosts.forget(uuid)
        if self._socket() is None:
            return
        engine = self._engine()
        for rule in await engine.admissions(services.comment(self._conf.deployment, uuid)):
            await engine.dismiss(rule)
        found = await engine.table(self._table)
        addresses = services.addresses(found, uuid)
        await engine.change(services.remove(self._table, found, uuid))
        # also of a bay that has a bridge, where there is no such route
        for address in addresses:
            await engine.unroute(address)
        await self._forget(engine, addresses)
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
        await self._forget(anchor, addresses)

    async def _forget(self, namespace: nftables.Namespace, addresses: list[str]) -> None:
        for address in addresses:
            for protocol in ("tcp", "udp"):
                await namespace.forget(address, protocol)


def _state(item: service_objects.Service) -> dict[str, Any]:
    spec = item.spec
    return {
        "ip": spec.virtual_ip,
        "addresses": [spec.virtual_ip] if spec.virtual_ip else [],
        "node_ports": {str(p.port): p.node_port for p in spec.ports if p.node_port},
    }
