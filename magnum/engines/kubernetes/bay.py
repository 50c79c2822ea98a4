"""Bays on a cluster: a namespace with its quota, limits, network policies and roles.

What tenants may do there with certificates of their own follows from what the cluster
refuses by itself: in a tenant's name a pod that no tenant may have is offered to it,
for a trial that makes nothing. Where it would be taken, tenants may look and not make.

Who calls: the Kubernetes engine, which has this as its driver of bays.
"""

import asyncio
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.engines import base
from magnum.engines.kubernetes import bodies, certificates, cluster, nodes, objects
from magnum.networks import neutron, wires
from magnum.objects import bay

LOG = structlog.get_logger(__name__)

LOOK = 15.0
TRIES = 20
TRY_AGAIN = 0.1
"""A role that was just made takes a moment to be known to the API server."""
TENANTS = ("roles", bodies.TENANT)
BLOCKS = ("NamespaceContentRemaining", "NamespaceFinalizersRemaining", "NamespaceDeletionContentFailure",
          "NamespaceDeletionDiscoveryFailure", "NamespaceDeletionGroupVersionParsingFailure")  # fmt: skip
"""Conditions of a namespace that say what keeps it."""


class Bay(base.Driver):
    """Status words are those of ``objects.bay``. ``wired``: by which Neutron is asked for the network of a bay that is on it."""

    def __init__(self, clusters: objects.Clusters, conf: cfg.ConfigOpts, wired: wires.Wires) -> None:
        self._clusters = clusters
        self._wires = wired
        self._conf = conf
        self._applied: dict[str, dict[tuple[str, str], str]] = {}
        """Bay → (collection, name) → fingerprint, as we left it; lost with the process, and then set again."""
        self._writes: dict[str, dict[str, bool]] = {}
        """Cluster → what its tenants may make by themselves."""

    def _cluster(self, item: bay.Bay) -> cluster.Cluster:
        found = self._clusters.all.get(item.spec.cluster or "")
        if found is None:
            raise errors.EngineError(f"this host knows no cluster {item.spec.cluster!r}")
        found.check()
        return found

    async def apply(self, item: bay.Bay, progress: base.Progress) -> base.Outcome:
        verb = bay.verb(item)
        try:
            where = self._cluster(item)
            space = where.mirrors["namespaces"].get("", cluster.namespace(item.uuid))
            if space is not None and space.going:
                words = f"namespace {space.name} was deleted by another, and is made again once it is gone"
                return base.Outcome(status=f"{verb}_FAILED", reason=words, retry_after=LOOK)
            facts = await self._network(item) if neutron.is_on(item.spec) else None
            await self._make(item, where, facts)
            return base.Outcome(status=f"{verb}_COMPLETE", state=self._state(item, where))
        except errors.Unavailable:
            raise
        except neutron.Waits as error:
            return base.Outcome(status=bay.waiting(item), reason=error.detail, pending=True, retry_after=2.0)
        except errors.MagnumError as error:
            return base.Outcome(status=f"{verb}_FAILED", reason=str(error), retry_after=objects.AGAIN)

    async def _network(self, item: bay.Bay) -> neutron.Facts:
        """Have the bay's network on Neutron. Raises Waits (Neutron is away), Invalid, QuotaExceeded, EngineError."""
        try:
            return await neutron.ensure(self._wires.client, self._conf, item, make=True)
        except errors.Unavailable as error:
            raise neutron.Waits(error.detail) from error

    async def _make(self, item: bay.Bay, where: cluster.Cluster, facts: neutron.Facts | None) -> None:
        applied: dict[tuple[str, str], str] = {}
        inside = cluster.namespace(item.uuid)
        writes = self._writes.get(where.name, {"pods": False, "services": False})
        (_, first), *rest = bodies.bay_parts(self._conf, item, _networks(where), writes, facts)

        async def one(collection: str, body: dict[str, Any]) -> None:
            kept = await where.apply(collection, "" if collection == "namespaces" else inside, body)
            applied[(collection, body["metadata"]["name"])] = kept.fingerprint

        await one("namespaces", first)
        if where.name not in self._writes:
            for collection, body in rest:
                if body["metadata"]["name"] == bodies.PROBE:
                    await one(collection, body)
            await self._try(item, where)
            writes = self._writes.get(where.name, writes)
            rest = bodies.bay_parts(self._conf, item, _networks(where), writes, facts)[1:]
        role = where.mirrors["roles"].get(inside, bodies.TENANT)
        if where.name not in self._writes and role is not None:
            # what could not be tried takes nothing from tenants
            rest = [
                (collection, body) for collection, body in rest if (collection, body["metadata"]["name"]) != TENANTS
            ]
            applied[TENANTS] = role.fingerprint
        await asyncio.gather(*(one(collection, body) for collection, body in rest))
        self._applied[item.uuid] = applied

    async def _try(self, item: bay.Bay, where: cluster.Cluster) -> None:
        """Find out what the cluster refuses of tenants by itself; what cannot be tried is tried with the next bay."""
        headers = {"Impersonate-User": bodies.probe(item), "Impersonate-Group": "system:authenticated"}
        inside = cluster.namespace(item.uuid)
        found = {}

        async def offered(collection: str, body: dict[str, Any]) -> errors.MagnumError | None:
            try:
                await where.client.request(
                    "POST", where.path(collection, inside), body=body, headers=headers, params={"dryRun": "All"}
                )
            except errors.EngineError as error:
                return error
            return None

        for collection, (good, bad) in bodies.probes(item, self._conf.kubernetes.probe_image).items():
            error = None
            for _ in range(TRIES):
                error = await offered(collection, good)
                if error is None:
                    break
                await asyncio.sleep(TRY_AGAIN)
            if error is not None:
                LOG.warning(
                    "what tenants may make cannot be tried", cluster=where.name, of=collection, reason=error.detail
                )
                return
            found[collection] = await offered(collection, bad) is not None
        LOG.info("what tenants may make with certificates of their own", cluster=where.name, **found)
        self._writes[where.name] = found

    async def observe(self, item: bay.Bay) -> base.Outcome:
        verb = bay.verb(item)
        try:
            where = self._cluster(item)
        except errors.EngineError as error:
            return base.Outcome(status=f"{verb}_FAILED", reason=error.detail)
        inside = cluster.namespace(item.uuid)
        applied = self._applied.get(item.uuid)
        missing, again = [], None
        for collection, names in bodies.PARTS.items():
            for name in names:
                name = name or inside
                kept = where.mirrors[collection].get("" if collection == "namespaces" else inside, name)
                if kept is None or kept.going:
                    missing.append(f"{collection.removesuffix('s')} {name}")
                elif applied is None or applied.get((collection, name)) != kept.fingerprint:
                    again = 0.0
        if missing and item.observed_generation == 0:
            return base.Outcome(status=item.status, reason=item.status_reason, pending=True, retry_after=LOOK)
        if missing:
            words = f"gone from cluster {where.name}: {', '.join(missing)}"
            return base.Outcome(status=f"{verb}_FAILED", reason=words, state=self._state(item, where), retry_after=0.0)
        return base.Outcome(status=f"{verb}_COMPLETE", state=self._state(item, where), retry_after=again)

    async def remove(self, uuid: str, item: bay.Bay | None) -> base.Outcome:
        """Delete the namespace with everything in it, and name what keeps it."""
        name = cluster.namespace(uuid)
        for where in self._clusters.all.values():
            if item is not None and item.spec.cluster != where.name:
                continue
            where.check()
            kept = where.mirrors["namespaces"].get("", name)
            if kept is None or not kept.ours(self._conf.deployment):
                continue
            if not kept.going:
                try:
                    await where.client.delete(where.path("namespaces", "", name), uid=kept.uid)
                except errors.Conflict:
                    LOG.debug("deleted by another", namespace=name)
                return base.Outcome(status="DELETE_IN_PROGRESS", pending=True, retry_after=LOOK)
            return base.Outcome(status="DELETE_IN_PROGRESS", reason=_blocked(kept), pending=True, retry_after=LOOK)
        self._applied.pop(uuid, None)
        if item is not None and item.deleting and neutron.is_on(item.spec):
            # after the pods, whose ports go when they do
            try:
                await nodes.orphans(self._wires.client, self._conf.deployment, uuid, item.project_id)
                left = await neutron.remove(self._wires.client, self._conf.deployment, uuid, item.project_id)
            except errors.MagnumError as error:
                left = [error.detail]
            if left:
                return base.Outcome(status="DELETE_IN_PROGRESS", reason="; ".join(left), pending=True, retry_after=1.0)
        return base.Outcome(gone=True)

    async def certificate(self, item: bay.Bay, csr: str | None, user: str) -> str:
        where = self._cluster(item)
        if csr is None:
            if not where.client.authority:
                raise errors.NotSupported(f"cluster {where.name} is known by an authority of the system's own")
            return where.client.authority
        return await certificates.sign(self._conf, where.client, item, csr, user)

    def _state(self, item: bay.Bay, where: cluster.Cluster) -> dict[str, Any]:
        nodes = where.nodes()
        addresses = [_address(node) for node in nodes]
        inside = cluster.namespace(item.uuid)
        facts = cluster.network(where.mirrors["namespaces"].get("", inside))
        return {
            "api_address": where.client.url, "node_addresses": sorted(a for a in addresses if a), "master_addresses": [],
            "coe_version": where.version, "network": facts.net.name if facts is not None else inside,
            "subnet": facts.cidr if facts is not None else None, "node_count": len(nodes), "cluster": where.name,
        }  # fmt: skip


def _address(node: cluster.Kept) -> str | None:
    addresses = node.read("status").get("addresses", [])
    return next((str(a["address"]) for a in addresses if a.get("type") == "InternalIP"), None)


def _networks(where: cluster.Cluster) -> list[str]:
    """Return the IPv4 networks of the cluster's pods, as its nodes tell them."""
    found = set()
    for node in where.mirrors["nodes"].all():
        spec = node.read("spec")
        found |= {network for network in (spec.get("podCIDR"), *spec.get("podCIDRs", [])) if network and "." in network}
    return sorted(found)


def _blocked(kept: cluster.Kept) -> str:
    conditions = kept.read("status").get("conditions", [])
    words = [c.get("message", "") for c in conditions if c.get("type") in BLOCKS and c.get("status") == "True"]
    if kept.finalizers:
        words.append(f"finalizers: {', '.join(kept.finalizers)}")
    return "; ".join(words) or f"namespace {kept.name} is on its way out"
