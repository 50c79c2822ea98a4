"""What describes the api itself: versions, health, metrics."""

import asyncio
from typing import Any

import msgspec

from magnum import context as contexts
from magnum import errors, metrics
from magnum.api import routing

ROUTES = routing.Routes("about")

HEALTH_SECONDS = 5.0


class Health(msgspec.Struct):
    """``status``: ok or degraded. ``checks``: ok, or a reason."""

    status: str
    checks: dict[str, str]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _version(call: routing.Call) -> dict[str, Any]:
    return {
        "id": "v1", "status": "CURRENT", "min_version": _dotted(routing.MINIMUM_VERSION),
        "max_version": _dotted(routing.MAXIMUM_VERSION),
        "links": [{"href": f"{call.base_url}/v1/", "rel": "self"}],
    }  # fmt: skip


@ROUTES.get("/", rule=None, answers={200: dict[str, Any]}, public=True)
async def index(call: routing.Call) -> routing.Answer:
    """Say which versions of the API there are."""
    return routing.Answer(
        200,
        {"name": "Magnum", "description": "The containers service for OpenStack.", "versions": [_version(call)]},
    )


@ROUTES.get("/v1", rule=None, answers={200: dict[str, Any]}, public=True)
async def v1(call: routing.Call) -> routing.Answer:
    """Say what there is below /v1."""
    nouns = (
        "baymodels", "bays", "pods", "services", "rcs", "containers", "certificates",
        "clusters", "clustertemplates", "quotas", "stats", "mservices", "hosts", "events", "operations",
    )  # fmt: skip
    body: dict[str, Any] = {
        "id": "v1", "media_types": [{"base": "application/json", "type": "application/json"}],
        **{noun: call.link(noun) for noun in nouns},
        "links": [*_version(call)["links"], {"href": f"{call.base_url}/openapi.json", "rel": "describedby"}],
        "version": _version(call),
    }  # fmt: skip
    return routing.Answer(200, body)


async def _guarded(work: Any) -> Any:
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            return await work
    except TimeoutError:
        return errors.DeadlineExceeded(f"no answer within {HEALTH_SECONDS:g} s")
    except errors.MagnumError as error:
        return error


@ROUTES.get("/healthcheck", rule=None, answers={200: Health, 503: Health}, public=True)
async def health(call: routing.Call) -> routing.Answer:
    """Ask the broker, the database and the hosts how they are: 200 if requests can be served, 503 if not."""
    context = contexts.service(request_id=call.served.request_id).within(HEALTH_SECONDS)
    checks = {"broker": call.api.transport.health(), "authentication": call.api.auth.health()}
    database = await _guarded(call.api.conductor.health(context))
    if isinstance(database, errors.MagnumError):
        checks["conductor"] = database.detail
    else:
        checks["conductor"] = "ok"
        checks.update(database)
        hosts = await _guarded(call.api.conductor.hosts(context))
        if isinstance(hosts, errors.MagnumError):
            checks["engines"] = hosts.detail
        else:
            up = [host for host in hosts if host.status == "up"]
            away = "; ".join(f"{h.name}: {h.status_reason or h.status}" for h in hosts if h.status != "up")
            checks["engines"] = "ok" if up else f"no host is up ({away or 'none is known'})"
    good = all(check == "ok" for check in checks.values())
    return routing.Answer(200 if good else 503, Health("ok" if good else "degraded", checks))


@ROUTES.get("/metrics", rule=None, answers={200: str}, media_type="text/plain", public=True)
async def counted(call: routing.Call) -> routing.Answer:
    """Read what was counted, in Prometheus' text format."""
    metrics.STREAMS.set(call.api.open_streams)
    return routing.Answer(200, metrics.render(), media_type=metrics.CONTENT_TYPE)
