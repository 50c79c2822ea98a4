"""Probes and hooks of a pod's containers: what they try, how, and when, with Kubernetes' rules.

A try goes to the container itself (``exec``) or to the pod's address from inside
its network namespace, since the engine's networks need not be in the backend's reach.

Timing: https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/

Who calls: ``engines.docker.pod``.
"""

import asyncio
import collections.abc
import contextlib
import ssl
import time
from typing import Any

import aiohttp
import msgspec
import structlog

from magnum import errors
from magnum.clients import docker, nftables
from magnum.objects import manifest

LOG = structlog.get_logger(__name__)

OUTPUT = 1024
"""Bytes of a failed command's output that are told."""
HOOK_SECONDS = 600.0
"""What an HTTP hook may take at most."""

_UNVERIFIED = ssl.create_default_context()
_UNVERIFIED.check_hostname = False
_UNVERIFIED.verify_mode = ssl.CERT_NONE
"""As Kubernetes: an HTTPS probe looks at the answer, not at who gives it."""


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """Where tries go: container ``ident``; ``address`` is the pod's, seen from the namespace of process ``pid`` (0: from here)."""

    ident: str
    address: str
    pid: int
    ports: dict[str, int]


def _number(port: int | str, where: Target) -> int:
    return port if isinstance(port, int) else where.ports[port]


async def run(client: docker.Client, where: Target, command: list[str]) -> str | None:
    """Run ``command`` in the container; return None if it ends with 0, else words. Raises as the client does."""
    config = {"AttachStdout": True, "AttachStderr": True, "Cmd": command}
    ident = await client.exec_create(where.ident, config)
    stream = await client.exec_start(ident, tty=False)
    output = b""
    try:
        while (frame := await stream.read()) is not None:
            if len(output) < OUTPUT:
                output += frame[1]
    finally:
        await stream.close()
    code = (await client.exec_inspect(ident)).exit_code
    if not code:
        return None
    words = output[:OUTPUT].decode(errors="replace").strip()
    return f"command ended with {code}" + (f": {words}" if words else "")


async def fetch(where: Target, http: manifest.HttpGet) -> str | None:
    """Ask for the page; return None for an answer from 200 to 399, else words."""

    def place(info: Any) -> Any:
        return nftables.Namespace(where.pid).socket(info[0], info[1], info[2])

    headers = [(h.name, h.value) for h in http.http_headers]
    if not any(name.lower() == "user-agent" for name, _ in headers):
        headers.append(("User-Agent", "magnum-probe"))
    host = http.host or where.address
    url = f"{http.scheme.lower()}://{host}:{_number(http.port, where)}{http.path}"
    connector = aiohttp.TCPConnector(ssl=_UNVERIFIED, force_close=True, socket_factory=place if where.pid else None)
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            if 200 <= answer.status < 400:
                return None
            return f"HTTP probe failed with statuscode: {answer.status}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"Get {url}: {error or type(error).__name__}"


async def connect(where: Target, tcp: manifest.TcpSocket) -> str | None:
    """Open a connection and close it; return None if that went well, else words."""
    loop = asyncio.get_running_loop()
    host, port = tcp.host or where.address, _number(tcp.port, where)
    try:
        family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=nftables.STREAM))[0]
        with nftables.Namespace(where.pid).socket(family, kind, protocol) as made:
            made.setblocking(False)
            await loop.sock_connect(made, address)
    except OSError as error:
        return f"dial tcp {host}:{port}: {error.strerror or error}"
    return None


async def attempt(client: docker.Client, where: Target, probe: manifest.Probe) -> str | None:
    """Try ``probe`` once; return None if it passes, else words. Raises Unavailable: the engine is away, which says nothing."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.exec is not None:
                return await run(client, where, probe.exec.command)
            if probe.http_get is not None:
                return await fetch(where, probe.http_get)
            assert probe.tcp_socket is not None
            return await connect(where, probe.tcp_socket)
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except errors.Unavailable:
        raise
    except errors.MagnumError as error:
        return error.detail


async def hook(client: docker.Client, where: Target, wanted: manifest.Hook) -> str | None:
    """Run a lifecycle hook; return None if it went well, else words. Raises Unavailable."""
    try:
        if wanted.exec is not None:
            return await run(client, where, wanted.exec.command)
        assert wanted.http_get is not None
        async with asyncio.timeout(HOOK_SECONDS):
            return await fetch(where, wanted.http_get)
    except TimeoutError:
        return f"no answer within {HOOK_SECONDS:g} s"
    except errors.Unavailable:
        raise
    except errors.MagnumError as error:
        return error.detail


Try = collections.abc.Callable[[manifest.Probe], collections.abc.Awaitable[str | None]]


class Prober:
    """Probes one run of a container from when it began (``began``: Unix seconds) until ``close``.

    ``started``, ``ready``: as in a container's status. ``unready``: the words of
    why it is not ready. ``failure``: why it is to be killed. ``changed`` is called
    after a change of these. ``ready``: what is known of the run already, by one
    who looked before.
    """

    def __init__(
        self, container: manifest.Container, attempt: Try, changed: collections.abc.Callable[[], None],
        *, began: float, known_started: bool = False, known_ready: bool = False,
    ) -> None:  # fmt: skip
        self._container = container
        self._attempt = attempt
        self._changed = changed
        self._began = began
        self.started = container.startup_probe is None or known_started or known_ready
        self.ready = self.started and (container.readiness_probe is None or known_ready)
        self.unready: str | None = None
        self.failure: str | None = None
        self._task: asyncio.Task[None] | None = None
        probes = (container.startup_probe, container.liveness_probe, container.readiness_probe)
        if any(probe is not None for probe in probes):
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        container = self._container
        if container.startup_probe is not None and not self.started:
            async for passed, words in self._tries(container.startup_probe):
                if passed:
                    self.started = True
                    self.ready = container.readiness_probe is None
                    self._changed()
                    break
                if passed is False:
                    self._fail("Startup", words)
                    return
        loops = []
        if container.liveness_probe is not None:
            loops.append(self._live(container.liveness_probe))
        if container.readiness_probe is not None:
            loops.append(self._be_ready(container.readiness_probe))
        await asyncio.gather(*loops)

    async def _live(self, probe: manifest.Probe) -> None:
        async for passed, words in self._tries(probe):
            if passed is False:
                self._fail("Liveness", words)
                return

    async def _be_ready(self, probe: manifest.Probe) -> None:
        async for passed, words in self._tries(probe):
            said = f"Readiness probe failed: {words}" if words else None
            if passed is None and said == self.unready:
                continue
            before = (self.ready, self.unready)
            if passed is not None:
                self.ready = passed
            self.unready = None if self.ready else said
            if (self.ready, self.unready) != before:
                self._changed()

    def _fail(self, kind: str, words: str) -> None:
        self.failure = f"{kind} probe failed: {words}"
        self.ready = False
        self._changed()

    async def _tries(self, probe: manifest.Probe) -> collections.abc.AsyncIterator[tuple[bool | None, str]]:
        """Yield after each try (True or False once its threshold is reached, else None; words of a failure)."""
        successes = failures = 0
        await asyncio.sleep(max(0.0, self._began + probe.initial_delay_seconds - time.time()))
        while True:
            begun = time.monotonic()
            words = ""
            with contextlib.suppress(errors.Unavailable):
                words = await self._attempt(probe) or ""
                successes, failures = (0, failures + 1) if words else (successes + 1, 0)
                if failures >= probe.failure_threshold:
                    yield False, words
                elif successes >= probe.success_threshold:
                    yield True, words
                else:
                    yield None, words
            await asyncio.sleep(max(0.0, begun + probe.period_seconds - time.monotonic()))
