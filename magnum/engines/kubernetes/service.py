"""Services on a cluster: a Service each, and for one that is reached from outside an opening in the bay's network policy.

In a bay on Neutron that is a door instead, see ``doors``.

Who calls: the Kubernetes engine, which has this as its driver of services.
"""

import contextlib
from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.engines import base
from magnum.engines.kubernetes import bodies, cluster, doors, objects
from magnum.networks import neutron, wires
from magnum.objects import service


class Service(objects.Driver):
    collection, kind, failed = "services", "service", "Error"

    def __init__(self, clusters: objects.Clusters, conf: cfg.ConfigOpts, wired: wires.Wires) -> None:
        super().__init__(clusters, conf)
        self._doors = doors.Doors(conf, wired)

    def body(self, item: service.Service) -> dict[str, Any]:
        service.check(item.spec, "kubernetes")
        return bodies.service_body(self._conf, item, self.network(item))

    async def apply(self, item: Any, progress: base.Progress) -> base.Outcome:
        found = await super().apply(item, progress)
        facts, where = self.network(item), self._clusters.of(item.bay_uuid or "")
        if facts is None or found.status != "Active" or item.spec.foreign:
            return found
        try:
            space = cluster.namespace(item.bay_uuid or "")
            await (
                self._doors.open(item, where, facts)
                if item.spec.external
                else self._doors.close(item.uuid, where, space)
            )
        except neutron.Waits as error:
            # within the bay it works all the same
            found.status = item.status if item.status in ("Creating", "Updating") else "Active"
            found.reason, found.pending, found.retry_after = f"waits: {error.detail}", True, 2.0
        except errors.MagnumError as error:
            found.status, found.reason, found.retry_after = "Error", str(error), objects.AGAIN
        found.state |= self._doors.state(item.uuid)
        return found

    async def observe(self, item: Any) -> base.Outcome:
        found = await super().observe(item)
        facts, where = self.network(item), self._clusters.of(item.bay_uuid or "")
        if facts is None or found.gone or item.spec.foreign:
            return found
        found.state |= self._doors.state(item.uuid)
        if not self._doors.stands(item, where):
            found.status, found.reason, found.pending, found.retry_after = item.status, item.status_reason, True, 0.0
        return found

    async def ensured(self, item: service.Service, where: cluster.Cluster) -> None:
        space = cluster.namespace(item.bay_uuid or "")
        opening = bodies.opening(self._conf, item)
        if opening is not None:
            await where.apply("networkpolicies", space, opening)
        elif where.mirrors["networkpolicies"].get(space, bodies.opening_name(item.uuid)) is not None:
            await where.client.delete(where.path("networkpolicies", space, bodies.opening_name(item.uuid)))

    def fingerprint(self, item: service.Service, kept: cluster.Kept, where: cluster.Cluster) -> str:
        opening = where.mirrors["networkpolicies"].get(kept.namespace, bodies.opening_name(item.uuid))
        return kept.fingerprint + (opening.fingerprint if opening is not None else "")

    def outcome(self, item: service.Service, kept: cluster.Kept, where: cluster.Cluster) -> base.Outcome:
        spec = kept.read("spec")
        ip = spec.get("clusterIP")
        ports = spec.get("ports", [])
        found = where.mirrors["endpoints"].get(kept.namespace, kept.name)
        endpoints = sorted(
            f"{address['ip']}:{port['port']}"
            for subset in (found.read("subsets", list) if found else [])
            for address in subset.get("addresses", []) for port in subset.get("ports", [])
        )  # fmt: skip
        status = kept.read("status").get("loadBalancer", {}).get("ingress", [])
        state: dict[str, Any] = {
            "ip": None if ip in ("None", "") else ip, "endpoints": endpoints, "managed": not item.spec.foreign,
            "addresses": [a for each in status for a in (each.get("ip"), each.get("hostname")) if a],
            "node_ports": {f"{p['port']}/{p.get('protocol', 'TCP').lower()}": p["nodePort"] for p in ports if p.get("nodePort")},
        }  # fmt: skip
        return base.Outcome(status="Active", state=state)

    async def remove(self, uuid: str, item: Any | None) -> base.Outcome:
        found = self._clusters.having(self.collection, uuid, item.bay_uuid if item is not None else None)
        if found is not None and not found[1].going:
            where, kept = found
            if where.mirrors["networkpolicies"].get(kept.namespace, bodies.opening_name(uuid)) is not None:
                await where.client.delete(where.path("networkpolicies", kept.namespace, bodies.opening_name(uuid)))
        left = await super().remove(uuid, item)
        return await self._close(uuid, item) if left.gone else left

    async def _close(self, uuid: str, item: service.Service | None) -> base.Outcome:
        """Close the door of a service that is gone, if its bay may be on Neutron."""
        if not self._doors.configured:
            return base.Outcome(gone=True)
        homes = list(self._clusters.all.values())
        if item is not None:
            # the bay's namespace may have gone before; what Neutron has of the service did not
            with contextlib.suppress(errors.Unavailable):
                if self.network(item) is None:
                    return base.Outcome(gone=True)
                homes = [self._clusters.of(item.bay_uuid or "")]
        try:
            for home in homes:
                home.check()
                await self._doors.close(
                    uuid, home, cluster.namespace(item.bay_uuid or "") if item is not None else None
                )
        except neutron.Waits as error:
            return base.Outcome(status="Deleting", reason=error.detail, pending=True, retry_after=1.0)
        self._doors.forget(uuid)
        return base.Outcome(gone=True)
