"""What several folders of tests share: the hosts of the test bed."""

import dataclasses

import pytest

from testbed import base, docker, images, kubernetes, neutron


@dataclasses.dataclass(frozen=True)
class Host:
    """One host of the test bed: its engine's socket and its address on the common bridge."""

    name: str
    address: str
    socket: str
    image: str = images.DEMO

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def enter(self) -> list[str]:
        """The words that run a command on it; others once it was ended and started again."""
        return next(found["enter"] for found in base.facts("docker")["hosts"] if found["name"] == self.name)


def hosts() -> list[Host]:
    """Return the hosts of a test bed that is up."""
    return [
        Host(name=found["name"], address=found["address"], socket=found["socket"])
        for found in base.facts("docker")["hosts"]
    ]


@pytest.fixture(scope="session")
def docker_hosts() -> list[Host]:
    """Three hosts, each with an engine and the test images, in no swarm."""
    docker.install()
    with base.lock(base.FOLDER / "lock"):
        docker.up(3)
    for host in hosts():
        base.run("docker", "-H", host.url, "swarm", "leave", "-f", check=False)
    return hosts()


@pytest.fixture
def docker_host(docker_hosts) -> Host:
    return docker_hosts[0]


@pytest.fixture(scope="session")
def networking(docker_hosts):
    """The test bed's Neutron, as a module; agents are on the first two of ``docker_hosts``."""
    neutron.install()
    with base.lock(base.FOLDER / "lock"):
        neutron.up()
    return neutron


@pytest.fixture(scope="session")
def kubernetes_cluster() -> dict:
    """What the test bed tells of its Kubernetes cluster, which is up."""
    kubernetes.install()
    with base.lock(base.FOLDER / "lock"):
        kubernetes.up()
    return base.facts("kubernetes")


@pytest.fixture(scope="session")
def networking_node(networking, kubernetes_cluster):
    """As ``networking``, with an agent on the cluster's node, too."""
    with base.lock(base.FOLDER / "lock"):
        networking.up()
    return networking
