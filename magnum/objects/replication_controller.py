"""A replication controller: keeps a number of pods like its template.

On a Docker bay the conductor keeps it (``spread="none"``: it lives on no host);
on a Kubernetes bay the cluster does, and the backend that keeps the bay reports.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, bay, document, manifest, pod


class ReplicationControllerSpec(base.Spec):
    """``manifest`` is the whole v1 ReplicationController; the rest is parsed from it."""

    manifest: dict[str, Any]
    labels: dict[str, str] = {}
    selector: dict[str, str] = {}
    replicas: int = 1
    images: list[str] = []
    keep_pods: bool = False
    """Set by a delete that leaves the pods running."""
    namespace: str | None = None
    foreign: bool = False
    """Others made it in the cluster; its manifest is as the cluster has it."""


class ReplicationControllerState(base.State):
    """``applied``: what the engine had of our wish, as a hash."""

    replicas: int = 0
    ready_replicas: int = 0
    managed: bool = True
    applied: str | None = None


class ReplicationController(base.Object, tag="rc"):
    spec: ReplicationControllerSpec
    state: ReplicationControllerState = msgspec.field(default_factory=ReplicationControllerState)


def parse(text: str, name: str | None = None, engine: str | None = None) -> tuple[str, ReplicationControllerSpec]:
    """Return (name, spec) of a manifest's text; as ``objects.pod.parse``."""
    return of(document.load(text), name, engine)


def of(
    data: dict[str, Any], name: str | None = None, engine: str | None = None
) -> tuple[str, ReplicationControllerSpec]:
    """Return (name, spec) of a manifest as data; as ``parse``."""
    data = document.clean(data)
    found = manifest.replication_controller(data, name, engine)
    assert found.metadata.name is not None
    data["metadata"] = data.get("metadata", {}) | {"name": found.metadata.name}
    spec = found.spec
    return found.metadata.name, ReplicationControllerSpec(
        manifest=data,
        labels=found.metadata.labels,
        selector=spec.selector,
        replicas=spec.replicas,
        images=list(dict.fromkeys(container.image for container in spec.template.spec.containers)),
    )


def check(spec: ReplicationControllerSpec, engine: str | None = None) -> manifest.ReplicationController:
    """Return the typed manifest of ``spec``. Raises Invalid naming what ``engine`` cannot honour."""
    return manifest.replication_controller(document.clean(spec.manifest), None, engine)


def privileges(spec: ReplicationControllerSpec) -> list[tuple[str, str]]:
    """Return (field, policy rule) of everything that the template asks for beyond a tenant's defaults."""
    return manifest.privileges(check(spec).spec.template.spec, "spec.template.")


def check_in(spec: ReplicationControllerSpec, where: bay.BaySpec) -> None:
    """Raise Invalid naming what its pods cannot have in a bay of this make."""
    pod.refuse_hosts(check(spec).spec.template.spec, where, "spec.template.spec.")


def pod_of(spec: ReplicationControllerSpec, name: str, controller: str) -> pod.PodSpec:
    """Return the spec of a new pod called ``name`` like the template, for the controller with that uuid."""
    template = spec.manifest["spec"]["template"]
    data = {
        "apiVersion": manifest.API_VERSION,
        "kind": "Pod",
        "metadata": template.get("metadata", {}) | {"name": name},
        "spec": template["spec"],
    }
    _, made = pod.of(data)
    made.controller = controller
    return made


def patch(old: ReplicationController, spec: ReplicationControllerSpec) -> Any:
    """Check a changed spec: the manifest may change, as a whole or in parts; ``replicas`` and labels too, which are its."""
    data = document.clean(spec.manifest)
    if data == old.spec.manifest:
        if spec.replicas != old.spec.replicas:
            data["spec"]["replicas"] = spec.replicas
        if spec.labels != old.spec.labels:
            data["metadata"] = data.get("metadata", {}) | {"labels": spec.labels}
    _, new = of(data, old.name)
    if spec.namespace != old.spec.namespace:
        raise errors.Invalid("cannot be changed", field="namespace")
    for field in ("selector", "images"):
        if getattr(spec, field) not in (getattr(old.spec, field), getattr(new, field)):
            raise errors.Invalid("is the manifest's: change that", field=field)
    return msgspec.structs.replace(new, keep_pods=spec.keep_pods, namespace=spec.namespace)


KIND = base.Kind(
    name="rc", plural="rcs", cls=ReplicationController, spec=ReplicationControllerSpec,
    state=ReplicationControllerState, spread="none", in_bay=True, unique_in_bay=True,
    pending=frozenset({"Creating", "Updating", "Deleting"}),
    asked={"create": "Creating", "update": "Updating", "retry": "Updating", "delete": "Deleting"},
    check=check, check_in=check_in, patch=patch, chosen=("keep_pods", "foreign"),
)  # fmt: skip
