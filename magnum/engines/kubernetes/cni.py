"""What ``magnum-cni`` asks on a node, and the answers: the Container Network Interface 1.0 over a Unix socket.

A question is a line of JSON, and with it comes the file descriptor of the pod's network
namespace; an answer is JSON to the end of the stream: ``result`` (of an ADD), ``error``
(code, words), or ``delegate``, where another plugin has the word. Only root may ask.

Who calls: ``nodes``, which has the pods.
"""

import abc
import asyncio
import contextlib
import os
import pathlib
import socket
import struct
from typing import Any

import msgspec
import structlog

from magnum import errors
from magnum.networks import neutron, wires

LOG = structlog.get_logger(__name__)

INTERFACE = "eth0"
ASK_SECONDS = 5.0
"""For a plugin to say what it wants."""
MAX_QUESTION = 64 * 1024
UNKNOWN, ENVIRONMENT, DECODING, CONFIGURATION, LATER, REFUSED = 3, 4, 6, 7, 11, 100
"""Error codes of the CNI specification, 1.0; from 100 on they are a plugin's own."""


class Question(msgspec.Struct, kw_only=True):
    """What ``magnum-cni`` asks. ``container``: the runtime's id of the pod's sandbox. ``netns``: its path, as the runtime sees it."""

    command: str
    container: str
    interface: str
    namespace: str
    pod: str
    netns: str = ""
    uid: str = ""
    version: str = "1.0.0"


class Refused(Exception):
    """``code`` is the specification's; ``words`` are what the kubelet shows."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


class Pods(abc.ABC):
    """The pods of a node. All raise Refused, neutron.Waits, Unavailable, EngineError, Invalid, QuotaExceeded."""

    @abc.abstractmethod
    async def add(self, asked: Question, where: str) -> tuple[wires.Record, neutron.Facts] | None:
        """Plug a pod's namespace, the file ``where``; return its wires and its bay's network, None if it is on no such."""

    @abc.abstractmethod
    async def remove(self, asked: Question) -> bool:
        """Take away what a sandbox has, if it has anything; return False if it is another plugin's."""

    @abc.abstractmethod
    async def check(self, asked: Question, where: str) -> bool:
        """Raise Refused unless a sandbox has what it is to have; return False if it is another plugin's."""


def path_of(descriptor: int) -> str:
    """Return a file's name that child processes can open, too."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


class Server:
    """Answers at ``path`` (a Unix socket), of ``pods``."""

    def __init__(self, path: pathlib.Path, pods: Pods) -> None:
        self._path = path
        self._pods = pods
        self._listener: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer. Raises Invalid for a socket that cannot be made."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(128)
        except OSError as error:
            raise errors.Invalid(f"{self._path}: {error.strerror}", field="[kubernetes] cni_socket") from None
        listener.setblocking(False)
        self._listener = listener
        self._listening = asyncio.create_task(self._listen(listener))

    async def close(self) -> None:
        """Take no more questions; what is in hand is given up, and done again when the kubelet asks again."""
        tasks = [task for task in (self._listening, *self._answering) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            peer, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._serve(peer))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _serve(self, peer: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            with peer:
                try:
                    raw, descriptors = await asyncio.to_thread(_receive, peer)
                    asked = msgspec.json.decode(raw, type=Question)
                    answer = await self._answer(asked, descriptors)
                except Refused as error:
                    answer = {"error": {"code": error.code, "message": error.words}}
                except msgspec.DecodeError as error:
                    answer = {"error": {"code": DECODING, "message": str(error)}}
                except OSError as error:
                    LOG.debug("a plugin went away", reason=str(error))
                    return
                except Exception:
                    LOG.exception("a plugin's question failed")
                    answer = {"error": {"code": REFUSED, "message": "magnum-backend failed; its log says how"}}
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(peer.sendall, msgspec.json.encode(answer))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _answer(self, asked: Question, descriptors: list[int]) -> dict[str, Any]:
        """Return {"result": …}, {} or {"delegate": True}. Raises Refused."""
        try:
            if asked.command == "DEL":
                return {} if await self._pods.remove(asked) else {"delegate": True}
            if not descriptors:
                raise Refused(ENVIRONMENT, "CNI_NETNS is not set")
            where = path_of(descriptors[0])
            if asked.command == "CHECK":
                return {} if await self._pods.check(asked, where) else {"delegate": True}
            if asked.interface != INTERFACE:
                raise Refused(ENVIRONMENT, f"CNI_IFNAME must be {INTERFACE}")
            found = await self._pods.add(asked, where)
            return {"delegate": True} if found is None else {"result": _result(*found, asked)}
        except neutron.Waits as error:
            raise Refused(LATER, error.detail) from None
        except errors.Unavailable as error:
            raise Refused(LATER, error.detail) from None
        except errors.MagnumError as error:
            raise Refused(REFUSED, str(error)) from None


def _receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """Return a plugin's question and the descriptors with it. Raises Refused, OSError."""
    peer.settimeout(ASK_SECONDS)
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if user not in (0, os.geteuid()):
        raise Refused(ENVIRONMENT, "only root may ask")
    data, descriptors, _, _ = socket.recv_fds(peer, MAX_QUESTION, 1)
    try:
        while not data.endswith(b"\n"):
            part = peer.recv(MAX_QUESTION)
            if not part or len(data) > MAX_QUESTION:
                raise Refused(DECODING, "the question has no end")
            data += part
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return data, list(descriptors)


def _result(record: wires.Record, facts: neutron.Facts, asked: Question) -> dict[str, Any]:
    """Return the result of an ADD, as the specification has it."""
    interfaces: list[dict[str, Any]] = []
    ips: list[dict[str, Any]] = []
    routes: list[dict[str, str]] = []
    for number, wire in enumerate(record.wires):
        interfaces.append({"name": wire.interface, "mac": wire.mac, "sandbox": asked.netns})
        for address in wire.shape.addresses:
            ip: dict[str, Any] = {"address": address, "interface": number}
            if asked.version.startswith("0."):
                ip["version"] = "6" if ":" in address else "4"
            ips.append(ip)
        routes += [{"dst": dst, "gw": gateway} for dst, gateway in wire.shape.routes if gateway is not None]
    return {
        "cniVersion": asked.version, "interfaces": interfaces, "ips": ips, "routes": routes,
        "dns": {"nameservers": facts.nameservers},
    }  # fmt: skip
