"""The kernel's packet tables of one network namespace: nft, conntrack and routes, as commands.

A service of a Docker bay is rules in the network namespace where its bay's packets
are routed, which is seldom the backend's own: the engine's, or that of a
container. A ``Namespace`` is entered by the id of a process that lives in it
(``nsenter``), for each command alone, so nothing of the backend ever moves there but for a socket's making.
Needs root and Debian's nftables, conntrack, iproute2, iptables and util-linux.

Who calls: ``engines.docker.service`` and ``networks.docker``; what the rules say
is ``networks.services``' business.
"""

import asyncio
import collections.abc
import contextlib
import os
import re
import socket
import struct
from typing import Any, TypeVar

import msgspec
from pyroute2 import netns

from magnum import errors

T = TypeVar("T")

FAMILY = "ip"
STREAM = socket.SOCK_STREAM


class Table(msgspec.Struct, kw_only=True):
    """What a table holds. ``elements``: set or map → {key: (verdict or None, comment)}, as nft writes them."""

    chains: list[str] = []
    sets: list[str] = []
    elements: dict[str, dict[str, tuple[str | None, str]]] = {}


class Flow(msgspec.Struct, kw_only=True, frozen=True):
    """A tracked connection: whom the client meant (``address``, ``port``), who answers (``answering``)."""

    protocol: str
    client: str
    client_port: int
    address: str
    port: int
    answering: str


def engine_process(path: str) -> int:
    """Return the id of the process that listens on the Unix socket ``path``. Raises Unavailable."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(5)
            peer.connect(path)
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError as error:
        raise errors.Unavailable(f"{path} does not answer: {error}") from error
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


Where = int | str
"""A network namespace: the id of a process in it (0: this process' own), or the path of its file."""


def path(where: Where) -> str:
    """Return the file that a network namespace is entered by."""
    return where if isinstance(where, str) else f"/proc/{where or os.getpid()}/ns/net"


def inside(where: Where, what: collections.abc.Callable[[], T]) -> T:
    """Return what ``what`` gives in a network namespace. Raises OSError.

    The calling thread enters and comes back; nothing else runs in it meanwhile.
    """
    if not where:
        return what()
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(path(where), os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(other)
            try:
                return what()
            finally:
                netns.setns(own)
        finally:
            os.close(other)
    finally:
        os.close(own)


class Namespace:
    """A network namespace. Nothing here keeps two changes of one table apart: the caller does."""

    def __init__(self, where: Where) -> None:
        self.where = where

    async def run(self, *command: str, text: str = "", allowed: tuple[int, ...] = (0,)) -> str:
        """Return what ``command`` prints when run in the namespace with ``text`` as its input.

        Raises EngineError with its words if it ends with another code than ``allowed``.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                "nsenter", f"--net={path(self.where)}", "--", *command,
                # without input there is no pipe that may be closed before it is written to
                stdin=asyncio.subprocess.PIPE if text else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise errors.EngineError(f"nsenter cannot be run: {error}") from error
        try:
            out, err = await process.communicate(text.encode() or None)
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode not in allowed:
            words = err.decode(errors="replace").strip() or f"ended with {process.returncode}"
            raise errors.EngineError(f"{command[0]}: {words[:500]}")
        return out.decode(errors="replace")

    def socket(self, family: int, kind: int = STREAM, protocol: int = 0) -> socket.socket:
        """Return a new socket that lives in the namespace. Raises OSError.

        The calling thread enters, opens it and comes back before anything else runs in it.
        """
        return inside(self.where, lambda: socket.socket(family, kind, protocol))

    async def table(self, name: str) -> Table | None:
        """Return what the table ``name`` holds, None if there is none."""
        tables = msgspec.json.decode(await self.run("nft", "-j", "list", "tables", FAMILY))
        if not any(item.get("table", {}).get("name") == name for item in tables["nftables"]):
            return None
        return parse(msgspec.json.decode(await self.run("nft", "-j", "list", "table", FAMILY, name)))

    async def change(self, commands: str) -> None:
        """Make all of ``commands`` (nft's language) at once, or none."""
        if commands:
            await self.run("nft", "-f", "-", text=commands)

    async def flows(self, protocol: str) -> list[Flow]:
        """Return the tracked connections of ``protocol`` (tcp, udp)."""
        lines = await self.run("conntrack", "-L", "-p", protocol, "-o", "extended", allowed=(0, 1))
        return [flow for line in lines.splitlines() if (flow := _flow(protocol, line))]

    async def forget(self, address: str, protocol: str, *, port: int = 0, answering: str = "") -> None:
        """Stop tracking what clients sent to ``address``: the next packet is looked at as if it were the first.

        ``port`` and ``answering``: only what went to that port, and what that address answers. One command however
        many connections there are, since a busy service leaves thousands.
        """
        where = ["--orig-port-dst", str(port)] if port else []
        who = ["--reply-src", answering] if answering else []
        await self.run("conntrack", "-D", "-p", protocol, "--orig-dst", address, *where, *who, allowed=(0, 1))

    async def route(self, address: str, *, via: str) -> None:
        """Send what is for ``address`` to ``via``; replaces another route to it."""
        await self.run("ip", "route", "replace", f"{address}/32", "via", via)

    async def unroute(self, address: str) -> None:
        """Undo ``route``; no error if there is none."""
        await self.run("ip", "route", "del", f"{address}/32", allowed=(0, 2))

    async def gateway(self) -> str | None:
        """Return where the default route goes, None without one."""
        routes = msgspec.json.decode(await self.run("ip", "-j", "-4", "route", "show", "default") or "[]")
        return next((route["gateway"] for route in routes if "gateway" in route), None)

    async def addresses(self) -> dict[str, str]:
        """Return every IPv4 address, with its prefix length, and the interface that has it."""
        found = msgspec.json.decode(await self.run("ip", "-j", "-4", "address", "show"))
        return {f"{a['local']}/{a['prefixlen']}": link["ifname"] for link in found for a in link.get("addr_info", [])}

    async def add_address(self, address: str, interface: str) -> None:
        await self.run("ip", "address", "replace", f"{address}/32", "dev", interface)

    async def remove_address(self, address: str, interface: str) -> None:
        """Undo ``add_address``; no error if it is not there."""
        await self.run("ip", "address", "del", f"{address}/32", "dev", interface, allowed=(0, 2))

    async def hairpin(self, bridge: str) -> None:
        """Let a member of ``bridge`` be sent what it sent itself, where bridged frames pass the NAT hooks.

        There a member that reaches itself by a virtual address would else be dropped.
        """
        ports = msgspec.json.decode(await self.run("ip", "-j", "link", "show", "master", bridge) or "[]")
        batch = "".join(f"link set dev {port['ifname']} type bridge_slave hairpin on\n" for port in ports if port)
        if batch:
            # a port may go between the two commands
            await self.run("ip", "-force", "-batch", "-", text=batch, allowed=(0, 1))

    async def forward(self) -> None:
        """Let the namespace route for others."""
        await self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    async def admissions(self, comment: str) -> list[str]:
        """Return the rules of Docker's DOCKER-USER chain that bear ``comment``, as iptables writes them.

        Empty if there is no such chain.
        """
        lines = (await self.run("iptables", "-w", "-S", "DOCKER-USER", allowed=(0, 1))).replace('"', "").splitlines()
        return [line.removeprefix("-A DOCKER-USER ") for line in lines if comment in line.split()]

    async def admit(self, rule: str) -> None:
        """Put a rule at the head of DOCKER-USER, which Docker leaves to others and asks before its own."""
        await self.run("iptables", "-w", "-I", "DOCKER-USER", *rule.split())

    async def dismiss(self, rule: str) -> None:
        """Remove a rule that ``admissions`` returned."""
        await self.run("iptables", "-w", "-D", "DOCKER-USER", *rule.split(), allowed=(0, 1))


def parse(listing: dict[str, Any]) -> Table:
    """Return nft's JSON listing of one table (libnftables-json(5)) as a ``Table``."""
    found = Table(chains=[], sets=[], elements={})
    for item in listing["nftables"]:
        if "chain" in item:
            found.chains.append(item["chain"]["name"])
        for kind in ("set", "map"):
            if kind in item:
                name = item[kind]["name"]
                found.sets.append(name)
                found.elements[name] = dict(_element(e) for e in item[kind].get("elem", []))
    return found


def _element(element: Any) -> tuple[str, tuple[str | None, str]]:
    key, verdict = element, None
    if isinstance(element, list):
        key, data = element
        verdict = " ".join(f"{word} {where['target']}" for word, where in data.items())
    comment = ""
    if isinstance(key, dict) and "elem" in key:
        comment = key["elem"].get("comment", "")
        key = key["elem"]["val"]
    if isinstance(key, dict) and "concat" in key:
        key = " . ".join(str(part) for part in key["concat"])
    return str(key), (verdict, comment)


_PAIR = re.compile(r"(src|dst|sport|dport)=(\S+)")


def _flow(protocol: str, line: str) -> Flow | None:
    values: dict[str, list[str]] = {}
    for name, value in _PAIR.findall(line):
        values.setdefault(name, []).append(value)
    if any(len(values.get(name, [])) != 2 for name in ("src", "dst", "sport", "dport")):
        return None
    return Flow(
        protocol=protocol, client=values["src"][0], client_port=int(values["sport"][0]),
        address=values["dst"][0], port=int(values["dport"][0]), answering=values["src"][1],
    )  # fmt: skip
