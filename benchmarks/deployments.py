"""Magnum on the first host of the test bed, as the benchmarks ask it: three programs, or all in one."""

import collections.abc
import contextlib
import pathlib
import signal
import subprocess
import tempfile
import time
import uuid
from typing import Any

from testbed import base, images
from tests.conftest import Host, hosts
from tests.deployment import BIN, Deployment, until


class Standalone(Deployment):
    """The same questions, asked of magnum-standalone."""

    def __init__(self, folder: pathlib.Path, host: Host) -> None:
        self.folder, self.hosts, self.processes = folder, {}, {}
        (self.port,) = base.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "magnum.conf").write_text(
            f"[DEFAULT]\ndeployment = bench-{uuid.uuid4().hex[:8]}\n"
            f"[docker]\npause_image = {images.PAUSE}\npause_command = {','.join(images.PAUSE_COMMAND)}\n"
        )
        self.argv = [
            str(BIN / "magnum-standalone"), f"--port={self.port}", f"--state-dir={folder / 'state'}",
            f"--docker={host.url}", f"--config-file={folder / 'magnum.conf'}",
        ]  # fmt: skip

    def start(self) -> float:
        """Start; return the seconds until a request was answered."""
        started = time.monotonic()
        with open(self.folder / "standalone.log", "ab") as out:
            self.processes["standalone"] = subprocess.Popen(self.argv, stdout=out, stderr=out)
        until(lambda: self.request("GET", "/v1/bays")[0] == 200)
        seconds = time.monotonic() - started
        until(lambda: self.request("GET", "/healthcheck")[0] == 200)
        return seconds


def bay(cloud: Deployment) -> dict[str, object]:
    """Have the bay ``bench``; return it."""
    cloud.request("POST", "/v1/baymodels", {"name": "bench"})
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "bench", "baymodel_id": "bench"})
    assert status == 201, made
    return made


@contextlib.contextmanager
def deployed(name: str, more: dict[str, dict[str, Any]] | None = None) -> collections.abc.Iterator[Deployment]:
    """Give three programs that answer; ``more``: group → option → value."""
    with tempfile.TemporaryDirectory() as folder:
        cloud = Deployment(f"{name}-{base.TAG}", pathlib.Path(folder), hosts()[:1], more)
        cloud.start()
        try:
            cloud.ready()
            yield cloud
        finally:
            cloud.stop()


@contextlib.contextmanager
def standalone() -> collections.abc.Iterator[Standalone]:
    """Give a magnum-standalone that answers."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Standalone(pathlib.Path(folder), hosts()[0])
        alone.start()
        try:
            yield alone
        finally:
            alone.kill("standalone", signal.SIGTERM)
