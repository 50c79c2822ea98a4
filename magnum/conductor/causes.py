"""Finds out why an object is not as wanted, from what the database knows of it and of what it hangs on.

Called by ``conductor.server`` for ``explain``.
"""

from typing import Any

from magnum import objects
from magnum.db import store, tables
from magnum.objects import bay, host
from magnum.objects.explanation import Cause, Explanation

WORDS = (
    ("memory", ("for want of memory", "oomkilled", "out of memory")),
    ("disk-full", ("no space left", "disk quota exceeded")),
    ("port-taken", ("port is already allocated", "address already in use", "is taken on every host")),
    ("quota", ("quota", "exceeded quota", "limit of")),
    ("image", ("no such image", "errimage", "imagepull", "pulling ", "manifest unknown", "pull access denied",
               "invalid reference format", "invalidimagename")),
    ("crash-loop", ("crashloopbackoff",)),
    ("probe", ("probe", "health check fails")),
    ("no-host", ("no host fits", "hosts are asked for", "no cluster fits")),
    ("network", ("network", "swarm", "neutron", "port ", "subnet")),
    ("configuration", ("createcontainerconfigerror", "runcontainererror", "executable file not found", "no such file")),
)  # fmt: skip
"""Code → words, of Docker's, Kubernetes' and ours, that tell it; the first that is met counts."""
MOST_PODS = 20
"""Pods that are explained below a controller or a service at most."""


def code_of(words: str, otherwise: str = "engine") -> str:
    """Return the code of a sentence."""
    lowered = words.lower()
    return next((code for code, known in WORDS if any(word in lowered for word in known)), otherwise)


async def explain(tx: store.Transaction, record: store.Record) -> Explanation:
    """Return why the object of ``record`` is as it is."""
    item = record.shown()
    kind = objects.kind_of(item)
    found = [*await _where(tx, record), *_change(record)]
    found += await _BY_KIND[kind.name](tx, record) if kind.name in _BY_KIND else []
    return Explanation(
        kind=kind.name, uuid=item.uuid, name=item.name, status=item.status, wanted=_wanted(item), as_wanted=not found,
        host=item.host, causes=found, deaths=getattr(item.state, "deaths", []),
    )  # fmt: skip


def _wanted(item: Any) -> str:
    if item.deleting:
        return "deleted"
    if isinstance(item, objects.container.Container):
        return str(item.spec.power)
    if isinstance(item, objects.replication_controller.ReplicationController):
        return f"{item.spec.replicas} pods ready"
    return {"pod": "ready", "service": "active", "bay": "complete"}.get(objects.kind_of(item).name, "there")


def _down(machine: host.Host) -> Cause:
    words = f"host {machine.name} is down: {machine.status_reason or 'no sign of life'}"
    return Cause(code="host-down", detail=words, kind="host", uuid=machine.uuid, name=machine.name)


async def _where(tx: store.Transaction, record: store.Record) -> list[Cause]:
    """Return what is wrong with the host that an object is on, and with its bay."""
    found: list[Cause] = []
    item = record.item
    for machine in await tx.hosts(tables.HOSTS.c.name == item.host) if item.host else []:
        if machine.status == "down":
            found.append(_down(machine))
        elif machine.facts.problem:
            found.append(Cause(code="engine", detail=machine.facts.problem, kind="host", uuid=machine.uuid,
                               name=machine.name))  # fmt: skip
    if item.bay_uuid:
        where = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
        if where is not None and (inner := await _bay(tx, where)):
            words = f"its bay {where.item.name} is {where.item.status}"
            found.append(Cause(code="bay", detail=words, kind="bay", uuid=where.item.uuid, name=where.item.name,
                               causes=inner))  # fmt: skip
    return found


def _change(record: store.Record) -> list[Cause]:
    item = record.item
    if item.operation is None:
        return []
    words = f"{record.action or 'a change'} is in progress since {item.updated_at or item.created_at:%H:%M:%S} UTC"
    if record.lost:
        words += ", and waits for its host"
    inner = [Cause(code=code_of(item.status_reason), detail=item.status_reason)] if item.status_reason else []
    return [Cause(code="in-progress", detail=words, causes=inner)]


def _said(item: Any, *, bad: bool) -> list[Cause]:
    """Return the object's own reason if its status is a ``bad`` one, or there is a reason at all."""
    if item.operation is not None or not (bad or item.status_reason):
        return []
    words = item.status_reason or f"it is {item.status}"
    return [Cause(code=code_of(words), detail=words)]


async def _bay(tx: store.Transaction, record: store.Record) -> list[Cause]:
    item: bay.Bay = record.item
    kind = objects.KINDS["bay"]
    found = []
    machines = {machine.name: machine for machine in await tx.hosts()}
    for share in (await tx.shares([item.uuid]))[item.uuid]:
        machine = machines.get(share.host)
        if machine is not None and machine.status == "down":
            found.append(_down(machine))
        elif kind.is_failure(share.status) or (share.status in kind.pending and share.reason):
            words = f"{share.host}: {share.reason or share.status}"
            found.append(Cause(code=code_of(words), detail=words, kind="host", name=share.host,
                               uuid=machine.uuid if machine else None))  # fmt: skip
    return found or _said(item, bad=kind.is_failure(item.status))


async def _container(tx: store.Transaction, record: store.Record) -> list[Cause]:
    item: objects.container.Container = record.item
    reached = {
        "running": ("Running",),
        "stopped": ("Stopped", "Created"),
        "paused": ("Paused",),
        "created": ("Created",),
    }
    if item.operation is not None or record.lost:
        return []
    if item.status in reached[item.spec.power]:
        return _said(item, bad=False) if item.status == "Running" else []
    words = item.status_reason or f"it is {item.status}"
    otherwise = "exited" if item.status in ("Stopped", "Restarting") else "engine"
    return [Cause(code=code_of(words, otherwise), detail=words)]


async def _pod(tx: store.Transaction, record: store.Record) -> list[Cause]:
    item: objects.pod.Pod = record.item
    if item.state.ready or item.deleting or record.lost:
        return []
    found: list[Cause] = []
    for status in (*item.state.init_container_statuses, *item.state.container_statuses):
        for how, shown in (status.get("state") or {}).items():
            words = ": ".join(part for part in (shown.get("reason"), shown.get("message")) if part)
            if how == "waiting" and words and shown.get("reason") != "PodInitializing":
                ended = ((status.get("lastState") or {}).get("terminated") or {}).get("reason")
                code = "memory" if ended == "OOMKilled" else code_of(words)
            elif how == "terminated" and shown.get("exitCode"):
                words = f"{words or 'ended'} (exit code {shown['exitCode']})"
                code = code_of(words, "exited")
            elif how == "running" and not status.get("ready"):
                code, words = "probe", item.status_reason or "it runs and is not ready yet"
            else:
                continue
            found.append(Cause(code=code, detail=f"container {status['name']}: {words}"))
    return found or _said(item, bad=True)


async def _pods(tx: store.Transaction, *where: Any) -> list[Cause]:
    """Return a cause for each pod that is not ready."""
    found: list[Cause] = []
    for record in await tx.records(objects.KINDS["pod"], *where, limit=1000):
        pod = record.shown()
        if not (pod.state.ready and not record.lost) and len(found) < MOST_PODS:
            inner = [*await _where(tx, record), *_change(record), *await _pod(tx, record)]
            found.append(Cause(code="pod", detail=f"pod {pod.name} is {pod.status} and not ready", kind="pod",
                               uuid=pod.uuid, name=pod.name, causes=inner))  # fmt: skip
    return found


async def _rc(tx: store.Transaction, record: store.Record) -> list[Cause]:
    item: objects.replication_controller.ReplicationController = record.item
    table = tables.KINDS["pod"]
    if item.state.ready_replicas == item.spec.replicas:
        return []
    return _said(item, bad=False) + await _pods(tx, table.c.owner_uuid == item.uuid)


async def _service(tx: store.Transaction, record: store.Record) -> list[Cause]:
    item: objects.service.Service = record.item
    found: list[Cause] = []
    for share in (await tx.shares([item.uuid]))[item.uuid]:
        if objects.KINDS["service"].is_failure(share.status) or share.reason:
            words = f"{share.host}: {share.reason or share.status}"
            found.append(Cause(code=code_of(words), detail=words, kind="host", name=share.host))
    selector = item.spec.selector
    if not found and selector and not item.state.endpoints:
        pods = await tx.records(objects.KINDS["pod"], tables.KINDS["pod"].c.bay_uuid == item.bay_uuid, limit=1000)
        mine = [r.item.uuid for r in pods if selector.items() <= r.item.spec.labels.items()]
        shown = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        inner = await _pods(tx, tables.KINDS["pod"].c.uuid.in_(mine)) if mine else []
        words = f"no ready pod has the labels {shown}" + ("" if mine else ": no pod of the bay has them at all")
        found.append(Cause(code="no-endpoints", detail=words, causes=inner))
    return found or _said(item, bad=item.status == "Error")


_BY_KIND = {"bay": _bay, "container": _container, "pod": _pod, "rc": _rc, "service": _service}
