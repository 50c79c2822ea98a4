"""Audit: who changed what, or was refused. One structured log line each, and if wanted a CADF event over AMQP.

What is turned away for its number alone (429) is counted by ``metrics``, and not told of.

Only the head of a request is told, without its query: no token, body or
environment of a tenant. The log is the record; events wait for the broker, up to
``WAITING`` of them.

CADF: DMTF DSP0262 1.0, made by pycadf. Envelope: oslo.messaging's notifications, version 2.0.
Called by ``api.app`` and ``api.sockets``.
"""

import asyncio
import re
import uuid
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.api import routing
from magnum.objects import base
from magnum.rpc import base as rpc

LOG = structlog.get_logger("magnum.audit")

WAITING = 10_000
"""Events that wait for the broker at most."""
RETRY_SECONDS = 1.0
EVENT_TYPE = "audit.http.response"
"""What consumers of OpenStack's audit events look for."""
_ACTIONS = {"POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete", "GET": "read", "HEAD": "read"}


class Audit:
    """Tells of requests. ``start`` before, ``close`` after."""

    def __init__(self, conf: cfg.ConfigOpts, transport: rpc.Transport) -> None:
        self._conf = conf
        self._transport = transport
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)
        self._task: asyncio.Task[None] | None = None
        self._dropped = 0

    async def start(self) -> None:
        if self._conf.audit.notifications:
            self._task = asyncio.create_task(self._send())

    async def close(self) -> None:
        if self._task is None:
            return
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._queue.join()
        except TimeoutError:
            LOG.warning("events were not sent", count=self._queue.qsize())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def tell(self, served: routing.Served, scope: Any, method: str, status: int) -> None:
        """Tell of a request that was answered with ``status``, if it is one that is told of."""
        refused = status in (401, 403)
        # a flood is not to be made costlier by its lines
        if (
            served.public
            or status == errors.TooMany.status
            or not (refused or method not in ("GET", "HEAD", "OPTIONS"))
        ):
            return
        context = served.context
        told = {
            "user_id": context.user_id if context else "", "user_name": context.user_name if context else "",
            "project_id": context.project_id if context else "", "action": served.rule or f"{method} {served.route}",
            "method": method, "target": scope["path"][:512], "outcome": "failure" if status >= 400 else "success",
            "status": status, "reason": served.error.code if served.error else "",
            "address": (scope.get("client") or ("",))[0], "request_id": served.request_id,
            "global_request_id": served.global_id,
        }  # fmt: skip
        if self._conf.audit.log:
            LOG.info("audit", **{key: value for key, value in told.items() if value != ""})
        if self._task is not None:
            try:
                self._queue.put_nowait(told)
            except asyncio.QueueFull:
                self._dropped += 1
                if self._dropped == 1:
                    LOG.error("the broker takes no audit events; further ones are in the log alone")

    async def _send(self) -> None:
        audit = self._conf.audit
        while True:
            told = await self._queue.get()
            try:
                body = envelope(event(told), f"magnum-api.{self._conf.host}")
                while True:
                    try:
                        await self._transport.notify(audit.exchange, f"{audit.topic}.info", body, durable=audit.durable)
                        break
                    except errors.Unavailable as error:
                        LOG.debug("an audit event waits", reason=error.detail)
                        await asyncio.sleep(RETRY_SECONDS)
            except errors.MagnumError as error:
                LOG.error("an audit event cannot be sent", reason=str(error))
            finally:
                self._queue.task_done()


_HEX = re.compile(r"(?:[0-9a-f]{32})+")


def _identifier(name: str) -> str:
    """Return what CADF takes for an identifier: ``name`` itself if it is a UUID (or several joined), else one made of it."""
    if _HEX.fullmatch(name.replace("-", "")):
        return name
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"magnum:{name}"))


def _target(path: str) -> str:
    """Return the identifier of what ``path`` is about: the last UUID in it, else one made of all of it."""
    named = [word for word in path.split("/") if _identifier(word) == word]
    return named[-1] if named else _identifier(path)


def event(told: dict[str, Any]) -> dict[str, Any]:
    """Return the CADF event of what ``Audit.tell`` tells."""
    from pycadf import event as cadf
    from pycadf import host, reason, resource

    noun = told["action"].partition(":")[0] if ":" in told["action"] else "request"
    initiator = resource.Resource(
        id=_identifier(told["user_id"] or "unknown"), typeURI="service/security/account/user", name=told["user_name"] or "unknown",
        host=host.Host(address=told["address"] or None),
    )  # fmt: skip
    initiator.project_id = told["project_id"]
    initiator.request_id = told["request_id"]
    if told["global_request_id"]:
        initiator.global_request_id = told["global_request_id"]
    made = cadf.Event(
        eventType="activity", action=f"{_ACTIONS.get(told['method'], 'unknown')}/{told['action'].replace(':', '/')}",
        outcome=told["outcome"], initiator=initiator,
        target=resource.Resource(id=_target(told["target"]), typeURI=f"service/compute/{noun}", name=told["target"]),
        observer=resource.Resource(id=_identifier("magnum-api"), typeURI="service/compute", name="magnum-api"),
        reason=reason.Reason(reasonType="HTTP", reasonCode=str(told["status"])),
    )  # fmt: skip
    made.requestPath = told["target"]
    found: dict[str, Any] = made.as_dict()
    return found


def envelope(payload: dict[str, Any], publisher: str) -> bytes:
    """Return ``payload`` as a notification of priority INFO in oslo.messaging's envelope 2.0."""
    message = {
        "message_id": str(uuid.uuid4()), "publisher_id": publisher, "event_type": EVENT_TYPE, "priority": "INFO",
        "payload": payload, "timestamp": base.now().strftime("%Y-%m-%d %H:%M:%S.%f"), "_unique_id": uuid.uuid4().hex,
    }  # fmt: skip
    return routing.encode({"oslo.version": "2.0", "oslo.message": routing.encode(message).decode()})
