"""What every engine does with bays and containers, by one suite: an engine is one more parameter of the fixture."""

import asyncio
import importlib.metadata
import uuid

import pytest

from magnum import config, errors
from magnum.engines.docker import shims
from magnum.objects import container as containers
from testbed import images
from tests import wanted

ACTIONS = ("pause", "unpause", "stop", "start", "reboot")


async def test_a_container_through_its_life(engine):
    bay = await wanted.bay(engine)
    web = wanted.container(engine, bay, power="created")
    assert (await web.apply()).status == "Created"
    assert (await web.apply()).status == "Created"
    assert (await web.act("start")).status == "Running"
    assert (await web.observe()).status == "Running"
    began = web.item.state.started_at
    for action, status in zip(ACTIONS, ("Paused", "Running", "Stopped", "Running", "Running"), strict=True):
        lacking = engine.name == "kubernetes" and action != "start"
        if lacking:
            with pytest.raises(errors.NotSupported, match="Kubernetes"):
                await web.act(action)
        else:
            assert (await web.act(action)).status == status
            assert (await web.observe()).status == status
    assert (web.item.state.started_at == began) == (engine.name == "kubernetes")
    latest = web.item.state.started_at
    # the same intent again, as after a crash: nothing more is done
    assert (await web.apply()).status == "Running"
    assert web.item.state.started_at == latest

    assert {(s.kind, s.uuid) for s in await engine.seen()} == {("bay", bay.item.uuid), ("container", web.item.uuid)}
    await web.remove()
    assert (await web.driver.remove(web.item.uuid, None)).gone
    await bay.remove()
    assert await engine.seen() == []


async def test_an_intent_is_carried_on_with_after_a_crash(engine):
    bay = await wanted.bay(engine)
    web = wanted.container(engine, bay)
    await web.driver.apply(web.item, wanted.ignore)
    engine_id = (await web.apply()).state["engine_id"]
    assert (await web.apply()).state["engine_id"] == engine_id
    assert [s.uuid for s in await engine.seen() if s.kind == "container"] == [web.item.uuid]


async def test_facts(engine):
    facts = await engine.facts()
    assert facts["engines"][engine.name]
    assert facts["cpus"] > 0 and facts["memory"] > 0


async def test_a_watch_begins_with_a_gap_and_tells_of_changes(engine):
    bay = await wanted.bay(engine)
    web = wanted.container(engine, bay)
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

    async def test_updates_in_place(self, docker):
        bay = await wanted.bay(docker)
        web = wanted.container(docker, bay)
        before = await web.apply()
        web.item.spec.memory, web.item.spec.cpus = 64 * 1024 * 1024, 0.5
        web.item.generation += 1
        after = await web.apply()
        assert after.status == "Running"
        assert after.state["engine_id"] == before.state["engine_id"]
        found = await docker.client.inspect(after.state["engine_id"])
        assert (found.host_config.memory, found.host_config.nano_cpus) == (64 * 1024 * 1024, 500_000_000)

    async def test_what_is_refused_is_told_in_dockers_words(self, docker):
        bay = await wanted.bay(docker)
        missing = wanted.container(docker, bay, command=("no-such-command",))
        outcome = await missing.apply()
        assert outcome.status == "Error" and "no-such-command" in outcome.reason
        assert outcome.retry_after is None
        shown = await missing.observe()
        assert (shown.status, shown.retry_after) == ("Error", None)
        # an engine that was away may have said so as it ended: once more
        missing.driver.met()
        assert (await missing.observe()).retry_after == 0.0
        assert (await missing.driver.apply(missing.item, wanted.ignore)).status == "Error"
        assert (await missing.observe()).retry_after is None
        absent = wanted.container(docker, bay, image="127.0.0.1:1/absent:1")
        outcome = await absent.apply()
        assert outcome.status == "Error" and "pulling 127.0.0.1:1/absent:1" in outcome.reason
        assert outcome.retry_after
        assert (await absent.observe()).status == "Error"
        never = wanted.container(docker, bay, image="127.0.0.1:1/absent:1", image_pull_policy="Never")
        outcome = await never.apply()
        assert outcome.status == "Error" and "No such image" in outcome.reason

    async def test_what_ends_stays_ended_and_says_how(self, docker):
        bay = await wanted.bay(docker)
        job = wanted.container(docker, bay, command=("sh", "-c", "exit 3"))
        await job.apply()
        outcome = await job.until("Stopped")
        assert (outcome.state["exit_code"], outcome.reason) == (3, "exited with code 3")
        assert (await job.apply()).status == "Stopped"
        first = job.item.state.started_at
        await job.act("start")
        await job.until("Stopped")
        assert job.item.state.started_at != first

    async def test_a_run_that_the_engine_lost_is_ended_and_another_starts_with_its_files(self, docker):
        bay = await wanted.bay(docker)
        web = wanted.container(docker, bay, command=("sh", "-c", "echo kept >> /file; cat /file; exec sleep 600"))
        ident = (await web.apply()).state["engine_id"]
        other = wanted.container(docker, bay)
        await other.apply()
        # what no engine lets one do on purpose is to lose a run; that it is ended without the engine can be shown
        assert await shims.end(ident)
        await web.until("Stopped")
        assert not await shims.end(ident)
        outcome = await web.act("start")
        assert (outcome.status, outcome.state["engine_id"]) == ("Running", ident)
        async with docker.client.logs(ident, tty=False) as log:
            assert b"".join([part async for _, part in log]).count(b"kept") == 3
        assert (await other.observe()).status == "Running"

    async def test_removed_by_someone_else(self, docker):
        bay = await wanted.bay(docker)
        web = wanted.container(docker, bay)
        await docker.client.remove((await web.apply()).state["engine_id"])
        assert "removed from the engine" in (await web.apply()).reason
        assert (await web.observe()).status == "Error"
        assert (await web.act("start")).status == "Running"

    async def test_another_deployments_container_is_left_alone(self, docker):
        bay = await wanted.bay(docker)
        web = wanted.container(docker, bay)
        name = f"magnum-{web.item.uuid}"
        await docker.client.create(name, {"Image": images.DEMO})
        try:
            assert "not ours" in (await web.apply()).reason
            assert (await web.driver.remove(web.item.uuid, web.item)).gone
            assert (await docker.client.inspect(name)).id
        finally:
            await docker.client.remove(name)

    async def test_bays_are_apart_and_named_within(self, docker):
        one, two = await wanted.bay(docker), await wanted.bay(docker)
        assert one.item.state.subnet != two.item.state.subnet
        server = wanted.container(docker, one, name="server")
        await server.apply()
        (address,) = server.item.state.addresses[one.item.state.network]
        near, far = wanted.container(docker, one, name="near"), wanted.container(docker, two, name="far")
        await near.apply()
        await far.apply()
        listen = await server.driver.stream(
            server.item, wanted.asked("exec", command=["sh", "-c", "while :; do echo hello | nc -l -p 80; done"])
        )
        ask = 'for i in $(seq 100); do r=$(nc -w 2 server 80 </dev/null) && [ -n "$r" ] && echo $r && exit 0; sleep 0.1; done; exit 1'
        assert await wanted.run(near, "sh", "-c", ask) == (b"hello\n", 0)
        said, code = await wanted.run(far, "nc", "-w", "2", address, "80")
        assert said == b"" and code != 0
        await listen.close()
        # the bay tells what keeps it
        outcome = await one.driver.remove(one.item.uuid, one.item)
        assert not outcome.gone and server.item.uuid in outcome.reason

    async def test_a_tenants_container_is_confined(self, docker):
        bay = await wanted.bay(docker)
        mounts = [
            containers.Mount(type="volume", source="data", target="/data"),
            containers.Mount(type="tmpfs", target="/t"),
        ]
        web = wanted.container(docker, bay, mounts=mounts, labels={"a": "b"})
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
        bay = await wanted.bay(docker)
        web = wanted.container(
            docker,
            bay,
            command=("sh", "-c", "echo out; echo err >&2; read line; echo got $line; exit 5"),
            stdin_open=True,
        )
        await web.apply()
        follow = await web.driver.stream(web.item, wanted.asked("logs", follow=True))
        run = await web.driver.stream(
            web.item, wanted.asked("exec", command=["sh", "-c", "cat; echo bad >&2; exit 4"], stdin=True)
        )
        await run.write(b"through\n")
        await run.write(b"")
        assert await wanted.output(run) == {1: b"through\n", 2: b"bad\n"}
        assert await run.exit_code() == 4
        await run.close()
        tty = await web.driver.stream(web.item, wanted.asked("exec", command=["stty", "size"], tty=True))
        assert (await wanted.output(tty))[1].strip()
        await tty.close()

        assert (await web.driver.top(web.item))["processes"]
        assert (await web.driver.stats(web.item))["memory_limit_bytes"] == 2**30

        attach = await web.driver.stream(web.item, wanted.asked("attach", stdin=True))
        await attach.write(b"this\n")
        assert b"got this" in (await wanted.output(attach))[1]
        assert await attach.exit_code() == 5
        await attach.close()
        assert await wanted.output(follow) == {1: b"out\ngot this\n", 2: b"err\n"}
        await follow.close()
        tail = await web.driver.stream(web.item, wanted.asked("logs", tail=1))
        assert (await wanted.output(tail))[1] == b"got this\n"
        await tail.close()
        with pytest.raises(errors.Conflict):
            await web.driver.stream(web.item, wanted.asked("exec", command=["true"]))
        with pytest.raises(errors.Conflict):
            await web.driver.stats(web.item)
