"""Cluster templates beside OpenStack Magnum 23: lists and gets, one api process each, over the same MariaDB and RabbitMQ.

The peer is the release of PyPI in an environment of its own, served by uwsgi, without Keystone and profiler in its
pipeline; its rows are written by its own objects. A create is left out: it asks Glance for the image and Nova for the
keypair, and the test bed has neither.
"""

import asyncio
import collections.abc
import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
import time
import urllib.request

import psutil

from benchmarks import asking, deployments, table
from testbed import base, docker, environments, mariadb, rabbitmq
from tests.deployment import until

NEEDS = (docker, mariadb, rabbitmq)
ENVIRONMENT = environments.ROOT / ".venv-peer"
PACKAGES = pathlib.Path(__file__).with_name("peer-packages.txt")
ITEMS, TURNS = 100, 4
PEER = "OpenStack Magnum 23.0.0"
HEADERS = {"X-Project-Id": "default", "X-User-Id": "admin", "X-Roles": "member,reader,admin", "X-Auth-Token": "any"}
PASTE = """
[pipeline:main]
pipeline = asker http_proxy_to_wsgi request_id api_v1
[filter:asker]
paste.filter_factory = asker:factory
[app:api_v1]
paste.app_factory = magnum.api.app:app_factory
[filter:request_id]
paste.filter_factory = oslo_middleware:RequestId.factory
[filter:http_proxy_to_wsgi]
paste.filter_factory = oslo_middleware.http_proxy_to_wsgi:HTTPProxyToWSGI.factory
oslo_config_project = magnum
"""
ASKER = f"""
HEADERS = {{"HTTP_" + name.upper().replace("-", "_"): value for name, value in {HEADERS!r}.items()}}

def factory(config, **local):
    def filtered(app):
        def serve(environ, start):
            return app({{**HEADERS, **environ}}, start)
        return serve
    return filtered
"""
"""Says who asks, as its clients do not where there is no Keystone."""
FILL = f"""
import sys
from magnum.common import context, service
service.prepare_service(["fill", "--config-file", sys.argv[1]])
from magnum import objects
asker = context.make_context(project_id="default", user_id="admin")
for number in range({ITEMS}):
    made = objects.ClusterTemplate(
        asker, name=f"t{{number}}", project_id="default", user_id="admin", image_id="image", flavor_id="m1.small",
        master_flavor_id="m1.small", keypair_id="key", external_network_id="public", network_driver="flannel", coe="kubernetes",
        docker_storage_driver="overlay2", cluster_distro="fedora-coreos", server_type="vm", labels={{}}, tls_disabled=False,
        public=False, registry_enabled=False, master_lb_enabled=False, floating_ip_enabled=True, hidden=False,
    )
    made.create()
print(made.uuid)
"""


@contextlib.contextmanager
def _peer(folder: pathlib.Path) -> collections.abc.Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """Give (its URL, the uuid of a template, its process)."""
    environments.make(ENVIRONMENT, PACKAGES.read_text().split())
    name = f"peer-{base.TAG}"
    (port,) = base.free_ports(1)
    (folder / "paste.ini").write_text(PASTE)
    (folder / "asker.py").write_text(ASKER)
    database = mariadb.database(name.replace("-", "_")).replace("mysql://", "mysql+pymysql://")
    (folder / "magnum.conf").write_text(
        f"[DEFAULT]\ntransport_url = {rabbitmq.vhost(name).replace('amqp://', 'rabbit://')}\n"
        f"[database]\nconnection = {database}?charset=utf8mb4\n[api]\napi_paste_config = {folder}/paste.ini\n"
        f"[oslo_concurrency]\nlock_path = {folder}\n"
    )
    config = str(folder / "magnum.conf")
    base.run(str(ENVIRONMENT / "bin" / "magnum-db-manage"), "--config-file", config, "upgrade")
    # -P: not from the working folder, as below
    uuid = base.run(str(ENVIRONMENT / "bin" / "python"), "-P", "-c", FILL, config).stdout.split()[-1]
    argv = [
        str(ENVIRONMENT / "bin" / "pyuwsgi"), "--http-socket", f"127.0.0.1:{port}", "--processes", "1", "--threads", "1",
        "--need-app", "--die-on-term", "--buffer-size", "65535", "--listen", "100", "--disable-logging",
        "--module", "magnum.wsgi.api:application", "--pyargv", f"--config-file {config}", "--add-header", "Connection: close",
    ]  # fmt: skip
    with open(folder / "peer.log", "ab") as out:
        # what is named like it in the working folder is ours
        process = subprocess.Popen(
            argv, stdout=out, stderr=out, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "peer.log").read_text()[-2000:]
        request = urllib.request.Request(f"{url}/v1/clustertemplates/{uuid}", headers=HEADERS)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(answer.status == 200)

    try:
        until(answers)
        yield url, uuid, process
    finally:
        process.terminate()
        process.wait(30)


async def _measure(
    ours: str, mine: str, theirs: str, other: str, pids: dict[str, list[int]], seconds: float
) -> list[table.Row]:
    rows = []
    async with asking.session(ours, HEADERS) as magnum, asking.session(theirs, HEADERS) as peer:
        sides = {
            "list of 100": (f"/v1/clustertemplates?limit={ITEMS}",) * 2,
            "get": (f"/v1/clustertemplates/{mine}", f"/v1/clustertemplates/{other}"),
        }
        for client in (magnum, peer):
            page = json.loads(await asking.get(client, sides["list of 100"][0]))
            assert len(page["clustertemplates"]) == ITEMS, len(page["clustertemplates"])
        for what, paths in sides.items():
            reach = ">= 20" if what == "list of 100" else ">= 12"
            for clients in (1, 16):
                loads: dict[str, list[asking.Load]] = {"ours": [], "theirs": []}
                for _ in range(TURNS):
                    for name, client, path in (("ours", magnum, paths[0]), ("theirs", peer, paths[1])):
                        loads[name].append(await asking.at_once(
                            lambda number, client=client, path=path: asking.get(client, path), clients, seconds / TURNS, pids[name]
                        ))  # fmt: skip
                title = (
                    f"{what} of cluster templates, {clients} at once"
                    if what != "get"
                    else f"get of a cluster template, {clients} at once"
                )
                rows.append(table.rates(title, loads["ours"], loads["theirs"], PEER, reach))
                rows.append(
                    table.rates(f"{title}, by processor", loads["ours"], loads["theirs"], PEER, by_processor=True)
                )
    return rows


def _client(url: str, rounds: int) -> list[float]:
    """Return the seconds of the unmodified client's list."""
    argv = [
        str(environments.openstack().parent / "openstack"), "--os-auth-type", "none", "--os-endpoint", f"{url}/v1",
        "coe", "cluster", "template", "list", "-f", "value",
    ]  # fmt: skip
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True)
        took.append(time.perf_counter() - began)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == ITEMS, done
    return took


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: how long each side of each is asked."""
    database = mariadb.database(f"beside_{base.TAG}")
    more = {"database": {"connection": database}}
    with deployments.deployed("beside", more) as cloud, tempfile.TemporaryDirectory() as folder:
        for number in range(ITEMS):
            body = {"name": f"t{number}", "coe": "docker", "labels": {}}
            status, made = cloud.request("POST", "/v1/clustertemplates", body)
            assert status == 201, made
        servers = [base.pid(server) for server in ("mariadb", "rabbitmq")]
        served = [
            child.pid for pid in servers if pid for child in [psutil.Process(pid), *psutil.Process(pid).children(True)]
        ]
        with _peer(pathlib.Path(folder)) as (url, uuid, process):
            pids = {
                "ours": [cloud.processes[n].pid for n in ("api", "conductor")] + served,
                "theirs": [process.pid, *served],
            }
            rows = asyncio.run(_measure(cloud.url, made["uuid"], url, uuid, pids, seconds / 2))
            memory = psutil.Process(process.pid).memory_info().rss / 1e6
            ours = sum(psutil.Process(cloud.processes[n].pid).memory_info().rss for n in ("api", "conductor")) / 1e6
            rows.append(
                table.Row(
                    what="resident memory, api and conductor beside api",
                    unit="MB",
                    ours=ours,
                    beside=memory,
                    peer=PEER,
                )
            )
            mine, other = _client(cloud.url, 5), _client(url, 5)
            rows.append(
                table.medians(
                    "python-magnumclient: `openstack coe cluster template list` of 100", "s", mine, other, PEER
                )
            )
    return rows
