"""The engine that the suites of engines speak to: one more engine is one more parameter."""

import importlib.metadata
import uuid

import pytest

from magnum import config
from testbed import images
from tests import wanted


def _options(name, request):
    if name == "docker":
        return {
            "docker__url": request.getfixturevalue("docker_host").url, "docker__pause_image": images.PAUSE,
            "docker__pause_command": images.PAUSE_COMMAND, "docker__restart_backoff": 0.5,
        }  # fmt: skip
    facts = request.getfixturevalue("kubernetes_cluster")
    return {
        "kubernetes__clusters": {"main": facts["kubeconfig"]}, "kubernetes__client_ca": {"main": facts["tenants_ca"]},
        "kubernetes__client_ca_key": {"main": facts["tenants_ca_key"]},
    }  # fmt: skip


async def _running(name, request, tmp_path):
    """Give an engine of a deployment of its own; end it with nothing left."""
    options = _options(name, request)
    conf = config.load([], state_dir=str(tmp_path), deployment=f"t{uuid.uuid4().hex[:8]}", **options)
    (point,) = importlib.metadata.entry_points(group="magnum.engines", name=name)
    made = point.load()(conf)
    await made.start()
    await wanted.answers(made)
    yield made
    kinds = {"rc": 0, "container": 0, "pod": 0, "service": 0, "bay": 1}
    for seen in sorted(await made.seen(), key=lambda s: kinds[s.kind]):
        await wanted.gone(made.drivers[seen.kind], seen.uuid, None)
    assert await made.seen() == []
    await made.close()


@pytest.fixture(params=["docker", "kubernetes"])
async def engine(request, tmp_path):
    async for made in _running(request.param, request, tmp_path):
        yield made


@pytest.fixture
async def kubernetes(request, tmp_path):
    async for made in _running("kubernetes", request, tmp_path):
        yield made
