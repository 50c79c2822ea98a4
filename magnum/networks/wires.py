"""What this host's workloads have of Neutron: their ports, plugged, and a record of each on disk.

A record says which ports an object has and in whose namespace their interfaces
are, so that what shows of it costs no call, a restart changes nothing, and the
object can go whatever Neutron remembers. Records are of this host alone and can be
lost: ports are found again by their device and mark, interfaces by Open vSwitch's ids.

``check`` compares from time to time: a port that is gone is told as a notice of
its object, which is then made anew with the same addresses; a port with our mark on
this host that no object has any more is removed; an interface likewise.

Who calls: ``engines.docker`` and ``engines.kubernetes``, of which each has its own on a machine.
"""

import asyncio
import collections.abc
import contextlib
import os
import pathlib
import weakref
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import neutron as api
from magnum.clients import nftables, vif
from magnum.networks import neutron
from magnum.objects import base, service

LOG = structlog.get_logger(__name__)

POLL_SECONDS = 0.15
"""Between two questions whether ports have become ACTIVE, one for all that wait."""
OWNER = "magnum:"
"""``device_owner`` of a port is this and the kind of its object."""


class Wire(msgspec.Struct, kw_only=True):
    """A port and the interface that it is plugged by. ``wished``: the groups that were asked for last."""

    port: str
    interface: str
    network: str
    network_name: str
    mac: str
    addresses: list[str]
    groups: list[str]
    wished: list[str]
    shape: vif.Interface


class Published(msgspec.Struct, kw_only=True):
    """What opens a service to the outside: its security group and floating IP; ``wish`` as ``neutron.publication`` has it."""

    wish: str
    group: str
    address: str


class Record(msgspec.Struct, kw_only=True):
    """The wires of an object. ``published``: of a service's door alone.

    ``space``: the inode of the namespace that they are in, 0: not plugged; ``pid``: a process there, 0: none is known.
    """

    kind: str
    uuid: str
    bay: str
    wires: list[Wire] = []
    pid: int = 0
    space: int = 0
    tag: str = ""
    """What the engine calls this stand of the namespace; another one is plugged anew."""
    stale: bool = False
    """Whether its ports are others than those that were plugged."""
    wish: str = ""
    """What the owner asked for, as ``neutron.wish`` has it."""
    published: Published | None = None

    @property
    def alive(self) -> bool:
        """Whether the namespace is still the one that was plugged."""
        return bool(self.pid) and self.space == space(self.pid)

    def stands(self, tag: str) -> bool:
        """Return whether its ports are plugged into the stand of the namespace that is called ``tag``."""
        return self.tag == tag and not self.stale and self.alive


def shown(record: Record | None) -> dict[str, Any]:
    """Return what an object's state shows of its wires: addresses by network, and security groups."""
    found: dict[str, list[str]] = {}
    groups: list[str] = []
    for wire in record.wires if record is not None else []:
        found.setdefault(wire.network_name, []).extend(wire.addresses)
        groups += [group for group in wire.groups if group not in groups]
    return {"addresses": found, "security_groups": groups}


def space(where: nftables.Where) -> int:
    """Return the inode of a network namespace, 0 if it has gone."""
    try:
        return os.stat(nftables.path(where)).st_ino
    except OSError:
        return 0


def processes() -> dict[int, int]:
    """Return inode → a process, of every network namespace that has one which is seen from here."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (inode := space(int(name))):
            found.setdefault(inode, int(name))
    return found


@contextlib.contextmanager
def _waiting() -> collections.abc.Iterator[None]:
    """Raise Waits where Neutron, Open vSwitch or the namespace is away: the engine itself is not."""
    try:
        yield
    except (errors.Unavailable, errors.NotFound) as error:
        raise neutron.Waits(error.detail) from error


class Wires:
    """``engine``: returns the network namespace of the host's bridges, unless the operator names it.

    ``kinds`` are those of its objects, ``part`` a word for what else tells them from another's on this machine.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, engine: collections.abc.Callable[[], nftables.Where],
        kinds: tuple[str, ...] = ("container", "pod", "service"), part: str = "",
    ) -> None:  # fmt: skip
        self._conf = conf
        self._engine = (lambda: conf.neutron.network_namespace) if conf.neutron.network_namespace else engine
        self._kinds = kinds
        self._owner = f"{conf.deployment}/{part}" if part else conf.deployment
        """Whose interfaces are, in Open vSwitch."""
        self._folder = pathlib.Path(conf.state_dir).absolute() / ("-".join(["neutron", part]) if part else "neutron")
        self.configured = api.configured(conf)
        self._client: api.Client | None = None
        self._switch = vif.Switch(conf)
        self._bays: dict[str, neutron.Facts] = {}
        self._records: dict[str, Record] = {}
        self._gone: set[str] = set()
        self._making: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._suspects: set[str] = set()
        self._looked = False
        """Whether what an earlier life of this backend may have left has been looked for."""
        self._active: dict[str, asyncio.Future[None]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._load()

    @property
    def client(self) -> api.Client:
        """Raises Invalid if the operator does not say how Neutron is asked."""
        if not self.configured:
            raise errors.EngineError("this host does not work with Neutron: its [neutron] says nothing")
        self._client = self._client or api.Client(self._conf)
        return self._client

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    # what is kept on disk

    def _load(self) -> None:
        for path in self._folder.glob("bays/*.json"):
            with contextlib.suppress(msgspec.DecodeError, OSError):
                self._bays[path.stem] = msgspec.json.decode(path.read_bytes(), type=neutron.Facts)
        for path in self._folder.glob("wires/*.json"):
            with contextlib.suppress(msgspec.DecodeError, OSError):
                self._records[path.stem] = msgspec.json.decode(path.read_bytes(), type=Record)

    def _write(self, part: str, uuid: str, value: Any | None) -> None:
        path = self._folder / part / f"{uuid}.json"
        if value is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(value))
        new.replace(path)

    def bay(self, uuid: str | None) -> neutron.Facts | None:
        """Return the network of a bay on Neutron, None of any other bay."""
        return self._bays.get(uuid or "")

    def keep_bay(self, uuid: str, facts: neutron.Facts) -> None:
        if self._bays.get(uuid) != facts:
            self._bays[uuid] = facts
            self._write("bays", uuid, facts)

    def forget_bay(self, uuid: str) -> None:
        self._bays.pop(uuid, None)
        self._write("bays", uuid, None)

    def record(self, uuid: str) -> Record | None:
        return self._records.get(uuid)

    def records(self) -> list[Record]:
        return list(self._records.values())

    async def locate(self) -> None:
        """Find a process in the namespace of each record that knows none, or one that has ended."""
        lost = [record for record in self._records.values() if record.space and not record.alive]
        there = await asyncio.to_thread(processes) if lost else {}
        for record in lost:
            pid = there.get(record.space)
            # the number of one that has gone is soon another's
            if pid and await self.lacks(record, pid) is None and self._records.get(record.uuid) is record:
                record.pid = pid
                self._keep(record)

    async def lacks(self, record: Record, where: nftables.Where) -> str | None:
        """Return what the namespace ``where`` lacks of a record's interfaces, in a few words; None if all are there."""
        try:
            for wire in record.wires:
                words = await asyncio.to_thread(vif.missing, where, wire.shape)
                if words is not None:
                    return words
        except (errors.NotFound, OSError):
            return "its network namespace has gone"
        return None

    def broken(self, uuid: str) -> bool:
        """Return whether a port of the object was found to be gone."""
        return uuid in self._gone

    def _keep(self, record: Record) -> None:
        self._records[record.uuid] = record
        self._write("wires", record.uuid, record)

    # ports

    async def ports(
        self, item: base.Object, kind: str, facts: neutron.Facts, networks: list[Any], groups: list[str] | None
    ) -> Record:
        """Have the ports of ``item``, adopted before they are made, and return its record.

        Nothing is asked of Neutron as long as nothing else is wanted and no port was found to be gone.
        ``networks``, ``groups``: as of ``neutron.ask``. Raises Invalid, QuotaExceeded, Conflict, EngineError, Waits.
        """
        wish = neutron.wish(networks, groups)
        if (standing := self._standing(item.uuid, wish)) is not None:
            return standing
        lock = self._locks.setdefault(item.uuid, asyncio.Lock())
        async with lock:
            # whoever asked at the same time may have done it
            if (standing := self._standing(item.uuid, wish)) is not None:
                return standing
            self._making.add(item.uuid)
            try:
                with _waiting():
                    asked = await neutron.ask(self.client, facts, networks, groups)
                    return await self._ports(item, kind, asked, wish)
            finally:
                self._making.discard(item.uuid)

    def _standing(self, uuid: str, wish: str) -> Record | None:
        """Return the record of an object that has all that ``wish`` asks for, None if Neutron is to be asked."""
        record = self._records.get(uuid)
        stands = record is not None and record.wish == wish and record.wires and uuid not in self._gone
        return record if stands else None

    async def _ports(self, item: base.Object, kind: str, asked: list[neutron.Asked], wish: str) -> Record:
        before = self._records.get(item.uuid)
        known = {wire.interface: wire for wire in before.wires} if before is not None else {}
        there = await self.client.list(api.Port, device_id=item.uuid, project_id=item.project_id)
        there = [p for p in there if neutron.marked(p.description, self._conf.deployment) == (kind, item.uuid)]
        wires: list[Wire] = []
        for one in asked:
            old = known.get(one.interface)
            port = next((p for p in there if old is not None and p.id == old.port), None) or next(
                (p for p in there if p.network_id == one.net.id and not any(w.port == p.id for w in wires)
                 and (one.fixed_ip is None or any(ip.ip_address == one.fixed_ip for ip in p.fixed_ips))), None,
            )  # fmt: skip
            if port is None:
                port = await self._create(item, kind, one, old)
            elif port.host != neutron.agent_host(self._conf):
                port = await self.client.update(api.Port, port.id, binding__host_id=neutron.agent_host(self._conf))
            if old is not None and old.port == port.id and old.wished != one.groups:
                port = await self.client.update(api.Port, port.id, security_groups=one.groups)
            wires.append(_wire(one, port))
        kept = {wire.port for wire in wires}
        for port in there:
            if port.id not in kept:
                await self.client.delete(api.Port, port.id)
        gone = [wire.port for wire in known.values() if wire.port not in kept]
        await self._switch.unplug(self._engine(), gone)
        record = Record(kind=kind, uuid=item.uuid, bay=item.bay_uuid or "", wires=wires, wish=wish)
        if before is not None:
            record.pid, record.space, record.tag = before.pid, before.space, before.tag
            record.stale = before.stale or bool(gone) or len(known) != len(wires)
            record.published = before.published
        self._keep(record)
        self._gone.discard(item.uuid)
        return record

    async def _create(self, item: base.Object, kind: str, one: neutron.Asked, old: Wire | None) -> api.Port:
        fixed: list[dict[str, str]] = []
        if old is not None:
            # a port that was deleted behind our back comes back with what its workload has
            fixed = [{"ip_address": address} for address in old.addresses]
        elif one.fixed_ip is not None or one.subnet is not None:
            fixed = [{key: value for key, value in (("subnet_id", one.subnet), ("ip_address", one.fixed_ip)) if value}]
        host = neutron.agent_host(self._conf)
        port = await self.client.create(
            api.Port, network_id=one.net.id, project_id=item.project_id, name=f"magnum-{item.name or item.uuid}"[:255],
            device_id=item.uuid, device_owner=f"{OWNER}{kind}", binding__host_id=host, security_groups=one.groups,
            description=neutron.mark(self._conf.deployment, kind, item.uuid),
            **({"fixed_ips": fixed} if fixed else {}), **({"mac_address": old.mac} if old is not None else {}),
        )  # fmt: skip
        if port.vif_type != "ovs" or port.vif_details.get("ovs_hybrid_plug"):
            await self.client.delete(api.Port, port.id)
            if port.vif_type in ("binding_failed", "unbound", ""):
                raise errors.Unavailable(
                    f"Neutron could not bind a port to {host}: is its agent there alive?", retry_after=5
                )
            raise errors.EngineError(
                f"Neutron's agent on {host} wants interfaces of kind {port.vif_type}; Magnum plugs into Open vSwitch with"
                " the openvswitch firewall or OVN"
            )  # fmt: skip
        return port

    async def plug(self, record: Record, where: nftables.Where, tag: str, services: str) -> None:
        """Have the ports of ``record`` in the namespace ``where``, ACTIVE. ``tag`` as in ``Record``.

        ``services``: the CIDR of virtual addresses, which have a route so that they are looked at at all. Raises
        EngineError, Waits (the namespace has gone, Open vSwitch is away, the agent does not make it in time).
        """
        if not record.wires or record.stands(tag):
            return
        first = record.wires[0].shape
        if (services, None) not in first.routes:
            first.routes.append((services, None))
        with _waiting():
            await self._plug(record, where, tag)

    async def _plug(self, record: Record, where: nftables.Where, tag: str) -> None:
        waits = [self._becomes_active(wire.port) for wire in record.wires]
        try:
            for wire in record.wires:
                await self._switch.plug(self._engine(), where, wire.shape, self._owner, record.uuid)
            seconds = self._conf.neutron.active_timeout
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.gather(*waits)
            except TimeoutError:
                raise errors.Unavailable(
                    f"Neutron's agent on {neutron.agent_host(self._conf)} did not make the port ACTIVE within {seconds:g} s",
                    retry_after=5,
                ) from None
        finally:
            for wire, wait in zip(record.wires, waits, strict=True):
                wait.cancel()
                self._active.pop(wire.port, None)
        record.pid, record.space, record.tag = where if isinstance(where, int) else 0, space(where), tag
        record.stale = False
        self._keep(record)

    def _becomes_active(self, port: str) -> asyncio.Future[None]:
        future = self._active[port] = asyncio.get_running_loop().create_future()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        return future

    async def _poll(self) -> None:
        while self._active:
            await asyncio.sleep(POLL_SECONDS)
            waiting = list(self._active)[:100]
            if not waiting:
                return
            try:
                found = await self.client.request(
                    "GET",
                    "/ports",
                    params=[("fields", "id"), ("fields", "status"), *(("id", port) for port in waiting)],
                )
            except errors.MagnumError as error:
                LOG.debug("ports are not told", reason=str(error))
                continue
            for port in found["ports"]:
                future = self._active.get(port["id"])
                if port["status"] == "ACTIVE" and future is not None and not future.done():
                    future.set_result(None)

    def _forget(self, uuid: str) -> None:
        self._records.pop(uuid, None)
        self._gone.discard(uuid)
        self._write("wires", uuid, None)

    async def remove(self, uuid: str) -> None:
        """Unplug and delete the ports of an object. Raises Waits: they are still to go."""
        await self.delete(uuid, await self.unplug(uuid))

    async def unplug(self, uuid: str) -> list[str]:
        """Unplug what an object has here; return its ports, which are still to go. Raises Waits (Open vSwitch)."""
        record = self._records.get(uuid)
        if record is None and not self.configured:
            return []
        ports = [wire.port for wire in record.wires] if record is not None else []
        with _waiting():
            if not ports:
                plugged = await self._switch.plugged(self._owner)
                ports = [port for port, owner in plugged.items() if owner == uuid]
            await self._switch.unplug(self._engine(), ports)
        if record is not None:
            record.pid, record.space, record.tag, record.stale = 0, 0, "", False
            self._keep(record)
        return ports

    async def delete(self, uuid: str, ports: list[str]) -> None:
        """Delete ``ports`` of an object and whatever else of its is found, and forget it. Raises Waits (Neutron)."""
        if uuid not in self._records and not self.configured:
            return
        with _waiting():
            listed = await self.client.list(api.Port, device_id=uuid)
            marks = ((p.id, neutron.marked(p.description, self._conf.deployment) or ("", "")) for p in listed)
            for port in {*ports, *(ident for ident, (_, owner) in marks if owner == uuid)}:
                await self.client.delete(api.Port, port)
        self._forget(uuid)

    async def leave(self, uuid: str) -> None:
        """Unplug what an object has here and forget it; its ports are another host's now. Raises Waits."""
        if uuid in self._records:
            await self.unplug(uuid)
            self._forget(uuid)

    # what opens a service

    async def publish(self, facts: neutron.Facts, item: service.Service) -> str:
        """Have the security group that lets in who may come to ``item``; return its uuid. As ``ports`` raises."""
        with _waiting():
            return await neutron.publish(self.client, self._conf.deployment, facts, item)

    async def open(self, facts: neutron.Facts, item: service.Service, record: Record, wish: str, group: str) -> None:
        """Have the floating IP of ``item`` lead to its port. As ``ports`` raises."""
        if record.published is not None and record.published.wish == wish:
            return
        address = await self.floating(facts, item, record.wires[0].port)
        record.published = Published(wish=wish, group=group, address=address)
        self._keep(record)

    async def floating(self, facts: neutron.Facts, item: service.Service, port: str) -> str:
        """Have a floating IP that leads to ``port``; return its address. As ``ports`` raises."""
        with _waiting():
            return await neutron.floating(self.client, self._conf.deployment, facts, item, port)

    async def unpublish(self, uuid: str) -> None:
        """Remove the floating IP and the security group of a service. Raises Waits."""
        with _waiting():
            await neutron.unpublish(self.client, self._conf.deployment, uuid)

    # what changes behind our back

    async def checking(self, look: collections.abc.Callable[[], collections.abc.Awaitable[None]]) -> None:
        """Do ``look`` every ``check_interval``, for ever; what keeps it from working is said when it is news."""
        said = ""
        while True:
            await asyncio.sleep(self._conf.neutron.check_interval)
            try:
                await look()
                said = ""
            except errors.MagnumError as error:
                if error.detail != said:
                    LOG.warning("ports cannot be looked at", reason=error.detail)
                    said = error.detail
            except Exception:
                LOG.exception("looking at ports failed")

    async def check(self, wanted: collections.abc.Callable[[str], bool]) -> list[tuple[str, str]]:
        """Return (kind, uuid) of objects that are to be looked at, and remove what nobody has any more.

        ``wanted``: whether the engine has anything of an object. What looks left over is removed the second time
        that it does, since an object may be in the making. Raises Unavailable.
        """
        if not self.configured or (self._looked and not (self._records or self._bays or self._suspects)):
            return []
        found = await self.client.list(
            api.Port, binding__host_id=neutron.agent_host(self._conf),
            device_owner=[f"{OWNER}{kind}" for kind in self._kinds],
        )  # fmt: skip
        there = {port.id: port for port in found}
        news: list[tuple[str, str]] = []
        for record in self._records.values():
            changed = False
            for wire in record.wires:
                port = there.get(wire.port)
                if port is None and record.uuid not in self._making:
                    if record.uuid not in self._gone:
                        LOG.warning("a port is gone", kind=record.kind, uuid=record.uuid, port=wire.port)
                    self._gone.add(record.uuid)
                    changed = True
                elif port is not None and sorted(port.security_groups) != sorted(wire.groups):
                    wire.groups, changed = port.security_groups, True
            if changed:
                self._write("wires", record.uuid, record)
                news.append((record.kind, record.uuid))
        suspects = set()
        for port in found:
            mark = neutron.marked(port.description, self._conf.deployment)
            if mark is not None and not self._has(mark[1]) and not wanted(mark[1]):
                suspects.add(port.id)
                if port.id in self._suspects:
                    LOG.info("removing a port that nobody has", port=port.id, kind=mark[0], uuid=mark[1])
                    await self._switch.unplug(self._engine(), [port.id])
                    await self.client.delete(api.Port, port.id)
        if self._records or suspects or self._suspects or self._bays or not self._looked:
            for ident, uuid in (await self._switch.plugged(self._owner)).items():
                if ident not in there and not self._has(uuid) and not wanted(uuid):
                    suspects.add(ident)
                    if ident in self._suspects:
                        LOG.info("removing an interface that nobody has", port=ident, uuid=uuid)
                        await self._switch.unplug(self._engine(), [ident])
        self._suspects, self._looked = suspects, True
        return news

    def _has(self, uuid: str) -> bool:
        return uuid in self._records or uuid in self._making


def _wire(asked: neutron.Asked, port: api.Port) -> Wire:
    addresses, routes = [], []
    for ip in port.fixed_ips:
        way = asked.net.ways.get(ip.subnet_id)
        prefix = way.cidr.partition("/")[2] if way is not None else "32"
        addresses.append(f"{ip.ip_address}/{prefix}")
        if way is not None:
            routes += list(way.routes)
            # the first network's is the way out; a second default would only hide it
            if way.gateway and asked.interface == "eth0":
                routes.append(("::/0" if ":" in way.cidr else "0.0.0.0/0", way.gateway))
    shape = vif.Interface(
        port=port.id, mac=port.mac_address, name=asked.interface, mtu=asked.net.mtu,
        bridge=port.vif_details.get("bridge_name") or "br-int", addresses=addresses, routes=[*routes],
    )  # fmt: skip
    return Wire(
        port=port.id, interface=asked.interface, network=asked.net.id, network_name=asked.net.name,
        mac=port.mac_address, addresses=[ip.ip_address for ip in port.fixed_ips],
        groups=port.security_groups, wished=asked.groups, shape=shape,
    )  # fmt: skip
