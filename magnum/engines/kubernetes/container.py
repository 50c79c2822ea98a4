"""Containers on a cluster: a pod of one container each.

Kubernetes runs a container or does not: it cannot pause one, nor stop one and start
it again with its files. Those verbs are refused where they are asked.

Who calls: the Kubernetes engine, which has this as its driver of containers.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.engines import base
from magnum.engines.kubernetes import bodies, cluster, objects, pod, streams
from magnum.objects import container


class Container(objects.Driver):
    collection, kind, failed = "pods", "container", "Error"

    def body(self, item: container.Container) -> dict[str, Any]:
        container.check_on(container.check(item.spec), "kubernetes")
        return bodies.container_body(self._conf, item, self.network(item))

    async def apply(self, item: container.Container, progress: base.Progress) -> base.Outcome:
        if item.spec.power == "created":
            return _unmade(item)
        return await super().apply(item, progress)

    async def observe(self, item: container.Container) -> base.Outcome:
        if item.spec.power == "created":
            return _unmade(item)
        return await super().observe(item)

    def outcome(self, item: container.Container, kept: cluster.Kept, where: cluster.Cluster) -> base.Outcome:
        status = kept.read("status")
        phase, reason = status.get("phase", "Pending"), pod.trouble(status, False)
        mine: dict[str, Any] = next(
            (s for s in status.get("containerStatuses", []) if s.get("name") == bodies.MAIN), {}
        )
        now, before = mine.get("state", {}), mine.get("lastState", {})
        ended = now.get("terminated") or before.get("terminated") or {}
        run = now.get("running") or now.get("terminated") or ended
        state: dict[str, Any] = {
            "engine_id": mine.get("containerID"), "image_id": mine.get("imageID"),
            "addresses": {kept.namespace: [status["podIP"]]} if status.get("podIP") else {},
            **cluster.attached(kept),
            "ports": msgspec.to_builtins(item.spec.ports), "exit_code": ended.get("exitCode"),
            "oom_killed": ended.get("reason") == "OOMKilled", "started_at": run.get("startedAt"),
            "finished_at": ended.get("finishedAt"), "restart_count": mine.get("restartCount", 0),
            "node": kept.read("spec").get("nodeName"),
        }  # fmt: skip
        if "running" in now:
            return base.Outcome(status="Running", reason=reason, state=state)
        if phase in pod.ENDED:
            words = reason or f"exited with code {ended.get('exitCode', 0)}"
            return base.Outcome(status="Stopped", reason=words, state=state)
        waiting = now.get("waiting", {}).get("reason")
        if waiting == "CrashLoopBackOff" or (phase == "Running" and now.get("terminated")):
            return base.Outcome(status="Restarting", reason=reason, state=state)
        if reason is not None:
            return base.Outcome(status="Error", reason=reason, state=state)
        return base.Outcome(status=item.status, reason=where.warning(kept.uid), state=state, pending=True)

    def ended(self, item: container.Container) -> base.Outcome | None:
        if item.status != "Stopped":
            return None
        return base.Outcome(status=item.status, reason=item.status_reason, state=msgspec.to_builtins(item.state))

    async def stream(self, item: container.Container, asked: Any) -> base.Session:
        where, kept = self.find(item)
        if kept is None:
            raise errors.Conflict(f"container {item.name} is not running", status=item.status)
        return await streams.open(where, kept, item, msgspec.structs.replace(asked, member=bodies.MAIN))


def _unmade(item: container.Container) -> base.Outcome:
    return base.Outcome(status="Created", state=msgspec.to_builtins(item.state))
