"""The Docker Engine's wire: the API's requests as typed calls, its errors as ours.

aiodocker holds the connections (Unix socket, or TCP with mutual TLS alone) and
the two-way streams of attach and exec; plain requests go over its session and
are decoded by msgspec into the few fields that are wanted, which costs a third
of aiodocker's own calls. Field names and paths are those of the Docker Engine
API reference, versions 1.41 to 1.44.

Who calls: ``engines.docker`` and ``networks.docker``.
"""

import asyncio
import base64
import collections.abc
import contextlib
import ssl
import struct
import urllib.parse
from typing import Any, TypeVar

import aiodocker
import aiodocker.execs
import aiohttp
import msgspec

from magnum import errors

OLDEST = (1, 41)
NEWEST = (1, 44)
"""API versions that this code was written against: Docker 20.10, and the least that Docker 29 serves."""

STUCK = "already exists"
"""What containerd says of a task that an engine's crash left behind."""

NEVER = "0001-01-01T00:00:00Z"
"""How Docker writes a time that has not come."""


class _Reply(msgspec.Struct, rename="pascal", kw_only=True):
    """Base of what the engine answers; unknown fields are skipped."""


class Version(_Reply):
    version: str
    api_version: str
    min_api_version: str = msgspec.field(name="MinAPIVersion", default="1.12")


class Info(_Reply):
    """``GET /info``. ``mem_total`` in bytes."""

    server_version: str = ""
    n_cpu: int = msgspec.field(name="NCPU", default=0)
    mem_total: int = 0
    containers: int = 0
    docker_root_dir: str = ""
    name: str = ""
    swarm: dict[str, Any] | None = None


class Health(_Reply):
    status: str = ""


class RunState(_Reply):
    """``State`` of a container. ``status``: created, running, paused, restarting, removing, exited, dead."""

    status: str = ""
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    started_at: str = NEVER
    finished_at: str = NEVER
    health: Health | None = None


class RestartRule(_Reply):
    name: str = ""
    maximum_retry_count: int = 0


class HostConfig(_Reply):
    memory: int = 0
    memory_swap: int = 0
    nano_cpus: int = 0
    pids_limit: int | None = None
    restart_policy: RestartRule = msgspec.field(default_factory=RestartRule)


class Config(_Reply):
    labels: dict[str, str] | None = None
    tty: bool = False
    open_stdin: bool = False


class Binding(_Reply):
    host_ip: str = ""
    host_port: str = ""


class Endpoint(_Reply):
    network_id: str = msgspec.field(name="NetworkID", default="")
    ip_address: str = msgspec.field(name="IPAddress", default="")
    ipv6_address: str = msgspec.field(name="GlobalIPv6Address", default="")
    mac_address: str = ""


class NetworkSettings(_Reply):
    ports: dict[str, list[Binding] | None] | None = None
    networks: dict[str, Endpoint] | None = None


class ContainerInfo(_Reply):
    """``GET /containers/{id}/json``."""

    id: str
    name: str = ""
    image: str = ""
    restart_count: int = 0
    state: RunState = msgspec.field(default_factory=RunState)
    host_config: HostConfig = msgspec.field(default_factory=HostConfig)
    config: Config = msgspec.field(default_factory=Config)
    network_settings: NetworkSettings = msgspec.field(default_factory=NetworkSettings)

    @property
    def labels(self) -> dict[str, str]:
        return self.config.labels or {}


class ContainerRow(_Reply):
    """One row of ``GET /containers/json``."""

    id: str
    names: list[str] = []
    labels: dict[str, str] | None = None
    state: str = ""


class Subnet(_Reply):
    subnet: str = ""
    gateway: str = ""


class Ipam(_Reply):
    config: list[Subnet] | None = None


class Attached(_Reply):
    name: str = ""


class NetworkInfo(_Reply):
    """A network. ``containers`` (id → name) is filled by inspection alone."""

    id: str
    name: str = ""
    driver: str = ""
    scope: str = ""
    ipam: Ipam = msgspec.field(name="IPAM", default_factory=Ipam)
    labels: dict[str, str] | None = None
    containers: dict[str, Attached] | None = None


class VolumeRow(_Reply):
    name: str
    labels: dict[str, str] | None = None


class VolumeList(_Reply):
    volumes: list[VolumeRow] | None = None


class ExecInfo(_Reply):
    running: bool = False
    exit_code: int | None = None
    pid: int = 0


class Top(_Reply):
    titles: list[str] = []
    processes: list[list[str]] | None = None


class Actor(_Reply):
    id: str = msgspec.field(name="ID", default="")
    attributes: dict[str, str] | None = None


class Event(_Reply):
    type: str = ""
    action: str = ""
    actor: Actor = msgspec.field(default_factory=Actor)


class _Id(_Reply):
    id: str


class _Message(msgspec.Struct):
    message: str = ""


class _Detail(msgspec.Struct):
    current: int = 0
    total: int = 0


class PullLine(msgspec.Struct, rename={"progress": "progressDetail"}):
    """One line of a pull's progress: what happens to layer ``id``; ``error`` ends it."""

    status: str = ""
    id: str = ""
    progress: _Detail | None = None
    error: str = ""


T = TypeVar("T")

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def _decode(data: bytes, into: type[T]) -> T:
    decoder = _decoders.get(into)
    if decoder is None:
        decoder = _decoders[into] = msgspec.json.Decoder(into)
    result: T = decoder.decode(data)
    return result


def _filters(**filters: list[str]) -> str:
    return msgspec.json.encode(filters).decode()


def _refusal(status: int, words: str) -> errors.MagnumError:
    words = words.strip() or f"the engine answered {status}"
    if status == 404:
        return errors.NotFound(words)
    if status == 409:
        return errors.Conflict(words)
    return errors.EngineError(words)


class Client:
    """One Docker Engine. May be made outside an event loop; connects at the first call.

    ``url``: ``unix:///path`` or ``tcp://host:port``; the latter needs the three
    TLS files. ``timeout``: seconds for a plain answer. Every method raises
    Unavailable if the engine is away, NotFound, Conflict, or EngineError with
    the engine's own words. Raises Invalid for a URL that is not one of these.
    """

    def __init__(
        self,
        url: str,
        *,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in ("unix", "tcp") or not rest:
            raise errors.Invalid(f"must be unix:///path or tcp://host:port, not {url!r}", field="[docker] url")
        if scheme == "tcp" and not (tls_ca and tls_cert and tls_key):
            raise errors.Invalid("Docker over TCP needs tls_ca, tls_cert and tls_key", field="[docker] url")
        self.url = url
        self._path = rest if scheme == "unix" else None
        self._base = "http://docker" if scheme == "unix" else f"https://{rest.rstrip('/')}"
        self._tls = (tls_ca, tls_cert, tls_key)
        self._timeout = timeout
        self._docker: Any = None
        self._connector: aiohttp.BaseConnector | None = None
        self._version: str | None = None
        self._negotiating = asyncio.Lock()

    def _open(self) -> Any:
        if self._docker is None:
            if self._path is not None:
                self._connector = aiohttp.UnixConnector(self._path, limit=0)
            else:
                ca, cert, key = self._tls
                context = ssl.create_default_context(cafile=ca)
                context.load_cert_chain(str(cert), key)
                self._connector = aiohttp.TCPConnector(ssl=context, limit=0)
            self._docker = aiodocker.Docker(
                url="unix://docker" if self._path is not None else self._base,
                connector=self._connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
            )
        return self._docker

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        docker, self._docker = self._docker, None
        if docker is not None and self._connector is not None:
            await docker.close()
            await self._connector.close()

    async def version(self) -> Version:
        """Return what the engine says of itself, asked anew."""
        return await self._request("GET", "/version", into=Version)

    async def _negotiate(self) -> str:
        """Return the path prefix of the API version spoken: the newest that both sides know."""
        async with self._negotiating:
            if self._version is None:
                found = await self.version()
                lowest, highest = _number(found.min_api_version), _number(found.api_version)
                if highest < OLDEST:
                    raise errors.EngineError(
                        f"Docker {found.version} speaks API {found.api_version}; at least 1.41 (Docker 20.10) is needed"
                    )
                major, minor = max(lowest, min(highest, NEWEST))
                self._version = f"/v{major}.{minor}"
                self._open().api_version = f"v{major}.{minor}"
            return self._version

    @contextlib.asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        archive: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> collections.abc.AsyncIterator[aiohttp.ClientResponse]:
        """Give the open answer of one request; what is foreign in its failure becomes ours, here alone."""
        if path != "/version":
            path = (self._version or await self._negotiate()) + path
        query = None if params is None else {k: v for k, v in params.items() if v is not None}
        sent = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with self._open().session.request(
                method,
                self._base + path,
                params=query,
                data=archive if body is None else msgspec.json.encode(body),
                headers=sent | (headers or {}),
                timeout=timeout or aiohttp.ClientTimeout(total=self._timeout),
            ) as response:
                if response.status >= 400:
                    data = await response.read()
                    try:
                        words = _decode(data, _Message).message
                    except msgspec.DecodeError:
                        words = data.decode(errors="replace")
                    raise _refusal(response.status, words)
                yield response
        except TimeoutError as error:
            self._version = None
            raise errors.Unavailable(f"Docker at {self.url} did not answer {method} {path} in time") from error
        except (aiohttp.ClientError, OSError) as error:
            self._version = None
            raise errors.Unavailable(f"Docker at {self.url} does not answer: {error}") from error

    async def _request(self, method: str, path: str, *, into: type[T], **options: Any) -> T:
        async with self._response(method, path, **options) as response:
            data = await response.read()
        try:
            return _decode(data, into)
        except msgspec.DecodeError as error:
            raise errors.EngineError(f"Docker's answer to {method} {path} is not understood: {error}") from error

    async def _do(self, method: str, path: str, **options: Any) -> None:
        async with self._response(method, path, **options) as response:
            await response.read()

    async def info(self) -> Info:
        return await self._request("GET", "/info", into=Info)

    # containers: ``ident`` is an id or a name

    async def create(self, name: str, config: dict[str, Any]) -> str:
        """Create a container and return its id. Raises NotFound (image), Conflict (name taken)."""
        made = await self._request("POST", "/containers/create", params={"name": name}, body=config, into=_Id)
        return made.id

    async def inspect(self, ident: str) -> ContainerInfo:
        return await self._request("GET", f"/containers/{ident}/json", into=ContainerInfo)

    async def containers(self, labels: list[str]) -> list[ContainerRow]:
        """Return all containers, running or not, that bear every one of ``labels`` (``key`` or ``key=value``)."""
        params = {"all": "1", "filters": _filters(label=labels)}
        return await self._request("GET", "/containers/json", params=params, into=list[ContainerRow])

    async def start(self, ident: str) -> None:
        """Start; no error if it runs."""
        await self._do("POST", f"/containers/{ident}/start")

    async def stop(self, ident: str, seconds: int | None) -> None:
        """Signal, wait ``seconds`` (None: its own stop timeout), kill; no error if it does not run."""
        timeout = self._endless() if seconds is None else self._longer(seconds)
        await self._do("POST", f"/containers/{ident}/stop", params={"t": seconds}, timeout=timeout)

    async def restart(self, ident: str, seconds: int) -> None:
        """Stop as ``stop`` does, and start."""
        await self._do("POST", f"/containers/{ident}/restart", params={"t": seconds}, timeout=self._longer(seconds))

    async def pause(self, ident: str) -> None:
        await self._do("POST", f"/containers/{ident}/pause")

    async def unpause(self, ident: str) -> None:
        await self._do("POST", f"/containers/{ident}/unpause")

    async def kill(self, ident: str, signal: str = "SIGKILL") -> None:
        await self._do("POST", f"/containers/{ident}/kill", params={"signal": signal})

    async def update(self, ident: str, config: dict[str, Any]) -> None:
        """Change resource limits and the restart policy in place (``HostConfig`` fields)."""
        await self._do("POST", f"/containers/{ident}/update", body=config)

    async def remove(self, ident: str) -> None:
        """Remove with its anonymous volumes, killing it if it runs. Raises NotFound, Conflict (being removed)."""
        await self._do("DELETE", f"/containers/{ident}", params={"force": "1", "v": "1"})

    async def wait(self, ident: str, seconds: float) -> int | None:
        """Return the exit code once it runs no more, or None if it still runs after ``seconds``."""
        code: dict[str, Any] = {}
        with contextlib.suppress(errors.Unavailable):
            code = await self._request(
                "POST", f"/containers/{ident}/wait", into=dict[str, Any], timeout=aiohttp.ClientTimeout(total=seconds)
            )
        return code.get("StatusCode")

    async def stats(self, ident: str) -> dict[str, Any]:
        """Return Docker's own record of two readings a second apart."""
        return await self._request("GET", f"/containers/{ident}/stats", params={"stream": "false"}, into=dict[str, Any])

    async def top(self, ident: str) -> Top:
        return await self._request("GET", f"/containers/{ident}/top", into=Top)

    @contextlib.asynccontextmanager
    async def logs(
        self,
        ident: str,
        *,
        tty: bool,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        timestamps: bool = False,
    ) -> collections.abc.AsyncIterator[collections.abc.AsyncIterator[tuple[int, bytes]]]:
        """Give an iterator of (channel, bytes) of the log. ``since`` in Unix seconds. Leaving ends a follow."""
        params = {
            "stdout": "1", "stderr": "1", "follow": str(int(follow)), "timestamps": str(int(timestamps)),
            "tail": "all" if tail is None else str(tail), "since": None if since is None else f"{since:.9f}",
        }  # fmt: skip
        async with self._response("GET", f"/containers/{ident}/logs", params=params, timeout=self._endless()) as answer:
            yield _raw(answer.content) if tty else _frames(answer.content)

    async def attach(self, ident: str, *, stdin: bool) -> "Stream":
        """Return the two-way stream of a running container's main process."""
        stream = self._open().containers.container(ident).attach(stdout=True, stderr=True, stdin=stdin)
        return await Stream.opened(self, stream)

    async def exec_create(self, ident: str, config: dict[str, Any]) -> str:
        """Prepare a command in a running container; return the exec's id. Raises NotFound, Conflict (not running)."""
        return (await self._request("POST", f"/containers/{ident}/exec", body=config, into=_Id)).id

    async def exec_start(self, exec_id: str, *, tty: bool) -> "Stream":
        """Start it and return its two-way stream."""
        return await Stream.opened(self, aiodocker.execs.Exec(self._open(), exec_id, tty).start())

    async def exec_inspect(self, exec_id: str) -> ExecInfo:
        return await self._request("GET", f"/exec/{exec_id}/json", into=ExecInfo)

    async def resize(self, what: str, ident: str, width: int, height: int) -> None:
        """Set a terminal's size in characters. ``what``: ``containers`` or ``exec``."""
        await self._do("POST", f"/{what}/{ident}/resize", params={"w": width, "h": height})

    # images

    async def has_image(self, image: str) -> bool:
        """Return whether the engine has ``image``."""
        try:
            await self._do("GET", f"/images/{urllib.parse.quote(image, safe='/:@')}/json")
        except errors.NotFound:
            return False
        return True

    async def image_user(self, image: str) -> str:
        """Return the user that ``image`` runs as by itself, empty for root. Raises NotFound: the engine does not have it."""
        found = await self._request("GET", f"/images/{urllib.parse.quote(image, safe='/:@')}/json", into=dict[str, Any])
        return str((found.get("Config") or {}).get("User") or "")

    async def pull(self, image: str, credentials: tuple[str, str] | None) -> collections.abc.AsyncIterator[PullLine]:
        """Pull ``image``, yielding each line of progress; how long that may take is the caller's to say.

        ``credentials``: user and password. Raises EngineError, NotFound (no such image, or no right to it).
        """
        name, tag = split_image(image)
        headers = {}
        if credentials:
            plain = {"username": credentials[0], "password": credentials[1], "serveraddress": registry_of(image)}
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(msgspec.json.encode(plain)).decode()
        params = {"fromImage": name, "tag": tag}
        async with self._response(
            "POST", "/images/create", params=params, headers=headers, timeout=self._endless()
        ) as response:
            async for line in response.content:
                if line.strip():
                    found = _decode(line, PullLine)
                    if found.error:
                        raise errors.EngineError(found.error)
                    yield found

    # networks and volumes

    async def networks(self, labels: list[str] | None = None) -> list[NetworkInfo]:
        params = {"filters": _filters(label=labels)} if labels else None
        return await self._request("GET", "/networks", params=params, into=list[NetworkInfo])

    async def network(self, ident: str) -> NetworkInfo:
        return await self._request("GET", f"/networks/{ident}", into=NetworkInfo)

    async def create_network(self, config: dict[str, Any]) -> str:
        """Create a network and return its id. Raises Conflict (name taken), EngineError (addresses taken)."""
        return (await self._request("POST", "/networks/create", body=config, into=_Id)).id

    async def connect(self, network: str, container: str, endpoint: dict[str, Any]) -> None:
        body = {"Container": container, "EndpointConfig": endpoint}
        await self._do("POST", f"/networks/{network}/connect", body=body)

    async def disconnect(self, network: str, container: str) -> None:
        await self._do("POST", f"/networks/{network}/disconnect", body={"Container": container, "Force": True})

    async def remove_network(self, ident: str) -> None:
        """Remove a network. Raises NotFound, EngineError or Conflict (containers are on it)."""
        await self._do("DELETE", f"/networks/{ident}")

    async def volumes(self, labels: list[str]) -> list[VolumeRow]:
        found = await self._request("GET", "/volumes", params={"filters": _filters(label=labels)}, into=VolumeList)
        return found.volumes or []

    async def put_archive(self, ident: str, path: str, archive: bytes) -> None:
        """Unpack a tar ``archive`` below ``path`` of a container, its volumes included, running or not."""
        await self._do("PUT", f"/containers/{ident}/archive", params={"path": path}, archive=archive)

    async def remove_volume(self, name: str) -> None:
        """Remove a volume. Raises NotFound, Conflict (in use)."""
        await self._do("DELETE", f"/volumes/{name}")

    async def request(self, method: str, path: str, *, body: Any = None, into: Any = None) -> Any:
        """Send one request that has no method of its own here; ``into`` is the type of its JSON answer, if any."""
        if into is None:
            return await self._do(method, path, body=body)
        return await self._request(method, path, body=body, into=into)

    async def events(self, filters: dict[str, list[str]]) -> collections.abc.AsyncIterator[Event | None]:
        """Yield None once the stream stands, then events as they come; ends or raises Unavailable with the connection."""
        params = {"filters": _filters(**filters)}
        async with self._response("GET", "/events", params=params, timeout=self._endless()) as response:
            yield None
            async for line in response.content:
                if line.strip():
                    yield _decode(line, Event)

    def _endless(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self._timeout)

    def _longer(self, seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self._timeout + seconds)


class Stream:
    """The two-way stream of an attach or exec, over an upgraded connection of aiodocker's."""

    def __init__(self, client: Client, stream: Any) -> None:
        self._client = client
        self._stream = stream

    @classmethod
    async def opened(cls, client: Client, stream: Any) -> "Stream":
        """Open aiodocker's ``stream``. Raises as the client's methods do."""
        await client._negotiate()
        try:
            await stream.__aenter__()
        except aiodocker.DockerError as error:
            if error.status == 900:  # aiodocker's own number for a connection that failed
                raise errors.Unavailable(f"Docker at {client.url} does not answer: {error.message}") from error
            raise _refusal(error.status, error.message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.Unavailable(f"Docker at {client.url} does not answer: {error}") from error
        return cls(client, stream)

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next (channel, bytes), None at the end."""
        try:
            message = await self._stream.read_out()
        except (aiohttp.ClientError, OSError):
            return None
        return None if message is None else (message.stream, message.data)

    async def write(self, data: bytes) -> None:
        """Give bytes to stdin. Raises Conflict once the process has gone."""
        try:
            await self._stream.write_in(data)
        except (aiohttp.ClientError, OSError, AssertionError, RuntimeError) as error:
            raise errors.Conflict("the process reads no more") from error

    def close_input(self) -> None:
        """Close stdin; output goes on. aiodocker closes both sides only, hence its connection here."""
        connection = self._stream._resp.connection
        if connection is not None and connection.transport is not None and connection.transport.can_write_eof():
            connection.transport.write_eof()

    async def close(self) -> None:
        """Close both sides. Idempotent."""
        if self._stream._resp is not None and self._stream._resp.connection is None:
            self._stream._closed = True
            self._stream._resp.close()
        else:
            await self._stream.close()


_HEADER = struct.Struct(">BxxxL")


async def _frames(content: aiohttp.StreamReader) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
    """Yield the frames of a stream that is not a terminal's (Engine API, *Attach to a container*, stream format)."""
    while True:
        try:
            channel, length = _HEADER.unpack(await content.readexactly(_HEADER.size))
            data = await content.readexactly(length)
        except (asyncio.IncompleteReadError, aiohttp.ClientError, OSError):
            return
        yield channel, data


async def _raw(content: aiohttp.StreamReader) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for data in content.iter_any():
            yield 1, data


def _number(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def split_image(image: str) -> tuple[str, str]:
    """Return (name, tag or digest) of an image's reference; without either the tag is ``latest``."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, slash, last = image.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, tag or "latest"


def registry_of(image: str) -> str:
    """Return the registry that an image's reference names; Docker's own if it names none."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def credentials_for(image: str, pairs: dict[str, str]) -> tuple[str, str] | None:
    """Return (user, password) for ``image``'s registry from ``[docker] registry_auth``, None if it has none.

    oslo.config cuts ``host:5000:user/password`` at the first colon, so a port stands before the user here.
    """
    registry = registry_of(image)
    host, _, port = registry.partition(":")
    value = pairs.get(registry)
    if value is None and port:
        value = pairs.get(host, "")
        value = value[len(port) + 1 :] if value.startswith(port + ":") else None
    if not value:
        return None
    user, _, password = value.partition("/")
    return user, password
