"""What the Docker engine decides without an engine: steps, words, addresses, images, versions."""

import asyncio

import aiohttp.web
import msgspec
import pytest

from magnum import config, errors
from magnum.clients import docker
from magnum.engines import base as engines
from magnum.engines import docker as docker_engine
from magnum.engines.docker import container, images
from magnum.networks import docker as networks
from magnum.objects import container as containers

CONF = config.load([])
FIRST, LATER = "2026-01-01T00:00:00.1Z", "2026-01-01T00:00:09.9Z"


def _spec(power, **fields):
    return containers.ContainerSpec(image="i", power=power, **fields)


ALWAYS = {"restart_policy": containers.RestartPolicy(name="always")}


def _seen(status, started=FIRST, error="", **limits):
    spec = _spec("running", **limits)
    wanted = container.limits(CONF, spec)
    host = docker.HostConfig(
        memory=wanted["Memory"], memory_swap=wanted["MemorySwap"], nano_cpus=wanted["NanoCpus"],
        pids_limit=wanted["PidsLimit"], restart_policy=docker.RestartRule(name=spec.restart_policy.name),
    )  # fmt: skip
    if status == "created":
        started = docker.NEVER
    return docker.ContainerInfo(
        id="x", state=docker.RunState(status=status, started_at=started, error=error), host_config=host
    )


@pytest.mark.parametrize(
    ("spec", "seen", "steps"),
    [
        (_spec("created"), None, ["create"]),
        (_spec("running"), None, ["create", "start"]),
        (_spec("paused"), None, ["create", "start", "pause"]),
        (_spec("created"), _seen("created"), []),
        (_spec("running"), _seen("created"), ["start"]),
        (_spec("running"), _seen("running"), []),
        (_spec("running"), _seen("restarting"), []),
        (_spec("running"), _seen("paused"), ["unpause"]),
        # it ended by itself: it stays so, unless a start was asked of that very run
        (_spec("running"), _seen("exited"), []),
        (_spec("running", start_of=FIRST), _seen("exited"), ["start"]),
        (_spec("running", start_of=FIRST), _seen("exited", LATER), []),
        # what its engine could not start again is welcome if its policy says so
        (_spec("running", **ALWAYS), _seen("exited", error="no rootfs", **ALWAYS), ["start"]),
        (_spec("running", **ALWAYS), _seen("exited", **ALWAYS), []),
        (_spec("running"), _seen("exited", error="no rootfs"), []),
        (_spec("running", start_of=FIRST), _seen("running"), []),
        (_spec("running", reboot_of=FIRST), _seen("running"), ["restart"]),
        (_spec("running", reboot_of=FIRST), _seen("paused"), ["unpause", "restart"]),
        (_spec("running", reboot_of=FIRST), _seen("exited"), ["restart"]),
        (_spec("running", reboot_of=FIRST), _seen("running", LATER), []),
        (_spec("stopped"), _seen("running"), ["stop"]),
        (_spec("stopped"), _seen("restarting"), ["stop"]),
        (_spec("stopped"), _seen("paused"), ["unpause", "stop"]),
        (_spec("stopped"), _seen("exited"), []),
        (_spec("paused"), _seen("running"), ["pause"]),
        (_spec("paused"), _seen("exited"), []),
        (_spec("running"), _seen("dead"), []),
        (_spec("running", memory=2**26), _seen("running"), ["update"]),
        (_spec("running", memory=2**26), _seen("running", memory=2**26), []),
    ],
)
def test_steps(spec, seen, steps):
    assert container.steps(spec, seen, container.limits(CONF, spec)) == steps


@pytest.mark.parametrize(
    ("state", "power", "status", "words"),
    [
        (docker.RunState(status="created"), "created", "Created", None),
        (docker.RunState(status="created", error="no such file"), "running", "Error", "no such file"),
        (docker.RunState(status="running", health=docker.Health(status="unhealthy")), "running", "Running", "health"),
        (docker.RunState(status="paused"), "paused", "Paused", None),
        (docker.RunState(status="restarting", exit_code=1), "running", "Restarting", "code 1"),
        (docker.RunState(status="exited", exit_code=143), "stopped", "Stopped", "SIGTERM"),
        (docker.RunState(status="exited", exit_code=137, oom_killed=True), "running", "Stopped", "memory"),
        (docker.RunState(status="exited", error="port is already allocated"), "running", "Error", "port"),
        (docker.RunState(status="dead", error="busy"), "running", "Dead", "busy"),
        (docker.RunState(status="removing"), "running", "Deleting", "removing"),
    ],
)
def test_every_state_of_docker_has_a_word_and_a_reason(state, power, status, words):
    item = containers.Container(uuid="u", spec=_spec(power))
    outcome = container.outcome(item, docker.ContainerInfo(id="x", state=state))
    assert outcome.status == status
    assert (outcome.reason is None) if words is None else (words in outcome.reason)


def test_a_bays_addresses_meet_nothing_that_is_there(tmp_path):
    assert next(networks.free("10.96.0.0/12", 24, ["10.96.0.0/23", "fd00::/64"])) == "10.96.2.0/24"
    assert list(networks.free("10.96.0.0/24", 24, ["10.0.0.0/8"])) == []
    table = tmp_path / "route"
    table.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
        "br0 0000600A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
    )
    assert networks.routes(str(table)) == ["10.96.0.0/24"]


@pytest.mark.parametrize(
    ("image", "split", "registry"),
    [
        ("busybox", ("busybox", "latest"), "docker.io"),
        ("a/b:1", ("a/b", "1"), "docker.io"),
        ("r.example:5000/a/b", ("r.example:5000/a/b", "latest"), "r.example:5000"),
        ("localhost/a@sha256:00", ("localhost/a", "sha256:00"), "localhost"),
    ],
)
def test_references_of_images(image, split, registry):
    assert docker.split_image(image) == split
    assert docker.registry_of(image) == registry


def test_credentials_are_those_of_the_images_registry():
    conf = config.load([])
    conf.set_override("registry_auth", {"r.example": "5000:me/se/cret", "docker.io": "you/word"}, "docker")
    assert docker.credentials_for("r.example:5000/a", conf.docker.registry_auth) == ("me", "se/cret")
    assert docker.credentials_for("r.example/a", {"r.example": "me/x"}) == ("me", "x")
    assert docker.credentials_for("busybox", conf.docker.registry_auth) == ("you", "word")
    assert docker.credentials_for("other.example/a", conf.docker.registry_auth) is None


def test_progress_of_a_pull_is_a_sentence():
    progress = images.Progress("i:1")
    mb = 1_000_000
    assert progress.add(docker.PullLine(status="Pulling from i", id="1")) == "pulling i:1"
    progress.add(docker.PullLine(status="Already exists", id="a"))
    detail = docker._Detail(current=45 * mb, total=120 * mb)
    assert progress.add(docker.PullLine(status="Downloading", id="b", progress=detail)) == (
        "pulling i:1: 1 of 2 layers, 45 MB of 120 MB"
    )
    assert progress.add(docker.PullLine(status="Pull complete", id="b")).startswith("pulling i:1: 2 of 2 layers")


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken"), [("1.12", "1.41", "1.41"), ("1.44", "1.52", "1.44"), ("1.50", "1.60", "1.50")]
)
async def test_the_api_version_is_one_that_both_know(tmp_path, lowest, highest, spoken):
    async def version(request):
        return aiohttp.web.json_response({"Version": "x", "ApiVersion": highest, "MinAPIVersion": lowest})

    async def info(request):
        return aiohttp.web.json_response({"ServerVersion": request.match_info["v"]})

    app = aiohttp.web.Application()
    app.router.add_get("/version", version)
    app.router.add_get("/v{v}/info", info)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.UnixSite(runner, str(tmp_path / "s")).start()
    client = docker.Client(f"unix://{tmp_path}/s")
    try:
        assert (await client.info()).server_version == spoken
        with pytest.raises(errors.NotFound):
            await client.inspect("x")
    finally:
        await client.close()
        await runner.cleanup()


async def test_a_watch_goes_on_after_a_gap_and_says_so(tmp_path):
    """The engine ends the stream after one event of ours and some of others."""
    mine, uuid = (
        engines.labels("d", containers.Container(uuid="u", bay_uuid="b", spec=_spec("running")), "container"),
        "u",
    )
    events = [
        {"Type": "container", "Action": "die", "Actor": {"ID": "1", "Attributes": {engines.DEPLOYMENT: "other", engines.UUID: "x"}}},
        {"Type": "network", "Action": "destroy", "Actor": {"ID": "2", "Attributes": {"name": "bridge"}}},
        {"Type": "container", "Action": "die", "Actor": {"ID": "3", "Attributes": mine}},
    ]  # fmt: skip

    async def version(request):
        return aiohttp.web.json_response({"Version": "x", "ApiVersion": "1.41"})

    async def stream(request):
        return aiohttp.web.Response(body=b"".join(msgspec.json.encode(e) + b"\n" for e in events))

    app = aiohttp.web.Application()
    app.router.add_get("/version", version)
    app.router.add_get("/v1.41/events", stream)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.UnixSite(runner, str(tmp_path / "s")).start()
    engine = docker_engine.Docker(config.load([], docker__url=f"unix://{tmp_path}/s", deployment="d"))
    watch = engine.watch()
    try:
        async with asyncio.timeout(60):
            found = [await anext(watch) for _ in range(4)]
        assert found == [engines.Notice(), engines.Notice(kind="container", uuid=uuid)] * 2
    finally:
        await watch.aclose()
        await engine.close()
        await runner.cleanup()


async def test_an_engine_that_is_away_is_unavailable_and_tcp_needs_mutual_tls(tmp_path):
    client = docker.Client(f"unix://{tmp_path}/none")
    with pytest.raises(errors.Unavailable):
        await client.info()
    await client.close()
    for url in ("tcp://h:2375", "ssh://h", "unix://"):
        with pytest.raises(errors.Invalid):
            docker.Client(url)
