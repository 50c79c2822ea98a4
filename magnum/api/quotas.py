"""Quotas of projects, and what projects use of them."""

import uuid
from typing import Annotated, Any

import msgspec

from magnum import errors
from magnum.api import bodies, routing
from magnum.rpc import conductor as rpc

ROUTES = routing.Routes("quotas")

ALIASES = {"Cluster": "bays"}
"""What newer clients call a resource."""

Limit = Annotated[int, msgspec.Meta(ge=-1, le=2**62)]


class QuotaBody(bodies.Body):
    """A limit of a project's own. ``resource``: bays (or Cluster), nodes, pods, services, containers, memory (bytes), cpus."""

    project_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    resource: str
    hard_limit: Limit = 1


class ChangeBody(bodies.Body):
    """``project_id`` and ``resource``, if given, are those of the path."""

    hard_limit: Limit
    project_id: str | None = None
    resource: str | None = None


class Quota(msgspec.Struct, kw_only=True):
    """``hard_limit`` -1: none. ``own``: an admin set it; the configuration's otherwise. ``used``: bytes of memory, cores of cpus."""

    id: str
    project_id: str
    resource: str
    hard_limit: int
    used: float
    own: bool


class Quotas(msgspec.Struct):
    quotas: list[Quota]
    next: str | None = None


class ListQuery(bodies.Query):
    """``all_tenants`` (or ``all_projects``): those of every project that an admin gave limits; by default one's own."""

    marker: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    sort_key: str = "project_id"
    sort_dir: str = "asc"
    all_tenants: bool = False
    all_projects: bool = False


class StatsQuery(bodies.Query):
    """``project_id``: whose, by default one's own project's."""

    project_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


class Stats(msgspec.Struct, kw_only=True):
    """``memory`` in bytes, ``cpus`` in cores: what containers and pods ask for."""

    clusters: int
    nodes: int
    pods: int
    services: int
    containers: int
    memory: int
    cpus: float


def _resource(name: str) -> str:
    return ALIASES.get(name, name)


def _view(found: rpc.Quota, resource: str, shown: str | None = None) -> Quota:
    return Quota(
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{found.project_id}/{resource}")), project_id=found.project_id,
        resource=shown or resource, hard_limit=found.limits[resource], used=found.used[resource],
        own=resource in found.own,
    )  # fmt: skip


async def _of(call: routing.Call, project: str) -> rpc.Quota:
    """Return a project's limits and use. Raises Forbidden for another's, unless policy lets all be seen."""
    if project != call.context.project_id:
        call.api.policy.enforce(call.context, "quota:list_all", field="project_id")
    (found,) = await call.api.conductor.quotas(call.context, project)
    return found


def _known(found: rpc.Quota, resource: str) -> str:
    name = _resource(resource)
    if name not in found.limits:
        raise errors.NotFound(f"there is no quota of {resource!r}, only of {', '.join(found.limits)}")
    return name


def _project(text: str) -> str:
    if not text or len(text) > 255 or not text.isprintable():
        raise errors.NotFound("there is no project of that id")
    return text


@ROUTES.get("/v1/quotas", rule="quota:list", answers={200: Quotas})
async def index(call: routing.Call, query: ListQuery) -> routing.Answer:
    """List limits: one's own project's, or all that an admin set."""
    if query.sort_key not in Quota.__struct_fields__:
        raise errors.Invalid(f"must be one of {', '.join(Quota.__struct_fields__)}", field="sort_key")
    if query.sort_dir not in ("asc", "desc"):
        raise errors.Invalid("must be asc or desc", field="sort_dir")
    if query.all_tenants or query.all_projects:
        call.api.policy.enforce(call.context, "quota:list_all", field="all_tenants")
        found = [_view(each, name) for each in await call.api.conductor.quotas(call.context) for name in each.own]
    else:
        (own,) = await call.api.conductor.quotas(call.context, call.context.project_id)
        found = [_view(own, name) for name in own.limits]
    found.sort(key=lambda q: (getattr(q, query.sort_key), q.project_id, q.resource), reverse=query.sort_dir == "desc")
    if query.marker is not None:
        place = next((n for n, quota in enumerate(found) if quota.id == query.marker), None)
        if place is None:
            raise errors.Invalid("is no quota of this list", field="marker")
        found = found[place + 1 :]
    most = min(query.limit or call.api.conf.api.max_limit, call.api.conf.api.max_limit)
    body: dict[str, Any] = {"quotas": found[:most]}
    if len(found) > most:
        body["next"] = f"{call.base_url}/v1/quotas?marker={found[most - 1].id}&limit={most}" + (
            "&all_tenants=true" if query.all_tenants or query.all_projects else ""
        ) + f"&sort_key={query.sort_key}&sort_dir={query.sort_dir}"  # fmt: skip
    return routing.Answer(200, body)


@ROUTES.get("/v1/quotas/{project}/{resource}", rule="quota:get", answers={200: Quota})
async def get(call: routing.Call, project: str, resource: str) -> routing.Answer:
    """Show a limit and what is used of it."""
    found = await _of(call, _project(project))
    return routing.Answer(200, _view(found, _known(found, resource), resource))


@ROUTES.post("/v1/quotas", rule="quota:create", answers={201: Quota})
async def create(call: routing.Call, body: QuotaBody) -> routing.Answer:
    """Give a project a limit of its own."""
    found = await call.api.conductor.set_quota(
        call.context, body.project_id, {_resource(body.resource): body.hard_limit}
    )
    return routing.Answer(201, _view(found, _resource(body.resource), body.resource))


@ROUTES.patch("/v1/quotas/{project}/{resource}", rule="quota:update", answers={202: Quota})
async def update(call: routing.Call, project: str, resource: str, body: ChangeBody) -> routing.Answer:
    """Change a project's limit."""
    for field, given, path in (("project_id", body.project_id, project), ("resource", body.resource, resource)):
        if given not in (None, path):
            raise errors.Invalid(f"is {path!r} in the path", field=field)
    found = await _of(call, _project(project))
    name = _known(found, resource)
    found = await call.api.conductor.set_quota(call.context, project, {name: body.hard_limit})
    return routing.Answer(202, _view(found, name, resource))


@ROUTES.delete("/v1/quotas/{project}/{resource}", rule="quota:delete", answers={204: None})
async def delete(call: routing.Call, project: str, resource: str) -> routing.Answer:
    """Take a project's own limit back: the configuration's counts again."""
    found = await _of(call, _project(project))
    name = _known(found, resource)
    if name not in found.own:
        raise errors.NotFound(f"project {project} has no limit of {resource} of its own")
    await call.api.conductor.set_quota(call.context, project, {name: None})
    return routing.Answer(204)


@ROUTES.get("/v1/stats", rule="stats:get", answers={200: Stats})
async def stats(call: routing.Call, query: StatsQuery) -> routing.Answer:
    """Count what a project has."""
    used = (await _of(call, query.project_id or call.context.project_id)).used
    return routing.Answer(200, Stats(
        clusters=int(used["bays"]), nodes=int(used["nodes"]), pods=int(used["pods"]), services=int(used["services"]),
        containers=int(used["containers"]), memory=int(used["memory"]), cpus=used["cpus"],
    ))  # fmt: skip
