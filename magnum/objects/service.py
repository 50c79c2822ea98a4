"""A service: a stable address and ports that map to the ready pods that a selector matches."""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, bay, bay_model, document, manifest


class ServicePort(msgspec.Struct, kw_only=True):
    """One port: ``target_port`` is a number or the name of a pod's port."""

    port: int
    target_port: int | str
    protocol: str = "TCP"
    name: str | None = None
    node_port: int | None = None


class Endpoint(msgspec.Struct, kw_only=True):
    """A ready pod behind a service. ``ports``: service port → the pod's port number."""

    pod: str
    ip: str
    host: str | None = None
    ports: dict[str, int] = {}


class ServiceSpec(base.Spec):
    """``manifest`` is the whole v1 Service; the rest is parsed from it, ``virtual_ip`` chosen by the conductor.

    ``external``: it has a floating IP, which those of ``source_ranges`` (CIDRs; none: everyone) may come by;
    ``door`` is the host that has its port, chosen by the conductor. On a bay on Neutron alone.
    ``endpoints`` are kept by the conductor on Docker bays as pods come and go.
    ``foreign``: others made it in the cluster; its manifest is as the cluster has it.
    """

    manifest: dict[str, Any]
    labels: dict[str, str] = {}
    selector: dict[str, str] = {}
    ports: list[ServicePort] = []
    type: str = "ClusterIP"
    headless: bool = False
    affinity_seconds: int | None = None
    external: bool = False
    source_ranges: list[str] = []
    door: str | None = None
    virtual_ip: str | None = None
    endpoints: list[Endpoint] = []
    namespace: str | None = None
    foreign: bool = False


class ServiceState(base.State):
    """``applied``: what the engine had of our wish, as a hash."""

    ip: str | None = None
    addresses: list[str] = []
    endpoints: list[str] = []
    node_ports: dict[str, int] = {}
    hosts: dict[str, str] = {}
    managed: bool = True
    external_ip: str | None = None
    applied: str | None = None


class Service(base.Object, tag="service"):
    spec: ServiceSpec
    state: ServiceState = msgspec.field(default_factory=ServiceState)


def parse(text: str, name: str | None = None, engine: str | None = None) -> tuple[str, ServiceSpec]:
    """Return (name, spec) of a manifest's text; as ``objects.pod.parse``.

    A LoadBalancer is a NodePort, as it is on Kubernetes without a cloud, unless ``settle`` makes another of it.
    """
    return of(document.load(text), name, engine)


def of(data: dict[str, Any], name: str | None = None, engine: str | None = None) -> tuple[str, ServiceSpec]:
    """Return (name, spec) of a manifest as data; as ``parse``."""
    data = document.clean(data)
    found = manifest.service(data, name, engine)
    assert found.metadata.name is not None
    data["metadata"] = data.get("metadata", {}) | {"name": found.metadata.name}
    spec = found.spec
    return found.metadata.name, ServiceSpec(
        manifest=data,
        labels=found.metadata.labels,
        selector=spec.selector,
        ports=[
            ServicePort(
                port=p.port, target_port=p.target_port or p.port, protocol=p.protocol, name=p.name,
                node_port=p.node_port or None,
            )
            for p in spec.ports
        ],
        type="NodePort" if spec.type == "LoadBalancer" else spec.type,
        source_ranges=spec.load_balancer_source_ranges,
        headless=spec.cluster_ip == "None",
        affinity_seconds=(
            spec.session_affinity_config.client_ip.timeout_seconds if spec.session_affinity == "ClientIP" else None
        ),
    )  # fmt: skip


def check(spec: ServiceSpec, engine: str | None = None) -> manifest.Service:
    """Return the typed manifest of ``spec``. Raises Invalid naming what ``engine`` cannot honour."""
    return manifest.service(document.clean(spec.manifest), None, engine)


def privileges(spec: ServiceSpec) -> list[tuple[str, str]]:
    """Return (field, policy rule) of what a service asks for beyond a tenant's defaults: nothing can be."""
    return []


def patch(old: Service, spec: ServiceSpec) -> Any:
    """Check a changed spec: the manifest may change, as a whole or in parts, and the labels, which are its.

    The virtual IP stays, and the node port of a port that stays.
    """
    data = document.clean(spec.manifest)
    if spec.labels != old.spec.labels and data == old.spec.manifest:
        data["metadata"] = data.get("metadata", {}) | {"labels": spec.labels}
    _, new = of(data, old.name)
    if new.headless != old.spec.headless:
        raise errors.Invalid("cannot be changed", field="spec.clusterIP")
    for field in ("namespace", "virtual_ip", "door"):
        if getattr(spec, field) != getattr(old.spec, field):
            raise errors.Invalid("cannot be changed", field=field)
    for field in ("selector", "ports", "type", "headless", "affinity_seconds", "source_ranges"):
        if getattr(spec, field) not in (getattr(old.spec, field), getattr(new, field)):
            raise errors.Invalid("is the manifest's: change that", field=field)
    if new.type == "NodePort":
        kept = {(p.port, p.protocol): p.node_port for p in old.spec.ports}
        taken = {(p.node_port, p.protocol) for p in new.ports}
        for port in new.ports:
            before = kept.get((port.port, port.protocol))
            if port.node_port is None and (before, port.protocol) not in taken:
                port.node_port = before
    # of a manifest that asks for no LoadBalancer any more the door closes, unless it was asked for by itself
    was = old.spec.manifest.get("spec", {}).get("type") == "LoadBalancer"
    external = spec.external and not (was and data.get("spec", {}).get("type") != "LoadBalancer")
    return msgspec.structs.replace(
        new, virtual_ip=spec.virtual_ip, endpoints=spec.endpoints, namespace=spec.namespace, door=spec.door,
        external=external,
    )  # fmt: skip


def settle(spec: ServiceSpec, where: bay.BaySpec) -> ServiceSpec:
    """Return ``spec`` as a bay of this make has it: a LoadBalancer is external where there is a cloud for it."""
    if on_neutron(where) and spec.manifest.get("spec", {}).get("type") == "LoadBalancer":
        ports = [msgspec.structs.replace(port, node_port=None) for port in spec.ports]
        return msgspec.structs.replace(spec, type="LoadBalancer", external=True, ports=ports)
    return spec


def on_neutron(where: bay.BaySpec) -> bool:
    """Return whether services of a bay can have floating IPs, and can have no ports of hosts."""
    return where.network_driver == bay_model.NEUTRON


def check_in(spec: ServiceSpec, where: bay.BaySpec) -> None:
    """Raise Invalid naming what a service cannot have in a bay of this make."""
    kind = spec.manifest.get("spec", {}).get("type")
    outside = spec.external or (on_neutron(where) and kind == "LoadBalancer")
    if on_neutron(where) and kind == "NodePort":
        raise errors.Invalid("a host is not on the bay's network: set external instead", field="spec.type")
    if outside and not on_neutron(where):
        raise errors.Invalid("the bay is not on Neutron", field="external")
    if outside and not where.external_network_id:
        raise errors.Invalid("the bay has no external network (external_network_id)", field="external")
    if outside and spec.headless:
        raise errors.Invalid("a headless service has no address that could be reached", field="external")
    if spec.source_ranges and not outside:
        raise errors.Invalid("is for a service that is external", field="spec.loadBalancerSourceRanges")


def combine(service: Service, placements: list[base.Placement]) -> tuple[str, str | None, Any]:
    """Return the service's (status, reason, state) from those of its hosts."""
    state = ServiceState(
        ip=service.spec.virtual_ip,
        endpoints=[f"{e.ip}:{port}" for e in service.spec.endpoints for port in e.ports.values()],
        hosts={p.host: p.status for p in placements},
        managed=not service.spec.foreign,
    )
    for placement in placements:
        seen = msgspec.convert(placement.state, ServiceState)
        state.addresses += [a for a in seen.addresses if a not in state.addresses]
        state.node_ports |= seen.node_ports
        state.ip = state.ip or seen.ip
        state.external_ip = state.external_ip or seen.external_ip
        state.applied = state.applied or seen.applied
        if placement.state.get("endpoints"):
            state.endpoints = seen.endpoints
    failed = [f"{p.host}: {p.reason}" for p in placements if p.status == "Error"]
    behind = [p for p in placements if p.generation < service.generation or p.status not in ("Active", "Error")]
    if failed:
        return "Error", "; ".join(failed), state
    if behind:
        return service.status, None, state
    return "Active", None, state


KIND = base.Kind(
    name="service", plural="services", cls=Service, spec=ServiceSpec, state=ServiceState, spread="members",
    in_bay=True, unique_in_bay=True,
    pending=frozenset({"Creating", "Updating", "Deleting"}),
    asked={"create": "Creating", "update": "Updating", "retry": "Updating", "delete": "Deleting"},
    check=check, check_in=check_in, patch=patch, combine=combine,
    chosen=("virtual_ip", "endpoints", "foreign", "door"),
)  # fmt: skip
