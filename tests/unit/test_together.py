"""Intents that go together: those that come while a batch is under way are the next, and a refusal is its own asker's."""

import asyncio

import pytest

from magnum import errors
from magnum.conductor import together


class Work:
    """Doubles numbers, refuses the odd ones above ten, and fails over a whole batch that has a negative one."""

    def __init__(self):
        self.batches = []

    async def __call__(self, asked):
        self.batches.append(list(asked))
        await asyncio.sleep(0)
        if any(number < 0 for number in asked if number != "broken"):
            raise errors.Conflict("negative")
        if "broken" in asked:
            raise TypeError("nobody foresaw this")
        return [errors.Invalid("odd") if number > 10 and number % 2 else number * 2 for number in asked]


async def test_one_alone_waits_for_nothing_and_those_that_come_meanwhile_are_one_batch_each_key_for_itself():
    work = Work()
    one = together.Together(work, most=4)
    answers = await asyncio.gather(*(one.do("a", number) for number in range(7)), one.do("b", 9))
    assert answers == [0, 2, 4, 6, 8, 10, 12, 18]
    assert await one.do("a", 3) == 6
    assert work.batches == [[0, 1, 2, 3], [9], [4, 5, 6], [3]]


async def test_a_refusal_is_its_own_askers_also_if_it_failed_the_batch():
    one = together.Together(Work())
    asked = (1, 13, -1, "broken", 2)
    answers = await asyncio.gather(*(one.do("a", number) for number in asked), return_exceptions=True)
    assert answers[0] == 2 and answers[4] == 4
    assert [type(answer) for answer in answers[1:4]] == [errors.Invalid, errors.Conflict, TypeError]


async def test_what_has_no_database_is_said_to_all_and_not_tried_one_by_one():
    calls = []

    async def away(asked):
        calls.append(asked)
        raise errors.Unavailable("the database does not answer")

    one = together.Together(away)
    answers = await asyncio.gather(*(one.do("a", number) for number in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [errors.Unavailable] * 3
    assert len(calls) == 1


async def test_who_goes_away_ends_nothing():
    work = Work()
    one = together.Together(work)
    task = asyncio.create_task(one.do("a", 1))
    await asyncio.sleep(0)
    other = asyncio.create_task(one.do("a", 2))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await other == 4
    assert sorted(number for batch in work.batches for number in batch) == [1, 2]
