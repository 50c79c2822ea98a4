"""Interfaces of tenants' workloads: a veth pair, and Open vSwitch's word of it, as Neutron's agent expects.

The outer end is called ``tap`` and the first eleven characters of the port's id;
Open vSwitch is told ``iface-id`` (the port) and ``attached-mac``, by which the agent
finds the port, gives the interface its VLAN and its flows, and tells Neutron that it
is active: the conventions of os-vif and the ``openvswitch`` mechanism driver. Links,
addresses and routes are netlink's (pyroute2), by a thread that enters the
namespace and comes back. With the ``netdev`` datapath, packets leave the kernel
with checksums that were left to hardware, so offloads are off there, at both ends.

Needs root, and ``ovs-vsctl`` of the host's Open vSwitch.

Who calls: ``networks.wires``.
"""

import asyncio
import collections.abc
import contextlib
import errno
import os
from typing import Any, TypeVar

import msgspec
from oslo_config import cfg
from pyroute2 import IPRoute, NetlinkError
from pyroute2.ethtool.ioctl import IoctlEthtool

from magnum import errors
from magnum.clients import nftables

T = TypeVar("T")

TIMEOUT = 10
"""Seconds for Open vSwitch's answer."""
OFFLOADS = ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation",
            "tx-generic-segmentation", "tx-udp-segmentation", "tx-checksum-sctp")  # fmt: skip
MARK = "magnum-deployment"
"""Key of ``external_ids`` that says whose an interface is; ``magnum-uuid`` says for which object."""


class Interface(msgspec.Struct, kw_only=True):
    """One end in a workload's namespace. ``addresses`` with their prefix lengths. ``routes``: (destination, gateway or None)."""

    port: str
    mac: str
    name: str
    mtu: int
    bridge: str
    addresses: list[str]
    routes: list[tuple[str, str | None]] = []


def outer(port: str) -> str:
    """Return the name of the end that is in the host's namespace."""
    return f"tap{port[:11]}"


def _inside(where: nftables.Where, what: collections.abc.Callable[[], T]) -> T:
    """Return what ``what`` does in a network namespace. Raises NotFound: its process has ended."""
    try:
        return nftables.inside(where, what)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise errors.NotFound(f"the network namespace of {where} has gone") from error


def _plain(name: str) -> None:
    """Turn off what would be left to hardware."""
    tool = IoctlEthtool(name)
    try:
        features = tool.get_features()
        for offload in OFFLOADS:
            if offload in features:
                features[offload] = False
        tool.set_features(features)
    finally:
        tool.close()


class Switch:
    """The Open vSwitch of this machine. ``bridges``: the network namespace that its bridges are in."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._database = conf.neutron.ovsdb_connection
        self._datapath: dict[str, str] = {}

    async def _vsctl(self, *words: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                "ovs-vsctl", f"--db={self._database}", f"--timeout={TIMEOUT}", *words,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise errors.EngineError(f"ovs-vsctl cannot be run: {error}") from error
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode:
            words_of_it = err.decode(errors="replace").strip() or f"ended with {process.returncode}"
            raise errors.Unavailable(f"Open vSwitch: {words_of_it[-500:]}", retry_after=2)
        return out.decode(errors="replace")

    async def _soft(self, bridge: str) -> bool:
        """Return whether the bridge's packets go through processes."""
        if bridge not in self._datapath:
            self._datapath[bridge] = (await self._vsctl("get", "Bridge", bridge, "datapath_type")).strip().strip('"')
        return self._datapath[bridge] == "netdev"

    async def plug(
        self, bridges: nftables.Where, inside: nftables.Where, wanted: Interface, deployment: str, uuid: str
    ) -> None:
        """Have ``wanted`` in the namespace ``inside``, its other end on its bridge.

        Raises NotFound (a namespace has gone), EngineError, Unavailable (Open vSwitch).
        """
        soft = await self._soft(wanted.bridge)
        # one of before, in a namespace that has gone: the agent is to see another, with flows of its own
        await self._vsctl("--if-exists", "del-port", outer(wanted.port))
        await asyncio.to_thread(_veth, bridges, inside, wanted, soft)
        name = outer(wanted.port)
        ids = {"iface-id": wanted.port, "iface-status": "active", "attached-mac": wanted.mac, MARK: deployment,
               "magnum-uuid": uuid}  # fmt: skip
        await self._vsctl(
            "add-port", wanted.bridge, name, "--", "set", "Interface", name,
            f"mtu_request={wanted.mtu}", *(f'external_ids:{key}="{value}"' for key, value in ids.items()),
        )  # fmt: skip

    async def unplug(self, bridges: nftables.Where, ports: list[str]) -> None:
        """Undo ``plug`` for all of ``ports``; no error if there is nothing."""
        if not ports:
            return
        words: list[str] = []
        for port in ports:
            words += [*(["--"] if words else []), "--if-exists", "del-port", outer(port)]
        await self._vsctl(*words)
        with contextlib.suppress(errors.NotFound):
            await asyncio.to_thread(_delete, bridges, [outer(port) for port in ports])

    async def plugged(self, deployment: str) -> dict[str, str]:
        """Return port → the object's uuid of every interface that ``deployment`` has on this host."""
        out = await self._vsctl(
            "--format=json", "--columns=external_ids", "find", "Interface", f'external_ids:{MARK}="{deployment}"'
        )
        found = {}
        for (column,) in msgspec.json.decode(out)["data"]:
            ids: dict[str, Any] = dict(column[1])
            found[ids["iface-id"]] = ids.get("magnum-uuid", "")
        return found


def missing(where: nftables.Where, wanted: Interface) -> str | None:
    """Return what an interface lacks in the namespace ``where``, in a few words; None if it is as ``plug`` left it.

    Blocks. Raises NotFound: the namespace has gone.
    """

    def look() -> str | None:
        with IPRoute() as ip:
            found = ip.link_lookup(ifname=wanted.name)
            if not found:
                return f"there is no {wanted.name}"
            (link,) = ip.link("get", index=found[0])
            if link.get("address") != wanted.mac:
                return f"{wanted.name} has not the address {wanted.mac}"
            if link["state"] != "up":
                return f"{wanted.name} is down"
            there = {f"{a.get('address')}/{a['prefixlen']}" for a in ip.get_addr(index=found[0])}
            lost = [address for address in wanted.addresses if address not in there]
            return f"{wanted.name} has not the address {lost[0]}" if lost else None

    return _inside(where, look)


def _refused(error: NetlinkError, what: str) -> errors.EngineError:
    return errors.EngineError(f"{what}: {os.strerror(error.code) if error.code > 0 else error}")


def _veth(bridges: nftables.Where, inside: nftables.Where, wanted: Interface, soft: bool) -> None:
    name = outer(wanted.port)

    def there() -> bool:
        with IPRoute() as ip:
            return bool(ip.link_lookup(ifname=wanted.name))

    def outside() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=name):
                # of a namespace that has gone, or half made
                ip.link("del", index=index)
            ip.link(
                "add", ifname=name, kind="veth", mtu=wanted.mtu,
                peer={"ifname": wanted.name, "address": wanted.mac, "mtu": wanted.mtu, "net_ns_fd": peers},
            )  # fmt: skip
            if soft:
                _plain(name)
            (index,) = ip.link_lookup(ifname=name)
            ip.link("set", index=index, state="up")

    def within() -> None:
        with IPRoute() as ip:
            if soft:
                _plain(wanted.name)
            for loop in ip.link_lookup(ifname="lo"):
                ip.link("set", index=loop, state="up")
            (index,) = ip.link_lookup(ifname=wanted.name)
            for address in wanted.addresses:
                host, _, prefix = address.partition("/")
                ip.addr("add", index=index, address=host, prefixlen=int(prefix))
            ip.link("set", index=index, state="up")
            for destination, gateway in wanted.routes:
                way = {"gateway": gateway} if gateway else {"scope": "link"}
                with contextlib.suppress(FileExistsError):
                    _route(ip, destination, index, way)

    def clear() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=wanted.name):
                ip.link("del", index=index)

    try:
        try:
            peers = os.open(nftables.path(inside), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise errors.NotFound(f"the network namespace of {inside} has gone") from error
        try:
            if _inside(inside, there):
                _inside(inside, clear)
            _inside(bridges, outside)
            _inside(inside, within)
        finally:
            os.close(peers)
    except NetlinkError as error:
        raise _refused(error, f"interface {wanted.name} of port {wanted.port}") from error
    except OSError as error:
        raise errors.EngineError(f"interface {wanted.name} of port {wanted.port}: {error.strerror}") from error


def _route(ip: Any, destination: str, index: int, way: dict[str, Any]) -> None:
    try:
        ip.route("add", dst=destination, oif=index, **way)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        raise FileExistsError from error


def _delete(bridges: nftables.Where, names: list[str]) -> None:
    def work() -> None:
        with IPRoute() as ip:
            for name in names:
                for index in ip.link_lookup(ifname=name):
                    with contextlib.suppress(NetlinkError):
                        ip.link("del", index=index)

    _inside(bridges, work)
