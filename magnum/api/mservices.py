"""The programs of this installation, as ``magnum service-list`` shows them."""

import msgspec

from magnum.api import bodies, routing
from magnum.objects import host

ROUTES = routing.Routes("programs")


class Programs(msgspec.Struct):
    mservices: list[host.Program]


@ROUTES.get("/v1/mservices", rule="mservice:list", answers={200: Programs})
async def index(call: routing.Call, query: bodies.List) -> routing.Answer:
    """List the programs that ever gave a sign of life."""
    return routing.Answer(200, Programs(await call.api.conductor.programs(call.context)))
