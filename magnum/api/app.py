"""The api: the ASGI application, what it needs of the other programs, and errors turned into answers.

``Api.app`` is what an HTTP server serves. Around Litestar's router stands one layer
that gives each request its id, its API version, its line in the metrics.

Who calls: ``cmd``.
"""

import asyncio
import re
import time
from typing import Any

import litestar
import structlog
from litestar import exceptions
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, hands, metrics, policy, tracing
from magnum.api import (
    audit,
    auth,
    baymodels,
    bays,
    certificates,
    clusters,
    clustertemplates,
    containers,
    events,
    feeds,
    hosts,
    identity,
    intents,
    load,
    mservices,
    openapi,
    operations,
    pods,
    quotas,
    rcs,
    root,
    routing,
    services,
    sockets,
)
from magnum.objects import host
from magnum.rpc import backend as backend_rpc
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc
from magnum.rpc import streams

LOG = structlog.get_logger(__name__)

ROUTES = (
    root.ROUTES, baymodels.ROUTES, bays.ROUTES, containers.ROUTES, pods.ROUTES, services.ROUTES, rcs.ROUTES,
    clusters.ROUTES, clustertemplates.ROUTES, quotas.ROUTES, certificates.ROUTES, mservices.ROUTES, hosts.ROUTES,
    events.ROUTES, operations.ROUTES, identity.ROUTES, openapi.ROUTES,
)  # fmt: skip
OPERATIONS = [operation for routes in ROUTES for operation in routes.operations]
"""Every operation that there is."""
PUBLIC = frozenset(operation.path for operation in OPERATIONS if operation.public)
"""The paths that are served at the worst of times, too."""

SERVICE = "container-infra"
BEAT_SECONDS = 5.0
_REQUEST_ID = re.compile(rb"req-[0-9a-fA-F-]{36}\Z")
_VERSION = re.compile(r"(?:container-infra|container) (?:(\d{1,4})\.(\d{1,4})|latest)\Z")


class Api:
    """One process' api. ``number`` is the worker's, from 0."""

    def __init__(self, conf: cfg.ConfigOpts, transport: rpc.Transport, number: int = 0) -> None:
        self.conf = conf
        self.transport = transport
        self.public_url: str = (conf.api.public_url or "").rstrip("/")
        self.policy = policy.Policy(conf)
        self.auth = auth.make(conf)
        self.audit = audit.Audit(conf, transport)
        self.watch = intents.Watch()
        self.conductor = rpc.client(
            conductor_rpc.Conductor, transport, conductor_rpc.TOPIC, timeout=conf.api.call_timeout,
            turns=hands.Hands(conf.api.max_calls, conf.api.max_project_calls),
        )  # fmt: skip
        self.feeds = feeds.Feeds(self.conductor, self.watch)
        self.streams = streams.Listener(
            conf.api.stream_host,
            conf.api.stream_port + number if conf.api.stream_port else 0,
            cert=conf.api.stream_cert,
            key=conf.api.stream_key,
        )
        self.load = load.Load(conf)
        self.open_streams = 0
        self.closing = asyncio.Event()
        self._backends: dict[str, backend_rpc.Backend] = {}
        self._router = litestar.Litestar(
            route_handlers=[routing.route(self, operation) for operation in OPERATIONS],
            openapi_config=None,
            logging_config=None,
            exception_handlers={Exception: self._failed},
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin. Raises Invalid for a configuration that is refused."""
        await self.auth.start()
        await self.audit.start()
        await self.watch.start(self.transport)
        await self.streams.start()
        self._tasks = [asyncio.create_task(self._beat())]

    async def close(self) -> None:
        """End the open streams and let go; requests in hand were ended by the HTTP server."""
        self.closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.streams.close()
        await self.auth.close()
        await self.audit.close()

    def told(self, error: Exception, served: routing.Served) -> routing.Answer:
        """Return the answer that tells of what was raised while a request was served, and keep it with the request."""
        served.error = translated(error)
        # its traceback has the frame that has the request: a cycle that the collector of such would have to end, in a
        # flood of refusals for 200 ms at a time, in which nobody else is answered
        served.error.__traceback__ = None
        return failure(served.error, served, self.auth.challenge)

    def _failed(self, request: Any, error: Exception) -> litestar.Response[bytes]:
        answer = self.told(error, request.scope[routing.KEY])
        return litestar.Response(
            content=routing.encode(answer.body), media_type=answer.media_type, status_code=answer.status,
            headers=answer.headers,
        )  # fmt: skip

    def backend(self, name: str) -> backend_rpc.Backend:
        """Return the backend of a host."""
        if name not in self._backends:
            self._backends[name] = rpc.client(
                backend_rpc.Backend, self.transport, f"{backend_rpc.TOPIC}.{name}", timeout=self.conf.api.call_timeout
            )
        return self._backends[name]

    async def _beat(self) -> None:
        said = False
        while True:
            try:
                beat = host.Beat(binary="magnum-api", host=self.conf.host)
                await self.conductor.beat(contexts.service(self.conf.host).within(BEAT_SECONDS), beat)
                if said:
                    LOG.info("the conductor answers")
                said = False
            except errors.MagnumError as error:
                if not said:
                    LOG.warning("waiting for the conductor", reason=error.detail)
                said = True
            await asyncio.sleep(1.0 if said else BEAT_SECONDS)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or WebSocket (ASGI)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            return
        served, broken = _served(scope)
        scope[routing.KEY] = served
        if scope["type"] == "websocket":
            await sockets.serve(self, served, broken, scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def tell(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(served)]
                metrics.SECONDS.labels(scope["method"], served.route).observe(time.monotonic() - started)
            await send(message)

        if broken is None and scope["path"] not in PUBLIC:
            # in a flood, what looking where a request goes costs is most of what a refusal does
            broken = self.load.excess(self.auth.project(served.headers))
        if broken is not None:
            await routing.respond(self.told(broken, served))(scope, receive, tell)
        else:
            with tracing.span(
                f"{scope['method']} {scope['path']}",
                served.carrier(),
                kind="server",
                magnum__request_id=served.request_id,
            ):
                await self._router(scope, receive, tell)
        metrics.REQUESTS.labels(scope["method"], served.route, str(status)).inc()
        if status in (401, 403):
            metrics.REFUSALS.labels(served.rule or "none").inc()
        self.audit.tell(served, scope, scope["method"], status)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _served(scope: Any) -> tuple[routing.Served, errors.MagnumError | None]:
    """Return what is known of a request from its head, and what is wrong with that."""
    found: dict[bytes, bytes] = {}
    broken: errors.MagnumError | None = None
    for name, value in scope["headers"]:
        if name in found and name not in (b"cookie", b"accept", b"accept-encoding", b"via", b"x-forwarded-for"):
            broken = errors.Invalid("is given twice", field=name.decode("latin-1")[:64])
        found[name] = value
    given = found.get(b"x-openstack-request-id", b"")
    served = routing.Served(
        request_id=contexts.new_request_id(),
        global_id=given.decode() if _REQUEST_ID.match(given) else "",
        headers=found,
    )
    raw = found.get(b"openstack-api-version")
    if raw is not None and broken is None:
        for text in raw.decode("latin-1").split(","):
            if text.strip().partition(" ")[0] not in (SERVICE, "container"):
                continue
            match = _VERSION.match(text.strip())
            if match is None:
                broken = errors.Invalid("must be 'container-infra 1.N' or 'container-infra latest'",
                                        field="OpenStack-API-Version")  # fmt: skip
                break
            asked = (int(match[1]), int(match[2])) if match[1] else routing.MAXIMUM_VERSION
            if not routing.MINIMUM_VERSION <= asked <= routing.MAXIMUM_VERSION:
                broken = errors.NotAcceptable(
                    f"version {asked[0]}.{asked[1]} is not served; {_dotted(routing.MINIMUM_VERSION)} to "
                    f"{_dotted(routing.MAXIMUM_VERSION)} are",
                    field="OpenStack-API-Version",
                )
                break
            served.version = asked
    return served, broken


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _headers(served: routing.Served) -> list[tuple[bytes, bytes]]:
    version = f"{SERVICE} {_dotted(served.version)}".encode()
    return [
        (b"x-openstack-request-id", served.request_id.encode()),
        (b"openstack-api-version", version),
        (b"openstack-api-minimum-version", f"{SERVICE} {_dotted(routing.MINIMUM_VERSION)}".encode()),
        (b"openstack-api-maximum-version", f"{SERVICE} {_dotted(routing.MAXIMUM_VERSION)}".encode()),
        (b"vary", b"OpenStack-API-Version"),
        (b"x-content-type-options", b"nosniff"),
    ]


def failure(error: errors.MagnumError, served: routing.Served, challenge: str | None = None) -> routing.Answer:
    """Return the answer that tells of ``error``."""
    body: dict[str, Any] = {
        "status": error.status, "code": f"{SERVICE}.{error.code}",
        # python-magnumclient shows people the title alone, so the reason has to be in it
        "title": str(error), "detail": str(error),
        "request_id": served.request_id, "links": [],
    }  # fmt: skip
    if error.field:
        body["field"] = error.field
    if error.data:
        body["data"] = error.data
    headers = {}
    if error.status == 401 and challenge:
        headers["WWW-Authenticate"] = challenge
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.data.get("retry_after", 1))
    if isinstance(error, errors.MethodNotAllowed) and error.data.get("allow"):
        headers["Allow"] = ", ".join(error.data["allow"])
    # openstacksdk reads the reason here and nowhere else
    return routing.Answer(error.status, {"errors": [body], "message": str(error)}, headers)


def translated(error: Exception) -> errors.MagnumError:
    """Return ours for whatever was raised while a request was served; what is nobody's intent is logged."""
    if isinstance(error, errors.MagnumError):
        if error.status >= 500:
            LOG.warning("request failed", code=error.code, reason=str(error))
        return error
    if isinstance(error, exceptions.NotFoundException):
        return errors.NotFound("there is nothing at this path")
    if isinstance(error, exceptions.MethodNotAllowedException):
        allowed = [m.strip() for m in (error.headers or {}).get("Allow", "").split(",") if m.strip()]
        return errors.MethodNotAllowed(f"this path takes {', '.join(allowed) or 'other methods'}", allow=allowed)
    if isinstance(error, exceptions.HTTPException) and 400 <= error.status_code < 500:
        return errors.Invalid(error.detail)
    LOG.error("request failed", exc_info=error)
    return errors.MagnumError("something is wrong in Magnum; its log has it under this request id")
