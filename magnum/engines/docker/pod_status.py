"""A pod's state in Kubernetes' words, from what Docker shows of its sandbox and its containers' runs.

Pure functions. Phases, conditions and reasons:
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/

Who calls: ``engines.docker.pod``.
"""

import datetime
from typing import Any

import msgspec

from magnum.clients import docker
from magnum.engines.docker import container as containers
from magnum.engines.docker import pod_bodies
from magnum.objects import manifest, pod

ALIVE = ("running", "paused", "restarting")
CALM = ("ContainerCreating", "PodInitializing")
"""Reasons to wait that are no trouble."""


class Seen(msgspec.Struct, kw_only=True):
    """What the engine has of a pod. ``runs``: container → its runs, oldest first."""

    sandbox: docker.ContainerInfo | None = None
    runs: dict[str, list[docker.ContainerInfo]] = {}

    def latest(self, container: str) -> docker.ContainerInfo | None:
        found = self.runs.get(container)
        return found[-1] if found else None

    @property
    def everything(self) -> list[docker.ContainerInfo]:
        return [run for runs in self.runs.values() for run in runs]

    @property
    def stands(self) -> bool:
        return self.sandbox is not None and self.sandbox.state.status == "running"


class Live(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a running container beside the engine: its probes' findings, ``words`` for why it is not ready."""

    started: bool
    ready: bool
    words: str | None = None


class Waiting(msgspec.Struct, kw_only=True, frozen=True):
    """Why a container does not run, in Kubernetes' word, and a sentence."""

    reason: str
    message: str = ""


def attempt(run: docker.ContainerInfo) -> int:
    return int(run.labels.get(pod_bodies.ATTEMPT, "0"))


def when(text: str) -> float:
    """Return Docker's time in Unix seconds, 0 for one that has not come."""
    found = containers.time_of(text)
    return datetime.datetime.fromisoformat(found).timestamp() if found else 0.0


def succeeded(run: docker.ContainerInfo | None) -> bool:
    return run is not None and run.state.status == "exited" and run.state.exit_code == 0


def ended(run: docker.ContainerInfo | None) -> bool:
    """Return whether ``run`` ran and does no more."""
    return run is not None and (run.state.status in ("exited", "dead") or bool(run.state.error))


def initialised(found: manifest.Pod, seen: Seen) -> bool:
    return all(succeeded(seen.latest(c.name)) for c in found.spec.init_containers)


def phase(found: manifest.Pod, seen: Seen) -> str:
    """Return the pod's phase, by the rules of the kubelet."""
    policy = found.spec.restart_policy
    for container in found.spec.init_containers:
        run = seen.latest(container.name)
        if not succeeded(run):
            return "Failed" if ended(run) and policy == "Never" else "Pending"
    latest = [seen.latest(c.name) for c in found.spec.containers]
    if any(run is None or (not ended(run) and run.state.status not in ALIVE) for run in latest):
        # one that ran before and is only between two runs counts as ended
        fresh = [c.name for c, run in zip(found.spec.containers, latest, strict=True)
                 if run is None or (not ended(run) and run.state.status not in ALIVE and attempt(run) == 0)]  # fmt: skip
        if fresh:
            return "Pending"
    if any(run is not None and run.state.status in ALIVE for run in latest):
        return "Running"
    if policy == "Always":
        return "Running"
    if all(succeeded(run) for run in latest):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _terminated(run: docker.ContainerInfo) -> dict[str, Any]:
    state = run.state
    reason = "OOMKilled" if state.oom_killed else "Completed" if state.exit_code == 0 else "Error"
    if state.error:
        reason = "ContainerCannotRun"
    found: dict[str, Any] = {
        "exitCode": state.exit_code, "reason": reason, "containerID": f"docker://{run.id}",
        "startedAt": containers.time_of(state.started_at), "finishedAt": containers.time_of(state.finished_at),
    }  # fmt: skip
    if state.error:
        found["message"] = state.error
    return found


def container_status(
    container: manifest.Container, seen: Seen, live: Live | None, waiting: Waiting | None
) -> dict[str, Any]:
    """Return a v1 ContainerStatus."""
    runs = seen.runs.get(container.name, [])
    run = runs[-1] if runs else None
    state: dict[str, Any]
    last: dict[str, Any] = {}
    previous = runs[-2] if len(runs) > 1 else None
    if waiting is not None:
        state = {"waiting": {"reason": waiting.reason} | ({"message": waiting.message} if waiting.message else {})}
        previous = run if ended(run) else previous
    elif run is not None and run.state.status in ALIVE:
        state = {"running": {"startedAt": containers.time_of(run.state.started_at)}}
    elif run is not None and ended(run):
        state = {"terminated": _terminated(run)}
    else:
        state = {"waiting": {"reason": "ContainerCreating"}}
    if previous is not None and ended(previous):
        last = {"terminated": _terminated(previous)}
    status = {
        "name": container.name, "image": container.image, "imageID": run.image if run else "",
        "ready": bool(live and live.ready and "running" in state),
        "started": bool(live and live.started and "running" in state),
        "restartCount": attempt(run) if run else 0, "state": state, "lastState": last,
    }  # fmt: skip
    if run is not None:
        status["containerID"] = f"docker://{run.id}"
    return status


def _condition(
    kind: str, true: bool, before: list[dict[str, Any]], now: str, reason: str = "", message: str = ""
) -> dict[str, Any]:
    status = "True" if true else "False"
    old = next((c for c in before if c.get("type") == kind and c.get("status") == status), None)
    made = {"type": kind, "status": status, "lastTransitionTime": old["lastTransitionTime"] if old else now}
    if not true and reason:
        made |= {"reason": reason, "message": message}
    return made


def state(
    item: pod.Pod, found: manifest.Pod, seen: Seen, live: dict[str, Live], waiting: dict[str, Waiting],
    *, pod_ip: str | None, host_ip: str, now: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of ``objects.pod.PodState``. ``live``: container → its findings; ``now``: the time of changes."""
    word = phase(found, seen)
    init = [container_status(c, seen, None, waiting.get(c.name)) for c in found.spec.init_containers]
    for status, container in zip(init, found.spec.init_containers, strict=True):
        status["ready"] = succeeded(seen.latest(container.name))
    main = [container_status(c, seen, live.get(c.name), waiting.get(c.name)) for c in found.spec.containers]
    ready = word == "Running" and seen.stands and all(status["ready"] for status in main)
    done = word in ("Succeeded", "Failed")
    unready = [status["name"] for status in main if not status["ready"]]
    uninitialised = [status["name"] for status in init if not status["ready"]]
    why = ("PodCompleted", "") if done else ("ContainersNotReady", f"containers with unready status: {unready}")
    before = item.state.conditions
    conditions = [
        _condition("PodScheduled", True, before, now),
        _condition("Initialized", not uninitialised, before, now, "ContainersNotInitialized",
                   f"containers with incomplete status: {uninitialised}"),
        _condition("ContainersReady", ready, before, now, *why),
        _condition("Ready", ready, before, now, *why),
    ]  # fmt: skip
    sandbox = seen.sandbox
    return {
        "phase": word, "ready": ready, "conditions": conditions, "container_statuses": main,
        "init_container_statuses": init, "pod_ip": pod_ip if seen.stands else None, "host_ip": host_ip,
        "started_at": (item.state.started_at or containers.time_of(sandbox.state.started_at)) if sandbox
        else item.state.started_at,
        "members": {name: runs[-1].id for name, runs in seen.runs.items() if runs},
    }  # fmt: skip


def reason(found: manifest.Pod, seen: Seen, live: dict[str, Live], waiting: dict[str, Waiting]) -> str | None:
    """Return what troubles the pod, in a sentence; None if nothing does."""
    words: list[str] = []
    several = len(found.spec.containers) + len(found.spec.init_containers) > 1
    for container in (*found.spec.init_containers, *found.spec.containers):
        text, run, findings = "", seen.latest(container.name), live.get(container.name)
        if container.name in waiting and waiting[container.name].reason not in CALM:
            wait = waiting[container.name]
            text = f"{wait.reason}: {wait.message}" if wait.message else wait.reason
        elif run is not None and ended(run) and not succeeded(run):
            text = run.state.error or containers.ending(run.state)
        elif findings is not None and findings.words:
            text = findings.words
        if text:
            words.append(f"{container.name}: {text}" if several else text)
    return "; ".join(words) or None
