"""WebSockets: attach and interactive exec, for containers and for the containers of pods.

Messages are binary; the first byte is the channel, as in ``rpc.streams``: the
client sends 0 (stdin, empty closes it) and 4 (size), and is sent 1, 2 and at the
end 3. The subprotocol is ``v4.channel.k8s.io``, or none. A refusal is an HTTP
answer before the upgrade. Called by ``api.app``.
"""

import asyncio
import contextlib
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

import structlog

from magnum import context as contexts
from magnum import errors
from magnum.api import auth, bodies, names, routing, tunnels
from magnum.rpc import streams

if TYPE_CHECKING:
    from magnum.api import app

LOG = structlog.get_logger(__name__)

PROTOCOL = "v4.channel.k8s.io"
_PATH = re.compile(r"/v1/(containers|pods)/([^/]+)/(attach|exec)/?\Z")
_KINDS = {"containers": "container", "pods": "pod"}
PATHS = tuple(f"/v1/{plural}/{{ident}}/{verb}" for plural in _KINDS for verb in ("attach", "exec"))
"""Every path that has a WebSocket."""


class AttachQuery(bodies.Show):
    """``container`` names a pod's container. ``stdin``: whether the client sends any."""

    bay_ident: str | None = None
    bay: str | None = None
    container: str | None = None
    stdin: bool = True
    tty: bool = False


class ExecQuery(AttachQuery, kw_only=True):
    command: str
    user: str | None = None
    workdir: str | None = None


async def serve(
    api: "app.Api", served: routing.Served, broken: errors.MagnumError | None, scope: Any, receive: Any, send: Any
) -> None:
    """Serve one WebSocket from its handshake to its end."""
    await receive()  # websocket.connect
    try:
        if broken is not None:
            raise broken
        context, item, asked = await _admitted(api, served, scope)
        # what is done by it changes the container, so it is told of like any change
        api.audit.tell(served, scope, "POST", 101)
        async with tunnels.opened(api, context, item, **asked) as stream:
            offered = scope.get("subprotocols") or []
            protocol = PROTOCOL if PROTOCOL in offered else None
            await send({"type": "websocket.accept", "subprotocol": protocol})
            await _carry(api, stream, receive, send)
    except errors.MagnumError as error:
        served.error = error
        api.audit.tell(served, scope, "GET", error.status)
        await _refuse(served, error, send, api.auth.challenge)
    except Exception as error:
        LOG.exception("stream failed")
        await _refuse(served, errors.MagnumError(f"{type(error).__name__}; the log has it"), send, None)


async def _admitted(api: "app.Api", served: routing.Served, scope: Any) -> tuple[contexts.Context, Any, dict[str, Any]]:
    """Return who asks, the object and what is asked. Raises whatever an HTTP request would be refused by."""
    match = _PATH.match(scope["path"])
    if match is None:
        raise errors.NotFound("there is no WebSocket at this path")
    kind, ident, verb = _KINDS[match[1]], match[2], match[3]
    _check_origin(api, served)
    context = await api.auth.identify(served.headers, served.request_id, served.global_id, "GET", scope["path"])
    served.context = context
    contexts.current.set(context)
    served.rule = f"{kind}:{'execute' if verb == 'exec' or kind == 'pod' else 'attach'}"
    api.policy.enforce(context, served.rule)
    query: Any = bodies.query(scope["query_string"], ExecQuery if verb == "exec" else AttachQuery)
    bay = query.bay_ident or query.bay
    item = await api.conductor.get(context, kind, names.ident(ident, kind), names.ident(bay, "bay") if bay else None)
    asked = {"verb": verb, "stdin": query.stdin, "tty": query.tty, "member": query.container}
    if verb == "exec":
        asked |= {
            "command": bodies.arguments(query.command, "command"), "user": query.user, "workdir": query.workdir
        }  # fmt: skip
        if not asked["command"]:
            raise errors.Invalid("names no command", field="command")
    return context, item, asked


def _check_origin(api: "app.Api", served: routing.Served) -> None:
    """Raise Forbidden for a browser's page of another site, which would speak with the browser's means."""
    origin = auth.text(served.headers, b"origin", "")
    if not origin:
        return
    host = auth.text(served.headers, b"host", "")
    own = {host, urllib.parse.urlsplit(api.public_url).netloc}
    if urllib.parse.urlsplit(origin).netloc not in own and origin not in api.conf.api.allowed_origins:
        raise errors.Forbidden(f"pages of {origin} may not open streams here", field="Origin")


async def _refuse(served: routing.Served, error: errors.MagnumError, send: Any, challenge: str | None) -> None:
    """Answer the handshake with ``error``; after it, close with a reason."""
    from magnum.api import app

    answer = app.failure(error, served, challenge)
    body = routing.encode(answer.body)
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"x-openstack-request-id", served.request_id.encode()),
        *((name.encode(), value.encode()) for name, value in answer.headers.items()),
    ]  # fmt: skip
    with contextlib.suppress(RuntimeError, OSError):
        try:
            await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": body})
        except (RuntimeError, ValueError):
            await send({"type": "websocket.close", "code": 1011, "reason": str(error)[:120]})


async def _carry(api: "app.Api", stream: streams.Connection, receive: Any, send: Any) -> None:
    async def outward() -> None:
        async for channel, data in stream.frames():
            await send({"type": "websocket.send", "bytes": bytes([channel]) + data})
            if channel == streams.ENDING:
                return

    async def inward() -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            if data is None:
                data = b"\x00" + (message.get("text") or "").encode()
            if data and data[0] in (streams.STDIN, streams.SIZE):
                await stream.send(data[0], bytes(data[1:]))

    async def closing() -> None:
        await api.closing.wait()

    tasks = [asyncio.create_task(each()) for each in (outward, inward, closing)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(RuntimeError, OSError):
        await send({"type": "websocket.close", "code": 1001 if api.closing.is_set() else 1000})
