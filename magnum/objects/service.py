"""A service: a stable address and ports that map to the ready pods that a selector matches."""

from typing import Any

import msgspec

from magnum.objects import base


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


class ServiceState(base.State):
    ip: str | None = None
    addresses: list[str] = []
    endpoints: list[str] = []
    node_ports: dict[str, int] = {}
    hosts: dict[str, str] = {}
    managed: bool = True


class Service(base.Object, tag="service"):
    spec: ServiceSpec
    state: ServiceState = msgspec.field(default_factory=ServiceState)


def patch(old: Service, spec: ServiceSpec) -> Any:
    """Check a changed spec; a new manifest is checked by ``objects.manifest`` at the api."""
    return spec


def combine(service: Service, placements: list[base.Placement]) -> tuple[str, str | None, Any]:
    """Return the service's (status, reason, state) from those of its hosts."""
    state = ServiceState(
        ip=service.spec.virtual_ip,
        endpoints=[f"{e.ip}:{port}" for e in service.spec.endpoints for port in e.ports.values()],
        hosts={p.host: p.status for p in placements},
    )
    for placement in placements:
        seen = msgspec.convert(placement.state, ServiceState)
        state.addresses += [a for a in seen.addresses if a not in state.addresses]
        state.node_ports |= seen.node_ports
        state.ip = state.ip or seen.ip
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
    patch=patch, combine=combine,
)  # fmt: skip
