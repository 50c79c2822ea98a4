"""How much is worked on at once, and whose turn it is: the projects that wait take turns, each its own in order.

So a tenant who asks for a thousand containers holds up its own, and not another's one. Used by ``backend.work`` for
rounds at an engine and by ``rpc.base`` for the api's calls of the conductor.
"""

import asyncio
import collections
import collections.abc
import contextlib
import time

ABOUT = 5.0
"""Seconds for which a project that asked for a hand counts as being about."""


class Hands:
    """``count`` hands, of which one project has at most ``beside_others`` (None: any number) while others are about.

    Work of no project, a program's own, takes turns like a project's, and is nobody's other.
    """

    def __init__(self, count: int, beside_others: int | None = None) -> None:
        self._free = count
        self._beside_others = count if beside_others is None else beside_others
        self._waiting: collections.OrderedDict[str, collections.deque[asyncio.Future[None]]] = collections.OrderedDict()
        self._held: collections.Counter[str] = collections.Counter()
        self._came: collections.OrderedDict[str, float] = collections.OrderedDict()
        """Project → when it last asked, the latest at the end."""

    @contextlib.asynccontextmanager
    async def one(self, project: str) -> collections.abc.AsyncIterator[None]:
        """Hold a hand for work of ``project``."""
        await self.take(project)
        try:
            yield
        finally:
            self.release(project)

    async def take(self, project: str) -> None:
        """Wait for a hand for ``project``; whoever has it gives it back by ``release``."""
        self._note(project)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, collections.deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # it was given just as its taker was cancelled
                self.release(project)
            else:
                self._drop(project, turn)
            raise

    def release(self, project: str) -> None:
        """Give back a hand that ``project`` has: to whose turn it is."""
        self._free += 1
        self._held[project] -= 1
        if not self._held[project]:
            del self._held[project]
        self._hand_out()

    def _note(self, project: str) -> None:
        if not project:
            return
        now = time.monotonic()
        self._came[project] = now
        self._came.move_to_end(project)
        while now - next(iter(self._came.values())) > ABOUT:
            self._came.popitem(last=False)

    def _may(self, project: str) -> bool:
        if not project or self._held[project] < self._beside_others:
            return True
        other = next((came for name, came in reversed(self._came.items()) if name != project), None)
        return other is None or time.monotonic() - other > ABOUT

    def _drop(self, project: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(project)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[project]

    def _hand_out(self) -> None:
        while self._free:
            project = next((name for name in self._waiting if self._may(name)), None)
            if project is None:
                return
            line = self._waiting[project]
            turn = line.popleft()
            if line:
                self._waiting.move_to_end(project)
            else:
                del self._waiting[project]
            if not turn.done():
                self._free -= 1
                self._held[project] += 1
                turn.set_result(None)
