"""Services, from Kubernetes v1 manifests."""

from typing import Any

import msgspec

from magnum.api import bodies, manifests, names, routing, verbs, views
from magnum.objects import base, service
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("services")


class ServiceBody(manifests.ManifestBody):
    """``external``: whether it has a floating IP, in a bay on Neutron with an external network alone."""

    external: bool | None = None


class Services(msgspec.Struct):
    services: list[views.Service]
    next: str | None = None


def _check(call: routing.Call, spec: Any) -> None:
    """Raise Invalid for what the policy does not let this asker have."""
    manifests.allow(call, service.privileges(spec))


@ROUTES.post("/v1/services", rule="service:create", answers={201: views.Service, 202: views.Service})
async def create(call: routing.Call, body: ServiceBody, query: bodies.Wait) -> routing.Answer:
    """Make a service."""
    text = await manifests.text(call, body)
    where: Any = await call.api.conductor.get(call.context, "bay", names.ident(body.bay_uuid, "bay"))
    name, spec = service.parse(text, manifests.given_name(body), where.spec.engine)
    spec.external = bool(body.external)
    _check(call, spec)
    item = service.Service(uuid=base.new_uuid(), name=name, bay_uuid=where.uuid, spec=spec)
    return await verbs.create(call, item, query)


@ROUTES.get("/v1/services", rule="service:list", answers={200: Services})
async def index(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """List services."""
    return await verbs.page(call, "service", query)


@ROUTES.get("/v1/services/detail", rule="service:list", answers={200: Services})
async def detail(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "service", query)


@ROUTES.get("/v1/services/{ident}", rule="service:get", answers={200: views.Service})
async def get(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Show a service."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "service", ident, query)))


@ROUTES.patch("/v1/services/{ident}", rule="service:update", answers={200: views.Service, 202: views.Service})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: verbs.Change) -> routing.Answer:
    """Change a service: a new manifest, or a part of it."""
    item = await verbs.find(call, "service", ident, query)

    def manifest(given: Any, field: str) -> Any:
        found = manifests.value(given, service.parse, item.name)
        _check(call, service.of(found)[1])
        return found

    steps = verbs.fields(body, service.ServiceSpec, {"manifest": manifest})
    if any(step["path"].startswith("/manifest/") for step in steps):
        _check(call, patched(item, steps))
    return await verbs.update(call, "service", item.uuid, query, steps)


def patched(item: Any, steps: list[dict[str, Any]]) -> Any:
    """Return the spec that a patch of parts of the manifest makes, to be checked. Raises Invalid."""
    document = manifests.patched(item, steps)
    return service.of(document, item.name)[1]


@ROUTES.delete("/v1/services/{ident}", rule="service:delete", answers={202: views.Service, 204: None})
async def delete(call: routing.Call, ident: str, query: verbs.Change) -> routing.Answer:
    """Delete a service."""
    return await verbs.delete(call, "service", ident, query)


@ROUTES.get("/v1/services/{ident}/explain", rule="service:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read why a service is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "service", ident, query)


@ROUTES.get("/v1/services/{ident}/history", rule="service:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read what happened to a service."""
    return await verbs.history(call, "service", ident, query)
