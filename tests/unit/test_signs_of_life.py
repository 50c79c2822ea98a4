"""What a backend says of a machine whose engine answers late, or not at all: it lives, and its engine stands for a while."""

import asyncio

import pytest

from magnum import config, errors
from magnum.backend import server
from magnum.engines import base
from magnum.rpc import local


class Moody(base.Engine):
    """An engine of no machine, that says how it is when and as it is told to."""

    name = "docker"
    drivers = {}
    words = ""

    def __init__(self):
        self.answers = asyncio.Event()
        self.answers.set()

    async def start(self):
        """Nothing."""

    async def close(self):
        """Nothing."""

    async def facts(self):
        await self.answers.wait()
        if self.words:
            raise errors.Unavailable(self.words)
        return {"engines": {self.name: "1"}, "cpus": 2.0}

    async def seen(self):
        return []

    async def watch(self):
        await asyncio.Event().wait()
        yield


@pytest.fixture
def engine():
    return Moody()


@pytest.fixture
def backend(engine, monkeypatch):
    monkeypatch.setattr(server, "FACTS_SECONDS", 0.3)
    conf = config.load([])
    conf.set_override("beat_interval", 0.1, "backend")
    conf.set_override("down_after", 0.6, "backend")
    return server.Server(conf, local.Local(), {engine.name: engine})


async def _until(backend, wanted):
    async with asyncio.timeout(10):
        while True:
            found = await backend.facts()
            if wanted(found):
                return found
            await asyncio.sleep(0.01)


async def test_one_that_is_slow_holds_up_no_sign_of_life(backend, engine):
    assert (await backend.facts()).engines == {"docker": "1"}
    engine.answers.clear()
    found = await backend.facts()
    assert (found.engines, found.cpus, found.problem) == ({"docker": "1"}, 2.0, None)
    engine.answers.set()
    found = await backend.facts()
    assert (found.engines, found.problem) == ({"docker": "1"}, None)


async def test_one_that_does_not_answer_is_told_of_and_then_gone(backend, engine):
    await backend.facts()
    engine.answers.clear()
    found = await _until(backend, lambda facts: facts.problem)
    assert (found.engines, found.problem) == ({"docker": "1"}, "docker: no answer within 0.3 s")
    found = await _until(backend, lambda facts: not facts.engines)
    # why it is gone goes on being told, also while it is asked once more
    assert found.problem == (await backend.facts()).problem == "docker: no answer within 0.3 s"
    engine.answers.set()
    assert (await _until(backend, lambda facts: facts.engines)).problem is None


async def test_one_that_refuses_is_told_of_and_then_gone(backend, engine):
    await backend.facts()
    engine.words = "it is being started"
    found = await backend.facts()
    assert (found.engines, found.problem) == ({"docker": "1"}, "docker: it is being started")
    assert (await _until(backend, lambda facts: not facts.engines)).problem == "docker: it is being started"


async def test_of_one_that_has_never_answered_nothing_is_said_but_why(backend, engine):
    engine.words = "nobody listens"
    found = await backend.facts()
    assert (found.engines, found.problem) == ({}, "docker: nobody listens")
