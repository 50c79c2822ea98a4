"""Operations: what became of a request that changed something, named by its request id."""

import datetime

import msgspec

from magnum import errors
from magnum.api import bodies, routing, verbs, views
from magnum.objects import base

ROUTES = routing.Routes("operations")


class Operation(msgspec.Struct, kw_only=True):
    """``state``: in progress, completed, failed, expired, cancelled. ``steps`` are rows of the log, oldest first."""

    request_id: str
    state: str
    action: str
    kind: str
    uuid: str
    name: str
    reason: str | None
    deadline: datetime.datetime | None
    steps: list[base.Event]


def _ident(text: str) -> str:
    """Return a request id as it may be. Raises NotFound for what cannot be one."""
    if not text.isprintable() or len(text) > 255:
        raise errors.NotFound("there is no such operation")
    return text


ENDS = {
    "completed": "completed", "failed": "failed", "expired": "expired", "cancelled": "cancelled", "deleted": "completed",
}  # fmt: skip


@ROUTES.get("/v1/operations/{ident}", rule="operation:get", answers={200: Operation})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read the steps of a change, its deadline and the reason of its end."""
    context = call.for_all_projects(query.all_projects)
    rows = await call.api.conductor.events(context, 0, 10_000, None, None, _ident(ident))
    if not rows:
        raise errors.NotFound(f"there is no operation {ident[:64]!r}")
    first = rows[0]
    mine = [row for row in rows if row.uuid == first.uuid]
    last = next((row for row in reversed(mine) if row.step in ENDS), None)
    deadline = None
    if last is None:
        try:
            item = await call.api.conductor.get(context, first.object_kind, first.uuid)
            deadline = item.operation_deadline
        except errors.NotFound:
            pass
    return routing.Answer(
        200,
        Operation(
            request_id=ident, state=ENDS[last.step] if last else "in progress", action=first.action,
            kind=first.object_kind, uuid=first.uuid, name=first.name, reason=(last or mine[-1]).reason,
            deadline=deadline, steps=rows,
        ),
    )  # fmt: skip


@ROUTES.post("/v1/operations/{ident}/cancel", rule="operation:cancel", answers={200: views.Placed, 202: views.Placed})
async def cancel(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Give up a change in progress: what was being made is deleted, another change is no longer waited for."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.settle(context, _ident(ident), "cancel")
    return await verbs.done(call, context, item, query.wait, 200)


@ROUTES.post("/v1/operations/{ident}/retry", rule="operation:retry", answers={200: views.Placed, 202: views.Placed})
async def retry(call: routing.Call, ident: str, query: bodies.Wait) -> routing.Answer:
    """Try a change again that failed, ran out of time or was cancelled."""
    context = call.for_all_projects(query.all_projects)
    item = await call.api.conductor.settle(context, _ident(ident), "retry")
    return await verbs.done(call, context, item, query.wait, 200)
