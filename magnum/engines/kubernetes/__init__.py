"""Kubernetes: the engine of bays that are slices of clusters which the operator has.

Loaded by the backend through the ``magnum.engines`` entry points. Several backends
may have the same clusters: what is in one is not one machine's.
"""

import asyncio
import collections.abc
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import kubernetes as client_kubernetes
from magnum.engines import base
from magnum.engines.kubernetes import bay, cluster, container, nodes, objects, pod, replication_controller, service
from magnum.networks import wires
from magnum.objects import base as stored
from magnum.objects import bay_model, manifest
from magnum.objects import pod as pods
from magnum.objects import replication_controller as controllers
from magnum.objects import service as services

LOG = structlog.get_logger(__name__)

VERSION_SECONDS = 3.0


class Kubernetes(base.Engine):
    """The clusters of ``[kubernetes]``. Raises Invalid for a kubeconfig that cannot be used."""

    name = "kubernetes"
    shared = True

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        options = conf.kubernetes
        if not options.clusters:
            raise errors.Invalid("names no cluster", field="[kubernetes] clusters")
        self._notices: asyncio.Queue[base.Notice] = asyncio.Queue()
        self.clusters = {
            name: cluster.Cluster(
                client_kubernetes.Client(name, path, options.timeout), conf.deployment, self._notices.put_nowait
            )
            for name, path in options.clusters.items()
        }
        self._begun: set[str] = set()
        found = objects.Clusters(self.clusters)
        # the backend of a node is in its network namespace
        self._wires = wires.Wires(conf, lambda: 0, (nodes.KIND,), nodes.PART)
        self._node = nodes.Node(conf, self.clusters, self._wires) if options.cni_socket else None
        if self._node is not None and not self._wires.configured:
            raise errors.Invalid("needs [neutron] to say how Neutron is asked", field="[kubernetes] cni_socket")
        self.drivers: dict[str, base.Driver] = {
            "bay": bay.Bay(found, conf, self._wires),
            "container": container.Container(found, conf),
            "pod": pod.Pod(found, conf),
            "service": service.Service(found, conf, self._wires),
            "rc": replication_controller.ReplicationController(found, conf),
        }

    async def start(self) -> None:
        for each in self.clusters.values():
            each.seen = self._node.look if self._node is not None else None
            each.start()
        if self._node is not None:
            await self._node.start()

    async def close(self) -> None:
        if self._node is not None:
            await self._node.close()
        await self._wires.close()
        await asyncio.gather(*(each.close() for each in self.clusters.values()))

    async def facts(self) -> dict[str, Any]:
        answers = await asyncio.gather(
            *(self._version(each) for each in self.clusters.values()), return_exceptions=True
        )
        found: dict[str, dict[str, Any]] = {}
        problems = []
        ready = {each.name: each.nodes() for each in self.clusters.values()}
        for each, answer in zip(self.clusters.values(), answers, strict=True):
            if isinstance(answer, errors.MagnumError):
                problems.append(answer.detail)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                each.version = answer
                found[each.name] = {"version": answer, "nodes": len(ready[each.name])}
        if not found:
            raise errors.Unavailable("; ".join(problems))
        nodes = [node.read("status").get("allocatable", {}) for nodes_there in ready.values() for node in nodes_there]
        return {
            "engines": {self.name: next(iter(found.values()))["version"]}, "clusters": found,
            "cpus": sum(_number(node.get("cpu", 0)) for node in nodes),
            "memory": int(sum(_number(node.get("memory", 0)) for node in nodes)),
            "containers": sum(len(each.mirrors["pods"].all()) for each in self.clusters.values()),
            "networks": [bay_model.NEUTRON] if self._wires.configured else [],
            "problem": "; ".join(problems) or None,
        }  # fmt: skip

    async def _version(self, where: cluster.Cluster) -> str:
        try:
            async with asyncio.timeout(VERSION_SECONDS):
                if where.name not in self._begun:
                    # what has not been read yet is no reason to be thought away at the start
                    self._begun.add(where.name)
                    await where.read()
                where.check()
                found = await where.client.request("GET", "/version", into=client_kubernetes.Version)
                # an API server that cannot reach its store still tells its version
                await where.client.request("GET", "/api/v1/namespaces/default")
        except TimeoutError:
            where.check()
            raise errors.Unavailable(f"cluster {where.name} did not answer within {VERSION_SECONDS:g} s") from None
        return found.git_version.removeprefix("v")

    def _known(self) -> list[cluster.Cluster]:
        """Return the clusters that have been read: one that is away keeps nothing of the others'. Raises Unavailable."""
        found = [each for each in self.clusters.values() if each.known]
        if not found:
            next(iter(self.clusters.values())).check()
        return found

    async def seen(self) -> list[base.Seen]:
        found: dict[tuple[str, str], base.Seen] = {}
        for each in self._known():
            for name, mirror in each.mirrors.items():
                # the cluster gives a service's endpoints the service's labels
                for kept in mirror.all() if name != "endpoints" else []:
                    if kept.ours(self._conf.deployment):
                        kind, uuid = kept.labels.get(base.KIND, ""), kept.uuid
                        found.setdefault(
                            (kind, uuid), base.Seen(kind=kind, uuid=uuid, name=f"{kept.namespace}/{kept.name}")
                        )
        return list(found.values())

    async def watch(self) -> collections.abc.AsyncIterator[base.Notice]:
        """Yield changes. The mirrors miss nothing, so there is one gap alone: what was before the first."""
        yield base.Notice()
        while True:
            yield await self._notices.get()

    def _foreign(self, kept: cluster.Kept) -> bool:
        return not kept.ours(self._conf.deployment) and not kept.going and stored.is_uuid(kept.bay)

    def others(self) -> list[tuple[str, str]]:
        found = []
        for each in self._known():
            for collection, kind in cluster.KINDS.items():
                found += [(kind, kept.uuid) for kept in each.mirrors[collection].all() if self._foreign(kept)]
        return found

    def other(self, kind: str, uuid: str) -> Any | None:
        for each in self.clusters.values():
            for collection, name in cluster.KINDS.items():
                kept = each.mirrors[collection].by_uuid(uuid) if name == kind else None
                if kept is not None and self._foreign(kept):
                    return self._other(each, kind, kept)
        return None

    def _other(self, where: cluster.Cluster, kind: str, kept: cluster.Kept) -> Any:
        """Return what another made in a bay, as an object of ours that is to be shown and never changed."""
        spec = kept.read("spec")
        data = {"apiVersion": "v1", "metadata": {"name": kept.name, "labels": kept.labels}, "spec": spec}
        common: dict[str, Any] = {"uuid": kept.uid, "name": kept.name, "bay_uuid": kept.bay}
        item: Any
        if kind == "pod":
            images = list(dict.fromkeys(c.get("image", "") for c in spec.get("containers", [])))
            controllers_here = where.in_bay("replicationcontrollers", kept.bay) if kept.owner else []
            owner = next((each for each in controllers_here if each.uid == kept.owner), None)
            made = pods.PodSpec(
                manifest=data | {"kind": "Pod"}, labels=kept.labels, images=images, foreign=True,
                controller=owner.uuid if owner is not None and owner.ours(self._conf.deployment) else None,
            )  # fmt: skip
            item = pods.Pod(**common, spec=made)
        elif kind == "service":
            ports = [
                services.ServicePort(port=p["port"], target_port=p.get("targetPort", p["port"]), name=p.get("name"),
                                     protocol=p.get("protocol", "TCP"), node_port=p.get("nodePort"))
                for p in spec.get("ports", [])
            ]  # fmt: skip
            item = services.Service(**common, spec=services.ServiceSpec(
                manifest=data | {"kind": "Service"}, labels=kept.labels, selector=spec.get("selector", {}), ports=ports,
                type=spec.get("type", "ClusterIP"), headless=spec.get("clusterIP") == "None", foreign=True,
            ))  # fmt: skip
        else:
            template = spec.get("template", {}).get("spec", {}).get("containers", [])
            item = controllers.ReplicationController(**common, spec=controllers.ReplicationControllerSpec(
                manifest=data | {"kind": "ReplicationController"}, labels=kept.labels, selector=spec.get("selector", {}),
                replicas=spec.get("replicas", 1), images=list(dict.fromkeys(c.get("image", "") for c in template)),
                foreign=True,
            ))  # fmt: skip
        driver: Any = self.drivers[kind]
        shown = driver.outcome(item, kept, where)
        item.status, item.status_reason = shown.status, shown.reason
        item.state = stored.convert(shown.state, type(item.state))
        return item


def _number(text: Any) -> float:
    return float(manifest.quantity(text))
