"""Objects as the conductor has them, applied to an engine and reported, for the suites of engines."""

import asyncio
import contextlib

from magnum import errors, objects
from magnum.engines import base as engines
from magnum.objects import base
from magnum.objects import bay as bays
from magnum.objects import container as containers
from magnum.objects import pod as pods
from magnum.rpc import backend
from testbed import images


class Ignore(engines.Progress):
    """Hears what a driver tells, and never has another wish."""

    async def __call__(self, outcome):
        return None

    async def overtaken(self):
        await asyncio.Event().wait()


ignore = Ignore()


class Wanted:
    """An object as the conductor has it, applied and reported."""

    def __init__(self, engine, item):
        self.engine, self.item = engine, item
        self.driver = engine.drivers[objects.kind_of(item).name]

    async def apply(self):
        """Apply, and go on in rounds, as a backend does, until the engine has settled."""
        outcome = self._report(await self.driver.apply(self.item, ignore))
        for _ in range(600):
            if not outcome.pending:
                return outcome
            await asyncio.sleep(0.05)
            outcome = await self.observe()
            if outcome.retry_after == 0:
                outcome = self._report(await self.driver.apply(self.item, ignore))
        raise AssertionError(f"is {outcome.status} ({outcome.reason}): {outcome.state}")

    async def observe(self):
        return self._report(await self.driver.observe(self.item))

    async def act(self, action):
        containers.act_on(self.item, action, self.engine.name)
        self.item.generation += 1
        self.item.status = containers.ASKED[action]
        return await self.apply()

    def _report(self, outcome):
        self.item.status, self.item.status_reason = outcome.status, outcome.reason
        self.item.state = base.convert(outcome.state, type(self.item.state))
        self.item.observed_generation = self.item.generation
        return outcome

    async def until(self, status):
        for _ in range(600):
            outcome = await self.observe()
            if outcome.status == status:
                return outcome
            await asyncio.sleep(0.05)
        raise AssertionError(f"is {outcome.status} ({outcome.reason}), not {status}")

    async def remove(self):
        await gone(self.driver, self.item.uuid, self.item)

    async def settle(self, fits):
        """Go on in rounds, as a backend does, until what shows ``fits`` (a function of the object)."""
        outcome = await self.apply()
        for _ in range(600):
            if fits(self.item):
                return outcome
            await asyncio.sleep(0.05)
            outcome = await self.observe()
            if outcome.retry_after == 0:
                outcome = await self.apply()
        raise AssertionError(f"is {outcome.status} ({outcome.reason}): {outcome.state}")


async def gone(driver, uuid, item):
    """Remove, as often as it takes."""
    for _ in range(1200):
        outcome = await driver.remove(uuid, item)
        if outcome.gone:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(outcome.reason)


async def bay(engine, cluster=None, **fields):
    spec = bays.BaySpec(baymodel_id=base.new_uuid(), members=["here"], engine=engine.name, **fields)
    if engine.name == "kubernetes":
        spec.cluster = cluster or next(iter(engine.clusters))
    bay = Wanted(engine, bays.Bay(uuid=base.new_uuid(), project_id="p", status="CREATE_IN_PROGRESS", spec=spec))
    made = await bay.apply()
    assert made.status == "CREATE_COMPLETE", made.reason
    return bay


def container(engine, bay, name="web", command=("sleep", "1000"), **fields):
    fields = {"image": images.DEMO, "stop_timeout": 0, "power": "running"} | fields
    spec = containers.ContainerSpec(command=list(command), **fields)
    return Wanted(
        engine,
        containers.Container(
            uuid=base.new_uuid(), name=name, project_id="p", bay_uuid=bay.item.uuid, status="Creating", spec=spec
        ),
    )


def asked(verb, **fields):
    return backend.StreamAsked(verb=verb, url="", ticket="", **fields)


async def output(session):
    found = {1: b"", 2: b""}
    async for channel, data in session.read():
        found[channel] += data
    return found


async def run(wanted, *command):
    """Return (stdout, exit code) of a command in a container."""
    session = await wanted.driver.stream(wanted.item, asked("exec", command=list(command)))
    try:
        return (await output(session))[1], await session.exit_code()
    finally:
        await session.close()


def pod(engine, bay, name="p", controller=None, **spec):
    """Return a pod of a manifest's ``spec``; a container without an image has the test bed's."""
    for each in (*spec.get("containers", []), *spec.get("initContainers", [])):
        each.setdefault("image", images.DEMO)
    spec = {"terminationGracePeriodSeconds": 0} | spec
    labels = {"app": name}
    data = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    parsed = pods.of(data, engine=engine.name)[1]
    item = pods.Pod(
        uuid=base.new_uuid(), name=name, project_id="p", bay_uuid=bay.item.uuid, host="here", status="Creating",
        generation=1, spec=parsed,
    )  # fmt: skip
    return Wanted(engine, item)


async def answers(engine):
    """Return once an engine that was just started tells of itself."""
    for _ in range(200):
        with contextlib.suppress(errors.Unavailable):
            return await engine.facts()
        await asyncio.sleep(0.05)
    raise AssertionError(f"{engine.name} does not answer")
