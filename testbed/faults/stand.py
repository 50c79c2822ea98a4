"""What the bench stands on: three hosts with small disks, a broker, a database, and Magnum's programs on them.

A backend runs in its host's network namespace, so that the host can be cut off.
"""

import pathlib

from testbed import base, docker, images, mariadb, postgresql, rabbitmq, register
from tests import conftest
from tests.deployment import Deployment

HOSTS = 3
TENANTS = ("north", "east", "south", "west")
WATCHER = "watcher"
DATABASES = {"postgresql": postgresql, "mariadb": mariadb}
LEAVES = 4
"""How often an engine is told to leave its swarm."""
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Stand(Deployment):
    """The programs under test. ``skewed``: program → seconds that its clock is ahead."""

    def __init__(self, folder: pathlib.Path, name: str, database: str) -> None:
        self.skewed: dict[str, float] = {}
        self.database = DATABASES[database]
        broker = rabbitmq.vhost(name)
        address = base.facts("docker")["address"]
        each = {
            host.name: {
                "DEFAULT": {"transport_url": broker.replace("@127.0.0.1:", f"@{address}:")},
                "backend": {"labels": f"name:{host.name}"},
            }
            for host in conftest.hosts()
        }
        more = {
            "database": {"connection": self.database.database(name)},
            "docker": {"default_memory": "32m", "restart_backoff": 0.5, "restart_backoff_max": 4},
            "backend": {"resync_interval": 20},
        }
        super().__init__(name, folder, conftest.hosts(), more, each=each, headers=lambda: {"X-Project-Id": WATCHER})

    def words(self, name):
        return self.hosts[name].enter if name in self.hosts else []

    def environment(self, name):
        if name not in self.skewed:
            return {}
        return {"LD_PRELOAD": FAKETIME, "FAKETIME": f"{self.skewed[name]:+.0f}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def clear(self) -> None:
        """Remove what the run left on the engines: the next has their disks."""
        for host in self.hosts.values():
            mark = f"label=org.openstack.magnum.deployment={self.name}"
            ids = base.run("docker", "-H", host.url, "ps", "-aq", "--filter", mark).stdout.split()
            if ids:
                base.run("docker", "-H", host.url, "rm", "-f", *ids, check=False)
            base.run("docker", "-H", host.url, "network", "prune", "-f", check=False)

    def bay_of(self, host: str) -> str:
        """Return the name of the watcher's bay on a host."""
        return f"watch-{self.hosts[host].name}"

    def bays(self) -> None:
        """Make the bays that all else is made in: two a tenant, one of one host and one of two; and the watcher's."""
        for tenant in (WATCHER, *TENANTS):
            asker = {"X-Project-Id": tenant}
            self._made("baymodels", {"name": "m"}, asker)
            if tenant == WATCHER:
                for host in self.hosts.values():
                    model = {"name": f"on-{host.name}", "labels": {"host.name": host.name}}
                    self._made("baymodels", model, asker)
                    self._made("bays", {"name": f"watch-{host.name}", "baymodel_id": model["name"]}, asker)
            else:
                self._made("bays", {"name": "one", "baymodel_id": "m"}, asker)
                self._made("bays", {"name": "wide", "baymodel_id": "m", "node_count": 2}, asker)

    def _made(self, plural: str, body: dict, asker: dict) -> None:
        status, found = self.request("POST", f"/v1/{plural}?wait=60", body, asker)
        if status != 201:
            raise base.Failed(f"POST {plural} {body}: {status} {found}")


def install() -> None:
    for component in (docker, rabbitmq, postgresql, mariadb):
        component.install()
    base.apt({"faketime": FAKETIME, "nftables": "nft"})


def up(database: str) -> None:
    """Have the servers up. Raises Failed."""
    install()
    with base.lock(base.FOLDER / "lock"):
        register.enter()
        docker.up(HOSTS, small=True)
        rabbitmq.up()
        for component in {postgresql, DATABASES[database]}:
            component.up(0)
    for host in conftest.hosts():
        _leave(host)


def _leave(host: conftest.Host) -> None:
    """Have a host's engine in no swarm: not even in one that it comes back to when it starts. Raises Failed."""
    for _ in range(LEAVES):
        left = base.run("docker", "-H", host.url, "swarm", "leave", "-f", check=False)
        if "not part of a swarm" in left.stderr:
            return
        if left.returncode:
            # it stopped half way: what it has on its disk would be a swarm again
            docker.stop(host.name)
            docker.start(host.name)
    raise base.Failed(f"the engine of {host.name} does not leave its swarm: {left.stderr}")


def down() -> None:
    for component in (docker, rabbitmq, postgresql, mariadb):
        component.down()
    register.leave()


IMAGE = images.DEMO
