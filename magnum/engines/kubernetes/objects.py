"""What the drivers of pods, services, controllers and containers do alike: apply, look, remove one object of a cluster.

An object is the cluster's with our label on it. What another has made is looked
at and never changed; what another has changed of ours is set again.

Who calls: the drivers beside it, which say what is sent and what an answer means.
"""

import abc
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import kubernetes
from magnum.engines import base
from magnum.engines.kubernetes import cluster
from magnum.networks import neutron
from magnum.objects import base as stored

LOG = structlog.get_logger(__name__)

AGAIN = 10.0
"""Seconds before what the cluster refused is tried again: a quota may have room, a policy may change."""
LOOK = 15.0
"""Seconds after which what is waited for is looked at, should its event be lost."""


class Clusters:
    """The clusters of this machine, by the names that the operator gave them."""

    def __init__(self, found: dict[str, cluster.Cluster]) -> None:
        self.all = found
        self._homes: dict[str, cluster.Cluster] = {}
        """Bay → its cluster, as last seen: what is in a namespace may be asked for after it has gone."""

    def _home(self, bay_uuid: str) -> cluster.Cluster | None:
        where = cluster.namespace(bay_uuid)
        for each in self.all.values():
            if each.mirrors["namespaces"].get("", where) is not None:
                self._homes[bay_uuid] = each
                return each
        return None

    def of(self, bay_uuid: str) -> cluster.Cluster:
        """Return the cluster that has a bay's namespace. Raises Unavailable."""
        found = self._home(bay_uuid)
        if found is not None:
            return found
        for each in self.all.values():
            each.check()
        raise errors.Unavailable(f"no cluster has the namespace {cluster.namespace(bay_uuid)} (yet)")

    def having(self, collection: str, uuid: str, bay_uuid: str | None) -> tuple[cluster.Cluster, cluster.Kept] | None:
        """Return the object that bears ``uuid``, and where; None if there is none.

        ``bay_uuid``: of its bay, None where that is not known: then every cluster must have been read. Raises Unavailable.
        """
        home = self._home(bay_uuid or "") or self._homes.get(bay_uuid or "")
        for each in [home] if home is not None else self.all.values():
            each.check()
            kept = each.mirrors[collection].by_uuid(uuid, cluster.namespace(bay_uuid) if bay_uuid else None)
            if kept is not None:
                return each, kept
        return None


def terminating(error: errors.MagnumError) -> bool:
    """Return whether a refusal is that of a namespace on its way out."""
    return kubernetes.refused(error) == 403 and "being terminated" in error.detail


class Driver(base.Driver):
    """``collection``: where the objects are. ``kind``: Magnum's word. ``failed``: the status of what was refused."""

    collection: str
    kind: str
    failed: str
    replaces = False
    """Whether an object is made anew for a change that the cluster takes of no existing one."""

    def __init__(self, clusters: Clusters, conf: cfg.ConfigOpts) -> None:
        self._clusters = clusters
        self._conf = conf

    @abc.abstractmethod
    def body(self, item: Any) -> dict[str, Any]:
        """Return what is sent. Raises Invalid for what the engine cannot honour."""

    @abc.abstractmethod
    def outcome(self, item: Any, kept: cluster.Kept, where: cluster.Cluster) -> base.Outcome:
        """Return what ``kept`` shows of ``item``; the state's ``applied`` is set by whoever calls."""

    def ended(self, item: Any) -> base.Outcome | None:
        """Return what shows of an object that has done its work and is gone; None if it is to be made again."""
        return None

    def fingerprint(self, item: Any, kept: cluster.Kept, where: cluster.Cluster) -> str:
        """Return what stands of that which was sent for ``item``, as a hash."""
        return kept.fingerprint

    async def ensured(self, item: Any, where: cluster.Cluster) -> None:
        """Have what belongs to an object beside it."""
        return None

    def find(self, item: Any) -> tuple[cluster.Cluster, cluster.Kept | None]:
        """Return the object as the mirror has it. Raises Unavailable."""
        where = self._clusters.of(item.bay_uuid or "")
        where.check()
        return where, where.mirrors[self.collection].by_uuid(item.uuid, cluster.namespace(item.bay_uuid or ""))

    def network(self, item: Any) -> neutron.Facts | None:
        """Return the network of an object's bay, None if that is not on Neutron. Raises Unavailable, EngineError."""
        where = self._clusters.of(item.bay_uuid or "")
        return cluster.network(where.mirrors["namespaces"].get("", cluster.namespace(item.bay_uuid or "")))

    async def apply(self, item: Any, progress: base.Progress) -> base.Outcome:
        if stored.is_foreign(item):
            return await self.observe(item)
        where, kept = self.find(item)
        if kept is None and item.observed_generation == item.generation and (ended := self.ended(item)) is not None:
            return ended
        try:
            body = self.body(item)
        except errors.Invalid as error:
            return base.Outcome(status=self.failed, reason=str(error))
        space = cluster.namespace(item.bay_uuid or "")
        other = where.mirrors[self.collection].get(space, body["metadata"]["name"])
        if other is not None and other.uuid != item.uuid:
            if other.ours(self._conf.deployment) and other.going:
                return self._waiting(item, "the one of that name before it is on its way out")
            words = f"{other.namespace} has a {self.kind} {other.name!r} already, which Magnum did not make"
            return base.Outcome(status=self.failed, reason=words, state=_state(item), retry_after=AGAIN)
        if kept is not None and kept.going:
            return self._waiting(item, "it is on its way out, and made again then")
        try:
            kept = await where.apply(self.collection, space, body)
            await self.ensured(item, where)
        except errors.NotFound as error:
            raise errors.Unavailable(f"its bay's namespace is not there: {error.detail}") from error
        except errors.EngineError as error:
            if terminating(error):
                raise errors.Unavailable(error.detail) from error
            if kubernetes.refused(error) == 422 and kept is not None and self.replaces:
                LOG.info("made anew for a change", kind=self.kind, uuid=item.uuid, reason=error.detail)
                await where.client.delete(where.path(self.collection, space, kept.name), uid=kept.uid)
                return self._waiting(item, "a change that needs a new one: the old one is on its way out")
            return base.Outcome(status=self.failed, reason=error.detail, state=_state(item), retry_after=AGAIN)
        except errors.Conflict as error:
            return base.Outcome(status=self.failed, reason=error.detail, state=_state(item), retry_after=1.0)
        found = self.outcome(item, kept, where)
        found.state["applied"] = self.fingerprint(item, kept, where)
        return found

    def _waiting(self, item: Any, words: str) -> base.Outcome:
        return base.Outcome(status=item.status, reason=words, state=_state(item), pending=True, retry_after=LOOK)

    async def observe(self, item: Any) -> base.Outcome:
        where, kept = self.find(item)
        if kept is None:
            if stored.is_foreign(item):
                return base.Outcome(gone=True)
            ended = self.ended(item)
            if ended is not None:
                return ended
            return base.Outcome(
                status=item.status, reason=f"gone from cluster {where.name}; being made again", state=_state(item),
                retry_after=0.0,
            )  # fmt: skip
        found = self.outcome(item, kept, where)
        applied = getattr(item.state, "applied", None)
        found.state["applied"] = applied
        if not stored.is_foreign(item) and self.fingerprint(item, kept, where) != applied and not kept.going:
            # another has changed what is ours to set
            found.retry_after = 0.0
        return found

    async def remove(self, uuid: str, item: Any | None) -> base.Outcome:
        found = self._clusters.having(self.collection, uuid, item.bay_uuid if item is not None else None)
        if found is None:
            return base.Outcome(gone=True)
        where, kept = found
        if not kept.going:
            await self._delete(where, kept, item)
        elif kept.finalizers:
            words = f"waits for finalizers: {', '.join(kept.finalizers)}"
            return base.Outcome(status="Deleting", reason=words, pending=True, retry_after=LOOK)
        return base.Outcome(status="Deleting", pending=True, retry_after=LOOK)

    async def _delete(self, where: cluster.Cluster, kept: cluster.Kept, item: Any | None) -> None:
        path = where.path(self.collection, kept.namespace, kept.name)
        try:
            await where.client.delete(path, uid=kept.uid, propagation=self.propagation(item))
        except errors.Conflict:
            # it went meanwhile, and another has the name
            LOG.debug("deleted by another", kind=self.kind, uuid=kept.uuid)

    def propagation(self, item: Any | None) -> str:
        return "Background"


def _state(item: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(item.state)
    return found
