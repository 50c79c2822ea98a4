"""Pods, from Kubernetes v1 manifests."""

from typing import Any

import msgspec

from magnum.api import bodies, manifests, names, routing, tunnels, verbs, views
from magnum.objects import base, container, pod
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("pods")


class PodBody(manifests.ManifestBody):
    """``networks`` and ``security_groups`` (names or uuids) are Neutron's, in a bay on Neutron alone."""

    networks: list[container.Network] | None = None
    security_groups: list[str] | None = None


class Pods(msgspec.Struct):
    pods: list[views.Pod]
    next: str | None = None


class LogQuery(tunnels.LogQuery):
    """``container``: which of the pod's, needed if it has several."""

    container: str | None = None


class ExecuteQuery(tunnels.ExecuteQuery, kw_only=True):
    """``container``: which of the pod's, needed if it has several."""

    container: str | None = None


def _check(call: routing.Call, spec: Any) -> None:
    """Raise Invalid for what the policy does not let this asker have."""
    manifests.allow(call, pod.privileges(spec))


@ROUTES.post("/v1/pods", rule="pod:create", answers={201: views.Pod, 202: views.Pod})
async def create(call: routing.Call, body: PodBody, query: bodies.Wait) -> routing.Answer:
    """Make a pod."""
    text = await manifests.text(call, body)
    where: Any = await call.api.conductor.get(call.context, "bay", names.ident(body.bay_uuid, "bay"))
    name, spec = pod.parse(text, manifests.given_name(body), where.spec.engine)
    spec.networks, spec.security_groups = body.networks or [], body.security_groups
    container.check_networks(spec.networks, spec.security_groups)
    _check(call, spec)
    item = pod.Pod(uuid=base.new_uuid(), name=name, bay_uuid=where.uuid, spec=spec)
    return await verbs.create(call, item, query)


@ROUTES.get("/v1/pods", rule="pod:list", answers={200: Pods})
async def index(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """List pods."""
    return await verbs.page(call, "pod", query)


@ROUTES.get("/v1/pods/detail", rule="pod:list", answers={200: Pods})
async def detail(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "pod", query)


@ROUTES.get("/v1/pods/{ident}", rule="pod:get", answers={200: views.Pod})
async def get(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Show a pod."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "pod", ident, query)))


@ROUTES.patch("/v1/pods/{ident}", rule="pod:update", answers={200: views.Pod, 202: views.Pod})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: verbs.Change) -> routing.Answer:
    """Change a pod: a new manifest, or a part of it."""
    item = await verbs.find(call, "pod", ident, query)

    def manifest(given: Any, field: str) -> Any:
        found = manifests.value(given, pod.parse, item.name)
        _check(call, pod.of(found)[1])
        return found

    steps = verbs.fields(body, pod.PodSpec, {"manifest": manifest})
    if any(step["path"].startswith("/manifest/") for step in steps):
        _check(call, patched(item, steps))
    return await verbs.update(call, "pod", item.uuid, query, steps)


def patched(item: Any, steps: list[dict[str, Any]]) -> Any:
    """Return the spec that a patch of parts of the manifest makes, to be checked. Raises Invalid."""
    document = manifests.patched(item, steps)
    return pod.of(document, item.name)[1]


@ROUTES.delete("/v1/pods/{ident}", rule="pod:delete", answers={202: views.Pod, 204: None})
async def delete(call: routing.Call, ident: str, query: verbs.Change) -> routing.Answer:
    """Delete a pod."""
    return await verbs.delete(call, "pod", ident, query)


@ROUTES.get("/v1/pods/{ident}/logs", rule="pod:logs", answers={200: tunnels.Output})
async def logs(call: routing.Call, ident: str, query: LogQuery) -> Any:
    """Read the output of a pod's container, or follow it (``follow=1``: a stream of text)."""
    item = await verbs.find(call, "pod", ident, query)
    return await tunnels.logs(call, item, query, query.container)


@ROUTES.put("/v1/pods/{ident}/execute", rule="pod:execute", answers={200: tunnels.Output})
async def execute(call: routing.Call, ident: str, query: ExecuteQuery) -> routing.Answer:
    """Run a command in a pod's container and answer its output once it has ended."""
    item = await verbs.find(call, "pod", ident, query)
    return await tunnels.execute(call, item, query, query.container)


@ROUTES.get("/v1/pods/{ident}/explain", rule="pod:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read why a pod is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "pod", ident, query)


@ROUTES.get("/v1/pods/{ident}/history", rule="pod:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read what happened to a pod."""
    return await verbs.history(call, "pod", ident, query)
