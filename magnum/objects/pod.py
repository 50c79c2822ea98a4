"""A pod: containers that run together on one machine, sharing network and IPC namespaces.

Its spec holds the Kubernetes v1 manifest as given (JSON-able) and its parsed
form is made by ``objects.manifest``. ``status`` is the word for clients:
``Creating``, then Kubernetes' phases ``Pending``, ``Running``, ``Succeeded``,
``Failed``, and ``Unknown`` while its host is down.
"""

from typing import Any

import msgspec

from magnum.objects import base


class PodSpec(base.Spec):
    """``manifest`` is the whole v1 Pod; ``labels`` and ``images`` are copies for lists and selectors.

    ``controller`` is the uuid of the replication controller that made or adopted it.
    """

    manifest: dict[str, Any]
    labels: dict[str, str] = {}
    images: list[str] = []
    controller: str | None = None
    namespace: str | None = None


class PodState(base.State):
    """As Kubernetes words it: ``phase``, ``conditions`` and ``container_statuses`` are v1 PodStatus' own objects.

    ``ready`` is the Ready condition; ``members`` maps a container's name to its engine id.
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


class Pod(base.Object, tag="pod"):
    spec: PodSpec
    state: PodState = msgspec.field(default_factory=PodState)


def patch(old: Pod, spec: PodSpec) -> Any:
    """Check a changed spec; a new manifest is checked by ``objects.manifest`` at the api."""
    return spec


KIND = base.Kind(
    name="pod", plural="pods", cls=Pod, spec=PodSpec, state=PodState, spread="one", in_bay=True,
    unique_in_bay=True, failed="Failed",
    pending=frozenset({"Creating", "Updating", "Deleting"}),
    asked={"create": "Creating", "update": "Updating", "retry": "Updating", "delete": "Deleting"},
    patch=patch,
)  # fmt: skip
