"""What every engine does with bays and containers, by one suite: an engine is one more parameter of the fixture."""

import asyncio
import importlib.metadata
import uuid

import pytest

from magnum import config, errors
from magnum.objects import base
from magnum.objects import bay as bays
from magnum.objects import container as containers
from magnum.rpc import backend
from testbed import images


@pytest.fixture(params=["docker"])
async def engine(request, tmp_path):
    options = {"docker__url": request.getfixturevalue("docker_host").url} if request.param == "docker" else {}
    conf = config.load([], state_dir=str(tmp_path), deployment=f"t{uuid.uuid4().hex[:8]}", **options)
    (point,) = importlib.metadata.entry_points(group="magnum.engines", name=request.param)
    made = point.load()(conf)
    await made.start()
    yield made
    kinds = {"container": 0, "bay": 1}
    for seen in sorted(await made.seen(), key=lambda s: kinds[s.kind]):
        await made.drivers[seen.kind].remove(seen.uuid, None)
    await made.close()


async def _ignore(outcome):
    return None


class Wanted:
    """An object as the conductor has it, applied and reported."""

    def __init__(self, engine, item):
        self.engine, self.item = engine, item
        self.driver = engine.drivers["bay" if isinstance(item, bays.Bay) else "container"]

    async def apply(self):
        outcome = await self.driver.apply(self.item, _ignore)
        return self._report(outcome)

    async def observe(self):
        return self._report(await self.driver.observe(self.item))

    async def act(self, action):
        containers.act(self.item, action)
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
        for _ in range(600):
            outcome = await self.driver.remove(self.item.uuid, self.item)
            if outcome.gone:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(outcome.reason)


async def _bay(engine):
    spec = bays.BaySpec(baymodel_id=base.new_uuid(), members=["here"])
    bay = Wanted(engine, bays.Bay(uuid=base.new_uuid(), project_id="p", status="CREATE_IN_PROGRESS", spec=spec))
    assert (await bay.apply()).status == "CREATE_COMPLETE"
    return bay


def _container(engine, bay, name="web", command=("sleep", "1000"), **fields):
    fields = {"image": images.DEMO, "stop_timeout": 0, "power": "running"} | fields
    spec = containers.ContainerSpec(command=list(command), **fields)
    return Wanted(
        engine,
        containers.Container(
            uuid=base.new_uuid(), name=name, project_id="p", bay_uuid=bay.item.uuid, status="Creating", spec=spec
        ),
    )


def _asked(verb, **fields):
    return backend.StreamAsked(verb=verb, url="", ticket="", **fields)


async def _output(session):
    found = {1: b"", 2: b""}
    async for channel, data in session.read():
        found[channel] += data
    return found


async def _run(wanted, *command):
    """Return (stdout, exit code) of a command in a container."""
    session = await wanted.driver.stream(wanted.item, _asked("exec", command=list(command)))
    try:
        return (await _output(session))[1], await session.exit_code()
    finally:
        await session.close()


async def test_a_container_through_its_life(engine):
    bay = await _bay(engine)
    web = _container(engine, bay, power="created")
    assert (await web.apply()).status == "Created"
    assert (await web.apply()).status == "Created"
    for action, status in (("start", "Running"), ("pause", "Paused"), ("unpause", "Running"), ("stop", "Stopped")):
        assert (await web.act(action)).status == status
        assert (await web.observe()).status == status
    ended = web.item.state.started_at
    assert web.item.state.exit_code is not None
    assert (await web.act("start")).status == "Running"
    first = web.item.state.started_at
    assert first != ended
    await web.act("reboot")
    rebooted = web.item.state.started_at
    assert rebooted != first
    # the same intent again, as after a crash: nothing more is done
    assert (await web.apply()).status == "Running"
    assert web.item.state.started_at == rebooted

    assert {(s.kind, s.uuid) for s in await engine.seen()} == {("bay", bay.item.uuid), ("container", web.item.uuid)}
    await web.remove()
    assert (await web.driver.remove(web.item.uuid, None)).gone
    await bay.remove()
    assert await engine.seen() == []


async def test_an_intent_is_carried_on_with_after_a_crash(engine):
    bay = await _bay(engine)
    web = _container(engine, bay)
    await web.driver.apply(web.item, _ignore)
    engine_id = (await web.apply()).state["engine_id"]
    assert (await web.apply()).state["engine_id"] == engine_id
    assert [s.uuid for s in await engine.seen() if s.kind == "container"] == [web.item.uuid]


async def test_updates_in_place(engine):
    bay = await _bay(engine)
    web = _container(engine, bay)
    before = await web.apply()
    web.item.spec.memory, web.item.spec.cpus = 64 * 1024 * 1024, 0.5
    web.item.generation += 1
    after = await web.apply()
    assert after.status == "Running"
    assert after.state["engine_id"] == before.state["engine_id"]
    if engine.name == "docker":
        found = await engine.client.inspect(after.state["engine_id"])
        assert (found.host_config.memory, found.host_config.nano_cpus) == (64 * 1024 * 1024, 500_000_000)


async def test_facts(engine):
    facts = await engine.facts()
    assert facts["engines"][engine.name]
    assert facts["cpus"] > 0 and facts["memory"] > 0


async def test_a_watch_begins_with_a_gap_and_tells_of_changes(engine):
    bay = await _bay(engine)
    web = _container(engine, bay)
    watch = engine.watch()
    async with asyncio.timeout(60):
        assert (await anext(watch)).uuid == ""
        await web.apply()
        async for notice in watch:
            if notice.uuid == web.item.uuid:
                assert notice.kind == "container"
                break
    await watch.aclose()


class TestDocker:
    """What Docker alone can show."""

    @pytest.fixture
    async def docker(self, docker_host, tmp_path):
        conf = config.load(
            [], state_dir=str(tmp_path), deployment=f"t{uuid.uuid4().hex[:8]}", docker__url=docker_host.url
        )
        (point,) = importlib.metadata.entry_points(group="magnum.engines", name="docker")
        made = point.load()(conf)
        yield made
        for seen in sorted(await made.seen(), key=lambda s: s.kind == "bay"):
            await made.drivers[seen.kind].remove(seen.uuid, None)
        await made.close()

    async def test_what_is_refused_is_told_in_dockers_words(self, docker):
        bay = await _bay(docker)
        missing = _container(docker, bay, command=("no-such-command",))
        outcome = await missing.apply()
        assert outcome.status == "Error" and "no-such-command" in outcome.reason
        assert outcome.retry_after is None
        assert (await missing.observe()).status == "Error"
        absent = _container(docker, bay, image="127.0.0.1:1/absent:1")
        outcome = await absent.apply()
        assert outcome.status == "Error" and "pulling 127.0.0.1:1/absent:1" in outcome.reason
        assert outcome.retry_after
        assert (await absent.observe()).status == "Error"
        never = _container(docker, bay, image="127.0.0.1:1/absent:1", image_pull_policy="Never")
        outcome = await never.apply()
        assert outcome.status == "Error" and "No such image" in outcome.reason

    async def test_what_ends_stays_ended_and_says_how(self, docker):
        bay = await _bay(docker)
        job = _container(docker, bay, command=("sh", "-c", "exit 3"))
        await job.apply()
        outcome = await job.until("Stopped")
        assert (outcome.state["exit_code"], outcome.reason) == (3, "exited with code 3")
        assert (await job.apply()).status == "Stopped"
        first = job.item.state.started_at
        await job.act("start")
        await job.until("Stopped")
        assert job.item.state.started_at != first

    async def test_removed_by_someone_else(self, docker):
        bay = await _bay(docker)
        web = _container(docker, bay)
        await docker.client.remove((await web.apply()).state["engine_id"])
        assert "removed from the engine" in (await web.apply()).reason
        assert (await web.observe()).status == "Error"
        assert (await web.act("start")).status == "Running"

    async def test_another_deployments_container_is_left_alone(self, docker):
        bay = await _bay(docker)
        web = _container(docker, bay)
        name = f"magnum-{web.item.uuid}"
        await docker.client.create(name, {"Image": images.DEMO})
        try:
            assert "not ours" in (await web.apply()).reason
            assert (await web.driver.remove(web.item.uuid, web.item)).gone
            assert (await docker.client.inspect(name)).id
        finally:
            await docker.client.remove(name)

    async def test_bays_are_apart_and_named_within(self, docker):
        one, two = await _bay(docker), await _bay(docker)
        assert one.item.state.subnet != two.item.state.subnet
        server = _container(docker, one, name="server")
        await server.apply()
        (address,) = server.item.state.addresses[one.item.state.network]
        near, far = _container(docker, one, name="near"), _container(docker, two, name="far")
        await near.apply()
        await far.apply()
        listen = await server.driver.stream(
            server.item, _asked("exec", command=["sh", "-c", "while :; do echo hello | nc -l -p 80; done"])
        )
        ask = 'for i in $(seq 100); do r=$(nc -w 2 server 80 </dev/null) && [ -n "$r" ] && echo $r && exit 0; sleep 0.1; done; exit 1'
        assert await _run(near, "sh", "-c", ask) == (b"hello\n", 0)
        said, code = await _run(far, "nc", "-w", "2", address, "80")
        assert said == b"" and code != 0
        await listen.close()
        # the bay tells what keeps it
        outcome = await one.driver.remove(one.item.uuid, one.item)
        assert not outcome.gone and server.item.uuid in outcome.reason

    async def test_a_tenants_container_is_confined(self, docker):
        bay = await _bay(docker)
        mounts = [
            containers.Mount(type="volume", source="data", target="/data"),
            containers.Mount(type="tmpfs", target="/t"),
        ]
        web = _container(docker, bay, mounts=mounts, labels={"a": "b"})
        ident = (await web.apply()).state["engine_id"]
        raw = await docker.client.request("GET", f"/containers/{ident}/json", into=dict)
        host = raw["HostConfig"]
        assert host["SecurityOpt"] == ["no-new-privileges"] and not host["Privileged"]
        assert {"NET_RAW", "MKNOD"} <= {c.removeprefix("CAP_") for c in host["CapDrop"]}
        assert host["PidsLimit"] == 4096 and host["Memory"] == 2**30
        assert raw["Config"]["Labels"]["a"] == "b"
        await web.remove()
        await bay.remove()
        assert await docker.client.volumes([f"org.openstack.magnum.uuid={bay.item.uuid}"]) == []

    async def test_logs_exec_and_attach(self, docker):
        bay = await _bay(docker)
        web = _container(
            docker,
            bay,
            command=("sh", "-c", "echo out; echo err >&2; read line; echo got $line; exit 5"),
            stdin_open=True,
        )
        await web.apply()
        follow = await web.driver.stream(web.item, _asked("logs", follow=True))
        run = await web.driver.stream(
            web.item, _asked("exec", command=["sh", "-c", "cat; echo bad >&2; exit 4"], stdin=True)
        )
        await run.write(b"through\n")
        await run.write(b"")
        assert await _output(run) == {1: b"through\n", 2: b"bad\n"}
        assert await run.exit_code() == 4
        await run.close()
        tty = await web.driver.stream(web.item, _asked("exec", command=["stty", "size"], tty=True))
        assert (await _output(tty))[1].strip()
        await tty.close()

        assert (await web.driver.top(web.item))["processes"]
        assert (await web.driver.stats(web.item))["memory_limit_bytes"] == 2**30

        attach = await web.driver.stream(web.item, _asked("attach", stdin=True))
        await attach.write(b"this\n")
        assert b"got this" in (await _output(attach))[1]
        assert await attach.exit_code() == 5
        await attach.close()
        assert await _output(follow) == {1: b"out\ngot this\n", 2: b"err\n"}
        await follow.close()
        tail = await web.driver.stream(web.item, _asked("logs", tail=1))
        assert (await _output(tail))[1] == b"got this\n"
        await tail.close()
        with pytest.raises(errors.Conflict):
            await web.driver.stream(web.item, _asked("exec", command=["true"]))
        with pytest.raises(errors.Conflict):
            await web.driver.stats(web.item)
