"""What a conductor does without being asked.

The sweep finds hosts gone silent and operations past their deadline, counts for the metrics, and trims the log; the
controllers keep replication controllers and services in line with their pods. Every conductor does both: rows are
locked, so none does what another has done.

Called by ``conductor.server``.
"""

import asyncio
import datetime
from typing import Any

import structlog
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, metrics, objects
from magnum.conductor import changes, hosts, news, operations, replication, services, takeover
from magnum.db import store
from magnum.objects import base

LOG = structlog.get_logger(__name__)

ROUND = 5.0
"""Seconds between two looks at every bay's controllers, in case another conductor died over one."""
TRIM_EVERY = 600.0
COUNT_EVERY = 5.0
"""Seconds between two counts of what there is, for the metrics."""


class Rounds:
    """One conductor's."""

    def __init__(
        self, conf: cfg.ConfigOpts, store: store.Store, changes: changes.Changes, hosts: hosts.Hosts,
        operations: operations.Operations, news: news.News,
    ) -> None:  # fmt: skip
        self._conf = conf
        self._store = store
        self._changes = changes
        self._hosts = hosts
        self._operations = operations
        self._news = news

    async def sweep(self) -> None:
        """Look each second, until cancelled."""
        trimmed = 0.0
        rounds = 0.0
        counted = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self._beat_itself()
                await self._hosts.find_silent()
                await takeover.sweep(self._store)
                await self._operations.find_late()
                if clock() - rounds > ROUND:
                    rounds = clock()
                    self._news.wake()
                if self._conf.metrics_port and clock() - counted > COUNT_EVERY:
                    counted = clock()
                    await self._count()
                if clock() - trimmed > TRIM_EVERY:
                    trimmed = clock()
                    await self._trim()
            except errors.MagnumError as error:
                LOG.warning("sweep failed", reason=str(error))
            except Exception:
                LOG.exception("sweep failed")
            await asyncio.sleep(self._conf.conductor.sweep_interval)

    async def _count(self) -> None:
        async def work(tx: store.Transaction) -> tuple[Any, Any]:
            return await tx.counts(), await tx.oldest_operation()

        (found, busy, machines), oldest = await self._store.read(contexts.service(), work)
        metrics.OBJECTS.clear()
        for (kind, status), number in found.items():
            metrics.OBJECTS.labels(kind, status).set(number)
        for kind, number in busy.items():
            metrics.OPEN.labels(kind).set(number)
        metrics.HOSTS.clear()
        for status, number in machines.items():
            metrics.HOSTS.labels(status).set(number)
        metrics.OLDEST.set(max((base.now() - oldest).total_seconds(), 0) if oldest is not None else 0)
        metrics.NEWS.set(self._news.waiting)

    async def _beat_itself(self) -> None:
        async def work(tx: store.Transaction) -> None:
            await tx.saw_programs({("magnum-conductor", self._conf.host)})

        await self._store.write(contexts.service(), work)

    async def _trim(self) -> None:
        before = base.now() - datetime.timedelta(days=self._conf.conductor.log_days)

        async def work(tx: store.Transaction) -> int:
            return await tx.trim_log(before)

        while await self._store.write(contexts.service(), work):
            pass

    async def control(self) -> None:
        """Bring controllers and services in line with the pods of every bay in which something happened."""
        self._news.wake()
        while True:
            bays = await self._news.woken()
            if "" in bays:
                try:
                    bays = await self._controlled()
                except errors.MagnumError as error:
                    LOG.warning("controllers wait", reason=str(error))
                    continue
            for uuid in sorted(bays):
                try:
                    await replication.reconcile(self._store, self._conf, uuid, self._changes)
                    await services.refresh(self._store, uuid)
                except errors.MagnumError as error:
                    LOG.warning("controllers failed", bay=uuid, reason=str(error))
                except Exception:
                    LOG.exception("controllers failed", bay=uuid)

    async def _controlled(self) -> set[str]:
        """Return the bays that have a controller or a service."""

        async def work(tx: store.Transaction) -> set[str]:
            found: set[str] = set()
            for name in ("rc", "service"):
                found |= {record.item.bay_uuid for record in await tx.records(objects.KINDS[name])}
            return found

        return await self._store.read(contexts.service(), work)
