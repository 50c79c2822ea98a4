"""List, show, change, delete and history: the same for every kind. The file of a kind declares its routes over these."""

import types
import typing
import urllib.parse
from typing import Any

import msgspec

from magnum import context as contexts
from magnum import errors, objects
from magnum.api import bodies, intents, names, routing, views
from magnum.objects import base


class InBay(bodies.List):
    """``bay_ident`` (or ``bay``): name or uuid of a bay, to see what is in it. ``status``, ``host``: only those."""

    bay_ident: str | None = None
    bay: str | None = None
    name: str | None = None
    status: str | None = None
    host: str | None = None


class Named(bodies.List):
    name: str | None = None
    status: str | None = None


class Which(bodies.Show):
    """``bay_ident`` (or ``bay``): name or uuid of the bay that the object is in, where names repeat."""

    bay_ident: str | None = None
    bay: str | None = None


class Change(bodies.Wait):
    bay_ident: str | None = None
    bay: str | None = None


class Events(msgspec.Struct):
    events: list[base.Event]


def bay_of(query: Any) -> str | None:
    """Return the bay that a query names."""
    found: str | None = getattr(query, "bay_ident", None) or getattr(query, "bay", None)
    return names.ident(found, "bay") if found else None


def show(call: routing.Call, item: Any) -> Any:
    """Return ``item`` as clients are shown it."""
    return views.of(item, call.link(f"{objects.kind_of(item).plural}/{item.uuid}"))


async def page(call: routing.Call, kind: str, query: Any, *, key: str = "", shown: Any = show) -> routing.Answer:
    """Answer a page of a list, with a link to the next if there is one."""
    context = call.for_all_projects(query.all_projects)
    most = call.api.conf.api.max_limit
    filters = {n: v for n in ("name", "status", "host") if (v := getattr(query, n, None)) is not None}
    limit = min(query.limit or most, most)
    asked = base.Query(
        bay=bay_of(query), filters=filters, marker=query.marker, limit=limit, sort_key=query.sort_key or "created_at",
        sort_dir=query.sort_dir,
    )  # fmt: skip
    found = await call.api.conductor.page(context, kind, asked)
    body: dict[str, Any] = {key or objects.KINDS[kind].plural: [shown(call, item) for item in found.items]}
    if found.more:
        pairs = urllib.parse.parse_qsl(call.request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        pairs = [(n, v) for n, v in pairs if n not in ("marker", "limit")]
        pairs += [("marker", found.items[-1].uuid), ("limit", str(limit))]
        path = call.request.scope["path"].rstrip("/")
        body["next"] = f"{call.base_url}{path}?{urllib.parse.urlencode(pairs)}"
    return routing.Answer(200, body)


async def find(call: routing.Call, kind: str, ident: str, query: Any) -> Any:
    """Return the object that a path names."""
    context = call.for_all_projects(getattr(query, "all_projects", False))
    return await call.api.conductor.get(context, kind, names.ident(ident, kind), bay_of(query))


async def create(call: routing.Call, item: Any, query: bodies.Wait) -> routing.Answer:
    """Write a new object's intent and answer what stands within the wait: 201, or 202 while work goes on."""
    written = await call.api.conductor.create(call.context, item)
    return await done(call, call.context, written, query.wait, 201)


async def done(
    call: routing.Call, context: contexts.Context, item: Any, wait: float | None, status: int, shown: Any = show
) -> routing.Answer:
    """Carry an intent out and answer: ``status`` once it is settled, 202 before; 204 when nothing is left.

    ``item``: None if nothing was left already.
    """
    found = None if item is None else await intents.carry_out(call.api, context, item, wait)
    if found is None:
        return routing.Answer(204)
    body = shown(call, found)
    headers = {"Location": body.links[0]["href"]} if status == 201 and body.links else {}
    return routing.Answer(status if intents.settled(found) else 202, body, headers)


async def update(
    call: routing.Call, kind: str, ident: str, query: Any, steps: list[dict[str, Any]], shown: Any = show
) -> routing.Answer:
    """Apply a JSON Patch and answer as ``create`` does."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.update(context, kind, names.ident(ident, kind), bay_of(query), steps)
    return await done(call, context, item, query.wait, 200, shown)


async def act(call: routing.Call, kind: str, ident: str, query: Any, action: str) -> routing.Answer:
    """Do an action and answer as ``create`` does."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.act(context, kind, names.ident(ident, kind), bay_of(query), action)
    return await done(call, context, item, query.wait, 200)


async def delete(call: routing.Call, kind: str, ident: str, query: Any, *, keep: bool = False) -> routing.Answer:
    """Delete and answer 204 once nothing is left, 202 before."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.delete(context, kind, names.ident(ident, kind), bay_of(query), keep)
    return await done(call, context, item, query.wait, 202)


async def explain(call: routing.Call, kind: str, ident: str, query: Any) -> routing.Answer:
    """Answer why an object is not as wanted."""
    context = call.for_all_projects(query.all_projects)
    found = await call.api.conductor.explain(context, kind, names.ident(ident, kind), bay_of(query))
    return routing.Answer(200, found)


async def history(call: routing.Call, kind: str, ident: str, query: Any) -> routing.Answer:
    """Answer what the log has of an object, of a deleted one too if it is named by uuid."""
    context = call.for_all_projects(query.all_projects)
    wanted = names.ident(ident, kind)
    if not base.is_uuid(wanted):
        wanted = (await call.api.conductor.get(context, kind, wanted, bay_of(query))).uuid
    rows = await call.api.conductor.events(context, 0, 10_000, kind, wanted)
    if not rows:
        raise errors.NotFound(f"nothing is known of a {kind} {wanted}")
    return routing.Answer(200, Events(rows))


def fields(steps: list[bodies.PatchStep], spec: type[Any], also: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return a JSON Patch with values as the spec has them: old clients send numbers and truths as text.

    ``also``: field → function of (value, field) for what clients write otherwise than we keep it.
    Raises Invalid naming the field.
    """
    given = bodies.patch(steps)
    kinds = typing.get_type_hints(spec)
    for step in given:
        name, _, rest = step["path"][1:].partition("/")
        if name == "name" and step["op"] in ("add", "replace") and isinstance(step.get("value"), str):
            names.check(step["value"])
        if rest or step["op"] not in ("add", "replace", "test"):
            continue
        if also and name in also:
            step["value"] = also[name](step["value"], name)
        elif name in kinds:
            strict = isinstance(kinds[name], types.GenericAlias)
            value = bodies.convert(step["value"], kinds[name], strict=strict, field=name)
            step["value"] = msgspec.to_builtins(value)
    return given
