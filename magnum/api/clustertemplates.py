"""Cluster templates: what newer clients call bay models. The same objects, rules and fields under other paths."""

from typing import Any

import msgspec

from magnum.api import baymodels, bodies, routing, verbs, views

ROUTES = routing.Routes("cluster templates")

KEY = "clustertemplates"


class ClusterTemplates(msgspec.Struct):
    clustertemplates: list[views.BayModel]
    next: str | None = None


def show(call: routing.Call, item: Any) -> views.BayModel:
    found: views.BayModel = views.of(item, call.link(f"{KEY}/{item.uuid}"))
    return found


@ROUTES.post("/v1/clustertemplates", rule="baymodel:create", answers={201: views.BayModel})
async def create(call: routing.Call, body: baymodels.BayModelBody, query: bodies.Wait) -> routing.Answer:
    """Make a cluster template."""
    written = await call.api.conductor.create(call.context, baymodels.make(call, body))
    return await verbs.done(call, call.context, written, query.wait, 201, show)


@ROUTES.get("/v1/clustertemplates", rule="baymodel:list", answers={200: ClusterTemplates})
async def index(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """List cluster templates, public ones of others too."""
    return await verbs.page(call, "baymodel", query, key=KEY, shown=show)


@ROUTES.get("/v1/clustertemplates/detail", rule="baymodel:list", answers={200: ClusterTemplates})
async def detail(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "baymodel", query, key=KEY, shown=show)


@ROUTES.get("/v1/clustertemplates/{ident}", rule="baymodel:get", answers={200: views.BayModel})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Show a cluster template."""
    return routing.Answer(200, show(call, await verbs.find(call, "baymodel", ident, query)))


@ROUTES.patch("/v1/clustertemplates/{ident}", rule="baymodel:update", answers={200: views.BayModel})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: bodies.Wait) -> routing.Answer:
    """Change a cluster template; its clusters stay as they are."""
    return await verbs.update(call, "baymodel", ident, query, baymodels.patched(call, body), shown=show)


@ROUTES.delete("/v1/clustertemplates/{ident}", rule="baymodel:delete", answers={204: None})
async def delete(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Delete a cluster template that no cluster is made from."""
    return await verbs.delete(call, "baymodel", ident, query)
