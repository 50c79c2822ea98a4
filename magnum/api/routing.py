"""Operations: how a handler says what it takes and gives, and how a request reaches it.

A handler is an async function; its parameters say what it wants::

    routes = routing.Routes("bays")

    @routes.post("/v1/bays", rule="bay:create", answers={201: BayView, 202: BayView})
    async def create(call: routing.Call, body: BayBody, query: bodies.Wait) -> routing.Answer: ...

``body`` and ``query`` are msgspec structs, decoded and checked before the handler
runs, every fault naming its field; the other parameters are those of the path.
The same declaration makes the OpenAPI document (``api.openapi``). Handlers raise
``errors`` and catch nothing: ``api.app`` turns errors into answers.

The work of a request is done here by hand, not by Litestar's signature model: so a
list of 100 costs little beside its encoding, and a refusal says what we want it to.
"""

import asyncio
import collections.abc
import dataclasses
import inspect
import re
import typing
from typing import TYPE_CHECKING, Any

import litestar
import msgspec
from litestar import handlers
from litestar.types import ASGIApp

from magnum import context as contexts
from magnum import errors
from magnum.api import bodies

if TYPE_CHECKING:
    from magnum.api import app

encode = msgspec.json.Encoder().encode

MAXIMUM_VERSION = (1, 11)
MINIMUM_VERSION = (1, 1)


@dataclasses.dataclass(slots=True)
class Served:
    """What is known of a request while it is served; lives in the ASGI scope under ``KEY``."""

    request_id: str
    global_id: str = ""
    route: str = "none"
    rule: str = ""
    context: contexts.Context | None = None
    headers: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    version: tuple[int, int] = MINIMUM_VERSION
    error: errors.MagnumError | None = None
    public: bool = False

    def carrier(self) -> dict[str, str]:
        """Return what of the headers says which trace the request is part of (W3C Trace Context)."""
        names = (b"traceparent", b"tracestate")
        return {name.decode(): self.headers[name].decode("latin-1") for name in names if name in self.headers}


KEY = "magnum"


class Answer(msgspec.Struct):
    """What a handler returns: a status and what to encode as JSON (``bytes`` are sent as they are)."""

    status: int
    body: Any = None
    headers: dict[str, str] = {}
    media_type: str = "application/json"


class Call:
    """One request, on its way to a handler: who asks, and the api that serves it."""

    __slots__ = ("api", "context", "request", "served")

    def __init__(self, api: "app.Api", request: Any, served: Served, context: contexts.Context) -> None:
        self.api = api
        self.request = request
        self.served = served
        self.context = context

    @property
    def base_url(self) -> str:
        """The URL that the client reached this api by, without a slash at its end."""
        if self.api.public_url:
            return self.api.public_url
        host = self.served.headers.get(b"host", b"").decode("latin-1")
        if not host:
            address, port = self.request.scope.get("server") or ("localhost", self.api.conf.api.port)
            host = f"{address}:{port}"
        return f"{self.request.scope['scheme']}://{host}"

    def link(self, path: str) -> list[dict[str, str]]:
        """Return the ``links`` of an object at ``/v1/<path>``."""
        base = self.base_url
        return [{"href": f"{base}/v1/{path}", "rel": "self"}, {"href": f"{base}/{path}", "rel": "bookmark"}]

    def for_all_projects(self, asked: bool) -> contexts.Context:
        """Return the context to act in. Raises Forbidden if every project's objects were asked for and may not be seen."""
        if not asked:
            return self.context
        self.api.policy.enforce(self.context, "all_projects", field="all_projects")
        return msgspec.structs.replace(self.context, all_projects=True)


Handler = collections.abc.Callable[..., collections.abc.Awaitable[Answer | ASGIApp]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """A handler and what it declared."""

    method: str
    path: str
    function: Handler
    rule: str | None
    answers: dict[int, Any]
    tag: str
    body: type[Any] | None
    query: type[msgspec.Struct] | None
    parameters: tuple[str, ...]
    media_type: str
    public: bool

    @property
    def name(self) -> str:
        """A name that no other operation has: ``bays_create``."""
        return f"{self.tag.replace(' ', '_')}_{self.function.__name__}"


_PATH_PARAMETER = re.compile(r"{(\w+)}")


class Routes:
    """The operations of one file."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.operations: list[Operation] = []

    def on(
        self,
        method: str,
        path: str,
        *,
        rule: str | None,
        answers: dict[int, Any],
        media_type: str = "application/json",
        public: bool = False,
    ) -> collections.abc.Callable[[Handler], Handler]:
        """Declare a handler of ``method`` and ``path``.

        ``rule``: the policy rule that must allow it, None if the handler asks
        itself. ``answers``: status → type of the body (None: no body).
        ``public``: answers whoever asks, without a token.
        """

        def declare(function: Handler) -> Handler:
            hints = typing.get_type_hints(function)
            parameters = tuple(_PATH_PARAMETER.findall(path))
            unknown = set(inspect.signature(function).parameters) - {"call", "body", "query", *parameters}
            if unknown:
                raise TypeError(f"{method} {path} has no {', '.join(sorted(unknown))}")
            self.operations.append(
                Operation(
                    method, path, function, rule, answers, self.tag, hints.get("body"), hints.get("query"),
                    parameters, media_type, public,
                )
            )  # fmt: skip
            return function

        return declare

    def get(self, path: str, **declared: Any) -> collections.abc.Callable[[Handler], Handler]:
        return self.on("GET", path, **declared)

    def post(self, path: str, **declared: Any) -> collections.abc.Callable[[Handler], Handler]:
        return self.on("POST", path, **declared)

    def put(self, path: str, **declared: Any) -> collections.abc.Callable[[Handler], Handler]:
        return self.on("PUT", path, **declared)

    def patch(self, path: str, **declared: Any) -> collections.abc.Callable[[Handler], Handler]:
        return self.on("PATCH", path, **declared)

    def delete(self, path: str, **declared: Any) -> collections.abc.Callable[[Handler], Handler]:
        return self.on("DELETE", path, **declared)


def route(api: "app.Api", operation: Operation) -> handlers.HTTPRouteHandler:
    """Return what Litestar serves ``operation`` by."""
    function, rule, body_type, query_type = operation.function, operation.rule, operation.body, operation.query
    parameters, label = operation.parameters, operation.path
    reads = operation.method not in ("GET", "HEAD")

    async def endpoint(request: litestar.Request[Any, Any, Any]) -> ASGIApp:
        scope: Any = request.scope
        served: Served = scope[KEY]
        served.route = label
        served.rule = rule or ""
        served.public = operation.public
        try:
            if operation.public:
                # health and metrics are to be seen at the worst of times, too
                return await serve(scope, served, contexts.Context(request_id=served.request_id), request)
            with api.load.request():
                context = await api.auth.identify(
                    served.headers, served.request_id, served.global_id, scope["method"], scope["path"]
                )
                with api.load.of(context.project_id):
                    return await serve(scope, served, context, request)
        except errors.MagnumError as error:
            # Litestar's own way of telling of an error takes several times as long, and refusals come in floods
            return respond(api.told(error, served))

    async def serve(scope: Any, served: Served, context: contexts.Context, request: Any) -> ASGIApp:
        served.context = context
        token = contexts.current.set(context)
        try:
            if rule is not None:
                api.policy.enforce(context, rule)
            call = Call(api, request, served, context)
            given: dict[str, Any] = {}
            if parameters:
                given.update(scope["path_params"])
            raw_query = scope["query_string"]
            if query_type is not None:
                given["query"] = bodies.query(raw_query, query_type) if raw_query else query_type()
            elif raw_query:
                bodies.query(raw_query, bodies.Nothing)
            if reads:
                raw = await read(request, served.headers, api.conf.api.max_body, api.conf.api.body_timeout)
                if body_type is not None:
                    given["body"] = bodies.decode(raw, served.headers, body_type, api.conf.api.max_depth)
                elif raw:
                    bodies.decode(raw, served.headers, bodies.Nothing, api.conf.api.max_depth)
            answer = await function(call, **given)
        finally:
            contexts.current.reset(token)
        return respond(answer) if isinstance(answer, Answer) else answer

    endpoint.__name__ = operation.name
    path = _PATH_PARAMETER.sub(r"{\1:str}", operation.path)
    methods: list[Any] = ["GET", "HEAD"] if operation.method == "GET" else [operation.method]
    return handlers.HTTPRouteHandler(path, http_method=methods, status_code=200, include_in_schema=False)(endpoint)


def respond(answer: Answer) -> ASGIApp:
    """Return ``answer`` as what Litestar sends."""
    body = answer.body
    if body is None:
        body = b""
    elif not isinstance(body, bytes):
        body = encode(body)
    headers = {"content-type": answer.media_type, **answer.headers} if body else dict(answer.headers)
    headers["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return _Plain(answer.status, body, raw)


class _Plain:
    """A whole answer in two ASGI messages."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


async def read(request: Any, headers: dict[bytes, bytes], limit: int, seconds: float) -> bytes:
    """Return the request's body. Raises TooLarge above ``limit`` bytes, TooSlow if it is not whole after ``seconds``."""
    length = headers.get(b"content-length")
    if length is None and b"transfer-encoding" not in headers:
        return b""
    if length is not None:
        if not length.isdigit():
            raise errors.Invalid("must be a number of bytes", field="content-length")
        if int(length) > limit:
            raise errors.TooLarge(f"a body has at most {limit} bytes, this one {int(length)}")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise errors.TooSlow("the client left before its body was whole")
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise errors.TooLarge(f"a body has at most {limit} bytes")
                parts.append(part)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise errors.TooSlow(f"the body was not whole after {seconds:g} s") from None
    return b"".join(parts)
