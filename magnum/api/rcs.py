"""Replication controllers, from Kubernetes v1 manifests."""

from typing import Any

import msgspec

from magnum.api import bodies, manifests, names, routing, verbs, views
from magnum.objects import base, replication_controller
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("replication controllers")


class ReplicationControllers(msgspec.Struct):
    rcs: list[views.ReplicationController]
    next: str | None = None


class DeleteQuery(verbs.Change):
    """``keep_pods``: leave the pods running, without a controller."""

    keep_pods: bool = False


def _check(call: routing.Call, spec: Any) -> None:
    """Raise Invalid for what the policy does not let this asker have."""
    manifests.allow(call, replication_controller.privileges(spec))


@ROUTES.post("/v1/rcs", rule="rc:create", answers={201: views.ReplicationController, 202: views.ReplicationController})
async def create(call: routing.Call, body: manifests.ManifestBody, query: bodies.Wait) -> routing.Answer:
    """Make a replication controller."""
    text = await manifests.text(call, body)
    where: Any = await call.api.conductor.get(call.context, "bay", names.ident(body.bay_uuid, "bay"))
    name, spec = replication_controller.parse(text, manifests.given_name(body), where.spec.engine)
    _check(call, spec)
    item = replication_controller.ReplicationController(uuid=base.new_uuid(), name=name, bay_uuid=where.uuid, spec=spec)
    return await verbs.create(call, item, query)


@ROUTES.get("/v1/rcs", rule="rc:list", answers={200: ReplicationControllers})
async def index(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """List replication controllers."""
    return await verbs.page(call, "rc", query)


@ROUTES.get("/v1/rcs/detail", rule="rc:list", answers={200: ReplicationControllers})
async def detail(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "rc", query)


@ROUTES.get("/v1/rcs/{ident}", rule="rc:get", answers={200: views.ReplicationController})
async def get(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Show a replication controller."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "rc", ident, query)))


@ROUTES.patch(
    "/v1/rcs/{ident}", rule="rc:update", answers={200: views.ReplicationController, 202: views.ReplicationController}
)
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: verbs.Change) -> routing.Answer:
    """Change a replication controller: a new manifest, or a part of it."""
    item = await verbs.find(call, "rc", ident, query)

    def manifest(given: Any, field: str) -> Any:
        found = manifests.value(given, replication_controller.parse, item.name)
        _check(call, replication_controller.of(found)[1])
        return found

    steps = verbs.fields(body, replication_controller.ReplicationControllerSpec, {"manifest": manifest})
    if any(step["path"].startswith("/manifest/") for step in steps):
        _check(call, patched(item, steps))
    return await verbs.update(call, "rc", item.uuid, query, steps)


def patched(item: Any, steps: list[dict[str, Any]]) -> Any:
    """Return the spec that a patch of parts of the manifest makes, to be checked. Raises Invalid."""
    document = manifests.patched(item, steps)
    return replication_controller.of(document, item.name)[1]


@ROUTES.delete("/v1/rcs/{ident}", rule="rc:delete", answers={202: views.ReplicationController, 204: None})
async def delete(call: routing.Call, ident: str, query: DeleteQuery) -> routing.Answer:
    """Delete a replication controller, and its pods unless ``keep_pods`` is set."""
    return await verbs.delete(call, "rc", ident, query, keep=query.keep_pods)


@ROUTES.get("/v1/rcs/{ident}/explain", rule="rc:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read why a replication controller is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "rc", ident, query)


@ROUTES.get("/v1/rcs/{ident}/history", rule="rc:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read what happened to a replication controller."""
    return await verbs.history(call, "rc", ident, query)
