"""Deployments of three programs and three hosts for all live tests that need one: believing everyone, and by Keystone."""

import functools

import pytest

from testbed import base, keystone, postgresql, rabbitmq
from tests.deployment import Deployment, keystone_authtoken


@pytest.fixture(scope="session")
def cloud(docker_hosts, tmp_path_factory):
    with base.lock(base.FOLDER / "lock"):
        for component in (postgresql, rabbitmq):
            component.install()
            component.up(0)
    found = Deployment(f"programs-{base.TAG}", tmp_path_factory.mktemp("programs"), docker_hosts)
    try:
        # each waits for the others: the order does not matter
        found.start(*reversed(found.programs))
        found.ready()
        yield found
        for made in found.request("GET", "/v1/bays?all_projects=1")[1]["bays"]:
            found.request("DELETE", f"/v1/bays/{made['uuid']}?wait=60&all_projects=1")
    finally:
        codes = found.stop()
    assert set(codes.values()) == {0}
    found.must_not_tell()


@pytest.fixture(scope="session")
def bay(cloud):
    assert cloud.request("POST", "/v1/baymodels", {"name": "m"})[0] == 201
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m"})
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
    with base.lock(base.FOLDER / "lock"):
        for component in (postgresql, rabbitmq):
            component.install()
            component.up(0)
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
    try:
        found.start()
        found.ready()
        yield found
        for made in found.request("GET", "/v1/bays?all_projects=1")[1]["bays"]:
            found.request("DELETE", f"/v1/bays/{made['uuid']}?wait=60&all_projects=1")
    finally:
        codes = found.stop()
    assert set(codes.values()) == {0}
    found.must_not_tell(identity.secret_words())
