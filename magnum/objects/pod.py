"""A pod: containers that run together on one machine, sharing network and IPC namespaces.

Its spec holds the Kubernetes v1 manifest as given (JSON-able) and its parsed
form is made by ``objects.manifest``. ``status`` is the word for clients:
``Creating``, then Kubernetes' phases ``Pending``, ``Running``, ``Succeeded``,
``Failed``, and ``Unknown`` while its host is down.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, bay, bay_model, container, document, explanation, manifest


class PodSpec(base.Spec):
    """``manifest`` is the whole v1 Pod; ``labels`` and ``images`` are copies for lists and selectors.

    ``controller`` is the uuid of the replication controller that made or adopted it.
    ``foreign``: others made it in the cluster; its manifest is as the cluster has it.
    """

    manifest: dict[str, Any]
    labels: dict[str, str] = {}
    images: list[str] = []
    controller: str | None = None
    namespace: str | None = None
    foreign: bool = False
    networks: list[container.Network] = []
    security_groups: list[str] | None = None
    """Both as of a container, on a bay on Neutron."""


class PodState(base.State):
    """As Kubernetes words it: ``phase``, ``conditions`` and ``container_statuses`` are v1 PodStatus' own objects.

    ``ready`` is the Ready condition; ``members`` maps a container's name to its engine
    id. ``node`` is the cluster's machine that it is on. ``managed``: Magnum made it, or
    a controller that Magnum made. ``applied``: what the engine had of our wish, as a hash.
    """

    phase: str = "Pending"
    ready: bool = False
    conditions: list[dict[str, Any]] = []
    container_statuses: list[dict[str, Any]] = []
    init_container_statuses: list[dict[str, Any]] = []
    pod_ip: str | None = None
    host_ip: str | None = None
    started_at: str | None = None
    members: dict[str, str] = {}
    managed: bool = True
    security_groups: list[str] = []
    node: str | None = None
    applied: str | None = None
    deaths: list[explanation.Death] = []


class Pod(base.Object, tag="pod"):
    spec: PodSpec
    state: PodState = msgspec.field(default_factory=PodState)


def parse(text: str, name: str | None = None, engine: str | None = None) -> tuple[str, PodSpec]:
    """Return (name, spec) of a manifest's text, YAML or JSON.

    ``name`` is that of the request, for a manifest without one; ``engine`` that
    of the bay (None: not known yet, ``check`` it later). Raises Invalid naming
    the field, TooLarge.
    """
    return of(document.load(text), name, engine)


def of(data: dict[str, Any], name: str | None = None, engine: str | None = None) -> tuple[str, PodSpec]:
    """Return (name, spec) of a manifest as data; as ``parse``."""
    data = document.clean(data)
    found = manifest.pod(data, name, engine)
    assert found.metadata.name is not None
    data["metadata"] = data.get("metadata", {}) | {"name": found.metadata.name}
    images = list(dict.fromkeys(container.image for container in found.spec.containers))
    return found.metadata.name, PodSpec(manifest=data, labels=found.metadata.labels, images=images)


def check(spec: PodSpec, engine: str | None = None) -> manifest.Pod:
    """Return the typed manifest of ``spec``. Raises Invalid naming what ``engine`` cannot honour."""
    return manifest.pod(document.clean(spec.manifest), None, engine)


def privileges(spec: PodSpec) -> list[tuple[str, str]]:
    """Return (field, policy rule) of everything that ``spec`` asks for beyond a tenant's defaults."""
    return manifest.privileges(check(spec).spec)


def patch(old: Pod, spec: PodSpec) -> Any:
    """Check a changed spec: the manifest may change, as a whole or in parts, and the labels, which are the manifest's."""
    data = document.clean(spec.manifest)
    if spec.labels != old.spec.labels and data == old.spec.manifest:
        data["metadata"] = data.get("metadata", {}) | {"labels": spec.labels}
    _, new = of(data, old.name)
    for field in ("controller", "namespace", "foreign", "networks"):
        if getattr(spec, field) != getattr(old.spec, field):
            raise errors.Invalid("cannot be changed", field=field)
    if spec.images not in (old.spec.images, new.images):
        raise errors.Invalid("is the manifest's: change that", field="images")
    container.check_networks(spec.networks, spec.security_groups)
    return msgspec.structs.replace(
        new, controller=spec.controller, namespace=spec.namespace, networks=spec.networks,
        security_groups=spec.security_groups,
    )  # fmt: skip


def check_in(spec: PodSpec, where: bay.BaySpec) -> None:
    """Raise Invalid naming what a pod cannot have in a bay of this make."""
    container.refuse_networks(spec, where)
    refuse_hosts(check(spec).spec, where)


def refuse_hosts(spec: manifest.PodSpec, where: bay.BaySpec, field: str = "spec.") -> None:
    """Raise Invalid naming what only a host that is on the bay's network could do. ``field`` is that of ``spec``, with a dot."""
    if where.network_driver != bay_model.NEUTRON:
        return
    for number, each in enumerate(spec.containers):
        at = f"{field}containers[{number}]"
        for index, port in enumerate(each.ports):
            if port.host_port is not None:
                raise errors.Invalid(
                    "a host is not on the bay's network: a service with external set publishes",
                    field=f"{at}.ports[{index}].hostPort",
                )
        if where.engine == "docker":
            # its probes ask from within the pod's namespace
            continue
        probes = {"livenessProbe": each.liveness_probe, "readinessProbe": each.readiness_probe,
                  "startupProbe": each.startup_probe, "lifecycle.postStart": each.lifecycle.post_start,
                  "lifecycle.preStop": each.lifecycle.pre_stop}  # fmt: skip
        for name, probe in probes.items():
            for way, asked in (
                ("httpGet", getattr(probe, "http_get", None)),
                ("tcpSocket", getattr(probe, "tcp_socket", None)),
            ):
                if asked is not None:
                    raise errors.Invalid(
                        "a node is not on the bay's network and cannot ask: exec asks from within", field=f"{at}.{name}.{way}"
                    )  # fmt: skip


def demand(spec: PodSpec) -> base.Demand:
    """Return what a pod takes of its host and of a quota: its containers' limits (else requests) and host ports.

    Init containers run one after the other before the others do, so the largest of them counts.
    What others made counts with the cluster's own quota.
    """
    if spec.foreign:
        return base.Demand()
    found = check(spec).spec
    both = [
        (manifest.cores(r.limits) or manifest.cores(r.requests) or 0.0,
         manifest.size(r.limits.memory) or manifest.size(r.requests.memory) or 0)
        for r in (c.resources for c in (*found.containers, *found.init_containers))
    ]  # fmt: skip
    running, first = both[: len(found.containers)], both[len(found.containers) :]
    ports = tuple((p.protocol.lower(), p.host_port) for c in found.containers for p in c.ports if p.host_port)
    return base.Demand(
        cpus=max(sum(cpus for cpus, _ in running), *(cpus for cpus, _ in first), 0.0),
        memory=max(sum(memory for _, memory in running), *(memory for _, memory in first), 0),
        ports=ports,
    )


KIND = base.Kind(
    name="pod", plural="pods", cls=Pod, spec=PodSpec, state=PodState, spread="one", in_bay=True,
    unique_in_bay=True, failed="Failed",
    pending=frozenset({"Creating", "Updating", "Deleting"}),
    asked={"create": "Creating", "update": "Updating", "retry": "Updating", "delete": "Deleting"},
    check=check, check_in=check_in, patch=patch, owner="controller", chosen=("controller", "foreign"), demand=demand,
)  # fmt: skip
