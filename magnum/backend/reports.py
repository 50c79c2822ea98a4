"""What this host observed, on its way to the conductor: in order for each object, several in one call, until it is taken.

Called by ``backend.work`` for every outcome.
"""

import asyncio
import contextlib
import itertools
from typing import Any

import structlog

from magnum import context as contexts
from magnum import errors, faults
from magnum.engines import base as engines
from magnum.objects import base
from magnum.rpc import conductor as rpc

LOG = structlog.get_logger(__name__)

AT_ONCE = 64
SENDERS = 4
CALL_SECONDS = 10.0
FIRST_WAIT, LAST_WAIT = 0.1, 2.0


class Reports:
    """Sends reports for ``host``. ``register`` gives it the epoch that its sequence begins with; before, reports wait."""

    def __init__(self, conductor: rpc.Conductor, host: str) -> None:
        self._conductor = conductor
        self._host = host
        self._queue: asyncio.Queue[tuple[base.Report, asyncio.Future[Any]]] = asyncio.Queue()
        self._epoch = 0
        self._registered = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def epoch(self) -> int:
        """The epoch, 0 before the conductor gave one."""
        return self._epoch

    @property
    def waiting(self) -> int:
        """How many reports have not been taken yet by a sender."""
        return self._queue.qsize()

    def register(self, epoch: int) -> None:
        self._epoch = epoch
        self._registered.set()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._send()) for _ in range(SENDERS)]

    async def close(self, seconds: float) -> None:
        """Send what waits, for at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._queue.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def put(self, kind: str, item: base.Object, outcome: engines.Outcome) -> Any:
        """Report ``outcome`` of ``item``; return the object as the conductor then has it, None if it has none.

        Raises MagnumError if the conductor refuses the report.
        """
        await self._registered.wait()
        report = base.Report(
            kind=kind, uuid=item.uuid, generation=item.generation,
            sequence=self._epoch << 40 | next(self._numbers), status=outcome.status, reason=outcome.reason,
            state=outcome.state, gone=outcome.gone, pending=outcome.pending,
        )  # fmt: skip
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((report, answer))
        return await answer

    async def _send(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._deliver(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _deliver(self, batch: list[tuple[base.Report, asyncio.Future[Any]]]) -> None:
        wait, said = FIRST_WAIT, False
        while True:
            try:
                context = contexts.service(self._host).within(CALL_SECONDS)
                faults.point("backend-before-report")
                answers = await self._conductor.report(context, [report for report, _ in batch])
                faults.point("backend-after-report")
                break
            except errors.AWAY as error:
                if not said:
                    said = True
                    LOG.warning("reports wait for the conductor", reason=error.detail)
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_WAIT)
            except errors.MagnumError as error:
                if len(batch) > 1:
                    # one that is refused must not keep the others
                    for single in batch:
                        await self._deliver([single])
                    return
                LOG.error("report refused", uuid=batch[0][0].uuid, reason=str(error))
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
