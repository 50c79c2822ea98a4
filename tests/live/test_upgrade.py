"""An upgrade: the database first, under the old programs, then the programs one by one, under load."""

import asyncio
import signal
import threading

import pytest
import sqlalchemy as sa

from magnum.db import schema, store
from testbed import base
from tests.deployment import Deployment, until
from tests.live import conftest

CLIENTS = 3


@pytest.fixture
def rolling(docker_hosts, tmp_path_factory):
    conftest.servers()
    name = f"rolling-{base.TAG}"
    yield from conftest.running(Deployment(name, tmp_path_factory.mktemp("rolling"), docker_hosts[:2]))


class Tenant(threading.Thread):
    """Makes and removes containers for as long as it may; what fails is asked once more, of the other api."""

    def __init__(self, apis, number, image, ended):
        super().__init__()
        self.apis, self.number, self.image, self.ended = apis, number, image, ended
        self.failed, self.retried, self.done = [], 0, 0

    def ask(self, method, path, body=None, good=(200, 201, 202, 204)):
        for turn in (0, 1):
            api = self.apis[(self.number + turn) % 2]
            try:
                status, found = api(method, path, body, {"X-Project-Id": "load"})
            except OSError as error:
                status, found = 0, str(error)
            # a delete whose first try did its work is done
            if status in good or (turn and method == "DELETE" and status == 404):
                return found
            self.retried += 1
        self.failed.append((method, path, status, found))
        return None

    def run(self):
        turn = 0
        while not self.ended.is_set():
            turn += 1
            body = {"name": f"c{self.number}-{turn}", "bay_uuid": "b", "image": self.image, "command": ["sleep", "600"],
                    "start": True, "stop_timeout": 0, "memory": "8m"}  # fmt: skip
            made = self.ask("POST", "/v1/containers?wait=20", body)
            self.ask("GET", "/v1/containers")
            if made is not None:
                self.ask("DELETE", f"/v1/containers/{made['uuid']}?wait=20")
            self.done += 1


def _alter(cloud, *statements):
    async def run():
        engine = store.connect(cloud.settings["database"]["connection"])
        try:
            await schema.change(engine, lambda connection: [connection.execute(sa.text(s)) for s in statements])
        finally:
            await engine.dispose()

    asyncio.run(run())


def test_no_request_fails_twice_while_everything_is_replaced(rolling, docker_hosts):
    cloud = rolling
    asker = {"X-Project-Id": "load"}
    assert cloud.request("POST", "/v1/baymodels", {"name": "m"}, asker)[0] == 201
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m", "node_count": 2}, asker)
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    ended = threading.Event()
    with cloud.another_api("other", {"DEFAULT": {"metrics_port": 0}}) as (port, _), cloud.another_conductor():
        apis = (cloud.request, cloud.at(port))
        tenants = [Tenant(apis, number, docker_hosts[0].image, ended) for number in range(CLIENTS)]
        for tenant in tenants:
            tenant.start()
        try:
            # what a later version adds to the tables is nothing to the programs of this one
            _alter(cloud, "ALTER TABLE containers ADD COLUMN later TEXT", "ALTER TABLE hosts ADD COLUMN later INTEGER",
                   "CREATE TABLE later (id INTEGER)")  # fmt: skip
            assert cloud.manage("db", "upgrade").returncode == 0
            for program in cloud.programs:
                assert cloud.kill(program, signal.SIGTERM) == 0
                # its successor's start takes its time, and the others go on meanwhile
                cloud.start(program)
                until(lambda: cloud.request("GET", "/healthcheck")[0] == 200)
                until(lambda: all(h["status"] == "up" for h in cloud.request("GET", "/v1/hosts")[1]["hosts"]))
                before = [tenant.done for tenant in tenants]
                until(
                    lambda before=before: all(
                        t.done > b or not t.is_alive() for t, b in zip(tenants, before, strict=True)
                    )
                )
        finally:
            ended.set()
            for tenant in tenants:
                tenant.join()
    assert [failure for tenant in tenants for failure in tenant.failed] == []
    assert all(tenant.done > len(cloud.programs) for tenant in tenants)
    assert cloud.request("DELETE", "/v1/bays/b?wait=60", headers=asker)[0] == 204
