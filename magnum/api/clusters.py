"""Clusters: what newer clients call bays, with node groups and actions. The same objects and rules under other paths.

A cluster on Docker hosts has one node group, ``default-worker``: all of its hosts.
Changes are answered with 202 and the cluster, since newer clients poll.
"""

import datetime
import uuid
from typing import Any

import msgspec

from magnum import context as contexts
from magnum import errors, objects
from magnum.api import bodies, names, routing, verbs, views
from magnum.objects import base, bay, host

ROUTES = routing.Routes("clusters")

KEY = "clusters"
WORKERS = "default-worker"
"""The name of the group that every cluster has."""
FIELDS = {"cluster_template_id": "baymodel_id", "create_timeout": "bay_create_timeout"}
"""What is called otherwise here than of a bay."""


class ClusterBody(bodies.Body):
    """A new cluster. ``create_timeout`` in minutes, ``docker_volume_size`` in GB.

    ``labels`` replace the template's, or with ``merge_labels`` are added to them.
    """

    cluster_template_id: str
    name: str | None = None
    node_count: int | None = None
    master_count: int | None = None
    discovery_url: str | None = None
    create_timeout: int | None = None
    keypair: str | None = None
    docker_volume_size: int | None = None
    labels: dict[str, str] | None = None
    merge_labels: bool | None = None
    flavor_id: str | None = None
    master_flavor_id: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    floating_ip_enabled: bool | None = None
    master_lb_enabled: bool | None = None


class ResizeBody(bodies.Body):
    """``nodes_to_remove``: names of hosts of the cluster that are to leave it; others are chosen if these are too few."""

    node_count: int
    nodes_to_remove: list[str] | None = None
    nodegroup: str | None = None


class UpgradeBody(bodies.Body):
    cluster_template: str
    max_batch_size: int | None = None
    nodegroup: str | None = None


class NodeGroupBody(bodies.Body):
    """A new node group."""

    name: str
    node_count: int = 1
    min_node_count: int = 0
    max_node_count: int | None = None
    role: str = "worker"
    docker_volume_size: int | None = None
    labels: dict[str, str] | None = None
    flavor_id: str | None = None
    image_id: str | None = None
    project_id: str | None = None
    merge_labels: bool | None = None
    node_labels: dict[str, str] | None = None
    node_taints: list[Any] | None = None


class Groups(bodies.Query):
    """``role``: only groups of that role."""

    role: str | None = None
    all_projects: bool = False


class Rolling(bodies.Wait):
    """``rollback``: accepted from older clients; a change that fails is taken up again by itself."""

    rollback: bool = False


class Cluster(views.Placed, kw_only=True):
    """``health_status_reason``: host → its own status and the cluster's on it. ``stack_id`` is always null: there is none."""

    cluster_template_id: str
    coe: str
    node_count: int
    master_count: int
    node_addresses: list[str]
    master_addresses: list[str]
    api_address: str | None
    coe_version: str | None
    container_version: str | None
    discovery_url: str | None
    create_timeout: int
    keypair: str | None
    labels: dict[str, str]
    labels_overridden: dict[str, str]
    labels_added: dict[str, str]
    labels_skipped: dict[str, str]
    docker_volume_size: int | None
    flavor_id: str | None
    master_flavor_id: str | None
    fixed_network: str | None
    fixed_subnet: str | None
    floating_ip_enabled: bool
    master_lb_enabled: bool
    health_status: str
    health_status_reason: dict[str, str]
    faults: dict[str, str]
    stack_id: str | None = None


class Clusters(msgspec.Struct):
    clusters: list[Cluster]
    next: str | None = None


class NodeGroup(msgspec.Struct, kw_only=True):
    uuid: str
    name: str
    cluster_id: str
    project_id: str
    role: str
    is_default: bool
    node_count: int
    min_node_count: int
    max_node_count: int | None
    node_addresses: list[str]
    status: str
    status_reason: str | None
    docker_volume_size: int | None
    flavor_id: str | None
    image_id: str | None
    labels: dict[str, str]
    labels_overridden: dict[str, str]
    labels_added: dict[str, str]
    labels_skipped: dict[str, str]
    node_labels: dict[str, str]
    node_taints: list[str]
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    links: list[views.Link] = []
    stack_id: str | None = None


class NodeGroups(msgspec.Struct):
    nodegroups: list[NodeGroup]


def make(body: ClusterBody) -> bay.Bay:
    """Return the bay that ``body`` asks for. Raises Invalid."""
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    name = given.pop("name", None)
    merge = given.pop("merge_labels", False)
    given = {FIELDS.get(key, key): value for key, value in given.items()}
    given["baymodel_id"] = names.ident(given["baymodel_id"], "baymodel")
    spec = bay.check(bodies.convert(given, bay.BaySpec))
    spec.replace_labels = bool(spec.labels) and not merge
    name = names.check(name) if name is not None else names.generate("cluster")
    return bay.Bay(uuid=base.new_uuid(), name=name, spec=spec)


def _labels(own: dict[str, str], given: dict[str, str] | None) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return (overridden, added, skipped): how labels differ from the template's; empty if that cannot be seen."""
    if given is None:
        return {}, {}, {}
    overridden = {key: value for key, value in given.items() if key in own and own[key] != value}
    added = {key: value for key, value in own.items() if key not in given}
    skipped = {key: value for key, value in given.items() if key not in own}
    return overridden, added, skipped


def _health(item: bay.Bay, hosts: dict[str, host.Host]) -> tuple[str, dict[str, str]]:
    """Return (status, host → why) as clients of clusters know it: HEALTHY, UNHEALTHY or UNKNOWN."""
    reasons, worst = {}, "HEALTHY"
    for member in item.spec.members:
        machine = hosts.get(member)
        state = machine.status if machine is not None else "not known"
        share = item.state.hosts.get(member, "not reported yet")
        reasons[member] = f"{state}, {share}"
        if state != "up" or share.endswith("FAILED"):
            worst = "UNHEALTHY"
        elif not share.endswith("COMPLETE") and worst == "HEALTHY":
            worst = "UNKNOWN"
    return (worst if reasons else "UNKNOWN"), reasons


class _Seen:
    """What a cluster's view needs beside the bay: hosts, and templates of those that are shown one at a time."""

    def __init__(self, hosts: dict[str, host.Host], template: objects.bay_model.BayModel | None = None) -> None:
        self.hosts = hosts
        self.template = template

    def __call__(self, call: routing.Call, item: bay.Bay) -> Cluster:
        spec, state = item.spec, item.state
        overridden, added, skipped = _labels(spec.labels, self.template.spec.labels if self.template else None)
        health, reasons = _health(item, self.hosts)
        return Cluster(
            uuid=item.uuid, name=item.name, project_id=item.project_id, user_id=item.user_id,
            created_at=item.created_at, updated_at=item.updated_at, links=call.link(f"{KEY}/{item.uuid}"),
            status=item.status, status_reason=item.status_reason, generation=item.generation, operation=item.operation,
            cluster_template_id=spec.baymodel_id, coe=spec.coe, node_count=spec.node_count,
            master_count=spec.master_count, node_addresses=state.node_addresses,
            master_addresses=state.master_addresses, api_address=state.api_address, coe_version=state.coe_version,
            container_version=state.coe_version if spec.engine == "docker" else None, discovery_url=spec.discovery_url,
            create_timeout=spec.bay_create_timeout, keypair=spec.keypair, labels=spec.labels,
            labels_overridden=overridden, labels_added=added, labels_skipped=skipped,
            docker_volume_size=spec.docker_volume_size, flavor_id=spec.flavor_id,
            master_flavor_id=spec.master_flavor_id, fixed_network=spec.fixed_network, fixed_subnet=spec.fixed_subnet,
            floating_ip_enabled=spec.floating_ip_enabled, master_lb_enabled=spec.master_lb_enabled,
            health_status=health, health_status_reason=reasons,
            faults={} if not item.status.endswith("FAILED") else {item.name: item.status_reason or item.status},
        )  # fmt: skip


async def _seen(call: routing.Call, item: bay.Bay | None = None) -> _Seen:
    # the hosts' own words are the operator's; what is shown of them is whether they are up
    context = contexts.service(request_id=call.context.request_id).within(call.api.conf.api.call_timeout)
    hosts = {found.name: found for found in await call.api.conductor.hosts(context)}
    template: Any = None
    if item is not None:
        try:
            template = await call.api.conductor.get(call.context, "baymodel", item.spec.baymodel_id)
        except errors.NotFound:
            # it was deleted or is no longer public
            template = None
    return _Seen(hosts, template)


def _steps(body: list[bodies.PatchStep]) -> list[dict[str, Any]]:
    """Return the patch of a cluster as that of its bay."""
    for step in body:
        name, slash, rest = step.path[1:].partition("/")
        step.path = f"/{FIELDS.get(name, name)}{slash}{rest}"
    return verbs.fields(body, bay.BaySpec)


async def _changed(call: routing.Call, item: Any, context: contexts.Context, wait: float | None) -> routing.Answer:
    answer = await verbs.done(call, context, item, 0.0 if wait is None else wait, 202, await _seen(call))
    return routing.Answer(202, answer.body, answer.headers)


@ROUTES.post("/v1/clusters", rule="bay:create", answers={202: Cluster})
async def create(call: routing.Call, body: ClusterBody, query: bodies.Wait) -> routing.Answer:
    """Make a cluster."""
    written: Any = await call.api.conductor.create(call.context, make(body))
    answer = await _changed(call, written, call.context, query.wait)
    answer.headers = {"Location": call.link(f"{KEY}/{written.uuid}")[0]["href"]}
    return answer


@ROUTES.get("/v1/clusters", rule="bay:list", answers={200: Clusters})
async def index(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """List clusters."""
    return await verbs.page(call, "bay", query, key=KEY, shown=await _seen(call))


@ROUTES.get("/v1/clusters/detail", rule="bay:list", answers={200: Clusters})
async def detail(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "bay", query, key=KEY, shown=await _seen(call))


@ROUTES.get("/v1/clusters/{ident}", rule="bay:get", answers={200: Cluster})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Show a cluster."""
    item = await verbs.find(call, "bay", ident, query)
    return routing.Answer(200, (await _seen(call, item))(call, item))


@ROUTES.patch("/v1/clusters/{ident}", rule="bay:update", answers={202: Cluster})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: Rolling) -> routing.Answer:
    """Change a cluster's name or number of nodes."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.update(context, "bay", names.ident(ident, "cluster"), None, _steps(body))
    return await _changed(call, item, context, query.wait)


@ROUTES.delete("/v1/clusters/{ident}", rule="bay:delete", answers={202: Cluster, 204: None})
async def delete(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Delete a cluster with everything in it."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.delete(context, "bay", names.ident(ident, "cluster"), None, False)
    return await verbs.done(call, context, item, 0.0 if query.wait is None else query.wait, 202, await _seen(call))


@ROUTES.post("/v1/clusters/{ident}/actions/resize", rule="bay:update", answers={202: Cluster})
async def resize(call: routing.Call, ident: str, body: ResizeBody, query: bodies.Wait) -> routing.Answer:
    """Change the number of a cluster's nodes."""
    context = call.for_all_projects(query.all_projects)
    item: Any = await call.api.conductor.get(context, "bay", names.ident(ident, "cluster"))
    _group(item, body.nodegroup or WORKERS)
    steps: list[dict[str, Any]] = [{"op": "replace", "path": "/node_count", "value": body.node_count}]
    if body.nodes_to_remove:
        if unknown := sorted(set(body.nodes_to_remove) - set(item.spec.members)):
            raise errors.Invalid(f"{', '.join(unknown)} is no host of the cluster", field="nodes_to_remove")
        steps.append({"op": "replace", "path": "/leave_first", "value": body.nodes_to_remove})
    changed = await call.api.conductor.update(context, "bay", item.uuid, None, steps)
    return await _changed(call, changed, context, query.wait)


@ROUTES.post("/v1/clusters/{ident}/actions/upgrade", rule="bay:update", answers={202: Cluster})
async def upgrade(call: routing.Call, ident: str, body: UpgradeBody, query: bodies.Wait) -> routing.Answer:
    """Bring a cluster to another template's version."""
    context = call.for_all_projects(query.all_projects)
    item: Any = await call.api.conductor.get(context, "bay", names.ident(ident, "cluster"))
    await call.api.conductor.get(context, "baymodel", names.ident(body.cluster_template, "cluster template"))
    _group(item, body.nodegroup or WORKERS)
    raise errors.NotSupported(
        f"the software of cluster {item.name} is that of the operator's {item.spec.engine} hosts: "
        "nothing of a template says which version that is"
    )


def _group_id(item: bay.Bay) -> str:
    return str(uuid.uuid5(uuid.UUID(item.uuid), WORKERS))


def _group(item: bay.Bay, ident: str) -> None:
    """Raise NotFound unless ``ident`` is the group that the cluster has."""
    if ident not in (WORKERS, _group_id(item)):
        raise errors.NotFound(f"cluster {item.name} has no node group {ident!r}, only {WORKERS}")


def _nodes(call: routing.Call, item: bay.Bay) -> NodeGroup:
    spec, ident = item.spec, _group_id(item)
    return NodeGroup(
        uuid=ident, name=WORKERS, cluster_id=item.uuid, project_id=item.project_id, role="worker", is_default=True,
        node_count=views.nodes_of(item), min_node_count=1, max_node_count=None, node_addresses=item.state.node_addresses,
        status=item.status, status_reason=item.status_reason, docker_volume_size=spec.docker_volume_size,
        flavor_id=spec.flavor_id, image_id=None, labels=spec.labels, labels_overridden={}, labels_added={},
        labels_skipped={}, node_labels={}, node_taints=[], created_at=item.created_at, updated_at=item.updated_at,
        links=call.link(f"{KEY}/{item.uuid}/nodegroups/{ident}"),
    )  # fmt: skip


async def _cluster(call: routing.Call, ident: str, query: Any) -> Any:
    return await verbs.find(call, "bay", ident, query)


@ROUTES.get("/v1/clusters/{ident}/nodegroups", rule="bay:get", answers={200: NodeGroups})
async def groups(call: routing.Call, ident: str, query: Groups) -> routing.Answer:
    """List a cluster's node groups."""
    item = await _cluster(call, ident, query)
    found = [_nodes(call, item)]
    return routing.Answer(200, NodeGroups([group for group in found if query.role in (None, group.role)]))


@ROUTES.get("/v1/clusters/{ident}/nodegroups/{group}", rule="bay:get", answers={200: NodeGroup})
async def group(call: routing.Call, ident: str, group: str, query: bodies.Show) -> routing.Answer:
    """Show a node group."""
    item = await _cluster(call, ident, query)
    _group(item, group)
    return routing.Answer(200, _nodes(call, item))


@ROUTES.post("/v1/clusters/{ident}/nodegroups", rule="bay:update", answers={202: NodeGroup})
async def add_group(call: routing.Call, ident: str, body: NodeGroupBody, query: bodies.Show) -> routing.Answer:
    """Add a node group."""
    item = await _cluster(call, ident, query)
    raise errors.NotSupported(f"cluster {item.name} has one node group, {WORKERS}: resize it, or make another cluster")


@ROUTES.patch("/v1/clusters/{ident}/nodegroups/{group}", rule="bay:update", answers={202: NodeGroup})
async def change_group(
    call: routing.Call, ident: str, group: str, body: bodies.Patch, query: bodies.Show
) -> routing.Answer:
    """Change a node group."""
    item = await _cluster(call, ident, query)
    _group(item, group)
    raise errors.NotSupported(f"nothing resizes cluster {item.name} by itself, so {WORKERS} has no bounds to change")


@ROUTES.delete("/v1/clusters/{ident}/nodegroups/{group}", rule="bay:update", answers={204: None})
async def remove_group(call: routing.Call, ident: str, group: str, query: bodies.Show) -> routing.Answer:
    """Delete a node group."""
    item = await _cluster(call, ident, query)
    _group(item, group)
    raise errors.NotSupported(f"{WORKERS} is the only node group of cluster {item.name}: delete the cluster")
