"""Replication controllers of Docker bays: as many live pods as asked for, whatever happens to pods and hosts.

A controller's row is held while its pods are counted and what is missing or too
much is written, so conductors that look at the same time make nothing twice.

Called by ``conductor.rounds`` after each change in a bay, and by ``conductor.server`` for a delete.
"""

import collections.abc
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, objects
from magnum.db import store, tables
from magnum.objects import base, pod, replication_controller

if TYPE_CHECKING:
    from magnum.conductor import changes

LOG = structlog.get_logger(__name__)

ENDED = ("Succeeded", "Failed")
"""Phases after which a pod does no more work: it is replaced."""
AT_ONCE = 50
"""Pods made or removed in one transaction; the next round goes on."""
LETTERS = "bcdfghjklmnpqrstvwxz2456789"

Doom = collections.abc.Callable[[store.Transaction, base.Kind, store.Record], collections.abc.Awaitable[None]]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Return whether ``labels`` have all that ``selector`` asks for; an empty one selects nothing."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


async def release(
    tx: store.Transaction, item: replication_controller.ReplicationController, keep: bool, doom: Doom
) -> None:
    """Ask for the end of a controller's pods, or with ``keep`` let them go on without it."""
    kind = objects.KINDS["pod"]
    for record in await tx.records(kind, tables.KINDS["pod"].c.owner_uuid == item.uuid, lock="write"):
        if record.item.deleting:
            continue
        if keep:
            record.item.spec.controller = None
            await tx.save(kind, record)
        else:
            await doom(tx, kind, record)


async def reconcile(db: store.Store, conf: cfg.ConfigOpts, bay_uuid: str, changes: "changes.Changes") -> None:
    """Bring the controllers of a bay in line. Raises Unavailable, Conflict (others keep changing the same)."""
    kind = objects.KINDS["rc"]

    async def look(tx: store.Transaction) -> list[Any]:
        where = await tx.by_uuid(objects.KINDS["bay"], bay_uuid)
        if where is None or where.item.spec.engine != "docker":
            return []
        records = await tx.records(kind, tables.KINDS["rc"].c.bay_uuid == bay_uuid)
        return [record.item for record in records if not record.item.deleting]

    for item in await db.read(contexts.service(), look):
        # pods are the project's: made in its name, counted in its quota
        context = contexts.Context(
            request_id=contexts.new_request_id(), project_id=item.project_id, user_id=item.user_id
        )
        await _one(db, context, conf, item.uuid, changes)


async def _one(
    db: store.Store, context: contexts.Context, conf: cfg.ConfigOpts, uuid: str, changes: "changes.Changes"
) -> None:
    kind = objects.KINDS["rc"]

    async def work(tx: store.Transaction) -> str | None:
        record = await tx.by_uuid(kind, uuid, lock="write")
        if record is None or record.item.deleting:
            return None
        where = await tx.by_uuid(objects.KINDS["bay"], record.item.bay_uuid)
        if where is None or where.item.deleting:
            return None
        live = await _live(tx, conf, record.item, changes)
        surplus = len(live) - record.item.spec.replicas
        for extra in sorted(live, key=_worth)[: max(0, min(surplus, AT_ONCE))]:
            await changes.doom(tx, objects.KINDS["pod"], extra)
            live.remove(extra)
        made = [_make(record.item) for _ in range(min(-surplus, AT_ONCE))]
        await _note(tx, changes, record, len(live) + len(made), sum(_ready(r) for r in live), "")
        for new in made:
            await changes.make(tx, new)
        return None

    try:
        await db.write(context, work)
    except (errors.QuotaExceeded, errors.NoHostFits, errors.Conflict) as error:
        reason = error.detail

        async def say(tx: store.Transaction) -> None:
            record = await tx.by_uuid(kind, uuid, lock="write")
            if record is not None and not record.item.deleting:
                live = await _live(tx, conf, record.item, changes)
                ready = sum(_ready(r) for r in live)
                await _note(tx, changes, record, len(live), ready, reason)

        await db.write(context, say)


async def _live(
    tx: store.Transaction, conf: cfg.ConfigOpts, item: replication_controller.ReplicationController,
    changes: "changes.Changes",
) -> list[store.Record]:  # fmt: skip
    """Return the pods that count, adopting those that match and asking for the end of those that are lost or done."""
    kind = objects.KINDS["pod"]
    gone = await tx.gone_for(conf.conductor.host_grace)
    live = []
    for record in await tx.records(kind, tables.KINDS["pod"].c.bay_uuid == item.bay_uuid, lock="write"):
        found = record.item
        if found.deleting:
            continue
        if found.spec.controller is None and matches(item.spec.selector, found.spec.labels):
            if found.status in ENDED:
                continue
            found.spec.controller = item.uuid
            await tx.save(kind, record)
        if found.spec.controller != item.uuid:
            continue
        if found.host in gone or found.status in ENDED:
            await changes.doom(tx, kind, record)
        elif not matches(item.spec.selector, found.spec.labels):
            # relabelled by its owner: let go, as Kubernetes does
            found.spec.controller = None
            await tx.save(kind, record)
        else:
            live.append(record)
    return live


async def _note(
    tx: store.Transaction, changes: "changes.Changes", record: store.Record, replicas: int, ready: int, trouble: str
) -> None:
    """Write how many pods a controller has, and that it has those it is to have."""
    item = record.item
    state = msgspec.structs.replace(item.state, replicas=replicas, ready_replicas=ready)
    short = replicas != item.spec.replicas
    kind = objects.KINDS["rc"]
    if changes.observe(tx, kind, record, "Active", trouble or None, state, pending=short, generation=item.generation):
        await tx.save(kind, record)


def _ready(record: store.Record) -> bool:
    return bool(record.item.state.ready) and not record.lost


def _worth(record: store.Record) -> tuple[bool, bool, float]:
    """Order pods by which is to go first: the not ready, then the newest."""
    created = record.item.created_at
    return (_ready(record), not record.lost, -created.timestamp() if created else 0.0)


def _make(item: replication_controller.ReplicationController) -> pod.Pod:
    """Return a new pod like the controller's template; its name bears five letters of chance, as on Kubernetes."""
    name = f"{item.name[:57]}-{''.join(secrets.choice(LETTERS) for _ in range(5))}"
    spec = replication_controller.pod_of(item.spec, name, item.uuid)
    return pod.Pod(uuid=base.new_uuid(), name=name, bay_uuid=item.bay_uuid, spec=spec)
