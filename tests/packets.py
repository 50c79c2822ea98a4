"""Containers that serve and ask on real engines, for tests that prove by packets."""

import asyncio
import contextlib
import pathlib
import subprocess
import sys
import uuid
from typing import Any

from magnum import config, errors
from magnum.clients import docker, nftables
from magnum.engines import base
from magnum.engines.docker import service, wiring
from magnum.networks import names
from testbed import base as testbed
from testbed import images

ANSWER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5353))
while True:
    s.sendto(sys.argv[1].encode(), s.recvfrom(100)[1])
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 4444))
s.settimeout(0.5)
for _ in range(20):
    try:
        s.sendto(b"?", (sys.argv[1], int(sys.argv[2])))
        print(s.recv(100).decode())
        break
    except OSError:
        pass
"""


def hosts(count: int) -> list[dict[str, Any]]:
    """Return so many hosts of the test bed, each with an engine of its own, started if need be."""
    # in a process of its own, which does not outlive what it starts
    command = [sys.executable, "-m", "testbed", "up", "docker", "--hosts", str(count)]
    done = subprocess.run(command, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = testbed.facts("docker")["hosts"]
    return found[:count]


class Bay:
    """A bay's network on one host, made by hand, and containers on it."""

    def __init__(self, client: docker.Client, socket: str, image: str, bay: str, state_dir: pathlib.Path) -> None:
        self.client = client
        self.socket = socket
        self.image = image
        self.uuid = bay
        self.state_dir = state_dir
        self.name = f"magnum-{bay}"
        self.hosts = names.Names(str(state_dir))
        # of the bay's own: what one test leaves by failing is no other's
        self.deployment = f"packets-{bay[:8]}"
        self.conf = config.load([], deployment=self.deployment)
        self.labels = {base.DEPLOYMENT: self.deployment, base.BAY: bay, base.UUID: bay, base.KIND: "bay"}
        self.ips: dict[str, str] = {}
        self.ids: list[str] = []
        self.tasks: list[asyncio.Task[str]] = []

    def services(self) -> service.Service:
        return service.Service(self.client, self.conf, self.hosts, wiring.Wiring(self.client, self.conf, self.hosts))

    async def container(self, name: str, command: list[str] | None = None) -> str:
        """Start a container of the bay and return its address."""
        ident = await self.client.create(f"{name}-{self.uuid[:8]}", {
            "Image": self.image, "Cmd": command or ["sleep", "100000"], "Labels": {"packets": self.uuid},
            "HostConfig": {"NetworkMode": self.name, "Mounts": [self.hosts.mount(self.uuid)], "Init": True},
            "NetworkingConfig": {"EndpointsConfig": {self.name: {"Aliases": [name]}}},
        })  # fmt: skip
        self.ids.append(ident)
        await self.client.start(ident)
        found = await self.client.inspect(ident)
        self.ips[name] = next(e.ip_address for e in (found.network_settings.networks or {}).values())
        return self.ips[name]

    async def serve(self, name: str) -> None:
        """Start a container that answers HTTP on port 8080 with its name, and wait until it does."""
        await self.container(name, ["sh", "-c", f"mkdir -p /tmp/www; echo -n {name} > /tmp/www/index.html; "
                                    "exec httpd -f -p 8080 -h /tmp/www"])  # fmt: skip
        for _ in range(300):
            if await self.fetch(name, "127.0.0.1:8080") == name:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{name} serves nothing")

    async def serve_udp(self, name: str) -> None:
        """Have every datagram to the container's port 5353 answered with its name."""
        self.tasks.append(asyncio.create_task((await self.inside(name)).run(sys.executable, "-c", ANSWER, name)))

    async def inside(self, name: str) -> nftables.Namespace:
        found = await self.client.inspect(f"{name}-{self.uuid[:8]}")
        return nftables.Namespace(found.state.pid)

    async def run(self, name: str, *command: str) -> tuple[str, str]:
        """Return what a command in a container prints: (stdout, stderr)."""
        ident = await self.client.exec_create(
            f"{name}-{self.uuid[:8]}", {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
        )
        stream = await self.client.exec_start(ident, tty=False)
        out = {1: b"", 2: b""}
        while (frame := await stream.read()) is not None:
            out[frame[0]] += frame[1]
        await stream.close()
        return out[1].decode(), out[2].decode()

    async def fetch(self, name: str, where: str) -> str:
        """Return the page that a container gets, empty if none within three seconds."""
        return (await self.run(name, "timeout", "3", "wget", "-qO-", f"http://{where}/"))[0].strip()

    async def words(self, name: str, where: str) -> str:
        return (await self.run(name, "timeout", "3", "wget", "-qO-", f"http://{where}/"))[1].strip()

    async def ask_udp(self, name: str, address: str, port: int) -> str:
        """Return the answer to a datagram sent always from the same port, again every half second for ten at most."""
        return (await (await self.inside(name)).run(sys.executable, "-c", ASK, address, str(port))).strip()

    async def fetch_from_host(self, url: str) -> str:
        engine = nftables.Namespace(nftables.engine_process(self.socket))
        return (await engine.run("curl", "-sm5", url, allowed=tuple(range(100)))).strip()

    async def host_address(self) -> str:
        """Return an address of the engine's host that is none of Docker's."""
        engine = nftables.Namespace(nftables.engine_process(self.socket))
        for address, interface in (await engine.addresses()).items():
            if interface != "lo" and not interface.startswith(("br-", "docker", "veth")):
                return address.partition("/")[0]
        raise AssertionError("the host has no address of its own")

    async def clear(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for ident in self.ids:
            with contextlib.suppress(errors.NotFound):
                await self.client.remove(ident)
        for uuid_ in [s.uuid for s in await self.services().seen()]:
            await self.services().remove(uuid_, None)


@contextlib.asynccontextmanager
async def bay(host, state_dir):
    """Give a bay with a bridge network on ``host`` and remove it after."""
    client = docker.Client(host["url"])
    made = Bay(client, host["socket"], images.DEMO, str(uuid.uuid4()), state_dir)
    try:
        await client.create_network({"Name": made.name, "Driver": "bridge", "Labels": made.labels})
        await made.hosts.ensure(made.uuid)
        yield made
    finally:
        await made.clear()
        with contextlib.suppress(errors.NotFound):
            await client.remove_network(made.name)
        await client.close()
