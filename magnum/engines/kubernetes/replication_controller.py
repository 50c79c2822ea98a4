"""Replication controllers on a cluster: the cluster's own keep the pods, and are watched.

Who calls: the Kubernetes engine, which has this as its driver of controllers.
"""

from typing import Any

from magnum.engines import base
from magnum.engines.kubernetes import bodies, cluster, objects
from magnum.objects import replication_controller


class ReplicationController(objects.Driver):
    collection, kind, failed = "replicationcontrollers", "rc", "Error"

    def body(self, item: replication_controller.ReplicationController) -> dict[str, Any]:
        replication_controller.check(item.spec, "kubernetes")
        return bodies.controller_body(self._conf, item, self.network(item))

    def outcome(
        self, item: replication_controller.ReplicationController, kept: cluster.Kept, where: cluster.Cluster
    ) -> base.Outcome:
        status = kept.read("status")
        there, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
        failures = [
            c for c in status.get("conditions", []) if c.get("type") == "ReplicaFailure" and c["status"] == "True"
        ]
        reason = "; ".join(str(c.get("message")) for c in failures) or None
        behind = status.get("observedGeneration", 0) < kept.generation or there != item.spec.replicas
        return base.Outcome(
            status="Active", reason=reason, pending=behind and reason is None and not item.spec.foreign,
            state={"replicas": there, "ready_replicas": ready, "managed": not item.spec.foreign},
        )  # fmt: skip

    def propagation(self, item: Any | None) -> str:
        return "Orphan" if item is not None and item.spec.keep_pods else "Background"
