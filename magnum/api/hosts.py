"""Hosts, for admins."""

import msgspec

from magnum.api import bodies, names, routing, views

ROUTES = routing.Routes("hosts")


class Hosts(msgspec.Struct):
    hosts: list[views.Host]


@ROUTES.get("/v1/hosts", rule="host:list", answers={200: Hosts})
async def index(call: routing.Call, query: bodies.List) -> routing.Answer:
    """List the hosts."""
    found = await call.api.conductor.hosts(call.context)
    return routing.Answer(200, Hosts([views.host_of(h, call.link(f"hosts/{h.uuid}")) for h in found]))


@ROUTES.get("/v1/hosts/{ident}", rule="host:get", answers={200: views.Host})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Show a host."""
    found = await call.api.conductor.hosts(call.context, names.ident(ident, "host"))
    return routing.Answer(200, views.host_of(found[0], call.link(f"hosts/{found[0].uuid}")))
