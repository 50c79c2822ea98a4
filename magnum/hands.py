"""How much is worked on at once, and whose turn it is: the projects that wait take turns, each its own in order.

So a tenant who asks for a thousand containers holds up its own, and not another's one. Used by ``backend.work`` for
rounds at an engine and by ``rpc.base`` for the api's calls of the conductor.
"""

import asyncio
import collections
import collections.abc
import contextlib


class Hands:
    """``count`` hands."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: collections.OrderedDict[str, collections.deque[asyncio.Future[None]]] = collections.OrderedDict()

    @contextlib.asynccontextmanager
    async def one(self, project: str) -> collections.abc.AsyncIterator[None]:
        """Hold a hand for work of ``project``."""
        await self.take(project)
        try:
            yield
        finally:
            self.release()

    async def take(self, project: str) -> None:
        """Wait for a hand for ``project``; whoever has it gives it back by ``release``."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, collections.deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # it was given just as its taker was cancelled
                self.release()
            else:
                self._drop(project, turn)
            raise

    def _drop(self, project: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(project)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[project]

    def release(self) -> None:
        """Give a hand back: to whose turn it is."""
        while self._waiting:
            project, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            if line:
                self._waiting.move_to_end(project)
            else:
                del self._waiting[project]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
