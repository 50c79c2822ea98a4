"""Logs, attach and exec of one Docker container as the seam's sessions.

Who calls: the Docker engine's drivers of containers and pods.
"""

import collections.abc
from typing import Any

from magnum import errors
from magnum.clients import docker
from magnum.engines import base

END_SECONDS = 5.0
"""How long after its output a process may take to be gone."""


class Process(base.Session):
    """An attach (``exec_id`` None) or an exec in container ``ident``."""

    def __init__(self, client: docker.Client, stream: docker.Stream, ident: str, exec_id: str | None) -> None:
        self._client = client
        self._stream = stream
        self._ident = ident
        self._exec_id = exec_id
        self._ended = False

    async def read(self) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
        while (frame := await self._stream.read()) is not None:
            yield frame
        self._ended = True

    async def write(self, data: bytes) -> None:
        if data:
            await self._stream.write(data)
        else:
            self._stream.close_input()

    async def resize(self, width: int, height: int) -> None:
        if self._exec_id is None:
            await self._client.resize("containers", self._ident, width, height)
        else:
            await self._client.resize("exec", self._exec_id, width, height)

    async def exit_code(self) -> int | None:
        if self._exec_id is not None:
            found = await self._client.exec_inspect(self._exec_id)
            return None if found.running else found.exit_code
        return await self._client.wait(self._ident, END_SECONDS) if self._ended else None

    async def close(self) -> None:
        await self._stream.close()


async def open(client: docker.Client, ident: str, asked: Any, *, tty: bool, stdin: bool) -> base.Session:
    """Open what ``asked`` (``rpc.backend.StreamAsked``) wants of container ``ident``, made with ``tty`` and ``stdin``.

    Raises NotFound, Conflict (not running), NotSupported, EngineError.
    """
    if asked.verb == "logs":
        source = client.logs(
            ident, tty=tty, follow=asked.follow, tail=asked.tail, since=asked.since, timestamps=asked.timestamps
        )
        return await base.Logs(source).open()
    if asked.verb == "attach":
        found = await client.inspect(ident)
        if found.state.status != "running":
            raise errors.Conflict(f"cannot attach to a container that is {found.state.status}")
        return Process(client, await client.attach(ident, stdin=stdin and asked.stdin), ident, None)
    if asked.verb == "exec":
        if not asked.command:
            raise errors.Invalid("names no command", field="command")
        config = {
            "AttachStdin": asked.stdin, "AttachStdout": True, "AttachStderr": True, "Tty": asked.tty,
            "Cmd": asked.command, "User": asked.user or "", "WorkingDir": asked.workdir or "",
        }  # fmt: skip
        exec_id = await client.exec_create(ident, config)
        return Process(client, await client.exec_start(exec_id, tty=asked.tty), ident, exec_id)
    raise errors.NotSupported(f"a container has no {asked.verb}")


def usage(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what ``Backend.stats`` promises from Docker's record (``GET /containers/{id}/stats``)."""
    cpu, before = raw.get("cpu_stats") or {}, raw.get("precpu_stats") or {}
    used = _number(cpu, "cpu_usage", "total_usage") - _number(before, "cpu_usage", "total_usage")
    passed = _number(cpu, "system_cpu_usage") - _number(before, "system_cpu_usage")
    cores = cpu.get("online_cpus") or len((cpu.get("cpu_usage") or {}).get("percpu_usage") or []) or 1
    memory = raw.get("memory_stats") or {}
    detail = memory.get("stats") or {}
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    networks = (raw.get("networks") or {}).values()
    block = (raw.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    return {
        "cpu_percent": round(used / passed * cores * 100, 2) if passed > 0 and used > 0 else 0.0,
        "memory_bytes": max(memory.get("usage", 0) - cache, 0),
        "memory_limit_bytes": memory.get("limit", 0),
        "network_rx_bytes": sum(n.get("rx_bytes", 0) for n in networks),
        "network_tx_bytes": sum(n.get("tx_bytes", 0) for n in networks),
        "block_read_bytes": sum(b["value"] for b in block if b["op"].lower() == "read"),
        "block_write_bytes": sum(b["value"] for b in block if b["op"].lower() == "write"),
        "pids": (raw.get("pids_stats") or {}).get("current", 0),
    }


def _number(data: dict[str, Any], *path: str) -> int:
    value: Any = data
    for key in path:
        value = (value or {}).get(key)
    return value or 0
