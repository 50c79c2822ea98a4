"""The doors of services that are reached from outside a bay on Neutron: a floating IP, and the pod that it leads to.

A door is a pod that does nothing, kept by a replication controller of one, so that the
cluster makes another when its node is lost. Its port has the bay's group and the
service's own, which lets in whom the service's owner names; rules in its namespace,
by the node's backend, send whoever comes on to a ready pod. Pods see the door, which
their bay's group lets in, so nothing else of theirs opens.

Who calls: the driver of services.
"""

from typing import Any

import msgspec
from oslo_config import cfg

from magnum import errors
from magnum.clients import neutron as api
from magnum.engines.kubernetes import bodies, cluster
from magnum.networks import neutron, wires
from magnum.objects import service


class _Opened(msgspec.Struct, kw_only=True):
    """A door as it was left: ``wish`` as ``neutron.publication`` has it, ``pod`` the uid of that which it leads to."""

    wish: str
    group: str
    pod: str = ""
    address: str | None = None


class Doors:
    """What is remembered is asked again after a start."""

    def __init__(self, conf: cfg.ConfigOpts, wired: wires.Wires) -> None:
        self._conf = conf
        self._wires = wired
        self._opened: dict[str, _Opened] = {}
        self._closed: set[str] = set()

    @property
    def configured(self) -> bool:
        return self._wires.configured

    def forget(self, uuid: str) -> None:
        """Drop what is remembered of a service that is gone."""
        self._closed.discard(uuid)

    def state(self, uuid: str) -> dict[str, Any]:
        """Return what the service's state shows of its door."""
        known = self._opened.get(uuid)
        return {"external_ip": known.address} if known is not None and known.address else {}

    def stands(self, item: service.Service, where: cluster.Cluster) -> bool:
        """Return whether the door of ``item`` is as it is wanted, or there is none where none is."""
        known, pod = self._opened.get(item.uuid), self._pod(item.uuid, where, cluster.namespace(item.bay_uuid or ""))
        if not item.spec.external:
            return known is None and pod is None
        return (
            known is not None and pod is not None and (known.wish, known.pod) == (neutron.publication(item), pod.uid)
        )  # fmt: skip

    def _pod(self, uuid: str, where: cluster.Cluster, space: str | None) -> cluster.Kept | None:
        """Return the pod that is the door of a service, the one that is not on its way out if there are two."""
        found = [
            kept for kept in where.mirrors["pods"].all()
            if kept.uuid == uuid and kept.labels.get(bodies.ROLE) == bodies.DOOR and space in (None, kept.namespace)
        ]  # fmt: skip
        return min(found, key=lambda kept: (kept.going is not None, kept.uid), default=None)

    async def open(self, item: service.Service, where: cluster.Cluster, facts: neutron.Facts) -> None:
        """Have the door of ``item``. Raises neutron.Waits, QuotaExceeded, EngineError, Invalid."""
        self._closed.discard(item.uuid)
        try:
            await self._open(item, where, facts)
        except (errors.Unavailable, errors.NotFound) as error:
            raise neutron.Waits(error.detail) from error

    async def _open(self, item: service.Service, where: cluster.Cluster, facts: neutron.Facts) -> None:
        wish = neutron.publication(item)
        known = self._opened.get(item.uuid)
        if known is None or known.wish != wish:
            group = await self._wires.publish(facts, item)
            known = self._opened[item.uuid] = _Opened(wish=wish, group=group)
        inside = cluster.namespace(item.bay_uuid or "")
        await where.apply(
            "replicationcontrollers", inside, bodies.door(self._conf, item, [facts.group, known.group])
        )  # fmt: skip
        pod = self._pod(item.uuid, where, inside)
        if pod is None or pod.going or cluster.ATTACHED not in pod.annotations:
            words = where.warning(pod.uid) if pod is not None else None
            raise neutron.Waits("its door is being made" + (f" ({words})" if words else ""))
        if known.pod == pod.uid:
            return
        ports = await self._wires.client.list(api.Port, device_id=pod.uid, network_id=facts.net.id)
        if not ports:
            raise neutron.Waits("its door has no port yet")
        known.address = await self._wires.floating(facts, item, ports[0].id)
        known.pod = pod.uid

    async def close(self, uuid: str, where: cluster.Cluster, space: str | None) -> None:
        """Have no door of a service of the namespace ``space`` (None: not known). Raises neutron.Waits: something is still to go."""
        if uuid in self._closed:
            return
        try:
            kept = where.mirrors["replicationcontrollers"].by_uuid(uuid, space)
            if kept is not None and not kept.going:
                await where.client.delete(where.path("replicationcontrollers", kept.namespace, kept.name), uid=kept.uid)
            if kept is not None or self._pod(uuid, where, space) is not None:
                raise neutron.Waits("its door is being closed")
            await self._wires.unpublish(uuid)
        except (errors.Unavailable, errors.Conflict) as error:
            raise neutron.Waits(error.detail) from error
        self._opened.pop(uuid, None)
        self._closed.add(uuid)
