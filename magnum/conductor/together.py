"""One transaction for several calls that come at once.

What comes while one is under way goes together in the next, so that what they share is done once: the commit, the
revisions of the log, of a project's creates the count, which each would have to wait for anyway, of beats the very
statement. One alone waits for nothing. Called by ``conductor.server``, ``reports`` and ``hosts``.
"""

import asyncio
import collections
import collections.abc
from typing import Generic, TypeVar

from magnum import errors

MOST = 32
"""What goes in one transaction at most, so that what it holds is not held for long."""

Key = TypeVar("Key")
Asked = TypeVar("Asked")
Done = TypeVar("Done")


class Together(Generic[Key, Asked, Done]):
    """Gives ``work`` what was asked for under one key, one batch at a time; it returns for each an answer or its refusal.

    If it raises, none of the batch has been done, and each is asked for again alone: what one host or tenant sends must
    not fail another's. If what it needs is away, it is so for all.
    """

    def __init__(
        self,
        work: collections.abc.Callable[[list[Asked]], collections.abc.Awaitable[list[Done | errors.MagnumError]]],
        weigh: collections.abc.Callable[[Asked], int] = lambda asked: 1,
        most: int = MOST,
    ) -> None:
        self._work = work
        self._weigh = weigh
        self._most = most
        self._waiting: dict[Key, collections.deque[tuple[Asked, asyncio.Future[Done]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def do(self, key: Key, asked: Asked) -> Done:
        """Return the answer to ``asked``; raises its refusal, or what ``work`` raises. An asker may go away: it is done all the same."""
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        line = self._waiting.get(key)
        if line is None:
            line = self._waiting[key] = collections.deque()
            task = asyncio.create_task(self._run(key, line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        line.append((asked, answer))
        return await answer

    async def _run(self, key: Key, line: collections.deque[tuple[Asked, asyncio.Future[Done]]]) -> None:
        while line:
            batch: list[tuple[Asked, asyncio.Future[Done]]] = []
            left = self._most
            while line and (not batch or self._weigh(line[0][0]) <= left):
                batch.append(line.popleft())
                left -= self._weigh(batch[-1][0])
            if not await self._try(batch):
                for one in batch:
                    await self._try([one])
        del self._waiting[key]

    async def _try(self, batch: list[tuple[Asked, asyncio.Future[Done]]]) -> bool:
        """Do a batch; return False if it has to be done one by one."""
        try:
            done = await self._work([asked for asked, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, errors.AWAY):
                return False
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return True
        for (_, answer), one in zip(batch, done, strict=True):
            if answer.done():
                continue
            if isinstance(one, errors.MagnumError):
                answer.set_exception(one)
            else:
                answer.set_result(one)
        return True
