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
import weakref
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import neutron as api
from magnum.clients import nftables
from magnum.engines.kubernetes import cluster, cni, virtual_ips
from magnum.networks import neutron, wires
from magnum.objects import container, pod

LOG = structlog.get_logger(__name__)

KIND = "kubernetes-pod"
"""What marks of ports and ``device_owner`` say: not the word of the Docker engine's, which may be on the same machine."""
PART = "kubernetes"


class _Held:
    """A namespace that was handed over, held until a process in it is known. ``path``: of its file."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = cni.path_of(self._descriptor)

    def drop(self) -> None:
        os.close(self._descriptor)


class Node(cni.Pods):
    """``clusters``: those of this machine, by name; one of them has it as a node."""

    def __init__(self, conf: cfg.ConfigOpts, clusters: dict[str, cluster.Cluster], wired: wires.Wires) -> None:
        self._conf = conf
        self._clusters = clusters
        self._wires = wired
        self._server = cni.Server(pathlib.Path(conf.kubernetes.cni_socket), self)
        self._tasks: list[asyncio.Task[None]] = []
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
        """Begin to answer, and to look. Raises Invalid for a socket that cannot be made."""
        await self._server.start()
        loops = (self._follow(), self._wires.checking(self._compare), self._virtual_ips.follow())
        self._tasks = [asyncio.create_task(each) for each in loops]

    async def close(self) -> None:
        await self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for held in self._held.values():
            held.drop()
        self._held.clear()

    # what the container runtime asks for

    async def add(self, asked: cni.Question, where: str) -> tuple[wires.Record, neutron.Facts] | None:
        found = await self._home(asked.namespace)
        if found is None:
            return None
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
        return record, facts

    async def remove(self, asked: cni.Question) -> bool:
        record = next((r for r in self._wires.records() if r.tag == asked.container), None)
        if record is None and self._latest.get(asked.uid) == asked.container:
            record = self._wires.record(asked.uid)
            if record is None:
                # nothing was made for it
                del self._latest[asked.uid]
        if record is None:
            # long gone; or another plugin's, which would take any interface of the namespace for its own
            return await self._is_ours(asked.namespace)
        async with self._alone(record.uuid):
            now = self._wires.record(record.uuid)
            if now is not None and now.tag in ("", asked.container):
                await self._drop(record.uuid)
        return True

    async def _drop(self, uid: str) -> None:
        """Remove what a pod has. Its interfaces go at once; while Neutron is away its ports wait for the next look."""
        self._release(uid)
        self._latest.pop(uid, None)
        ports = await self._wires.unplug(uid)
        try:
            await self._wires.delete(uid, ports)
        except neutron.Waits as error:
            LOG.warning("a port is to be removed later", uid=uid, reason=error.detail)

    async def check(self, asked: cni.Question, where: str) -> bool:
        record = next((r for r in self._wires.records() if r.tag == asked.container), None)
        if record is None:
            if await self._home(asked.namespace) is None:
                return False
            raise cni.Refused(cni.UNKNOWN, f"sandbox {asked.container} has no ports")
        words = await self._wires.lacks(record, where)
        if words is None and self._wires.broken(record.uuid):
            words = "a port is gone, and made again"
        if words is not None:
            raise cni.Refused(cni.REFUSED, words)
        return True

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
                raise cni.Refused(cni.CONFIGURATION, f"{namespace} is a bay of another deployment of Magnum")
            return each, facts
        raise cni.Refused(cni.UNKNOWN, f"no cluster of this node has a namespace {namespace}")

    async def _is_ours(self, namespace: str) -> bool:
        """Return whether a namespace is a bay's on Neutron; of one that has gone that is not known. Raises Unavailable."""
        try:
            return await self._home(namespace) is not None
        except cni.Refused as error:
            return error.code != cni.UNKNOWN

    async def _pod(self, home: cluster.Cluster, asked: cni.Question) -> cluster.Kept:
        kept = home.mirrors["pods"].get(asked.namespace, asked.pod)
        if kept is None or not asked.uid or kept.uid != asked.uid:
            try:
                kept = cluster.Kept(await home.client.request("GET", home.path("pods", asked.namespace, asked.pod)))
            except errors.NotFound:
                raise cni.Refused(cni.UNKNOWN, f"there is no pod {asked.pod} in {asked.namespace} any more") from None
        if asked.uid and kept.uid != asked.uid:
            raise cni.Refused(cni.UNKNOWN, f"pod {asked.pod} is another by now")
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
        except (errors.MagnumError, cni.Refused) as error:
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
