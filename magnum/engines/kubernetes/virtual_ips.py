"""Cluster IPs in bays on Neutron: their rules in the namespace of each pod here, as the cluster has services and endpoints.

kube-proxy balances what passes a node's own network, and these pods' packets do not.
So each pod's namespace has the rules itself (``networks.members``), before anything runs
in it, and they follow the cluster's watches.

Who calls: ``nodes``, for the machine's pods.
"""

import asyncio
import collections.abc
import ipaddress
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import nftables
from magnum.engines.kubernetes import bodies, cluster
from magnum.networks import members, wires
from magnum.objects import service

LOG = structlog.get_logger(__name__)

AGAIN = 2.0
PROTOCOLS = ("TCP", "UDP")
COLLECTIONS = ("services", "endpoints")


class VirtualIps:
    """``where`` finds the namespace of a pod here, ``pod`` what the cluster has of it, by its uid."""

    def __init__(
        self, conf: cfg.ConfigOpts, clusters: dict[str, cluster.Cluster], wired: wires.Wires, where: members.Finds,
        pod: collections.abc.Callable[[str], cluster.Kept | None],
    ) -> None:  # fmt: skip
        self._clusters = clusters
        self._wires = wired
        self._where = where
        self._pod = pod
        self._table = f"magnum-{conf.deployment}"
        self._members = members.Members(self._table, wired, self._member)
        self._dirty: set[tuple[str, str]] = set()
        self._known: dict[tuple[str, str], str] = {}
        """(namespace, name) → uid of a service that pods here may have rules of."""
        self._woken = asyncio.Event()
        # a change is read, made and written
        self._lock = asyncio.Lock()

    def changed(self, kept: cluster.Kept) -> None:
        """Follow a service of a bay, or its endpoints, that are others than before, or gone."""
        self._dirty.add((kept.namespace, kept.name))
        self._woken.set()

    def _member(self, record: wires.Record) -> nftables.Where | None:
        return None if _door(self._pod(record.uuid)) else self._where(record)

    async def enter(
        self, home: cluster.Cluster, pod: cluster.Kept, record: wires.Record, where: nftables.Where
    ) -> None:
        """Give a pod's namespace the rules of all services of its bay, or a door's those of its own. Raises EngineError."""
        async with self._lock:
            if meant := _door(pod):
                kept = home.mirrors["services"].by_uuid(meant, pod.namespace)
                item = self._item(home, kept) if kept is not None else None
                if item is not None:
                    await self._lead(record, where, item)
                return
            found = [item for kept in home.in_bay("services", pod.bay) if (item := self._item(home, kept)) is not None]
            self._known |= {(pod.namespace, item.name): item.uuid for item in found}
            await self._members.enter(where, found)

    async def _lead(self, record: wires.Record, where: nftables.Where, item: service.Service) -> None:
        await members.lead(where, self._table, record.wires[0].addresses[0], item)

    async def follow(self) -> None:
        """Keep the rules true, for ever; those of a start first."""
        await asyncio.gather(*(each.read() for each in self._clusters.values()))
        await self._wires.locate()
        fresh = True
        while True:
            try:
                if fresh:
                    await self._begin()
                    fresh = False
                await self._woken.wait()
                self._woken.clear()
                while self._dirty:
                    await self._one(*self._dirty.pop())
                continue
            except errors.MagnumError as error:
                LOG.warning("rules of services wait", reason=error.detail)
            except Exception:
                LOG.exception("rules of services failed")
            await asyncio.sleep(AGAIN)

    async def _begin(self) -> None:
        """Have what changed while nobody looked."""
        async with self._lock:
            there = {uid for held in await self._members.owners(None) for uid in held or ()}
        bays = {record.bay for record in self._wires.records()}
        for home in self._clusters.values():
            for bay in bays:
                for kept in home.in_bay("services", bay):
                    there.discard(kept.uid)
                    await self._one(kept.namespace, kept.name)
        async with self._lock:
            for uid in there:
                await self._members.remove(uid)

    async def _one(self, namespace: str, name: str) -> None:
        """Have the rules of one service as the cluster has it now; tried again later if that fails."""
        try:
            async with self._lock:
                item, uuid = None, ""
                for home in self._clusters.values():
                    if (kept := home.mirrors["services"].get(namespace, name)) is not None and not kept.going:
                        item, uuid = self._item(home, kept), kept.uuid
                before = self._known.get((namespace, name))
                if before is not None and (item is None or item.uuid != before):
                    await self._members.remove(before)
                    del self._known[(namespace, name)]
                if item is not None:
                    self._known[(namespace, name)] = item.uuid
                    await self._members.apply(item)
                    await self._doors(item, uuid)
        except errors.MagnumError:
            self._dirty.add((namespace, name))
            self._woken.set()
            raise

    async def _doors(self, item: service.Service, uuid: str) -> None:
        """Have the doors here of the service that Magnum calls ``uuid`` lead where ``item`` says."""
        for record in self._wires.records():
            if record.bay == item.bay_uuid and _door(self._pod(record.uuid)) == uuid:
                where = self._where(record)
                if where is not None:
                    await self._lead(record, where, item)

    def _item(self, home: cluster.Cluster, kept: cluster.Kept) -> service.Service | None:
        """Return what rules are made of for a service of the cluster; None for one without an IPv4 cluster IP."""
        spec = kept.read("spec")
        address = spec.get("clusterIP") or ""
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            return None
        ports = [
            service.ServicePort(port=p["port"], target_port=p.get("targetPort", p["port"]), name=p.get("name"),
                                protocol=p.get("protocol", "TCP"))
            for p in spec.get("ports", []) if p.get("protocol", "TCP") in PROTOCOLS
        ]  # fmt: skip
        seconds = spec.get("sessionAffinityConfig", {}).get("clientIP", {}).get("timeoutSeconds", 10800)
        endpoints = home.mirrors["endpoints"].get(kept.namespace, kept.name)
        return service.Service(
            uuid=kept.uid, name=kept.name, bay_uuid=kept.bay,
            spec=service.ServiceSpec(
                manifest={}, ports=ports, virtual_ip=address,
                affinity_seconds=seconds if spec.get("sessionAffinity") == "ClientIP" else None,
                endpoints=list(_endpoints(ports, endpoints.read("subsets", list) if endpoints is not None else [])),
            ),
        )  # fmt: skip


def _door(pod: cluster.Kept | None) -> str | None:
    """Return the uuid of the service whose door a pod is, None of any other."""
    if pod is None or pod.labels.get(bodies.ROLE) != bodies.DOOR:
        return None
    return pod.uuid


def _endpoints(
    ports: list[service.ServicePort], subsets: list[dict[str, Any]]
) -> collections.abc.Iterator[service.Endpoint]:
    """Yield the ready endpoints of a service (v1 EndpointSubset), keyed as ``networks.services.ports`` reads them."""
    for subset in subsets:
        numbers = {}
        for there in subset.get("ports", []):
            for port in ports:
                if (port.name or "") == there.get("name", "") and port.protocol == there.get("protocol", "TCP"):
                    numbers[f"{port.port}/{port.protocol.lower()}"] = there["port"]
        for address in subset.get("addresses", []):
            yield service.Endpoint(pod=address.get("targetRef", {}).get("name", ""), ip=address["ip"], ports=numbers)
