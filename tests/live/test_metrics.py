"""What every program tells Prometheus: each queue, call, engine operation and how far the engines lag behind the wishes."""

import json
import pathlib
import re

import prometheus_client

from magnum import metrics
from tests.deployment import until


def _sum(found, name, **labels):
    wanted = set(labels.items())
    return sum(value for (named, shown), value in found.items() if named == name and wanted <= shown)


def test_a_container_is_followed_through_all_programs(cloud, bay, docker_hosts):
    (host,) = bay["hosts"]
    before = {name: cloud.metrics(name) for name in ("api", "conductor", host)}
    body = {"bay_uuid": "b", "name": "counted", "image": docker_hosts[0].image, "command": ["sleep", "600"],
            "start": True, "stop_timeout": 0}  # fmt: skip
    status, made = cloud.request("POST", "/v1/containers?wait=60", body)
    assert (status, made["status"]) == (201, "Running"), made

    def grown(program, name, **labels):
        return _sum(cloud.metrics(program), name, **labels) - _sum(before[program], name, **labels)

    assert grown("api", "magnum_api_requests_total", route="/v1/containers", status="201") == 1
    assert grown("api", "magnum_rpc_call_seconds_count", method="create", outcome="ok") >= 1
    assert grown("conductor", "magnum_rpc_served_seconds_count", method="create", outcome="ok") >= 1
    assert grown("conductor", "magnum_conductor_transaction_seconds_count", kind="write", outcome="ok") >= 2
    assert (
        grown("conductor", "magnum_operation_seconds_count", kind="container", action="create", outcome="completed")
        >= 1
    )
    assert (
        grown(host, "magnum_engine_seconds_count", engine="docker", kind="container", call="apply", outcome="ok") >= 1
    )
    assert grown(host, "magnum_backend_convergence_seconds_count", kind="container") >= 1
    assert grown(host, "magnum_rpc_call_seconds_count", method="report", outcome="ok") >= 1
    assert _sum(cloud.metrics(host), "magnum_backend_objects") >= 2
    until(lambda: _sum(cloud.metrics("conductor"), "magnum_objects", kind="container", status="Running") >= 1)
    assert _sum(cloud.metrics("conductor"), "magnum_hosts", status="up") == 3
    # a refusal is counted by its code
    assert cloud.request("GET", "/v1/containers/nothing")[0] == 404
    assert grown("conductor", "magnum_rpc_served_seconds_count", method="get", outcome="not-found") == 1
    # a change that cannot be done yet is seen to grow old
    cloud.kill(host)
    assert cloud.request("PUT", f"/v1/containers/{made['uuid']}/stop?wait=0")[0] == 202
    until(lambda: _sum(cloud.metrics("conductor"), "magnum_operations_oldest_seconds") > 1)
    assert _sum(cloud.metrics("conductor"), "magnum_operations_open", kind="container") >= 1
    cloud.start(host)
    until(lambda: cloud.request("GET", f"/v1/containers/{made['uuid']}")[1]["status"] == "Stopped")
    until(lambda: _sum(cloud.metrics("conductor"), "magnum_operations_open", kind="container") == 0)
    assert cloud.request("DELETE", f"/v1/containers/{made['uuid']}?wait=60")[0] == 204


def test_the_dashboard_shows_what_there_is():
    """Every metric that the dashboard draws is one of ours, and every one of ours is drawn."""
    path = pathlib.Path(__file__).parents[2] / "etc" / "grafana-dashboard.json"
    board = json.loads(path.read_text())
    drawn = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    named = {re.sub(r"_(total|count|sum|bucket)\Z", "", word) for word in re.findall(r"magnum_\w+", drawn)}
    ours = {
        family.name for each in vars(metrics).values()
        if isinstance(each, prometheus_client.metrics.MetricWrapperBase) for family in each.describe()
    }  # fmt: skip
    assert named == ours
