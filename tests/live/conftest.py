"""Deployments of three programs and three hosts for all live tests that need one: believing everyone, and by Keystone."""

import functools

import pytest

from testbed import base, keystone, postgresql, rabbitmq
from tests.deployment import Deployment, keystone_authtoken


def servers():
    with base.lock(base.FOLDER / "lock"):
        for component in (postgresql, rabbitmq):
            component.install()
            component.up(0)


def running(made, secrets=set):
    """Give ``made``, started; end it with its bays gone and no secret told in its logs, ``secrets()`` among them."""
    try:
        # each waits for the others: the order does not matter
        made.start(*reversed(made.programs))
        made.ready()
        yield made
        for bay in made.request("GET", "/v1/bays?all_projects=1")[1]["bays"]:
            made.request("DELETE", f"/v1/bays/{bay['uuid']}?wait=60&all_projects=1")
    finally:
        codes = made.stop()
    assert set(codes.values()) == {0}
    made.must_not_tell(secrets())


@pytest.fixture(scope="session")
def cloud(docker_hosts, tmp_path_factory):
    servers()
    yield from running(Deployment(f"programs-{base.TAG}", tmp_path_factory.mktemp("programs"), docker_hosts))


@pytest.fixture(scope="session")
def bay(cloud):
    assert cloud.request("POST", "/v1/baymodels", {"name": "m"})[0] == 201
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    return made


@pytest.fixture(scope="session")
def slices(kubernetes_cluster, tmp_path_factory):
    """A deployment with two backends that have the same cluster, and no other."""
    servers()
    name = f"slices-{base.TAG}"
    yield from running(Deployment(name, tmp_path_factory.mktemp("slices"), [], keepers=2))


@pytest.fixture(scope="session")
def slice(slices):
    """A bay of it."""
    assert slices.request("POST", "/v1/baymodels", {"name": "k", "coe": "kubernetes"})[0] == 201
    status, made = slices.request("POST", "/v1/bays?wait=60", {"name": "s", "baymodel_id": "k"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    return made


@pytest.fixture(scope="session")
def identity():
    """The test bed's Keystone, as a module."""
    keystone.install()
    with base.lock(base.FOLDER / "lock"):
        keystone.up()
    return keystone


@pytest.fixture(scope="session")
def guarded(identity, docker_hosts, tmp_path_factory):
    """A deployment whose askers Keystone knows; asked as ``alpha-admin`` unless a test says otherwise."""
    servers()
    name = f"guarded-{base.TAG}"
    asked = functools.cache(identity.token)
    found = Deployment(
        name, tmp_path_factory.mktemp("guarded"), docker_hosts,
        {
            "DEFAULT": {"debug": True},
            "api": {"auth_strategy": "keystone"},
            "keystone_authtoken": keystone_authtoken(),
            "audit": {"notifications": True, "exchange": name, "topic": name},
        },
        headers=lambda: {"X-Auth-Token": asked("alpha-admin")},
    )  # fmt: skip
    identity.register(f"{found.url}/v1", name)
    yield from running(found, identity.secret_words)


TALK = ["sh", "-c", "trap exit TERM; n=0; while :; do n=$((n+1)); echo line $n; echo oops $n >&2; sleep 0.1; done"]


@pytest.fixture
def talker(cloud, bay, docker_hosts):
    body = {"bay_uuid": "b", "image": docker_hosts[0].image, "command": TALK, "start": True}
    status, made = cloud.request("POST", "/v1/containers?wait=60", body)
    assert (status, made["status"]) == (201, "Running"), made
    yield made
    assert cloud.request("DELETE", f"/v1/containers/{made['uuid']}?wait=60")[0] == 204
