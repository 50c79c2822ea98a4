"""Bay models."""

from typing import Any

import msgspec

from magnum.api import bodies, names, routing, verbs, views
from magnum.objects import base, bay_model
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("bay models")


class BayModelBody(bodies.Body):
    """A new bay model. Whatever is left out or null is as ``objects.bay_model`` has it."""

    name: str | None = None
    coe: str = "docker"
    image_id: str | None = None
    flavor_id: str | None = None
    master_flavor_id: str | None = None
    keypair_id: str | None = None
    external_network_id: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    dns_nameserver: str | None = None
    docker_volume_size: int | str | None = None
    docker_storage_driver: str | None = None
    labels: dict[str, str] | None = None
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    network_driver: str | None = None
    volume_driver: str | None = None
    tls_disabled: bool | None = None
    public: bool | None = None
    hidden: bool | None = None
    registry_enabled: bool | None = None
    insecure_registry: str | None = None
    server_type: str | None = None
    cluster_distro: str | None = None
    apiserver_port: int | None = None
    master_lb_enabled: bool | None = None
    floating_ip_enabled: bool | None = None
    tags: str | None = None
    driver: str | None = None


class BayModels(msgspec.Struct):
    baymodels: list[views.BayModel]
    next: str | None = None


def make(call: routing.Call, body: Any) -> bay_model.BayModel:
    """Return the bay model that ``body`` asks for. Raises Invalid, Forbidden."""
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    name = given.pop("name", None)
    spec = bay_model.check(bodies.convert(given, bay_model.BayModelSpec, strict=False))
    if spec.public:
        call.api.policy.enforce(call.context, "baymodel:publish", field="public")
    name = names.check(name) if name is not None else names.generate("model")
    return bay_model.BayModel(uuid=base.new_uuid(), name=name, spec=spec)


def patched(call: routing.Call, body: list[bodies.PatchStep]) -> list[dict[str, Any]]:
    """Return the patch as the conductor takes it. Raises Invalid, Forbidden."""
    steps = verbs.fields(body, bay_model.BayModelSpec)
    if any(step["path"] == "/public" and step.get("value") for step in steps):
        call.api.policy.enforce(call.context, "baymodel:publish", field="public")
    return steps


@ROUTES.post("/v1/baymodels", rule="baymodel:create", answers={201: views.BayModel})
async def create(call: routing.Call, body: BayModelBody, query: bodies.Wait) -> routing.Answer:
    """Make a bay model."""
    return await verbs.create(call, make(call, body), query)


@ROUTES.get("/v1/baymodels", rule="baymodel:list", answers={200: BayModels})
async def index(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """List bay models, public ones of others too."""
    return await verbs.page(call, "baymodel", query)


@ROUTES.get("/v1/baymodels/detail", rule="baymodel:list", answers={200: BayModels})
async def detail(call: routing.Call, query: verbs.Named) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "baymodel", query)


@ROUTES.get("/v1/baymodels/{ident}", rule="baymodel:get", answers={200: views.BayModel})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Show a bay model."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "baymodel", ident, query)))


@ROUTES.patch("/v1/baymodels/{ident}", rule="baymodel:update", answers={200: views.BayModel})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: bodies.Wait) -> routing.Answer:
    """Change a bay model; its bays stay as they are."""
    return await verbs.update(call, "baymodel", ident, query, patched(call, body))


@ROUTES.delete("/v1/baymodels/{ident}", rule="baymodel:delete", answers={204: None})
async def delete(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Delete a bay model that no bay is made from."""
    return await verbs.delete(call, "baymodel", ident, query)


@ROUTES.get("/v1/baymodels/{ident}/explain", rule="baymodel:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read why a bay model is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "baymodel", ident, query)


@ROUTES.get("/v1/baymodels/{ident}/history", rule="baymodel:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read what happened to a bay model."""
    return await verbs.history(call, "baymodel", ident, query)
