"""One cluster as this machine sees it: mirrors of what is in its bays, kept by watches.

A mirror lists a collection once and then follows it; a watch that ends is resumed
where it stopped, and only when the server no longer knows that point is the
collection listed again, and what went meanwhile found by comparison. Kept is what
is in namespaces of bays alone, in as few bytes as serve.

Who calls: the Kubernetes engine and its drivers, which read here and write by ``client``.
"""

import asyncio
import collections.abc
import contextlib
import random
from typing import Any

import msgspec
import structlog

from magnum import errors
from magnum.clients import kubernetes
from magnum.engines import base
from magnum.networks import neutron

LOG = structlog.get_logger(__name__)

PREFIX = "magnum-"
"""Of the namespaces of bays; the bay's uuid follows."""
FIRST_WAIT, LAST_WAIT = 0.1, 5.0
"""Seconds between tries to reach a cluster that is away."""

CORE, RBAC, NETWORKING = "/api/v1", "/apis/rbac.authorization.k8s.io/v1", "/apis/networking.k8s.io/v1"
GROUPS = {
    "namespaces": CORE, "nodes": CORE, "pods": CORE, "services": CORE, "replicationcontrollers": CORE, "endpoints": CORE,
    "events": CORE,
    "resourcequotas": CORE, "limitranges": CORE, "serviceaccounts": CORE, "roles": RBAC, "rolebindings": RBAC,
    "networkpolicies": NETWORKING,
}  # fmt: skip
"""Collections that are mirrored, and the path of their group."""
OURS = ("namespaces", "resourcequotas", "limitranges", "serviceaccounts", "roles", "rolebindings", "networkpolicies")
"""Those of which only what bears our label is read."""
ONLY = {"events": {"fieldSelector": "type=Warning"}}
"""What of the others is read, where it is not all."""
KINDS = {"pods": "pod", "services": "service", "replicationcontrollers": "rc"}
"""Collection → the kind of Magnum's object that users may make there themselves."""


NETWORK = base.LABEL + "network"
"""Annotation of a bay's namespace: its network on Neutron (``networks.neutron.Facts``)."""
NETWORKS, SECURITY_GROUPS = base.LABEL + "networks", base.LABEL + "security-groups"
"""Annotations of a pod: as the fields of those names have it in Magnum's API, JSON."""
ATTACHED = base.LABEL + "attached"
"""Annotation of a pod, written by its node: the addresses by network and the security groups that it has."""


def namespace(bay_uuid: str) -> str:
    """Return the name of a bay's namespace."""
    return f"{PREFIX}{bay_uuid}"


class Kept:
    """One object of a mirror. ``spec``, ``status`` and ``subsets`` are JSON as the server sent it; ``annotations``: Magnum's."""

    __slots__ = ("annotations", "bay", "finalizers", "fingerprint", "generation", "going", "involved", "labels", "name", "namespace",
                 "owner", "revision", "spec", "status", "subsets", "uid", "words")  # fmt: skip

    def __init__(self, found: kubernetes.Object) -> None:
        meta = found.metadata
        self.name, self.namespace, self.uid = meta.name, meta.namespace, meta.uid
        self.revision, self.generation = meta.resource_version, meta.generation
        self.going = meta.deletion_timestamp
        self.labels, self.finalizers = meta.labels, tuple(meta.finalizers)
        self.annotations = {key: value for key, value in meta.annotations.items() if key.startswith(base.LABEL)}
        self.owner = next((o.uid for o in meta.owner_references if o.controller), "")
        self.fingerprint = found.fingerprint
        self.spec, self.status, self.subsets = bytes(found.spec), bytes(found.status), bytes(found.subsets)
        self.involved = found.involved_object
        self.words = ": ".join(word for word in (found.reason, found.message) if word) if found.involved_object else ""
        self.bay = (meta.namespace or meta.name).removeprefix(PREFIX)

    def ours(self, deployment: str) -> bool:
        return self.labels.get(base.DEPLOYMENT) == deployment and base.UUID in self.labels

    @property
    def uuid(self) -> str:
        """Magnum's name of it: the label, or the cluster's own uid of what others made."""
        return self.labels.get(base.UUID) or self.uid

    def read(self, part: str, into: Any = dict) -> Any:
        """Return ``spec``, ``status`` or ``subsets``, decoded; empty if it has none."""
        raw = getattr(self, part)
        return msgspec.json.decode(raw, type=into) if raw else into()


class Mirror:
    """One collection. ``changed`` is called with (object as it was or None, as it is or None)."""

    def __init__(
        self, client: kubernetes.Client, name: str, only: dict[str, str],
        changed: collections.abc.Callable[[str, Kept | None, Kept | None], None],
    ) -> None:  # fmt: skip
        self.name = name
        self._client = client
        self._path = f"{GROUPS[name]}/{name}"
        self._only = only
        self._changed = changed
        self._all: dict[tuple[str, str], Kept] = {}
        # anybody may write a label with another's uuid, in a namespace of his own
        self._uuids: dict[str, dict[str, Kept]] = {}
        self._uids: dict[str, Kept] = {}
        self.synced = asyncio.Event()
        self.problem: str | None = f"cluster {client.name} has not been read yet"

    def get(self, where: str, name: str) -> Kept | None:
        return self._all.get((where, name))

    def by_uuid(self, uuid: str, where: str | None = None) -> Kept | None:
        """Return the object that bears ``uuid`` in the namespace ``where`` (None: in any, for what may be anywhere)."""
        found = self._uuids.get(uuid, {})
        return next(iter(found.values()), None) if where is None else found.get(where)

    def by_uid(self, uid: str) -> Kept | None:
        """Return an object by the cluster's own name of it, which nobody can give himself."""
        return self._uids.get(uid)

    def all(self) -> list[Kept]:
        return list(self._all.values())

    def put(self, found: kubernetes.Object) -> Kept | None:
        """Take an object as the server answered it, unless what is here is as new; return what is kept of it."""
        meta = found.metadata
        known = self._all.get((meta.namespace, meta.name))
        if known is not None and known.uid == meta.uid and int(known.revision) >= int(meta.resource_version):
            return known
        if self.name != "nodes" and not (meta.namespace or meta.name).startswith(PREFIX):
            return None
        kept = Kept(found)
        if known is not None:
            self._forget(known)
        self._all[(kept.namespace, kept.name)] = kept
        self._uuids.setdefault(kept.uuid, {})[kept.namespace] = self._uids[kept.uid] = kept
        self._changed(self.name, known, kept)
        return kept

    def _drop(self, where: str, name: str, uid: str) -> None:
        known = self._all.get((where, name))
        if known is None or known.uid != uid:
            return
        del self._all[(where, name)]
        self._forget(known)
        self._changed(self.name, known, None)

    def _forget(self, known: Kept) -> None:
        self._uids.pop(known.uid, None)
        spaces = self._uuids.get(known.uuid, {})
        if spaces.get(known.namespace) is known:
            del spaces[known.namespace]
            if not spaces:
                del self._uuids[known.uuid]

    async def follow(self) -> None:
        """Keep the mirror true, for ever."""
        revision, wait = "", FIRST_WAIT
        while True:
            try:
                if not revision:
                    revision = await self._list()
                self.problem = None
                self.synced.set()
                async for what, found in self._client.watch(self._path, revision, self._only):
                    revision, wait = found.metadata.resource_version or revision, FIRST_WAIT
                    if what == "DELETED":
                        self._drop(found.metadata.namespace, found.metadata.name, found.metadata.uid)
                    elif what != "BOOKMARK":
                        self.put(found)
                continue
            except kubernetes.Gone:
                LOG.info(
                    "the cluster no longer knows what changed: reading all", cluster=self._client.name, of=self.name
                )
                revision = ""
            except errors.MagnumError as error:
                if self.problem != error.detail:
                    self.problem = error.detail
                    LOG.warning("a watch waits", cluster=self._client.name, of=self.name, reason=error.detail)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311
            wait = min(wait * 2, LAST_WAIT)

    async def _list(self) -> str:
        items, revision = await self._client.everything(self._path, self._only)
        there = {(found.metadata.namespace, found.metadata.name): found.metadata.uid for found in items}
        for found in items:
            self.put(found)
        for known in self.all():
            if there.get((known.namespace, known.name)) != known.uid and int(known.revision) <= int(revision):
                self._drop(known.namespace, known.name, known.uid)
        return revision


class Cluster:
    """``tell`` is given a notice for every change of something in a bay."""

    def __init__(
        self, client: kubernetes.Client, deployment: str, tell: collections.abc.Callable[[base.Notice], None]
    ) -> None:
        self.client = client
        self.name = client.name
        self.version = ""
        self._tell = tell
        self.seen: collections.abc.Callable[[str, Kept], None] | None = None
        """Is given (collection, object) of each change, on a machine that is a node."""
        ours = {"labelSelector": f"{base.DEPLOYMENT}={deployment}"}
        self._warnings: dict[str, Kept] = {}
        """Pod's uid → the latest warning of it."""
        self.mirrors = {
            name: Mirror(client, name, ours if name in OURS else ONLY.get(name, {}), self._changed) for name in GROUPS
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(mirror.follow()) for mirror in self.mirrors.values()]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    async def read(self) -> None:
        """Return once every collection has been read."""
        for mirror in self.mirrors.values():
            await mirror.synced.wait()

    @property
    def known(self) -> bool:
        """Whether every collection has been read once."""
        return all(mirror.synced.is_set() for mirror in self.mirrors.values())

    def check(self) -> None:
        """Raise Unavailable unless every collection has been read once."""
        for mirror in self.mirrors.values():
            if not mirror.synced.is_set():
                raise errors.Unavailable(mirror.problem or "")

    def path(self, collection: str, where: str = "", name: str = "", verb: str = "") -> str:
        """Return the API's path of a collection, of one object, or of a subresource of it."""
        parts = [GROUPS[collection], *(["namespaces", where] if where else []), collection, name, verb]
        return "/".join(part for part in parts if part)

    async def apply(self, collection: str, where: str, body: dict[str, Any]) -> Kept:
        """Have an object as ``body`` has it, and return it as it then is."""
        found = await self.client.apply(self.path(collection, where, body["metadata"]["name"]), body)
        return self.mirrors[collection].put(found) or Kept(found)

    def in_bay(self, collection: str, bay_uuid: str) -> list[Kept]:
        return [kept for kept in self.mirrors[collection].all() if kept.bay == bay_uuid]

    def nodes(self) -> list[Kept]:
        """Return the nodes that are ready."""
        return [kept for kept in self.mirrors["nodes"].all() if _ready(kept)]

    def warning(self, uid: str) -> str | None:
        """Return the latest warning of a pod, by its uid in the cluster: what its status does not say."""
        found = self._warnings.get(uid)
        return found.words if found is not None else None

    def _warned(self, event: Kept, over: bool) -> None:
        meant = event.involved
        if meant is None or meant.kind != "Pod":
            return
        known = self._warnings.get(meant.uid)
        if over:
            if known is not None and known.uid == event.uid:
                del self._warnings[meant.uid]
            return
        if known is None or int(known.revision) < int(event.revision):
            self._warnings[meant.uid] = event
            pod = self.mirrors["pods"].get(event.namespace, meant.name)
            if pod is not None and pod.uid == meant.uid:
                self._tell(base.Notice(kind=pod.labels.get(base.KIND) or "pod", uuid=pod.uuid))

    def _changed(self, collection: str, was: Kept | None, kept: Kept | None) -> None:
        found = kept or was
        assert found is not None
        if self.seen is not None:
            self.seen(collection, found)
        if collection == "nodes":
            # their heartbeats change nothing that is shown
            if (was is None or kept is None) or _ready(was) != _ready(kept):
                for each in self.mirrors["namespaces"].all():
                    self._tell(base.Notice(kind="bay", uuid=each.bay))
        elif collection == "events":
            self._warned(found, kept is None)
        elif collection == "endpoints":
            service = self.mirrors["services"].get(found.namespace, found.name)
            if service is not None:
                self._tell(base.Notice(kind="service", uuid=service.uuid))
        elif collection in KINDS:
            self._tell(base.Notice(kind=found.labels.get(base.KIND) or KINDS[collection], uuid=found.uuid))
        elif found.labels.get(base.KIND) == "service":
            self._tell(base.Notice(kind="service", uuid=found.uuid))
        else:
            self._tell(base.Notice(kind="bay", uuid=found.bay))


def network(kept: Kept | None) -> neutron.Facts | None:
    """Return the network on Neutron that a bay's namespace tells of, None of one without. Raises EngineError."""
    text = kept.annotations.get(NETWORK) if kept is not None else None
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=neutron.Facts)
    except msgspec.DecodeError as error:
        raise errors.EngineError(f"annotation {NETWORK} cannot be read: {error}") from None


def attached(kept: Kept) -> dict[str, Any]:
    """Return the ``addresses`` by network and the ``security_groups`` that a pod's node wrote on it; empty without."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.structs.asdict(msgspec.json.decode(kept.annotations.get(ATTACHED, ""), type=_Attached))
    return {}


class _Attached(msgspec.Struct):
    addresses: dict[str, list[str]]
    security_groups: list[str]


def _ready(node: Kept) -> bool:
    conditions = node.read("status").get("conditions", [])
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
