"""Pods on a cluster: a Pod each. Those that controllers or users made there are shown, by the cluster's own uid.

Who calls: the Kubernetes engine, which has this as its driver of pods.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.engines import base
from magnum.engines.kubernetes import bodies, cluster, objects, streams
from magnum.objects import pod

CALM = ("ContainerCreating", "PodInitializing")
"""Reasons to wait that are no trouble."""
ENDED = ("Succeeded", "Failed")


def trouble(status: dict[str, Any], several: bool) -> str | None:
    """Return what troubles a pod (a v1 PodStatus), in a sentence; None if nothing does."""
    words: list[str] = []
    for found in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        state, text = found.get("state", {}), ""
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting is not None and waiting.get("reason") not in (*CALM, None):
            text = ": ".join(word for word in (waiting.get("reason"), waiting.get("message")) if word)
            before = found.get("lastState", {}).get("terminated")
            if before is not None and waiting.get("reason") == "CrashLoopBackOff":
                text += f" (last: {_ending(before)})"
        elif ended is not None and ended.get("exitCode") != 0:
            text = _ending(ended)
        if text:
            words.append(f"{found['name']}: {text}" if several else text)
    if not words:
        if status.get("message") or status.get("reason"):
            words.append(": ".join(word for word in (status.get("reason"), status.get("message")) if word))
        for condition in status.get("conditions", []):
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                words.append(f"{condition.get('reason')}: {condition.get('message')}")
            elif condition.get("type") == "ContainersReady" and condition.get("reason") == "ContainersNotReady":
                words += [condition.get("message", "")] if status.get("phase") == "Running" else []
    return "; ".join(words) or None


def _ending(ended: dict[str, Any]) -> str:
    text = f"exited with code {ended.get('exitCode')}"
    if ended.get("reason") not in (None, "Error", "Completed"):
        text = f"{ended['reason']}, {text}"
    return f"{text}: {ended['message']}" if ended.get("message") else text


def condition(status: dict[str, Any], kind: str) -> bool:
    """Return whether a pod's condition holds."""
    return any(c.get("type") == kind and c.get("status") == "True" for c in status.get("conditions", []))


def state(kept: cluster.Kept) -> dict[str, Any]:
    """Return the fields of ``objects.pod.PodState`` that a cluster's pod shows."""
    status = kept.read("status")
    spec = kept.read("spec")
    statuses = status.get("containerStatuses", [])
    return {
        "phase": status.get("phase", "Pending"), "ready": condition(status, "Ready") and not kept.going,
        "conditions": status.get("conditions", []), "container_statuses": statuses,
        "init_container_statuses": status.get("initContainerStatuses", []), "pod_ip": status.get("podIP"),
        "host_ip": status.get("hostIP"), "started_at": status.get("startTime"), "node": spec.get("nodeName"),
        "members": {found["name"]: found["containerID"] for found in statuses if found.get("containerID")},
        "security_groups": cluster.attached(kept).get("security_groups", []),
    }  # fmt: skip


class Pod(objects.Driver):
    collection, kind, failed, replaces = "pods", "pod", "Failed", True

    def body(self, item: pod.Pod) -> dict[str, Any]:
        pod.check(item.spec, "kubernetes")
        return bodies.pod_body(self._conf, item, self.network(item))

    def outcome(self, item: pod.Pod, kept: cluster.Kept, where: cluster.Cluster) -> base.Outcome:
        found = state(kept)
        found["managed"] = not item.spec.foreign or item.spec.controller is not None
        status = kept.read("status")
        spec = item.spec.manifest.get("spec", {})
        reason = trouble(status, len(spec.get("containers", [])) + len(spec.get("initContainers", [])) > 1)
        # a pod that is merely on its way is not settled yet
        pending = found["phase"] == "Pending" and reason is None and not item.spec.foreign
        if not found["ready"] and found["phase"] in ("Pending", "Running") and (warning := where.warning(kept.uid)):
            reason = f"{reason} ({warning})" if reason else warning
        return base.Outcome(status=found["phase"], reason=reason, state=found, pending=pending)

    def ended(self, item: pod.Pod) -> base.Outcome | None:
        if item.state.phase not in ENDED:
            return None
        return base.Outcome(status=item.state.phase, reason=item.status_reason, state=msgspec.to_builtins(item.state))

    async def stream(self, item: pod.Pod, asked: Any) -> base.Session:
        where, kept = self.find(item)
        if kept is None:
            raise errors.NotFound(f"pod {item.name} is not in cluster {where.name} (yet)")
        return await streams.open(where, kept, item, asked)
