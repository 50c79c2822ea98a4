"""Services on a cluster: a Service each, and for one that is reached from outside an opening in the bay's network policy.

Who calls: the Kubernetes engine, which has this as its driver of services.
"""

from typing import Any

from magnum.engines import base
from magnum.engines.kubernetes import bodies, cluster, objects
from magnum.objects import service


class Service(objects.Driver):
    collection, kind, failed = "services", "service", "Error"

    def body(self, item: service.Service) -> dict[str, Any]:
        service.check(item.spec, "kubernetes")
        return bodies.service_body(self._conf, item)

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
        return await super().remove(uuid, item)
