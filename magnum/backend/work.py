"""One object on this host: what is asked of it is done in rounds, one at a time, the newest wish first.

A round makes the engine as the object wants it (or only looks), reports, and
takes in what the conductor answers: a newer generation begins another round at
once. So calls of the api, nudges, events of the engine and timers may come in
any order and number.

Called by ``backend.server``, which keeps one ``Work`` for each object.
"""

import asyncio
import collections.abc
import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from magnum import errors, faults, metrics, objects, tracing
from magnum.backend import converge, deaths
from magnum.engines import base as engines
from magnum.objects import base, container, pod, replication_controller, service

if TYPE_CHECKING:
    from magnum.backend import server

LOG = structlog.get_logger(__name__)

PROGRESS_EVERY = 1.0
"""Seconds between two reports of progress."""
AWAY_AGAIN = 1.0
"""Seconds before an engine that was away is tried again."""
BROKEN_AGAIN = 10.0

CHECKS: dict[str, collections.abc.Callable[[Any, str], Any]] = {
    "container": lambda spec, engine: container.check_on(container.check(spec), engine),
    "pod": pod.check,
    "service": service.check,
    "rc": replication_controller.check,
}
"""The same checks as the api's, once more: nothing unchecked reaches an engine."""


class _Progress(engines.Progress):
    """What a driver tells during one round of ``work`` for ``item``."""

    def __init__(self, work: "Work", item: Any) -> None:
        self._work = work
        self._item = item
        self._last = 0.0
        self.newer = asyncio.Event()

    async def __call__(self, outcome: engines.Outcome) -> None:
        if time.monotonic() - self._last < PROGRESS_EVERY:
            return
        self._last = time.monotonic()
        await self._work.pending(self._item, msgspec.structs.replace(outcome, pending=True))

    async def overtaken(self) -> None:
        await self.newer.wait()


class Work:
    """The rounds of one object."""

    def __init__(self, backend: "server.Server", kind: str, uuid: str) -> None:
        self._backend = backend
        self.kind = kind
        self.uuid = uuid
        self.item: Any = None
        self._todo = ""
        self._applying = 0
        self._progress: _Progress | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[Any]] = []
        self._next: list[asyncio.Future[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._told: tuple[Any, ...] | None = None
        self._answer: Any = None
        self._carrier: dict[str, str] | None = None
        """Of the request that asked last, for the trace of the rounds that follow."""
        self._ended = False
        """Whether the last round told that nothing is left, and the conductor has nothing either."""
        self._heard: tuple[int, float] | None = None
        """Generation of the newest wish that no report has told to be so yet, and when it was heard of."""

    def apply(self, item: Any) -> asyncio.Future[Any]:
        """Ask for ``item``, or for what is newer and known already; the result is the object as the conductor has it."""
        self._take(item)
        self._carrier = tracing.carrier() or self._carrier
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._applying == self.item.generation and self._task is not None:
            # the round in hand does just that
            self._waiting.append(future)
            return future
        self._begin("apply", future)
        return future

    def look(self, item: Any | None = None) -> None:
        """Ask to see whether the engine is still as it was."""
        if item is not None:
            self._take(item)
        if self.item is not None:
            self._begin(self._todo or "look")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cancel(self) -> None:
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()

    @property
    def busy(self) -> bool:
        """Whether a round is in hand, or waits for its turn."""
        return self._task is not None

    async def wait(self) -> None:
        """Return once the rounds in hand are over."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _take(self, item: Any) -> None:
        if self.item is None or item.generation >= self.item.generation:
            if self.item is not None and self.item.deleting and item.generation == self.item.generation:
                item.deleting = True
            overtakes = self.item is not None and _newer(item, self.item)
            if self.item is None or overtakes:
                self._heard = item.generation, time.monotonic()
            self.item = item
            if overtakes and self._progress is not None:
                self._todo = "apply"
                self._progress.newer.set()

    async def pending(self, item: Any, outcome: engines.Outcome) -> None:
        """Report what is still being done for ``item``; a newer wish in the answer begins another round."""
        answer = await self._backend.reports.put(self.kind, item, outcome)
        if answer is not None:
            self._take(answer)

    def _begin(self, what: str, future: asyncio.Future[Any] | None = None) -> None:
        if what == "apply":
            # a look settles nothing that is owed
            self._stop_timer()
        self._todo = "apply" if "apply" in (what, self._todo) else what
        self._next = [*self._next, future] if future is not None else self._next
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._rounds())

    async def _rounds(self) -> None:
        try:
            while self._todo:
                what, self._todo = self._todo, ""
                self._waiting, self._next = self._next, []
                self._applying = self.item.generation if what == "apply" else 0
                try:
                    async with self._backend.hands.one(self.item.project_id):
                        answer = await self._round(what)
                except engines.Overtaken:
                    # whoever waited for this round waits for the newer one
                    self._next = [*self._waiting, *self._next]
                    self._waiting, self._todo = [], "apply"
                except Exception as error:
                    if not isinstance(error, errors.MagnumError):
                        LOG.exception("round failed", kind=self.kind, uuid=self.uuid)
                        error = errors.EngineError(f"{type(error).__name__}: {error}")
                    self._settle(error=error)
                    self._again(AWAY_AGAIN if isinstance(error, errors.Unavailable) else BROKEN_AGAIN)
                else:
                    self._settle(answer)
                    if self._ended and self._todo == "look":
                        # what the engine told of its end is no news
                        self._todo = ""
        finally:
            self._applying = 0
            self._task = None
            for future in (*self._waiting, *self._next):
                future.cancel()
            self._waiting, self._next = [], []
            if self._answer is None and self._timer is None:
                self._backend.forget(self)

    def _settle(self, answer: Any = None, error: Exception | None = None) -> None:
        for future in self._waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)
                # whoever asked may have gone
                future.exception()
        self._waiting = []

    def _again(self, seconds: float) -> None:
        """Have another round that applies later, unless one is wanted before; a look settles nothing that is owed."""
        if self._todo != "apply":
            self._answer = self._answer or self.item
            loop = asyncio.get_running_loop()
            seconds = max(seconds, 0.05)
            if self._timer is None or self._timer.when() > loop.time() + seconds:
                self._stop_timer()
                self._timer = loop.call_later(seconds, self._begin, "apply")

    async def _round(self, what: str) -> Any:
        item = self.item
        labels = self._labels(item, what)
        with metrics.timed(metrics.ENGINE, *labels), tracing.span(
            f"{labels[0]} {labels[2]} {self.kind}", self._carrier, magnum__uuid=self.uuid, magnum__generation=item.generation
        ):  # fmt: skip
            outcome = await self._act(item, what)
        await deaths.keep(self._backend.driver, item, outcome)
        faults.point(f"{self.kind}-after-engine")
        told = (item.generation, outcome.status, outcome.reason, outcome.state, outcome.pending, outcome.gone)
        if what == "look" and told == self._told and not outcome.gone:
            answer = self._answer
        else:
            answer = await self._backend.reports.put(self.kind, item, outcome)
            self._told, self._answer = told, answer
            if self._heard is not None and not outcome.pending and item.generation >= self._heard[0]:
                metrics.CONVERGENCE.labels(self.kind).observe(time.monotonic() - self._heard[1])
                self._heard = None
        self._ended = answer is None and outcome.gone
        if answer is None:
            # what several backends may have is another's now, or its end is the conductor's to say
            if outcome.gone:
                return None
            verdict = await self._backend.verdict(self.uuid)
            if verdict == "unknown":
                # a database that was restored from an older dump has forgotten it: that is for an operator to settle
                LOG.warning("the conductor knows nothing of it: left alone", kind=self.kind, uuid=self.uuid)
                self._stop_timer()
            elif verdict is not None and not self._backend.engine(item).shared:
                left = await self._backend.driver(item).leave(self.uuid)
                if not left.gone:
                    self._again(left.retry_after if left.retry_after is not None else AWAY_AGAIN)
            return None
        newer = _newer(answer, item)
        self._take(answer)
        if newer:
            self._todo = "apply"
        elif outcome.retry_after is not None and not outcome.gone:
            if what == "look" and not outcome.retry_after:
                self._todo = "apply"
            else:
                self._again(outcome.retry_after)
        return answer

    def _labels(self, item: Any, what: str) -> tuple[str, str, str]:
        try:
            name = self._backend.engine(item).name
        except errors.NotSupported:
            name = ""
        leaving = converge.leaving(item, self._backend.host)
        return name, self.kind, "remove" if leaving else "observe" if what == "look" else "apply"

    async def _act(self, item: Any, what: str) -> engines.Outcome:
        try:
            driver = self._backend.driver(item)
        except errors.NotSupported as error:
            if converge.leaving(item, self._backend.host):
                return engines.Outcome(gone=True)
            return engines.Outcome(status=objects.KINDS[self.kind].failure_of(item.status), reason=error.detail)
        if converge.leaving(item, self._backend.host):
            if not item.deleting and self._backend.engine(item).shared:
                # another keeps it now: there is nothing of it on this host
                return engines.Outcome(gone=True)
            faults.point(f"{self.kind}-before-engine")
            return await driver.remove(self.uuid, item)
        if what == "look":
            return await driver.observe(item)
        try:
            if self.kind in CHECKS and not base.is_foreign(item):
                CHECKS[self.kind](item.spec, self._backend.engine(item).name)
        except errors.Invalid as error:
            kind = objects.KINDS[self.kind]
            return engines.Outcome(status=kind.failure_of(item.status), reason=str(error))
        faults.point(f"{self.kind}-before-engine")
        self._progress = _Progress(self, item)
        try:
            return await driver.apply(item, self._progress)
        finally:
            self._progress = None


def _newer(item: Any, than: Any) -> bool:
    """Return whether ``item`` says another wish than ``than``, which is the same object."""
    return item.generation > than.generation or (item.deleting and not than.deleting)
