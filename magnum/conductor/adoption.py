"""What engines have and the database does not know, after it was restored from an older dump: shown, adopted, or removed.

Backends tell of such orphans with their signs of life and leave them alone. An engine object bears what its owner
wanted when it was made (``engines.base.memo``), which is what it is adopted with. Nothing is removed unless an
operator names it.

Called by ``magnum-manage``.
"""

from typing import Any

import msgspec

from magnum import errors, objects
from magnum.db import store, tables
from magnum.objects import base, bay, host

LOST = "removed from the engine"
"""How the reason of an object begins that the database has and its engine has not."""


class Difference(msgspec.Struct, kw_only=True):
    """An orphan and the hosts that have it; or (``missing``) an object that its host does not have."""

    orphan: host.Orphan
    hosts: list[str]
    missing: bool = False

    def __str__(self) -> str:
        one = self.orphan
        what = f"{one.kind} {one.uuid} {one.name or '-'} of project {one.project_id or '-'}"
        where = f" in bay {one.bay_uuid}" if one.bay_uuid and one.kind != "bay" else ""
        if self.missing:
            return f"missing  {what}{where}: the database has it, {', '.join(self.hosts)} has not"
        able = "" if one.memo else " (it does not say what its owner wanted: it can only be removed)"
        return f"orphan   {what}{where}: {', '.join(self.hosts)} has it, the database has not{able}"


async def differences(tx: store.Transaction) -> list[Difference]:
    """Return every difference that backends have told of, bays first."""
    found: dict[str, Difference] = {}
    for machine in await tx.hosts():
        for orphan in machine.facts.orphans:
            known = found.setdefault(orphan.uuid, Difference(orphan=orphan, hosts=[]))
            known.hosts.append(machine.name)
            if orphan.memo and not known.orphan.memo:
                known.orphan = orphan
    there = await tx.known(list(found)) if found else {}
    gone = await tx.logged(list(found)) if found else set()
    left = [one for uuid, one in found.items() if uuid not in there and uuid not in gone]
    left.sort(key=lambda one: (one.orphan.kind != "bay", one.orphan.uuid))
    for kind in objects.KINDS.values():
        if kind.spread == "one":
            for record in await tx.records(kind, tables.KINDS[kind.name].c.status_reason.like(f"{LOST}%")):
                item = record.item
                shown = host.Orphan(kind=kind.name, uuid=item.uuid, name=item.name, project_id=item.project_id,
                                    bay_uuid=item.bay_uuid or "")  # fmt: skip
                left.append(Difference(orphan=shown, hosts=[item.host], missing=True))
    return left


def _find(known: list[Difference], uuid: str) -> Difference:
    found = next((one for one in known if one.orphan.uuid == uuid and not one.missing), None)
    if found is None:
        raise errors.NotFound(f"no backend tells of an orphan {uuid}")
    return found


async def adopt(tx: store.Transaction, uuid: str) -> str:
    """Write an orphan into the database as its owner wanted it; return a sentence. Raises NotFound, Conflict."""
    one = _find(await differences(tx), uuid)
    orphan = one.orphan
    kind = objects.KINDS.get(orphan.kind)
    if kind is None or not orphan.memo:
        raise errors.Conflict(f"{orphan.kind} {uuid} does not say what its owner wanted: it can only be removed")
    item: Any = kind.cls(
        **orphan.recall(kind.spec), uuid=uuid, project_id=orphan.project_id, status=kind.initial,
        bay_uuid=orphan.bay_uuid if kind.in_bay else None,
    )  # fmt: skip
    if kind.in_bay:
        where = await tx.by_uuid(objects.KINDS["bay"], orphan.bay_uuid, lock="share")
        if where is None:
            raise errors.Conflict(
                f"{kind.name} {uuid} is in bay {orphan.bay_uuid}, which is not known: adopt that first"
            )
        table = tables.KINDS[kind.name]
        taken = (table.c.bay_uuid == orphan.bay_uuid, table.c.name == item.name)
        if kind.unique_in_bay and await tx.count(kind, *taken):
            raise errors.Conflict(f"bay {where.item.name} has another {kind.name} {item.name}")
    if kind.spread == "one":
        item.host = one.hosts[0]
    if isinstance(item, bay.Bay):
        item.spec.members = sorted(one.hosts)
        item.spec.node_count = len(one.hosts)
    if isinstance(item, objects.container.Container) and orphan.runs:
        item.spec.power = "running"
    await tx.insert(kind, store.Record(item=item))
    if kind.spread == "members":
        await tx.place(kind, uuid, one.hosts)
    tx.note(kind, item, "observed", reason="adopted from the engine by an operator")
    return f"adopted  {one.orphan.kind} {uuid} {item.name}"


async def disown(tx: store.Transaction, uuid: str) -> str:
    """Write that an orphan is to go: its hosts remove it as they next compare. Return a sentence. Raises NotFound."""
    one = _find(await differences(tx), uuid)
    orphan = one.orphan
    kind = objects.KINDS.get(orphan.kind)
    if kind is None:
        raise errors.Conflict(f"there are no objects of kind {orphan.kind!r}")
    item = base.Object(uuid=uuid, project_id=orphan.project_id, name=orphan.name, bay_uuid=orphan.bay_uuid or None,
                       host=one.hosts[0])  # fmt: skip
    tx.note(kind, item, "deleted", action="delete", status="Deleted", reason="an orphan, removed by an operator")
    return f"removed  {orphan.kind} {uuid} {orphan.name}"
