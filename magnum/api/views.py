"""What clients are shown: one struct a kind, with the names that python-magnumclient knows.

Used by the handlers of each kind; the same structs are in the OpenAPI document.
"""

import collections.abc
import datetime
import operator
from typing import Any

import msgspec

from magnum.objects import bay, bay_model, container, host, pod, replication_controller, service

Link = dict[str, str]


class View(msgspec.Struct, kw_only=True):
    """What all have. Times are ISO 8601, UTC. ``links`` of an item of a list are those of the item itself."""

    uuid: str
    name: str
    project_id: str
    user_id: str
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    links: list[Link] = []


class Placed(View, kw_only=True):
    """What those have that something is made of. ``operation`` is the request id of the change in progress."""

    status: str
    status_reason: str | None
    generation: int
    operation: str | None


class BayModel(View, kw_only=True):
    coe: str
    image_id: str | None
    flavor_id: str | None
    master_flavor_id: str | None
    keypair_id: str | None
    external_network_id: str | None
    fixed_network: str | None
    fixed_subnet: str | None
    dns_nameserver: str | None
    docker_volume_size: int | None
    docker_storage_driver: str | None
    labels: dict[str, str]
    http_proxy: str | None
    https_proxy: str | None
    no_proxy: str | None
    network_driver: str | None
    volume_driver: str | None
    tls_disabled: bool
    public: bool
    hidden: bool
    registry_enabled: bool
    insecure_registry: str | None
    server_type: str
    cluster_distro: str | None
    apiserver_port: int | None
    master_lb_enabled: bool
    floating_ip_enabled: bool
    tags: str | None
    driver: str | None


class Bay(Placed, kw_only=True):
    baymodel_id: str
    coe: str
    node_count: int
    master_count: int
    discovery_url: str | None
    bay_create_timeout: int
    keypair: str | None
    labels: dict[str, str]
    network_driver: str | None
    fixed_network: str | None
    fixed_subnet: str | None
    external_network_id: str | None
    dns_nameserver: str | None
    api_address: str | None
    node_addresses: list[str]
    master_addresses: list[str]
    coe_version: str | None
    subnet: str | None
    hosts: dict[str, str]


class Container(Placed, kw_only=True):
    """``memory`` in bytes, ``cpus`` in cores, ``stop_timeout`` in seconds."""

    bay_uuid: str | None
    host: str | None
    image: str
    command: list[str] | None
    entrypoint: list[str] | None
    environment: dict[str, str]
    memory: int | None
    memory_swap: int | None
    cpus: float | None
    pids: int | None
    restart_policy: container.RestartPolicy
    labels: dict[str, str]
    workdir: str | None
    user: str | None
    hostname: str | None
    tty: bool
    stdin_open: bool
    mounts: list[container.Mount]
    stop_timeout: int
    stop_signal: str | None
    read_only: bool
    privileged: bool
    cap_add: list[str]
    cap_drop: list[str]
    devices: list[str]
    image_pull_policy: str
    ports: list[container.Port]
    networks: list[container.Network]
    security_groups: list[str]
    addresses: dict[str, list[str]]
    exit_code: int | None
    oom_killed: bool
    started_at: str | None
    finished_at: str | None
    restart_count: int
    health: str | None


class Pod(Placed, kw_only=True):
    """``conditions`` and the statuses are v1 PodStatus' own objects."""

    bay_uuid: str | None
    host: str | None
    labels: dict[str, str]
    images: list[str]
    manifest: dict[str, Any]
    controller: str | None
    managed: bool
    phase: str
    ready: bool
    conditions: list[dict[str, Any]]
    container_statuses: list[dict[str, Any]]
    init_container_statuses: list[dict[str, Any]]
    networks: list[container.Network]
    security_groups: list[str]
    pod_ip: str | None
    host_ip: str | None
    started_at: str | None


class Service(Placed, kw_only=True):
    bay_uuid: str | None
    labels: dict[str, str]
    selector: dict[str, str]
    ip: str | None
    ports: list[service.ServicePort]
    type: str
    addresses: list[str]
    external: bool
    external_ip: str | None
    source_ranges: list[str]
    endpoints: list[str]
    node_ports: dict[str, int]
    manifest: dict[str, Any]
    managed: bool


class ReplicationController(Placed, kw_only=True):
    """``replicas`` are asked for, ``current_replicas`` there."""

    bay_uuid: str | None
    labels: dict[str, str]
    selector: dict[str, str]
    images: list[str]
    replicas: int
    current_replicas: int
    ready_replicas: int
    manifest: dict[str, Any]
    managed: bool


class Host(msgspec.Struct, kw_only=True):
    """``memory`` and ``disk`` (free) in bytes, ``cpus`` in cores. ``status``: up, down or disabled.

    ``clusters``: the Kubernetes clusters that it reaches, by the operator's names.
    """

    uuid: str
    name: str
    status: str
    status_reason: str | None
    engines: dict[str, str]
    cpus: float
    memory: int
    disk: int
    address: str
    labels: dict[str, str]
    containers: int
    networks: list[str]
    clusters: dict[str, host.Cluster]
    last_seen_at: datetime.datetime | None
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    links: list[Link] = []


class _Source:
    """Which of a view's fields are the object's own, its spec's or its state's, the first that has one, and how to read them."""

    def __init__(self, view: type[Any], item: Any) -> None:
        left = [name for name in view.__struct_fields__ if name != "links"]
        parts = []
        for part in (item, item.spec, item.state):
            parts.append([name for name in left if name in part.__struct_fields__])
            left = [name for name in left if name not in parts[-1]]
        self.names = [name for part in parts for name in part]
        self.own, self.spec, self.state = (_reader(part) for part in parts)


def _reader(names: list[str]) -> collections.abc.Callable[[Any], tuple[Any, ...]]:
    if len(names) < 2:
        return lambda part: tuple(getattr(part, name) for name in names)
    return operator.attrgetter(*names)


_SOURCES: dict[type[Any], _Source] = {}


def _of(view: type[Any], item: Any, links: list[Link], **more: Any) -> Any:
    source = _SOURCES.get(view) or _SOURCES.setdefault(view, _Source(view, item))
    values = source.own(item) + source.spec(item.spec) + source.state(item.state)
    given = dict(zip(source.names, values, strict=True))
    given.update(more, links=links)
    return view(**given)


def nodes_of(item: bay.Bay) -> int:
    """Return how many machines a bay has: of a cluster's slice, those that the cluster has ready."""
    return item.spec.node_count if item.state.node_count is None else item.state.node_count


def _groups(item: Any) -> list[str]:
    """Return the security groups that an object has, or is to have while it has none yet."""
    found: list[str] = item.state.security_groups or item.spec.security_groups or []
    return found


def of(item: Any, links: list[Link]) -> Any:
    """Return how clients are shown ``item``."""
    if isinstance(item, container.Container):
        place = item.state.node or item.host
        return _of(
            Container, item, links, ports=item.state.ports or item.spec.ports, host=place, security_groups=_groups(item)
        )
    if isinstance(item, pod.Pod):
        return _of(Pod, item, links, host=item.state.node or item.host, security_groups=_groups(item))
    if isinstance(item, bay.Bay):
        return _of(Bay, item, links, node_count=nodes_of(item))
    if isinstance(item, bay_model.BayModel):
        return _of(BayModel, item, links)
    if isinstance(item, service.Service):
        shown = item.state.endpoints or [f"{e.ip}:{p}" for e in item.spec.endpoints for p in e.ports.values()]
        return _of(Service, item, links, ip=item.state.ip or item.spec.virtual_ip, endpoints=shown)
    assert isinstance(item, replication_controller.ReplicationController)
    return _of(ReplicationController, item, links, current_replicas=item.state.replicas)


def host_of(item: host.Host, links: list[Link]) -> Host:
    """Return how admins are shown a host."""
    facts = item.facts
    return Host(
        uuid=item.uuid, name=item.name, status=item.status, status_reason=item.status_reason, engines=facts.engines,
        cpus=facts.cpus, memory=facts.memory, disk=facts.disk, address=facts.address, labels=facts.labels,
        containers=facts.containers, networks=facts.networks, clusters=facts.clusters, last_seen_at=item.last_seen_at, created_at=item.created_at,
        updated_at=item.updated_at, links=links,
    )  # fmt: skip
