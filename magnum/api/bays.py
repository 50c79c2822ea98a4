"""Bays."""

from typing import Any

import msgspec

from magnum.api import bodies, names, routing, verbs, views
from magnum.objects import base, bay
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("bays")


class BayBody(bodies.Body):
    """A new bay. ``baymodel_id``: name or uuid. ``bay_create_timeout`` in minutes, 0 for the operator's default."""

    baymodel_id: str
    name: str | None = None
    node_count: int | None = None
    master_count: int | None = None
    discovery_url: str | None = None
    bay_create_timeout: int | None = None
    keypair: str | None = None
    labels: dict[str, str] | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None


class Bays(msgspec.Struct):
    bays: list[views.Bay]
    next: str | None = None


def make(body: Any) -> bay.Bay:
    """Return the bay that ``body`` asks for. Raises Invalid."""
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    name = given.pop("name", None)
    given["baymodel_id"] = names.ident(given["baymodel_id"], "baymodel")
    spec = bay.check(bodies.convert(given, bay.BaySpec))
    name = names.check(name) if name is not None else names.generate("bay")
    return bay.Bay(uuid=base.new_uuid(), name=name, spec=spec)


@ROUTES.post("/v1/bays", rule="bay:create", answers={201: views.Bay, 202: views.Bay})
async def create(call: routing.Call, body: BayBody, query: bodies.Wait) -> routing.Answer:
    """Make a bay."""
    return await verbs.create(call, make(body), query)


@ROUTES.get("/v1/bays", rule="bay:list", answers={200: Bays})
async def index(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """List bays."""
    return await verbs.page(call, "bay", query)


@ROUTES.get("/v1/bays/detail", rule="bay:list", answers={200: Bays})
async def detail(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "bay", query)


@ROUTES.get("/v1/bays/{ident}", rule="bay:get", answers={200: views.Bay})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Show a bay."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "bay", ident, query)))


@ROUTES.patch("/v1/bays/{ident}", rule="bay:update", answers={200: views.Bay, 202: views.Bay})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: bodies.Wait) -> routing.Answer:
    """Change a bay's name or number of nodes."""
    return await verbs.update(call, "bay", ident, query, verbs.fields(body, bay.BaySpec))


@ROUTES.delete("/v1/bays/{ident}", rule="bay:delete", answers={202: views.Bay, 204: None})
async def delete(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Delete a bay with everything in it."""
    return await verbs.delete(call, "bay", ident, query)


@ROUTES.get("/v1/bays/{ident}/explain", rule="bay:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read why a bay is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "bay", ident, query)


@ROUTES.get("/v1/bays/{ident}/history", rule="bay:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read what happened to a bay."""
    return await verbs.history(call, "bay", ident, query)
