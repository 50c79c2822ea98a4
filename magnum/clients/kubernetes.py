"""The wire of a Kubernetes cluster: its API's requests as typed calls, its errors as ours.

lightkube reads the kubeconfig and brings its credentials (certificates, tokens, files
of tokens, exec plugins) and TLS; requests, watches and the WebSockets of exec and
attach go over one aiohttp session, and msgspec decodes the few fields that are
wanted: lightkube's own watch forgets what was deleted while it was away, asks for no
bookmarks, and its exec takes no input as it comes. See ``docs/decisions/kubernetes``.

Paths, fields and statuses are those of the Kubernetes API reference, 1.20 to 1.34.
Who calls: ``engines.kubernetes``.
"""

import asyncio
import base64
import collections.abc
import contextlib
import hashlib
import ssl
import urllib.parse
from typing import Any, TypeVar

import aiohttp
import httpx2
import msgspec
from lightkube.config import client_adapter, kubeconfig

from magnum import errors

MANAGER = "magnum"
"""Our name among those who set fields of an object (server-side apply)."""
PAGE = 500
"""Objects of a page of a list."""
WATCH_SECONDS = 240
"""How long the server keeps a watch open; then it is resumed."""
SILENCE_SECONDS = 270.0
"""After which a watch that says nothing, not even a bookmark or its end, is given up."""
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
CHANNELS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Protocols of exec and attach; the first can tell the end of the input."""
CLOSE = 255
"""The channel by which the first of them does."""
GOODBYE_SECONDS = 0.25
MAX_LINE = 64 * 2**20
"""Bytes of one event of a watch at most."""


class _Reply(msgspec.Struct, rename="camel", kw_only=True):
    """Base of what the server answers; unknown fields are skipped."""


class Owner(_Reply):
    kind: str = ""
    uid: str = ""
    controller: bool = False


class Managed(_Reply):
    manager: str = ""
    operation: str = ""
    subresource: str = ""
    fields_v1: msgspec.Raw = msgspec.field(name="fieldsV1", default=msgspec.Raw(b""))


class Meta(_Reply):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[Owner] = []
    managed_fields: list[Managed] = []


class Reference(_Reply):
    kind: str = ""
    name: str = ""
    uid: str = ""


class Object(_Reply):
    """Any object: what all have, what an Event has of its own, and the rest undecoded."""

    metadata: Meta = msgspec.field(default_factory=Meta)
    spec: msgspec.Raw = msgspec.Raw(b"")
    status: msgspec.Raw = msgspec.Raw(b"")
    subsets: msgspec.Raw = msgspec.Raw(b"")
    involved_object: Reference | None = None
    reason: str = ""
    message: str = ""

    @property
    def fingerprint(self) -> str:
        """What stands of that which we set, as a hash: another's change of it takes the field from us."""
        found = hashlib.blake2b(digest_size=12)
        for entry in self.metadata.managed_fields:
            if entry.manager == MANAGER and entry.operation == "Apply" and not entry.subresource:
                found.update(bytes(entry.fields_v1))
        return found.hexdigest()


class Status(_Reply):
    """How the server refuses, and how a command ended."""

    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: dict[str, Any] | None = None


class _ListMeta(_Reply):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(_Reply):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[Object] = []


class _Event(_Reply):
    type: str
    object: msgspec.Raw


class Version(_Reply):
    git_version: str = ""


class Gone(Exception):
    """The server no longer knows what changed since the revision asked for: list again."""


T = TypeVar("T")
_event = msgspec.json.Decoder(_Event).decode
_object = msgspec.json.Decoder(Object).decode
_list = msgspec.json.Decoder(_List).decode
_status = msgspec.json.Decoder(Status).decode


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Client:
    """One cluster, called ``name``, by the context that ``path`` (a kubeconfig) has as its current one.

    ``timeout``: seconds for an answer. Raises Invalid for a kubeconfig that cannot be used.
    """

    def __init__(self, name: str, path: str, timeout: float = 30.0) -> None:
        self.name = name
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        where = f"[kubernetes] clusters.{name}"
        try:
            found = kubeconfig.KubeConfig.from_file(path).get()
            if found is None or found.user is None:
                raise errors.Invalid(f"{path} has no current context", field=where)
            self.url = found.cluster.server.rstrip("/")
            self._auth = client_adapter.user_auth(found.user)
            self._ssl: ssl.SSLContext = client_adapter.verify_cluster(found.cluster, found.user, found.abs_file)
            self.authority = _authority(found)
        except errors.MagnumError:
            raise
        except Exception as error:
            # lightkube, OpenSSL and the file system each have their own
            raise errors.Invalid(f"{path}: {_reason(error)}", field=where) from None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
            # TLS says goodbye after the session is closed (aiohttp, "Graceful shutdown")
            await asyncio.sleep(GOODBYE_SECONDS)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, limit=0, keepalive_timeout=60), read_bufsize=2**18,
                auto_decompress=True,
            )  # fmt: skip
        return self._session

    async def _headers(self, more: dict[str, str]) -> dict[str, str]:
        """Return ``more`` with what says who we are."""
        if self._auth is None:
            return more
        flow = self._auth.async_auth_flow(httpx2.Request("GET", self.url))
        request = await anext(flow)
        await flow.aclose()
        return more | {"Authorization": request.headers["Authorization"]}

    def _away(self, error: BaseException) -> errors.Unavailable:
        return errors.Unavailable(f"cluster {self.name} does not answer at {self.url}: {_reason(error)}")

    async def _refusal(self, answer: aiohttp.ClientResponse) -> errors.MagnumError:
        body = await answer.read()
        try:
            found = _status(body)
        except (msgspec.DecodeError, msgspec.ValidationError):
            found = Status(message=body[:500].decode(errors="replace") or answer.reason or "", code=answer.status)
        return _ours(self.name, found, answer.status)

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, params: dict[str, str] | None = None, body: Any = None,
        headers: dict[str, str] | None = None, timeout: aiohttp.ClientTimeout | None = None,
    ) -> collections.abc.AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        given = {"Accept": "application/json"} | (headers or {})
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        try:
            async with self._open().request(
                method, self.url + path, params=params, data=None if body is None else msgspec.json.encode(body),
                headers=await self._headers(given), timeout=timeout or self._timeout, allow_redirects=False,
            ) as answer:  # fmt: skip
                if answer.status >= 300:
                    raise await self._refusal(answer)
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError, ConnectionError) as error:
            raise self._away(error) from error

    async def request(
        self, method: str, path: str, *, params: dict[str, str] | None = None, body: Any = None,
        headers: dict[str, str] | None = None, into: type[T] = Object,  # type: ignore[assignment]
    ) -> T:  # fmt: skip
        """Return the decoded answer. Raises NotFound, Conflict, Invalid, EngineError, Unavailable."""
        async with self._asked(method, path, params, body, headers) as answer:
            return msgspec.json.decode(await answer.read(), type=into)

    async def apply(self, path: str, body: dict[str, Any]) -> Object:
        """Make what ``path`` names have all that ``body`` says, and nothing more of what we said before."""
        return await self.request(
            "PATCH", path, body=body, headers={"Content-Type": APPLY},
            params={"fieldManager": MANAGER, "force": "true"},
        )  # fmt: skip

    async def annotate(self, path: str, annotations: dict[str, str], uid: str) -> Object:
        """Set annotations of that very object, beside what ``apply`` sets; return it. Raises Conflict: another has the name."""
        return await self.request(
            "PATCH", path, body={"metadata": {"annotations": annotations, "uid": uid}}, headers={"Content-Type": MERGE},
            params={"fieldManager": f"{MANAGER}-node"},
        )  # fmt: skip

    async def delete(self, path: str, *, uid: str | None = None, propagation: str = "Background") -> None:
        """Ask for the end of an object, of that very one if ``uid`` is given; that there is none is well.

        Raises Conflict if another has the name.
        """
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        with contextlib.suppress(errors.NotFound):
            await self.request("DELETE", path, body=body, into=msgspec.Raw)

    async def everything(self, path: str, only: dict[str, str] | None = None) -> tuple[list[Object], str]:
        """Return all objects of a collection that the selectors ``only`` (of labels, of fields) mean, and their revision."""
        while True:
            items: list[Object] = []
            params = {"limit": str(PAGE)} | (only or {})
            try:
                while True:
                    async with self._asked("GET", path, params) as answer:
                        page = _list(await answer.read())
                    items += page.items
                    if not page.metadata.continue_:
                        return items, page.metadata.resource_version
                    params["continue"] = page.metadata.continue_
            except Gone:
                await asyncio.sleep(0)

    async def watch(
        self, path: str, revision: str, only: dict[str, str] | None = None
    ) -> collections.abc.AsyncGenerator[tuple[str, Object], None]:
        """Yield (ADDED, MODIFIED, DELETED or BOOKMARK; object) of what happens after ``revision``.

        Ends when the server ends it. Raises Gone, Unavailable, EngineError.
        """
        params = {
            "watch": "1", "resourceVersion": revision, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS), **(only or {}),
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout.total, sock_read=SILENCE_SECONDS)
        async with self._asked("GET", path, params, timeout=timeout) as answer:
            async for line in _lines(answer):
                event = _event(line)
                if event.type == "ERROR":
                    found = _status(event.object)
                    raise _ours(self.name, found, found.code)
                yield event.type, _object(event.object)

    @contextlib.asynccontextmanager
    async def log(
        self, path: str, params: dict[str, str], follow: bool
    ) -> collections.abc.AsyncIterator[collections.abc.AsyncIterator[bytes]]:
        """Give the bytes of a log as they come. Raises NotFound, Conflict (no such run), EngineError."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout.total) if follow else None
        async with self._asked("GET", path, params, headers={"Accept": "*/*"}, timeout=timeout) as answer:
            yield answer.content.iter_any()

    async def socket(self, path: str, params: list[tuple[str, str]]) -> aiohttp.ClientWebSocketResponse:
        """Return the WebSocket of exec or attach. Raises NotFound, Conflict, EngineError, Unavailable."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(params)}"
        try:
            return await self._open().ws_connect(
                url, protocols=CHANNELS, headers=await self._headers({}), max_msg_size=2**24, heartbeat=30.0,
                timeout=aiohttp.ClientWSTimeout(ws_close=5.0),
            )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            # the words are in a body that aiohttp does not keep; asked again plainly, the server says them
            raise await self._why(path, params, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away(error) from error

    async def _why(
        self, path: str, params: list[tuple[str, str]], error: aiohttp.WSServerHandshakeError
    ) -> errors.MagnumError:
        url = f"{path}?{urllib.parse.urlencode(params)}"
        try:
            async with self._asked("GET", url):
                pass
        except errors.MagnumError as said:
            return said
        return _ours(self.name, Status(message=error.message, code=error.status), error.status)


async def _lines(answer: aiohttp.ClientResponse) -> collections.abc.AsyncIterator[bytes]:
    """Yield the lines of an answer, however long."""
    rest = bytearray()
    async for chunk in answer.content.iter_any():
        *lines, last = chunk.split(b"\n")
        for line in lines:
            rest += line
            if rest:
                yield bytes(rest)
            rest.clear()
        rest += last
        if len(rest) > MAX_LINE:
            raise errors.EngineError(f"an event of more than {MAX_LINE} bytes")


def _ours(name: str, found: Status, code: int) -> errors.MagnumError:
    """Return the error that a refusal of the server is here."""
    words = found.message or found.reason or f"status {code}"
    if code == 404:
        return errors.NotFound(words)
    if code == 409:
        return errors.Conflict(words)
    if code == 410 or found.reason == "Expired":
        return _Expired(words)
    if code == 401:
        return errors.Unavailable(f"cluster {name} does not take our credentials: {words}")
    if code in (429, 503, 504) or (code >= 500 and found.reason in ("InternalError", "Timeout", "ServerTimeout")):
        return errors.Unavailable(f"cluster {name}: {words}")
    return errors.EngineError(words, status=code, reason=found.reason)


class _Expired(errors.Unavailable, Gone):
    """Gone, as whoever does not watch sees it."""


def refused(error: errors.MagnumError) -> int:
    """Return the HTTP status by which the server refused, 0 if it was not that."""
    return int(error.data.get("status", 0)) if isinstance(error, errors.EngineError) else 0


def _authority(found: kubeconfig.SingleConfig) -> str:
    """Return the CA by which the server is known, PEM; empty if it is one of the system's."""
    if found.cluster.certificate_auth_data:
        return base64.b64decode(found.cluster.certificate_auth_data).decode()
    if found.cluster.certificate_auth:
        with open(found.abs_file(found.cluster.certificate_auth)) as file:
            return file.read()
    return ""
