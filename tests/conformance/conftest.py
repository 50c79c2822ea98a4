"""The engine that the suites of engines speak to: one more engine is one more parameter."""

import importlib.metadata
import uuid

import pytest

from magnum import config
from testbed import images
from tests import wanted


@pytest.fixture(params=["docker"])
async def engine(request, tmp_path):
    options = {
        "docker__url": request.getfixturevalue("docker_host").url, "docker__pause_image": images.PAUSE,
        "docker__pause_command": images.PAUSE_COMMAND, "docker__restart_backoff": 0.5,
    }  # fmt: skip
    conf = config.load([], state_dir=str(tmp_path), deployment=f"t{uuid.uuid4().hex[:8]}", **options)
    (point,) = importlib.metadata.entry_points(group="magnum.engines", name=request.param)
    made = point.load()(conf)
    await made.start()
    yield made
    kinds = {"container": 0, "pod": 0, "service": 0, "bay": 1}
    for seen in sorted(await made.seen(), key=lambda s: kinds[s.kind]):
        await wanted.gone(made.drivers[seen.kind], seen.uuid, None)
    await made.close()
