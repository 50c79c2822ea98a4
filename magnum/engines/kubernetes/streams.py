"""Logs, attach and exec of one container of a pod as the seam's sessions.

Both ways travel by the API server's WebSockets: the first byte of a message is its
channel: 0 input, 1 output, 2 errors, 3 how it ended (a v1 Status), 4 the terminal's size.
https://kubernetes.io/docs/reference/generated/kubernetes-api/ (pods/exec), protocols
v4 and v5.channel.k8s.io.

Who calls: the drivers of pods and containers.
"""

import collections.abc
import contextlib
import datetime
import json
from typing import Any

import aiohttp
import msgspec

from magnum import errors
from magnum.clients import kubernetes
from magnum.engines import base
from magnum.engines.kubernetes import cluster

INPUT, OUTPUT, ERRORS, ENDING, SIZE = range(5)


class Process(base.Session):
    """An attach or an exec, over ``socket``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ending: kubernetes.Status | None = None

    async def read(self) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel in (OUTPUT, ERRORS) and data:
                yield channel, data
            elif channel == ENDING:
                self._ending = msgspec.json.decode(data, type=kubernetes.Status)

    async def write(self, data: bytes) -> None:
        if data:
            await self._send(bytes([INPUT]) + data)
        elif self._socket.protocol == kubernetes.CHANNELS[0]:
            await self._send(bytes([kubernetes.CLOSE, INPUT]))
        # before 1.29 a cluster has no word for the end of the input: the command goes on waiting for it

    async def resize(self, width: int, height: int) -> None:
        await self._send(bytes([SIZE]) + json.dumps({"Width": width, "Height": height}).encode())

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._socket.send_bytes(data)

    async def exit_code(self) -> int | None:
        if self._ending is None:
            return None
        if self._ending.status == "Success":
            return 0
        for cause in (self._ending.details or {}).get("causes", []):
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        raise errors.EngineError(self._ending.message or "it ended, and the cluster does not say how")

    async def close(self) -> None:
        await self._socket.close()


@contextlib.asynccontextmanager
async def _log(
    where: cluster.Cluster, path: str, params: dict[str, str], follow: bool
) -> collections.abc.AsyncIterator[collections.abc.AsyncIterator[tuple[int, bytes]]]:
    """Give a log's frames: a cluster keeps output and errors as one."""
    async with where.client.log(path, params, follow) as chunks:

        async def frames() -> collections.abc.AsyncIterator[tuple[int, bytes]]:
            try:
                async for chunk in chunks:
                    yield OUTPUT, chunk
            except (aiohttp.ClientError, OSError) as error:
                raise errors.Unavailable(f"the log broke off: {error}") from error

        yield frames()


def _which(item: Any, kept: cluster.Kept, member: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name of the container that is meant, and its status. Raises Invalid, NotFound."""
    spec, status = kept.read("spec"), kept.read("status")
    main = [found["name"] for found in spec.get("containers", [])]
    first = [found["name"] for found in spec.get("initContainers", [])]
    if member is None:
        if len(main) != 1:
            raise errors.Invalid(f"say which of the pod's containers: {', '.join(main)}", field="container")
        member = main[0]
    if member not in (*main, *first):
        raise errors.NotFound(f"pod {item.name} has no container {member!r}", field="container")
    statuses = (*status.get("containerStatuses", []), *status.get("initContainerStatuses", []))
    return member, next((found for found in statuses if found.get("name") == member), {})


async def open(where: cluster.Cluster, kept: cluster.Kept, item: Any, asked: Any) -> base.Session:
    """Open what ``asked`` (``rpc.backend.StreamAsked``) wants of a pod's container.

    Raises Invalid and NotFound (which container), Conflict (not running), NotSupported, EngineError.
    """
    member, status = _which(item, kept, asked.member)
    if asked.verb == "logs":
        if asked.previous and not status.get("restartCount"):
            raise errors.NotFound(
                f"container {member} of pod {item.name} has no run before its last", field="container"
            )
        params = {"container": member}
        for name, wish in (("follow", asked.follow), ("timestamps", asked.timestamps), ("previous", asked.previous)):
            if wish:
                params[name] = "true"
        if asked.tail is not None:
            params["tailLines"] = str(asked.tail)
        if asked.since is not None:
            params["sinceTime"] = _time(asked.since)
        path = where.path("pods", kept.namespace, kept.name, "log")
        try:
            return await base.Logs(_log(where, path, params, asked.follow)).open()
        except errors.EngineError as error:
            # a container that has not begun has no log; the cluster says so as a bad request
            if kubernetes.refused(error) == 400:
                raise errors.NotFound(error.detail, field="container") from error
            raise
    if asked.verb not in ("attach", "exec"):
        raise errors.NotSupported(f"a container has no {asked.verb}")
    if "running" not in status.get("state", {}):
        raise errors.Conflict(f"cannot {asked.verb}: container {member} of pod {item.name} is not running")
    query = [("container", member), ("stdout", "true")]
    own = next(c for c in (*kept.read("spec").get("containers", []), *kept.read("spec").get("initContainers", []))
               if c["name"] == member)  # fmt: skip
    tty, stdin = asked.tty, asked.stdin
    if asked.verb == "attach":
        # what it was made with counts
        tty, stdin = bool(own.get("tty")), asked.stdin and bool(own.get("stdin"))
    elif not asked.command:
        raise errors.Invalid("names no command", field="command")
    for field in ("user", "workdir"):
        if getattr(asked, field):
            raise errors.NotSupported(f"a cluster runs a command as the container's own {field}", field=field)
    query += [("tty", "true")] if tty else [("stderr", "true")]
    query += [("stdin", "true")] if stdin else []
    query += [("command", word) for word in asked.command] if asked.verb == "exec" else []
    path = where.path("pods", kept.namespace, kept.name, asked.verb)
    return Process(await where.client.socket(path, query))


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
