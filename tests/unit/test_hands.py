"""Whose turn it is: projects in turns, each its own work in order, and no hand lost to one who leaves."""

import asyncio

from magnum import hands


async def test_one_that_asks_for_much_holds_up_its_own_alone():
    few = hands.Hands(2)
    order = []

    async def work(project, number):
        async with few.one(project):
            order.append((project, number))
            await asyncio.sleep(0)

    flood = [asyncio.create_task(work("flood", number)) for number in range(50)]
    await asyncio.sleep(0)
    other = [asyncio.create_task(work("other", number)) for number in range(3)]
    await asyncio.gather(*flood, *other)
    assert [number for project, number in order if project == "flood"] == list(range(50))
    # each of the other's had to wait for one or two of the flood's, and not for fifty
    assert [order.index(("other", number)) for number in range(3)] < [10, 10, 10]
    assert max(order.index(("other", number)) for number in range(3)) < 10


async def test_one_alone_has_all_hands_and_few_while_others_are_about(monkeypatch):
    now = 100.0
    monkeypatch.setattr(hands.time, "monotonic", lambda: now)
    four = hands.Hands(4, 2)
    had = []

    async def hold(project):
        await four.take(project)
        had.append(project)

    # a program's own signs of life are no tenant's: they make nobody share, and are not held to a share
    await four.take("")
    four.release("")
    waiting = [asyncio.create_task(hold("flood")) for _ in range(9)]
    await asyncio.sleep(0)
    assert had == ["flood"] * 4
    waiting.append(asyncio.create_task(hold("other")))
    await asyncio.sleep(0)
    four.release("flood")
    await asyncio.sleep(0)
    assert had[4:] == ["other"]
    # two are the most now: what is given back is not taken again until the flood has but one
    for given in range(3):
        four.release("flood")
        await asyncio.sleep(0)
        assert len(had) == 5 + given, had
    four.release("other")
    # the other has gone; the next that the flood asks for or gives back finds it alone again
    now += hands.ABOUT + 1
    four.release("flood")
    await asyncio.sleep(0)
    assert had[5:] == ["flood"] * 5
    await asyncio.gather(*waiting)
    waiting = [asyncio.create_task(hold("other"))]
    for _ in range(4):
        four.release("flood")
    await asyncio.gather(*waiting)
    async with asyncio.timeout(5):
        for _ in range(3):
            await four.take("")


async def test_who_gives_up_waiting_leaves_no_hand_behind():
    one = hands.Hands(1)
    held = asyncio.Event()

    async def hold():
        async with one.one("a"):
            await held.wait()

    async def want():
        async with one.one("b"):
            return True

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(want()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    held.set()
    await holder
    # it was given just now, and is cancelled before it can run
    waiting[1].cancel()
    assert await asyncio.wait_for(waiting[2], 5)
    assert await asyncio.wait_for(want(), 5)
