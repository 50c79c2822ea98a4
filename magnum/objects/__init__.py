"""The vocabulary: what Magnum's objects are, their states and their transitions. No I/O."""

from magnum import errors
from magnum.objects import base, bay, bay_model, container, pod, replication_controller, service

AnyObject = (
    bay_model.BayModel
    | bay.Bay
    | container.Container
    | pod.Pod
    | service.Service
    | replication_controller.ReplicationController
)
"""Any stored object; the ``kind`` tag on the wire says which."""

KINDS: dict[str, base.Kind] = {
    kind.name: kind
    for kind in (
        bay_model.KIND,
        bay.KIND,
        container.KIND,
        pod.KIND,
        service.KIND,
        replication_controller.KIND,
    )
}
"""Every kind by the name that it has on the wire."""


def kind_of(item: base.Object) -> base.Kind:
    """Return the kind of an object."""
    return KINDS[type(item).__struct_config__.tag]  # type: ignore[index]


def kind(name: str) -> base.Kind:
    """Return the kind of this name on the wire. Raises NotFound."""
    if name not in KINDS:
        raise errors.NotFound(f"there are no objects of kind {name!r}")
    return KINDS[name]
