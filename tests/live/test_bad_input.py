"""Bad input on every route: a 4xx that says what is wrong, in the body that clients know; never a 5xx."""

import http.client
import json
import re

import pytest

from magnum.api import app

OPERATIONS = {f"{o.method} {o.path}": o for o in app.OPERATIONS}
UUID = "00000000-0000-4000-8000-000000000000"


def ask(cloud, method, path, body=None, headers=None):
    """Return (status, headers, decoded body); bytes are sent as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    is_json = (answer.headers.get("content-type") or "").startswith("application/json")
    return answer.status, answer.headers, json.loads(raw) if raw and is_json else raw


def refused(answer, status):
    """Check that an answer refuses, by the shape that clients know; return the error."""
    got, headers, body = answer
    assert got == status, (got, body)
    (error,) = body["errors"]
    assert error["status"] == status and error["title"] and error["detail"]
    assert error["code"].startswith("container-infra.")
    assert error["request_id"] == headers["X-Openstack-Request-Id"]
    return error


def path_of(operation, ident=UUID):
    """Return the path of an operation with ``ident`` for whatever it names."""
    return re.sub(r"{\w+}", lambda _: ident, operation.path)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_query_that_nobody_knows_is_refused_by_name(cloud, name):
    operation = OPERATIONS[name]
    error = refused(ask(cloud, operation.method, f"{path_of(operation)}?colour=red"), 400)
    assert error["field"] == "colour"
    assert refused(ask(cloud, operation.method, f"{path_of(operation)}?x=%zz"), 400)


@pytest.mark.parametrize("name", [n for n, o in OPERATIONS.items() if o.body is not None])
def test_a_body_that_is_none_is_refused(cloud, name):
    operation = OPERATIONS[name]
    path = path_of(operation)
    for body in (b"", b"{", b"\xff\xfe", b"nonsense", b"[" * 100_000, b'{"a": NaN}', b'"text"', b"7"):
        refused(ask(cloud, operation.method, path, body), 400)
    error = refused(ask(cloud, operation.method, path, {"no_such_field": 1}), 400)
    assert error["detail"]
    refused(ask(cloud, operation.method, path, b"<xml/>", {"Content-Type": "text/xml"}), 415)
    deep = b'{"labels": ' + b'{"a":' * 500 + b"1" + b"}" * 501
    refused(ask(cloud, operation.method, path, deep), 400)
    refused(ask(cloud, operation.method, path, b" " * (cloud.max_body + 1)), 413)


@pytest.mark.parametrize("name", [n for n, o in OPERATIONS.items() if "{" in o.path])
def test_what_is_not_there_is_not_found(cloud, name):
    operation = OPERATIONS[name]
    body, query = None, ""
    if operation.body is not None:
        body = [{"op": "replace", "path": "/name", "value": "n"}]
    if operation.path.endswith("execute"):
        query = "?command=ls"
    for ident in (UUID, "nobody", "no%20body", "%00", "..", "x" * 300):
        status, _, found = ask(cloud, operation.method, path_of(operation, ident) + query, body)
        assert status in (400, 404, 405), (ident, status, found)
        assert "errors" in found


@pytest.mark.parametrize("path", sorted({o.path for o in app.OPERATIONS}))
def test_a_method_that_a_path_has_not_is_refused(cloud, path):
    taken = {o.method for o in app.OPERATIONS if o.path == path} | {"HEAD", "OPTIONS"}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - taken:
        answer = ask(cloud, method, path.replace("{ident}", UUID))
        # a path with a name in it may be another one's with "detail" for the name
        assert answer[0] in (404, 405), answer
        refused(answer, answer[0])


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"OpenStack-API-Version": "container-infra 9.9"}, 406, "OpenStack-API-Version"),
        ({"OpenStack-API-Version": "container-infra one"}, 400, "OpenStack-API-Version"),
        ({"X-Project-Id": "p" * 300}, 400, "x-project-id"),
        ({"X-Auth-Token": "noauth-%%%"}, 401, None),
        ({"X-Roles": "nobody"}, 403, None),
    ],
)
def test_bad_headers_are_refused(cloud, headers, status, field):
    error = refused(ask(cloud, "GET", "/v1/bays", headers=headers), status)
    assert error.get("field") == field


def test_versions_are_negotiated(cloud):
    _, headers, _ = ask(cloud, "GET", "/v1/bays", headers={"OpenStack-API-Version": "container-infra latest"})
    assert headers["OpenStack-API-Version"] == f"container-infra {headers['OpenStack-API-Maximum-Version'].split()[-1]}"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/baymodels", {"coe": "mesos"}, "coe"),
        ("/v1/baymodels", {"labels": {"a": 1}}, "labels[...]"),
        ("/v1/baymodels", {"name": UUID}, "name"),
        ("/v1/bays", {"baymodel_id": "m", "node_count": "many"}, "node_count"),
        ("/v1/bays", {"baymodel_id": "m", "node_count": 10**30}, "node_count"),
        ("/v1/containers", {"image": " ", "bay_uuid": "b"}, "image"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "memory": "1k"}, "memory"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "cpus": -1}, "cpus"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "command": "sh -c 'open"}, "command"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "environment": {"A=B": "c"}}, "environment"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "ports": ["99999"]}, "ports[0].port"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "restart_policy": "often"}, "restart_policy.name"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "mounts": [{"type": "nfs", "target": "/x"}]},
         "mounts[0].type"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "labels": {"org.openstack.magnum.uuid": "x"}},
         "labels.org.openstack.magnum.uuid"),
        ("/v1/containers", {"image": "i", "bay_uuid": "b", "name": "a/b"}, "name"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(cloud, path, body, field):
    assert refused(ask(cloud, "POST", path, body), 400)["field"] == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"privileged": True}, "privileged"),
        ({"cap_add": ["SYS_ADMIN"]}, "cap_add"),
        ({"devices": ["/dev/kvm"]}, "devices"),
        ({"host_network": True}, "host_network"),
        ({"mounts": [{"type": "bind", "source": "/", "target": "/host"}]}, "mounts[0].type"),
    ],
)
def test_what_only_admins_may_ask_for_is_refused_to_members(cloud, bay, more, field):
    body = {"image": "i", "bay_uuid": "b", **more}
    error = refused(ask(cloud, "POST", "/v1/containers", body, {"X-Roles": "member"}), 403)
    assert error["field"] == field


def test_one_tenants_things_do_not_exist_for_another(cloud, bay):
    stranger = {"X-Project-Id": "stranger", "X-Roles": "member"}
    for method, path, body in (
        ("GET", f"/v1/bays/{bay['uuid']}", None),
        ("DELETE", f"/v1/bays/{bay['uuid']}", None),
        ("PATCH", f"/v1/bays/{bay['uuid']}", [{"op": "replace", "path": "/name", "value": "mine"}]),
        ("POST", "/v1/containers", {"image": "i", "bay_uuid": bay["uuid"]}),
        ("GET", f"/v1/bays/{bay['uuid']}/history", None),
    ):
        refused(ask(cloud, method, path, body, stranger), 404)
    assert ask(cloud, "GET", "/v1/bays", headers=stranger)[2] == {"bays": []}
    refused(ask(cloud, "GET", "/v1/bays?all_projects=1", headers=stranger), 403)
    status, _, _ = ask(cloud, "GET", f"/v1/bays/{bay['uuid']}")
    assert status == 200


def test_a_reader_changes_nothing(cloud, bay):
    reader = {"X-Roles": "reader"}
    assert ask(cloud, "GET", "/v1/bays", headers=reader)[0] == 200
    refused(ask(cloud, "DELETE", f"/v1/bays/{bay['uuid']}", headers=reader), 403)
    refused(ask(cloud, "GET", "/v1/hosts", headers=reader), 403)
