"""A bay: a place where work is scheduled. Statuses are those that the old and new clients wait for.

A Docker bay is a set of hosts (``members``) with a network of its own; a
Kubernetes bay is a namespace in a cluster, kept by one host at a time.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, bay_model


class BaySpec(base.Spec):
    """What a tenant asks for, and what the conductor chose: ``members``, the hosts, and ``overlay``.

    ``overlay``: the network was made to span hosts, which it stays when all but one have left.
    ``cluster``: the cluster that a Kubernetes bay is a slice of. ``certificates``: grows with
    each rotation, after which certificates that were signed before open nothing.

    ``baymodel_id`` is the model's uuid. ``engine``, ``network_driver`` and
    ``labels`` are copied from the model when the bay is made, so a model may
    change without changing its bays; with ``replace_labels`` the model's are not.
    ``bay_create_timeout`` is in minutes (0: the operator's default),
    ``docker_volume_size`` in GB. ``leave_first``: members that leave before others
    when there are to be fewer nodes.
    """

    baymodel_id: str
    engine: str = "docker"
    coe: str = "docker"
    node_count: int = 1
    master_count: int = 1
    discovery_url: str | None = None
    bay_create_timeout: int = 0
    keypair: str | None = None
    labels: dict[str, str] = {}
    network_driver: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    external_network_id: str | None = None
    dns_nameserver: str | None = None
    docker_volume_size: int | None = None
    flavor_id: str | None = None
    master_flavor_id: str | None = None
    floating_ip_enabled: bool = False
    master_lb_enabled: bool = False
    replace_labels: bool = False
    leave_first: list[str] = []
    members: list[str] = []
    overlay: bool = False
    cluster: str | None = None
    certificates: int = 1


class BayState(base.State):
    """What stands. ``network`` is the engine's name of the bay's network or namespace, ``subnet`` its CIDR.

    ``node_count``: the machines that a cluster has ready; None on Docker, where it is as asked for.
    """

    api_address: str | None = None
    node_addresses: list[str] = []
    master_addresses: list[str] = []
    coe_version: str | None = None
    network: str | None = None
    subnet: str | None = None
    hosts: dict[str, str] = {}
    """Status of each member."""
    node_count: int | None = None
    cluster: str | None = None


class Bay(base.Object, tag="bay"):
    spec: BaySpec
    state: BayState = msgspec.field(default_factory=BayState)


MAX_NODES = 1000


def spans(spec: BaySpec) -> bool:
    """Return whether the bay's network is one of Docker's that spans hosts. Neutron's does without us."""
    return spec.network_driver != bay_model.NEUTRON and (spec.overlay or len(spec.members) > 1)


def check(spec: BaySpec) -> BaySpec:
    """Return ``spec`` if it makes sense. Raises Invalid naming the field."""
    if not 1 <= spec.node_count <= MAX_NODES:
        raise errors.Invalid(f"must be between 1 and {MAX_NODES}, not {spec.node_count}", field="node_count")
    if not 1 <= spec.master_count <= MAX_NODES:
        raise errors.Invalid(f"must be between 1 and {MAX_NODES}, not {spec.master_count}", field="master_count")
    if spec.docker_volume_size is not None and spec.docker_volume_size < 1:
        raise errors.Invalid("must be at least 1 (GB)", field="docker_volume_size")
    if spec.bay_create_timeout < 0:
        raise errors.Invalid("must not be negative (minutes)", field="bay_create_timeout")
    return spec


def inherit(spec: BaySpec, model: bay_model.BayModel) -> BaySpec:
    """Return ``spec`` with what the model says and the tenant did not."""
    given = model.spec
    return msgspec.structs.replace(
        spec,
        baymodel_id=model.uuid,
        engine=bay_model.engine_of(given),
        coe=given.coe,
        labels=spec.labels if spec.replace_labels else given.labels | spec.labels,
        keypair=spec.keypair or given.keypair_id,
        network_driver=spec.network_driver or given.network_driver,
        fixed_network=spec.fixed_network or given.fixed_network,
        fixed_subnet=spec.fixed_subnet or given.fixed_subnet,
        external_network_id=spec.external_network_id or given.external_network_id,
        dns_nameserver=spec.dns_nameserver or given.dns_nameserver,
        docker_volume_size=spec.docker_volume_size or given.docker_volume_size,
        flavor_id=spec.flavor_id or given.flavor_id,
        master_flavor_id=spec.master_flavor_id or given.master_flavor_id,
        floating_ip_enabled=spec.floating_ip_enabled or given.floating_ip_enabled,
        master_lb_enabled=spec.master_lb_enabled or given.master_lb_enabled,
    )


def patch(old: Bay, spec: BaySpec) -> Any:
    """Check a changed spec: ``node_count`` may change, with ``leave_first``, and nothing else."""
    allowed = msgspec.structs.replace(old.spec, node_count=spec.node_count, leave_first=spec.leave_first)
    if unknown := sorted(set(spec.leave_first) - set(old.spec.members)):
        raise errors.Invalid(f"{', '.join(unknown)} is no host of the bay", field="leave_first")
    for name in BaySpec.__struct_fields__:
        if getattr(spec, name) != getattr(allowed, name):
            raise errors.Invalid("cannot be changed", field=name)
    return check(spec)


def verb(item: Bay) -> str:
    """Return the change that a bay's status tells of: CREATE, UPDATE or DELETE."""
    return item.status.partition("_")[0] or "CREATE"


def combine(bay: Bay, placements: list[base.Placement]) -> tuple[str, str | None, Any]:
    """Return the bay's (status, reason, state) from those of its hosts.

    The verb of the status is that of the change in progress; a failure of one
    host is the whole's, with the host's name in front of its words.
    """
    word = "DELETE" if bay.deleting else verb(bay)
    state = BayState(hosts={p.host: p.status for p in placements})
    reasons, failed, behind = [], False, False
    for placement in placements:
        seen = msgspec.convert(placement.state, BayState)
        state.node_addresses += seen.node_addresses
        state.master_addresses += seen.master_addresses
        state.api_address = state.api_address or seen.api_address
        state.coe_version = state.coe_version or seen.coe_version
        state.network = state.network or seen.network
        state.subnet = state.subnet or seen.subnet
        state.node_count = seen.node_count if state.node_count is None else state.node_count
        state.cluster = state.cluster or seen.cluster
        if placement.status.endswith("FAILED"):
            failed = True
            reasons.append(f"{placement.host}: {placement.reason}")
            continue
        behind = behind or placement.generation < bay.generation or not placement.status.endswith("COMPLETE")
        if placement.reason:
            reasons.append(f"{placement.host}: {placement.reason}")
    status = f"{word}_FAILED" if failed else f"{word}_IN_PROGRESS" if behind else f"{word}_COMPLETE"
    return status, "; ".join(reasons) or None, state


def waiting(item: Bay) -> str:
    """Return the status of a host's share that waits for what passes: one that was whole stays so, and takes containers."""
    if item.status.endswith("_COMPLETE") and item.observed_generation >= item.generation:
        return item.status
    return f"{verb(item)}_IN_PROGRESS"


def act(item: Bay, action: str, engine: str) -> None:
    """Change ``item``'s spec as an action asks: ``rotate`` makes earlier certificates open nothing.

    Raises NotFound for an unknown action, NotSupported for a bay without certificates, Conflict.
    """
    if action != "rotate":
        raise errors.NotFound(f"a bay has no action {action!r}")
    if item.spec.engine != "kubernetes":
        raise errors.NotSupported(f"bay {item.name} is made of Docker hosts, which have no certificates of tenants")
    if item.deleting or (item.status.startswith("CREATE_") and item.status != "CREATE_COMPLETE"):
        raise errors.Conflict(f"bay {item.name} is {item.status}", status=item.status)
    item.spec.certificates += 1


def demand(spec: BaySpec) -> base.Demand:
    """Return what a bay takes of a quota: its nodes."""
    return base.Demand(nodes=spec.node_count)


def timeout(spec: BaySpec) -> float | None:
    """Return the seconds that a change of the bay may last, None if its owner has no wish."""
    return spec.bay_create_timeout * 60.0 or None


KIND = base.Kind(
    name="bay", plural="bays", cls=Bay, spec=BaySpec, state=BayState, spread="members",
    initial="CREATE_IN_PROGRESS", failed="CREATE_FAILED",
    pending=frozenset({"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}),
    asked={"create": "CREATE_IN_PROGRESS", "update": "UPDATE_IN_PROGRESS", "delete": "DELETE_IN_PROGRESS",
           "retry": "UPDATE_IN_PROGRESS", "rotate": "UPDATE_IN_PROGRESS"},
    patch=patch, combine=combine, act=act, owner="baymodel_id",
    chosen=("members", "overlay", "cluster", "certificates"), demand=demand, timeout=timeout,
    failures={f"{verb}_IN_PROGRESS": f"{verb}_FAILED" for verb in ("CREATE", "UPDATE", "DELETE")},
)  # fmt: skip
