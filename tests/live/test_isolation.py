"""Who may do what, on every route: a table of route, asker and whose object; each cell is one request with a real token.

``EXPECTED`` is written by hand from the design, not from the policy: a route that
is not in it fails the first test. The askers' roles are the test bed's.
"""

import base64
import collections
import concurrent.futures
import json
import os
import re

import pytest

from magnum.api import app, sockets
from testbed import base, images
from tests.deployment import ask, until

READ, WRITE, ADMIN, OWN, PUBLIC, HIDDEN = "read", "write", "admin", "own", "public", "hidden"
"""What a route is: reads one project's; changes one project's; is an admin's; is everyone's who has a project;
asks for no token; is there under noauth alone."""

EXPECTED = {
    "GET /": PUBLIC, "GET /v1": PUBLIC, "GET /healthcheck": PUBLIC, "GET /metrics": PUBLIC, "GET /openapi.json": PUBLIC,
    "GET /docs": PUBLIC, "GET /identity": HIDDEN, "GET /identity/v3": HIDDEN, "POST /identity/v3/auth/tokens": HIDDEN,
    **{
        f"{method} /v1/{plural}{path}": what
        for plural in ("baymodels", "bays", "containers", "pods", "services", "rcs", "clusters", "clustertemplates")
        for method, path, what in (
            ("POST", "", WRITE), ("GET", "", READ), ("GET", "/detail", READ), ("GET", "/{ident}", READ),
            ("PATCH", "/{ident}", WRITE), ("DELETE", "/{ident}", WRITE), ("GET", "/{ident}/history", READ),
            ("GET", "/{ident}/explain", READ),
        )
        if not (plural.startswith("cluster") and path.endswith(("history", "explain")))
    },
    **{f"PUT /v1/containers/{{ident}}/{verb}": WRITE
       for verb in ("start", "stop", "reboot", "pause", "unpause", "execute")},
    **{f"GET /v1/containers/{{ident}}/{what}": READ for what in ("logs", "stats", "top")},
    "GET /v1/pods/{ident}/logs": READ, "PUT /v1/pods/{ident}/execute": WRITE,
    "POST /v1/clusters/{ident}/actions/resize": WRITE, "POST /v1/clusters/{ident}/actions/upgrade": WRITE,
    "GET /v1/clusters/{ident}/nodegroups": READ, "GET /v1/clusters/{ident}/nodegroups/{group}": READ,
    "POST /v1/clusters/{ident}/nodegroups": WRITE, "PATCH /v1/clusters/{ident}/nodegroups/{group}": WRITE,
    "DELETE /v1/clusters/{ident}/nodegroups/{group}": WRITE,
    "GET /v1/quotas": OWN, "GET /v1/quotas/{project}/{resource}": READ, "GET /v1/stats": OWN,
    "POST /v1/quotas": ADMIN, "PATCH /v1/quotas/{project}/{resource}": ADMIN,
    "DELETE /v1/quotas/{project}/{resource}": ADMIN,
    "POST /v1/certificates": WRITE, "GET /v1/certificates/{ident}": READ, "PATCH /v1/certificates/{ident}": WRITE,
    "PATCH /v1/credentials/{ident}": WRITE,
    "GET /v1/mservices": ADMIN, "GET /v1/hosts": ADMIN, "GET /v1/hosts/{ident}": ADMIN,
    "GET /v1/events": OWN, "GET /v1/operations/{ident}": READ, "POST /v1/operations/{ident}/cancel": WRITE,
    "POST /v1/operations/{ident}/retry": WRITE,
    "WS /v1/containers/{ident}/attach": WRITE, "WS /v1/containers/{ident}/exec": WRITE,
    "WS /v1/pods/{ident}/attach": WRITE, "WS /v1/pods/{ident}/exec": WRITE,
}  # fmt: skip

ADMINS = ("alpha-admin", "beta-admin", "gamma-admin", "system-admin")
ASKERS = (
    *(f"{project}-{role}" for project in ("alpha", "beta", "gamma") for role in ("admin", "manager", "member", "reader")),
    "system-admin", "system-reader", "magnum", "unscoped", "no token", "no such token",
)  # fmt: skip
WRITERS = ("admin", "manager", "member")
ADMITTED = {200, 201, 202, 204, 101, 409}
"""409: let in, and told what has no meaning or not now."""

SUFFIXES = {"pods": "pod", "services": "service", "rcs": "rc", "containers": "container", "bays": "bay",
            "baymodels": "baymodel", "clusters": "bay", "clustertemplates": "baymodel"}  # fmt: skip


def routes():
    return [*(f"{o.method} {o.path}" for o in app.OPERATIONS), *(f"WS {path}" for path in sockets.PATHS)]


def test_every_route_is_in_the_table():
    found = routes()
    assert len(found) == len(set(found))
    assert set(EXPECTED) == set(found)


def send(cloud, name, path, token, body=None):
    """Return (status, decoded body or None); of a stream the beginning alone."""
    method = name.partition(" ")[0]
    headers = {"X-Auth-Token": token} if token else {}
    if method == "WS":
        method = "GET"
        headers |= {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}  # fmt: skip
    status, _, found = ask(cloud.port, method, path, headers, body)
    return status, found


class Alpha:
    """One object of each kind of the project alpha, and new ones as cells need them."""

    def __init__(self, cloud):
        self.cloud = cloud
        self.made = collections.Counter()
        self.baymodel = self.new("baymodel")
        self.bay = self.new("bay", wait=60)
        self.container = self.new("container", wait=60)
        self.operation = until(lambda: cloud.request("GET", f"/v1/containers/{self.container}/history")[1]["events"])[
            0
        ]["request_id"]
        self.pod, self.service, self.rc = (self.new(kind, wait=60) for kind in ("pod", "service", "rc"))
        assert cloud.request("PUT", f"/v1/containers/{self.container}/start?wait=60")[1]["status"] == "Running"
        until(lambda: cloud.request("GET", f"/v1/pods/{self.pod}")[1]["status"] == "Running")
        self.host = cloud.request("GET", "/v1/hosts")[1]["hosts"][0]["uuid"]

    def body(self, kind):
        """Return a good body of a new object with a name that no other has."""
        self.made[kind] += 1
        name = f"{kind}-{self.made[kind]}"
        if kind == "baymodel":
            return {"name": name}
        if kind == "bay":
            return {"name": name, "baymodel_id": self.baymodel}
        if kind == "container":
            return {"name": name, "bay_uuid": self.bay, "image": images.DEMO, "command": "sleep 600", "stop_timeout": 0}
        spec = {
            "pod": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": images.DEMO, "command": ["sleep", "600"]}]},
            "service": {"selector": {"app": name}, "ports": [{"port": 80}]},
            "rc": {"replicas": 0, "selector": {"app": name}, "template": {
                "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": images.DEMO}]}}},
        }[kind]  # fmt: skip
        kinds = {"pod": "Pod", "service": "Service", "rc": "ReplicationController"}
        manifest = {"apiVersion": "v1", "kind": kinds[kind], "metadata": {"name": name}, "spec": spec}
        return {"bay_uuid": self.bay, "manifest": json.dumps(manifest)}

    def new(self, kind, wait=0):
        """Return the uuid of a new object."""
        status, found = self.cloud.request("POST", f"/v1/{kind}s?wait={wait}", self.body(kind))
        assert status == 201 or not wait, json.dumps(found, indent=1)
        return found["uuid"]

    def request(self, name, *, fresh):
        """Return (path, body) for a route: what is deleted is ``fresh`` made, and another's stays."""
        method, _, path = name.partition(" ")
        plural = path.split("/")[2] if path.count("/") > 1 else ""
        kind = SUFFIXES.get(plural)
        body = None
        ident = getattr(self, kind) if kind else self.bay
        if kind and method == "DELETE" and path.endswith("{ident}") and fresh:
            ident = self.new(kind)
        if plural == "operations":
            ident = self.operation
        if plural == "hosts":
            ident = self.host
        words = {"ident": ident, "group": "default-worker", "project": base.facts("keystone")["projects"]["alpha"],
                 "resource": "pods"}  # fmt: skip
        if method == "POST" and kind and path == f"/v1/{plural}":
            body = self.body(kind)
            if plural == "clusters":
                body = {"name": body["name"], "cluster_template_id": self.baymodel}
        elif path.endswith("/actions/resize"):
            body = {"node_count": 1}
        elif path.endswith("/actions/upgrade"):
            body = {"cluster_template": self.baymodel}
        elif path.endswith("/nodegroups") and method == "POST":
            body = {"name": "more"}
        elif plural == "quotas" and method in ("POST", "PATCH"):
            body = {"hard_limit": 900}
            if method == "POST":
                body |= {"project_id": words["project"], "resource": "pods"}
        elif plural == "certificates" and method == "POST":
            body = {"bay_uuid": self.bay, "csr": "a request"}
        elif method == "PATCH" and plural not in ("certificates", "credentials"):
            shown = self.cloud.request("GET", f"/v1/{plural}/{ident}")[1]
            body = [{"op": "test", "path": "/name", "value": shown["name"]}]
        path = re.sub(r"{(\w+)}", lambda match: words[match[1]], path)
        if path.endswith(("/execute", "/exec")):
            path += "?command=true"
        return path, body


def wanted(name, asker, everywhere):
    """Return the statuses that a cell may have. ``everywhere``: whether all projects are asked for."""
    what = EXPECTED[name]
    path = name.partition(" ")[2]
    project, _, role = asker.partition("-")
    if what == PUBLIC:
        return {200}
    if what == HIDDEN:
        return {404, 400}
    if asker.startswith("no "):
        return {401}
    if asker in ("unscoped", "system-reader"):
        return {403}
    admin = asker in ADMINS
    if what == ADMIN:
        if name.startswith("DELETE /v1/quotas"):
            return {204, 404} if admin else {403}
        return ADMITTED if admin else {403}
    service = asker == "magnum"
    if not (admin or service) and (everywhere or (what == WRITE and role not in WRITERS)):
        return {403}
    if service and what == WRITE:
        return {403}
    if what == OWN or (
        what == READ and path.endswith(("s", "s/detail")) and path.count("/") - path.count("/detail") == 2
    ):
        return {200}
    if "/quotas/" in path:
        return {200} if admin or service or project == "alpha" else {403}
    if project == "alpha" or everywhere:
        return ADMITTED
    # a new model is a project's own thing: whoever writes may make one
    if name in ("POST /v1/baymodels", "POST /v1/clustertemplates"):
        return {201} if asker != "system-admin" else {403}
    if asker == "system-admin" and name in ("POST /v1/bays", "POST /v1/clusters", "POST /v1/containers"):
        return {403}
    return {404}


def takes_all_projects(name):
    method, _, path = name.partition(" ")
    query = next((o.query for o in app.OPERATIONS if (o.method, o.path) == (method, path)), None)
    creates = method == "POST" and path in [f"/v1/{plural}" for plural in SUFFIXES]
    return query is not None and "all_projects" in query.__struct_fields__ and not creates


@pytest.fixture(scope="module")
def alpha(guarded):
    """What alpha has; all that the cells made goes in the end, so that other tests find an empty cloud."""
    yield Alpha(guarded)
    for plural in ("bays", "baymodels"):
        for item in guarded.request("GET", f"/v1/{plural}?all_projects=1")[1][plural]:
            path = f"/v1/{plural}/{item['uuid']}?wait=80&all_projects=1"
            assert guarded.request("DELETE", path)[0] in (204, 404)


@pytest.fixture(scope="module")
def tokens(identity):
    found = {"no token": None, "no such token": "gAAAAAB" + "x" * 180}
    for asker in ASKERS:
        if asker not in found:
            scope = {"unscoped": "unscoped"}.get(asker, "system" if asker.startswith("system") else "project")
            found[asker] = identity.token("alpha-member" if asker == "unscoped" else asker, scope)
    return found


def standing(cloud, alpha):
    """Return the objects of alpha as its owner sees them, less what time alone changes."""
    found = {}
    for plural in ("baymodels", "bays", "containers", "pods", "services", "rcs"):
        for item in cloud.request("GET", f"/v1/{plural}")[1][plural]:
            found[item["uuid"]] = (item["name"], item.get("generation"), item.get("status"))
    return found


@pytest.mark.timeout(600)
def test_every_cell(guarded, alpha, tokens, capsys):
    """First whoever is to be refused, after which nothing may have changed; then who is to be let in."""
    table = [
        (name, asker, everywhere)
        for name in routes() for asker in ASKERS for everywhere in (False, True)
        if not everywhere or (takes_all_projects(name) and not asker.startswith("no "))
    ]  # fmt: skip
    wrong, seen = [], collections.Counter()

    def cell(name, asker, everywhere, fresh):
        path, body = alpha.request(name, fresh=fresh)
        if everywhere:
            path += ("&" if "?" in path else "?") + "all_projects=1"
        if fresh and EXPECTED[name] == WRITE and not name.startswith("WS"):
            query = next(o.query for o in app.OPERATIONS if f"{o.method} {o.path}" == name)
            if query is not None and "wait" in query.__struct_fields__:
                path += ("&" if "?" in path else "?") + "wait=0"
        status, found = send(guarded, name, path, tokens[asker], body)
        seen[status] += 1
        if status not in wanted(name, asker, everywhere):
            wrong.append((name, asker, "everywhere" if everywhere else "", status, str(found)[:150]))
        if EXPECTED[name] == READ and not asker.startswith(("alpha", "no ")) and not everywhere:
            # whatever is answered to a stranger, nothing of alpha's is in it
            for uuid in (alpha.bay, alpha.container, alpha.pod, alpha.service, alpha.rc, alpha.baymodel):
                # a refusal repeats what was asked for
                if uuid in json.dumps(found) and uuid not in path:
                    wrong.append((name, asker, "shows", uuid))
        return found

    before = standing(guarded, alpha)
    refused = [row for row in table if not wanted(*row) & (ADMITTED - {409})]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: cell(*row, fresh=False), refused))
    assert standing(guarded, alpha) == before
    admitted = [row for row in table if wanted(*row) & (ADMITTED - {409})]
    assert len(refused) + len(admitted) == len(table)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: cell(*row, fresh=True), admitted))
    with capsys.disabled():
        print(f"\nisolation: {len(routes())} routes, {len(ASKERS)} askers, {len(table)} cells "
              f"({len(refused)} refused, {len(admitted)} let in), {len(wrong)} failing; "
              + ", ".join(f"{status}: {count}" for status, count in sorted(seen.items())))  # fmt: skip
    assert not wrong, "\n" + "\n".join(str(row) for row in sorted(wrong, key=str))
