"""A service: a stable address and ports that map to the ready pods that a selector matches."""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, document, manifest


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
    applied: str | None = None


class Service(base.Object, tag="service"):
    spec: ServiceSpec
    state: ServiceState = msgspec.field(default_factory=ServiceState)


def parse(text: str, name: str | None = None, engine: str | None = None) -> tuple[str, ServiceSpec]:
    """Return (name, spec) of a manifest's text; as ``objects.pod.parse``.

    A LoadBalancer is a NodePort, as it is on Kubernetes without a cloud.
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
    for field in ("namespace", "virtual_ip"):
        if getattr(spec, field) != getattr(old.spec, field):
            raise errors.Invalid("cannot be changed", field=field)
    for field in ("selector", "ports", "type", "headless", "affinity_seconds"):
        if getattr(spec, field) not in (getattr(old.spec, field), getattr(new, field)):
            raise errors.Invalid("is the manifest's: change that", field=field)
    if new.type == "NodePort":
        kept = {(p.port, p.protocol): p.node_port for p in old.spec.ports}
        taken = {(p.node_port, p.protocol) for p in new.ports}
        for port in new.ports:
            before = kept.get((port.port, port.protocol))
            if port.node_port is None and (before, port.protocol) not in taken:
                port.node_port = before
    return msgspec.structs.replace(new, virtual_ip=spec.virtual_ip, endpoints=spec.endpoints, namespace=spec.namespace)


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
    check=check, patch=patch, combine=combine, chosen=("virtual_ip", "endpoints", "foreign"),
)  # fmt: skip
