"""This machine as a node of a cluster: the pods of bays on Neutron that run here, plugged into their networks.

``magnum-cni`` asks over a Unix socket when the container runtime makes a pod's network
namespace or takes it away, and hands over the namespace itself. Which bay a pod is of
is its namespace's business, and what network that has is written on it by whoever
keeps the bay, where tenants cannot write: so a node needs neither the conductor nor
the database for a pod to start. A pod is told by the cluster's uid of it, which nobody
can choose.

Nothing leaks: a DEL may be lost, come twice or come late, a backend may die at any
step. Every ``[neutron] check_interval`` ports, interfaces and pods are compared; what
belongs to no pod goes, a port that is gone is made again with the same addresses.

Who calls: the Kubernetes engine, where ``[kubernetes] cni_socket`` is set.
"""

import asyncio
import collections.abc
import contextlib
import os
import pathlib
import socket
import struct
import weakref
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import neutron as api
from magnum.clients import nftables
from magnum.engines.kubernetes import cluster, virtual_ips
from magnum.networks import neutron, wires
from magnum.objects import container, pod

LOG = structlog.get_logger(__name__)

KIND = "kubernetes-pod"
"""What marks of ports and ``device_owner`` say: not the word of the Docker engine's, which may be on the same machine."""
PART = "kubernetes"
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


class _Held:
    """A namespace that was handed over, held until a process in it is known. ``path``: of its file."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = _path(self._descriptor)

    def drop(self) -> None:
        os.close(self._descriptor)


def _path(descriptor: int) -> str:
    """Return a file's name that child processes can open, too."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


class Node:
    """``clusters``: those of this machine, by name; one of them has it as a node."""

    def __init__(self, conf: cfg.ConfigOpts, clusters: dict[str, cluster.Cluster], wired: wires.Wires) -> None:
        self._conf = conf
        self._clusters = clusters
        self._wires = wired
        self._path = pathlib.Path(conf.kubernetes.cni_socket)
        self._listener: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._answering: set[asyncio.Task[None]] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._latest: dict[str, str] = {}
        """Pod → the sandbox that was last asked for: what was begun for it is undone with it."""
        self._suspects: set[str] = set()
        self._held: dict[str, _Held] = {}
        self._busy: set[str] = set()
        self._changed: set[str] = set()
        self._woken = asyncio.Event()
        self._virtual_ips = virtual_ips.VirtualIps(conf, clusters, wired, self.where, self._kept)

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
        loops = (self._listen(), self._follow(), self._wires.checking(self._compare), self._virtual_ips.follow())
        self._tasks = [asyncio.create_task(each) for each in loops]

    async def close(self) -> None:
        """Take no more questions; what is in hand is given up, and done again when the kubelet asks again."""
        for task in (*self._tasks, *self._answering):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._answering, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        for held in self._held.values():
            held.drop()
        self._held.clear()

    # questions

    async def _listen(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            peer, _ = await loop.sock_accept(self._listener)
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
                return await self._del(asked)
            if not descriptors:
                raise Refused(ENVIRONMENT, "CNI_NETNS is not set")
            where = _path(descriptors[0])
            return await (self._check_one(asked, where) if asked.command == "CHECK" else self._add(asked, where))
        except neutron.Waits as error:
            raise Refused(LATER, error.detail) from None
        except errors.Unavailable as error:
            raise Refused(LATER, error.detail) from None
        except errors.MagnumError as error:
            raise Refused(REFUSED, str(error)) from None

    async def _add(self, asked: Question, where: str) -> dict[str, Any]:
        if asked.interface != INTERFACE:
            raise Refused(ENVIRONMENT, f"CNI_IFNAME must be {INTERFACE}")
        found = await self._home(asked.namespace)
        if found is None:
            return {"delegate": True}
        home, facts = found
        kept = await self._pod(home, asked)
        async with self._alone(kept.uid):
            self._latest[kept.uid] = asked.container
            record = await self._ports(kept, facts)
            await self._wires.plug(record, where, asked.container, self._conf.kubernetes.service_cidr)
            self._release(kept.uid)
            self._held[kept.uid] = _Held(where)
            # once it is found by others, so that no change falls in between
            await self._virtual_ips.enter(home, kept, record, where)
        LOG.info("plugged", pod=f"{kept.namespace}/{kept.name}", uid=kept.uid, ports=[w.port for w in record.wires])
        self.look("pods", kept)
        return {"result": _result(record, facts, asked)}

    async def _del(self, asked: Question) -> dict[str, Any]:
        record = next((r for r in self._wires.records() if r.tag == asked.container), None)
        if record is None and self._latest.get(asked.uid) == asked.container:
            record = self._wires.record(asked.uid)
        if record is None:
            # long gone; or another plugin's, which would take any interface of the namespace for its own
            return {} if await self._is_ours(asked.namespace) else {"delegate": True}
        async with self._alone(record.uuid):
            now = self._wires.record(record.uuid)
            if now is not None and now.tag in ("", asked.container):
                await self._drop(record.uuid)
        return {}

    async def _drop(self, uid: str) -> None:
        """Remove what a pod has. Its interfaces go at once; while Neutron is away its ports wait for the next look."""
        self._release(uid)
        self._latest.pop(uid, None)
        await self._wires.unplug(uid)
        try:
            await self._wires.remove(uid)
        except neutron.Waits as error:
            LOG.warning("a port is to be removed later", uid=uid, reason=error.detail)

    async def _check_one(self, asked: Question, where: str) -> dict[str, Any]:
        record = next((r for r in self._wires.records() if r.tag == asked.container), None)
        if record is None:
            if await self._home(asked.namespace) is None:
                return {"delegate": True}
            raise Refused(UNKNOWN, f"sandbox {asked.container} has no ports")
        words = await self._wires.lacks(record, where)
        if words is None and self._wires.broken(record.uuid):
            words = "a port is gone, and made again"
        if words is not None:
            raise Refused(REFUSED, words)
        return {}

    # what belongs to what

    async def _home(self, namespace: str) -> tuple[cluster.Cluster, neutron.Facts] | None:
        """Return the cluster that has a bay's namespace, and its network; None if it is not on Neutron.

        Raises Unavailable, Refused.
        """
        for each in self._clusters.values():
            kept = each.mirrors["namespaces"].get("", namespace)
            if kept is None or cluster.NETWORK not in kept.annotations:
                # made just now, perhaps, or another deployment's
                try:
                    kept = cluster.Kept(await each.client.request("GET", each.path("namespaces", "", namespace)))
                except errors.NotFound:
                    continue
            facts = cluster.network(kept)
            if facts is None:
                return None
            if not kept.ours(self._conf.deployment):
                raise Refused(CONFIGURATION, f"{namespace} is a bay of another deployment of Magnum")
            return each, facts
        raise Refused(UNKNOWN, f"no cluster of this node has a namespace {namespace}")

    async def _is_ours(self, namespace: str) -> bool:
        """Return whether a namespace is a bay's on Neutron; of one that has gone that is not known. Raises Unavailable."""
        try:
            return await self._home(namespace) is not None
        except Refused as error:
            return error.code != UNKNOWN

    async def _pod(self, home: cluster.Cluster, asked: Question) -> cluster.Kept:
        kept = home.mirrors["pods"].get(asked.namespace, asked.pod)
        if kept is None or not asked.uid or kept.uid != asked.uid:
            try:
                kept = cluster.Kept(await home.client.request("GET", home.path("pods", asked.namespace, asked.pod)))
            except errors.NotFound:
                raise Refused(UNKNOWN, f"there is no pod {asked.pod} in {asked.namespace} any more") from None
        if asked.uid and kept.uid != asked.uid:
            raise Refused(UNKNOWN, f"pod {asked.pod} is another by now")
        return kept

    def _known(self, uid: str) -> tuple[cluster.Cluster, cluster.Kept] | None:
        for each in self._clusters.values():
            kept = each.mirrors["pods"].by_uid(uid)
            if kept is not None:
                return each, kept
        return None

    def _kept(self, uid: str) -> cluster.Kept | None:
        known = self._known(uid)
        return known[1] if known is not None else None

    async def _ports(self, kept: cluster.Kept, facts: neutron.Facts) -> wires.Record:
        """Have the ports of a pod as its annotations ask. Raises Waits, Invalid, QuotaExceeded, EngineError."""
        networks = _asked(kept, cluster.NETWORKS, list[container.Network]) or []
        groups = _asked(kept, cluster.SECURITY_GROUPS, list[str])
        container.check_networks(networks, groups)
        item = pod.Pod(
            uuid=kept.uid, name=kept.name, bay_uuid=kept.bay, project_id=facts.project, spec=pod.PodSpec(manifest={})
        )
        return await self._wires.ports(item, KIND, facts, networks, groups)

    @contextlib.asynccontextmanager
    async def _alone(self, uid: str) -> collections.abc.AsyncIterator[None]:
        lock = self._locks.setdefault(uid, asyncio.Lock())
        async with lock:
            self._busy.add(uid)
            try:
                yield
            finally:
                self._busy.discard(uid)

    def _release(self, uid: str) -> None:
        if (held := self._held.pop(uid, None)) is not None:
            held.drop()

    def where(self, record: wires.Record) -> nftables.Where | None:
        """Return the namespace of a pod that is plugged here, None if it has ended or is not found."""
        held = self._held.get(record.uuid)
        if held is not None and record.space:
            return held.path
        return record.pid if record.alive else None

    # what changes

    def look(self, collection: str, kept: cluster.Kept) -> None:
        """See that a pod of this node has what its annotations ask for, and tells what it has; and follow services.

        ``kept``: as it is, or was before it went.
        """
        if collection in virtual_ips.COLLECTIONS:
            self._virtual_ips.changed(kept)
        elif collection == "pods" and self._wires.record(kept.uid) is not None:
            self._changed.add(kept.uid)
            self._woken.set()

    async def _follow(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            changed, self._changed = self._changed, set()
            await asyncio.gather(*(self._mend(uid) for uid in changed))

    async def _mend(self, uid: str) -> None:
        """Give a pod again what it lacks of ports and interfaces, and write on it what it has."""
        try:
            async with self._alone(uid):
                record, known = self._wires.record(uid), self._known(uid)
                if record is None or known is None or not record.space:
                    return
                home, kept = known
                found = await self._home(kept.namespace)
                if found is None:
                    return
                record = await self._ports(kept, found[1])
                if record.stale:
                    where = self.where(record)
                    if where is None:
                        # its sandbox has ended; the kubelet makes another
                        return
                    await self._wires.plug(record, where, record.tag, self._conf.kubernetes.service_cidr)
            await self._tell(home, kept, record)
        except (errors.MagnumError, Refused) as error:
            LOG.warning("a pod waits for its ports", uid=uid, reason=str(error))
        except Exception:
            LOG.exception("a pod's ports failed", uid=uid)

    async def _tell(self, home: cluster.Cluster, kept: cluster.Kept, record: wires.Record) -> None:
        text = _text(record)
        if kept.annotations.get(cluster.ATTACHED) == text:
            return
        with contextlib.suppress(errors.NotFound, errors.Conflict):
            path = home.path("pods", kept.namespace, kept.name)
            home.mirrors["pods"].put(await home.client.annotate(path, {cluster.ATTACHED: text}, kept.uid))

    async def _compare(self) -> None:
        """Find what is gone, and remove what no pod has any more. Raises Unavailable."""
        for each in self._clusters.values():
            # of a cluster that was not read nothing is known
            each.check()
        await self._wires.locate()
        suspects = set()
        for record in self._wires.records():
            uid = record.uuid
            if record.alive:
                self._release(uid)
            elif self._known(uid) is None and uid not in self._busy:
                # the watch may be behind the kubelet
                suspects.add(uid)
                if uid in self._suspects:
                    LOG.info("removing the ports of a pod that has gone", uid=uid)
                    async with self._alone(uid):
                        await self._drop(uid)
        self._suspects = suspects
        news = await self._wires.check(lambda uid: uid in self._busy or self._known(uid) is not None)
        self._changed |= {uid for _, uid in news}
        for record in self._wires.records():
            known = self._known(record.uuid)
            if known is not None and (record.stale or known[1].annotations.get(cluster.ATTACHED) != _text(record)):
                self._changed.add(record.uuid)
        if self._changed:
            self._woken.set()


async def orphans(client: api.Client, deployment: str, bay: str, project: str) -> None:
    """Remove from the own network of a bay that is over the ports of pods whose nodes are lost. Raises as the client."""
    for network in await client.list(api.Network, description=neutron.mark(deployment, "bay", bay), project_id=project):
        for port in await client.list(api.Port, network_id=network.id, device_owner=f"{wires.OWNER}{KIND}"):
            if (neutron.marked(port.description, deployment) or ("", ""))[0] == KIND:
                await client.delete(api.Port, port.id)


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


def _text(record: wires.Record) -> str:
    """Return what is written on a pod of its wires."""
    return msgspec.json.encode(wires.shown(record), order="sorted").decode()


def _asked(kept: cluster.Kept, name: str, into: Any) -> Any:
    """Return what an annotation of a pod asks for, None without one. Raises Invalid naming it."""
    text = kept.annotations.get(name)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=into)
    except msgspec.DecodeError as error:
        raise errors.Invalid(str(error), field=f"metadata.annotations[{name}]") from None


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
