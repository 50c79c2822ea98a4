"""Keeps how an object's runs ended that nobody asked to end: the engine's words, and the last lines of the log.

They are kept in the object's state, so that they are told when the run is long gone from
the engine. Called by ``backend.work`` with every outcome.
"""

import asyncio
import collections.abc
from typing import Any

import structlog

from magnum import errors
from magnum.engines import base as engines
from magnum.objects import base, explanation
from magnum.rpc import backend as rpc

LOG = structlog.get_logger(__name__)

LOG_SECONDS = 3.0
LOG_BYTES = 8192


async def keep(driver_of: collections.abc.Callable[[Any], engines.Driver], item: Any, outcome: engines.Outcome) -> None:
    """Put into ``outcome.state`` what ended since the last look, with its log, of what has runs."""
    if outcome.gone or item.deleting or base.is_foreign(item) or not hasattr(item.state, "deaths"):
        return
    known = list(item.state.deaths)
    seen = {(death.container, death.at) for death in known}
    new = [(d, previous) for d, previous in _ends(item, outcome.state) if (d.container, d.at) not in seen]
    if not new:
        return
    driver = driver_of(item)
    for death, previous in new:
        death.log = await _lines(driver, item, death.container, previous)
        known.append(death)
    known.sort(key=lambda death: death.at)
    outcome.state["deaths"] = base.to_builtins(known[-explanation.KEPT :])


def _ends(item: Any, state: dict[str, Any]) -> list[tuple[explanation.Death, bool]]:
    """Return (death, whether a newer run has begun since) of what ``state`` shows."""
    if "container_statuses" not in state:
        if item.spec.power != "running" or not state.get("finished_at") or state.get("exit_code") is None:
            return []
        reason = "OOMKilled" if state.get("oom_killed") else None
        return [(explanation.Death(at=state["finished_at"], exit_code=state["exit_code"], reason=reason), False)]
    found = []
    for status in (*state.get("init_container_statuses", ()), *state["container_statuses"]):
        for where in ("lastState", "state"):
            ended = (status.get(where) or {}).get("terminated")
            if ended and ended.get("finishedAt") and (ended.get("exitCode") or where == "lastState"):
                found.append((
                    explanation.Death(
                        at=str(ended["finishedAt"]), exit_code=ended.get("exitCode"), reason=ended.get("reason"),
                        container=status["name"],
                    ), where == "lastState" and "running" in (status.get("state") or {}),
                ))  # fmt: skip
    return found


async def _lines(driver: engines.Driver, item: Any, container: str | None, previous: bool) -> list[str]:
    """Return the last lines of an ended run's log, none if the engine has them no more."""
    asked = rpc.StreamAsked(
        verb="logs",
        url="",
        ticket="",
        member=container,
        tail=explanation.LINES,
        previous=previous and container is not None,
    )
    text = b""
    try:
        async with asyncio.timeout(LOG_SECONDS):
            session = await driver.stream(item, asked)
            try:
                async for _, data in session.read():
                    text = (text + data)[-LOG_BYTES:]
            finally:
                await session.close()
    except (errors.MagnumError, TimeoutError) as error:
        LOG.debug("no log of an ended run", uuid=item.uuid, reason=str(error))
    return text.decode(errors="replace").splitlines()[-explanation.LINES :]
