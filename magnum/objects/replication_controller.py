"""A replication controller: keeps a number of pods like its template.

On a Docker bay the conductor keeps it (``spread="none"``: it lives on no host);
on a Kubernetes bay the cluster does and a backend reports.
"""

from typing import Any

import msgspec

from magnum.objects import base


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


class ReplicationControllerState(base.State):
    replicas: int = 0
    ready_replicas: int = 0
    managed: bool = True


class ReplicationController(base.Object, tag="rc"):
    spec: ReplicationControllerSpec
    state: ReplicationControllerState = msgspec.field(default_factory=ReplicationControllerState)


def patch(old: ReplicationController, spec: ReplicationControllerSpec) -> Any:
    """Check a changed spec; a new manifest is checked by ``objects.manifest`` at the api."""
    return spec


KIND = base.Kind(
    name="rc", plural="rcs", cls=ReplicationController, spec=ReplicationControllerSpec,
    state=ReplicationControllerState, spread="none", in_bay=True, unique_in_bay=True,
    pending=frozenset({"Creating", "Updating", "Deleting"}),
    asked={"create": "Creating", "update": "Updating", "retry": "Updating", "delete": "Deleting"},
    patch=patch,
)  # fmt: skip
