"""Whose token counts, and for how long: against the real Keystone, and with it away; what is told of it and what is not."""

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import secrets
import subprocess
import threading
import time

import pytest
import yaml

from testbed import base, images, memcached
from tests import deployment
from tests.deployment import TENANTS_SECRET, keystone_authtoken, until


def ask(port, token, path="/v1/bays", method="GET", service=None, body=None):
    """Return (status, headers, decoded body)."""
    headers = {"X-Auth-Token": token} if token else {}
    headers |= {"X-Service-Token": service} if service else {}
    return deployment.ask(port, method, path, headers, body)


@pytest.fixture(scope="module")
def brief(identity):
    """A Keystone whose tokens last three seconds."""
    with identity.front("brief", {"OS_TOKEN__EXPIRATION": "3"}) as front:
        yield front


def test_a_refusal_says_where_tokens_are_had(guarded, identity, brief):
    expired = identity.token("alpha-member", url=brief.url)
    assert ask(guarded.port, expired)[0] == 200
    refused = {
        "none": None, "no such": "gAAAAAB" + "x" * 180, "short": "x", "not UTF-8": b"\xff\xfe", "long": "y" * 16000,
        "of another kind": "0123456789abcdef" * 2,
    }  # fmt: skip
    for name, token in refused.items():
        status, headers, body = ask(guarded.port, token)
        assert status == (400 if name == "not UTF-8" else 401), name
        if status == 401:
            assert headers["WWW-Authenticate"] == f'Keystone uri="{base.facts("keystone")["url"]}"', name
        assert body["errors"][0]["detail"], name
    # known, and then expired without Keystone being asked again
    status, headers, body = until(lambda: (found := ask(guarded.port, expired))[0] == 401 and found)
    assert "expired" in body["errors"][0]["detail"] and headers["WWW-Authenticate"]
    status, _, _ = ask(guarded.port, expired)
    assert status == 401


def test_without_a_token_every_operation_but_the_public_ones_is_refused(guarded):
    _, _, document = deployment.ask(guarded.port, "GET", "/openapi.json", {})
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["security"]:
                named = re.sub(r"{\w+}", "x", path)
                assert deployment.ask(guarded.port, method.upper(), named, {})[0] == 401, (method, path)


def test_what_a_client_says_of_itself_counts_for_nothing(guarded, identity):
    """Identity is what Keystone says of the token, whatever headers come beside it."""
    other = base.facts("keystone")["projects"]["beta"]
    claims = {
        "X-Project-Id": other, "X-Tenant-Id": other, "X-User-Id": "root", "X-Roles": "admin", "X-Role": "admin",
        "X-Is-Admin": "1", "X-Identity-Status": "Confirmed", "OpenStack-System-Scope": "all", "X-Service-Roles": "service",
        "X-Service-Identity-Status": "Confirmed", "X-Domain-Id": "default", "X-Is-Admin-Project": "True",
    }  # fmt: skip
    member = identity.token("alpha-reader")
    plain = {"X-Auth-Token": member}
    status, _, shown = deployment.ask(guarded.port, "GET", "/v1/quotas", plain)
    for header, value in claims.items():
        for method, path, wanted in (("GET", "/v1/hosts", 403), ("GET", "/v1/bays?all_projects=1", 403),
                                     ("POST", "/v1/baymodels", 403)):  # fmt: skip
            body = {"name": "forged"} if method == "POST" else None
            assert deployment.ask(guarded.port, method, path, plain | {header: value}, body)[0] == wanted, header
        assert deployment.ask(guarded.port, "GET", "/v1/quotas", plain | {header: value})[2] == shown, header
        assert deployment.ask(guarded.port, "GET", "/v1/bays", {header: value})[0] == 401, header
    assert status == 200
    assert deployment.ask(guarded.port, "GET", "/v1/bays", claims)[0] == 401


def test_a_service_goes_on_for_its_user_with_an_expired_token(guarded, identity, brief):
    expired = identity.token("alpha-member", url=brief.url)
    until(lambda: ask(guarded.port, expired)[0] == 401)
    assert ask(guarded.port, expired, service=identity.token("magnum"))[0] == 200
    # whoever is no service cannot vouch
    assert ask(guarded.port, expired, service=identity.token("beta-admin"))[0] == 401
    assert ask(guarded.port, identity.token("alpha-member"), service="nonsense")[0] == 401


def test_a_domain_may_be_kept_out(guarded, identity):
    with guarded.another_api("domains", {"api": {"allowed_domains": "default"}}) as (port, _):
        assert ask(port, identity.token("alpha-reader"))[0] == 200
        status, headers, body = ask(port, identity.token("gamma-admin"))
        assert status == 401 and "domain" in body["errors"][0]["detail"] and headers["WWW-Authenticate"]
    assert ask(guarded.port, identity.token("gamma-admin"))[0] == 200


def test_access_rules_of_an_application_credential_hold(guarded, identity):
    token = identity.credential_token("lister")
    assert ask(guarded.port, token, "/v1/containers")[0] == 200
    assert ask(guarded.port, token, "/v1/containers/none")[0] == 404
    for method, path in (("GET", "/v1/bays"), ("DELETE", "/v1/containers/none"), ("GET", "/v1/containers/a/logs")):
        status, _, body = ask(guarded.port, token, path, method)
        assert (status, "access rules" in body["errors"][0]["detail"]) == (401, True), (method, path, body)
    assert ask(guarded.port, identity.credential_token("whole"))[0] == 200


def test_a_rate_is_that_of_the_tokens_project(guarded, identity):
    mine, another, others = (identity.token(name) for name in ("alpha-reader", "alpha-member", "beta-admin"))
    with guarded.another_api("paced", {"api": {"max_project_rate": 1}}) as (port, _):
        assert ask(port, mine)[0] == 200
        until(lambda: ask(port, mine)[0] == 429)
        # a token that was not brought before, of the same project; and another project's
        until(lambda: ask(port, another)[0] == 429)
        assert ask(port, others)[0] == 200
        # whose project it is says the token and not the header; what is public is everyone's
        flood = base.facts("keystone")["projects"]["alpha"]
        assert deployment.ask(port, "GET", "/v1/bays", {"X-Auth-Token": others, "X-Project-Id": flood})[0] == 200
        assert ask(port, mine, "/healthcheck")[0] == 200


def test_a_token_that_many_bring_at_once_is_validated_once(guarded, identity):
    with (
        identity.front("counted") as front,
        guarded.another_api("counted", {"keystone_authtoken": keystone_authtoken(front)}) as (port, _),
    ):
        tokens = [identity.token("alpha-member"), identity.token("beta-reader")]
        # Magnum's own token is had with the first
        first = front.asked("GET /v3/auth/tokens")
        assert ask(port, identity.token("gamma-member"))[0] == 200
        before = front.asked("GET /v3/auth/tokens")
        assert before - first == 1
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            assert {found[0] for found in pool.map(lambda n: ask(port, tokens[n % 2]), range(100))} == {200}
        assert front.asked("GET /v3/auth/tokens") - before == 2


def test_tokens_that_are_made_up_hold_up_nobody_who_is_known(guarded, identity):
    """However many wait for a Keystone that says nothing, known tokens go on and the rest is told to come again."""
    with (
        identity.front("flooded") as front,
        guarded.another_api(
            "flooded", {"api": {"token_recheck": 1}, "keystone_authtoken": keystone_authtoken(front)}
        ) as (port, _),
        concurrent.futures.ThreadPoolExecutor(130) as pool,
    ):
        known = identity.token("alpha-reader")
        assert ask(port, known)[0] == 200
        front.pause()
        try:
            flood = [pool.submit(ask, port, f"gAAAAAB{secrets.token_urlsafe(130)}") for _ in range(130)]
            # those for which there is no room are told at once, while the others wait
            refused = until(lambda: len(done := [f.result() for f in flood if f.done()]) >= 30 and done)
            for status, headers, body in refused:
                assert (status, headers["Retry-After"]) == (503, "1"), body
                assert "wait to be validated" in body["errors"][0]["detail"]
            assert {ask(port, known)[0] for _ in range(3)} == {200}
        finally:
            front.pause(paused=False)
        assert {f.result()[0] for f in flood} <= {401, 503}
        until(lambda: ask(port, identity.token("beta-reader"))[0] == 200)


def test_apis_share_validations_over_memcached(guarded, identity):
    memcached.install()
    with base.lock(base.FOLDER / "lock"):
        memcached.up()
    with identity.front("shared") as front:
        shared = {"memcached_servers": base.facts("memcached")["address"], "token_cache_time": 300}
        more = {"keystone_authtoken": keystone_authtoken(front) | shared}
        with guarded.another_api("first", more) as (first, _), guarded.another_api("second", more) as (second, _):
            token = identity.token("beta-manager")
            before = front.asked("GET /v3/auth/tokens")
            assert ask(first, token)[0] == 200
            assert front.asked("GET /v3/auth/tokens") - before == 1
            front.stop()
            assert ask(second, token)[0] == 200
            assert ask(second, identity.token("beta-manager"))[0] == 503
            memcached.down()
            assert ask(first, token)[0] == ask(second, token)[0] == 200
            front.start()
            until(lambda: ask(second, identity.token("beta-manager"))[0] == 200)


@pytest.mark.timeout(300)
def test_keystone_away_a_token_revoked_a_role_removed(guarded, identity, capsys):
    """Four askers ask all the time; what each was answered is printed by the second."""
    identity.join("passing", "alpha", "member")
    fresh = collections.deque(identity.token("beta-member") for _ in range(60))
    tokens = {"known": identity.token("alpha-reader"), "revoked": identity.token("alpha-manager"),
              "role removed": identity.token("passing")}  # fmt: skip
    seen = collections.defaultdict(list)
    events, over = [], threading.Event()
    with (
        identity.front("mortal") as front,
        guarded.another_api(
            "mortal", {"api": {"token_recheck": 1}, "keystone_authtoken": keystone_authtoken(front)}
        ) as (port, _),
    ):
        began = time.monotonic()

        def event(words):
            events.append((time.monotonic() - began, words))

        def keep_asking(who):
            while not over.wait(0.25):
                if who == "new" and not fresh:
                    return
                token = fresh.popleft() if who == "new" else tokens[who]
                status, headers, _ = ask(port, token)
                seen[who].append((time.monotonic() - began, status))
                assert status != 503 or headers["Retry-After"]

        def last(who):
            return seen[who][-1][1] if seen[who] else None

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking, who) for who in ("known", "new", "revoked", "role removed")]
            try:
                until(lambda: all(last(who) == 200 for who in ("known", "new", "revoked", "role removed")))
                event("Keystone stopped")
                front.stop()
                until(lambda: last("new") == 503)
                time.sleep(2)
                health = ask(port, None, "/healthcheck")
                assert health[0] == 503 and health[2]["checks"]["authentication"] != "ok"
                assert [status for _, status in seen["known"]] == [200] * len(seen["known"])
                front.start()
                event("Keystone up again")
                until(lambda: last("new") == 200)
                identity.revoke(tokens["revoked"])
                event("a token revoked")
                until(lambda: last("revoked") == 401)
                identity.leave("passing", "alpha", "member")
                event("a role removed")
                until(lambda: last("role removed") == 401)
                time.sleep(1)
            finally:
                over.set()
            for each in asking:
                each.result()
        until(lambda: ask(port, None, "/healthcheck")[0] == 200)
    with capsys.disabled():
        print("\nsecond  " + "".join(f"{who:>22}" for who in seen))
        for second in range(int(max(at for found in seen.values() for at, _ in found)) + 1):
            cells = [
                ", ".join(f"{count} of {status}" for status, count in sorted(
                    collections.Counter(status for at, status in found if int(at) == second).items()))
                for found in seen.values()
            ]  # fmt: skip
            told = "; ".join(words for at, words in events if int(at) == second)
            print(f"{second:>6}  " + "".join(f"{cell:>22}" for cell in cells) + f"   {told}")
    assert {status for _, status in seen["known"]} == {200}
    assert {status for _, status in seen["new"]} == {200, 503}
    for who in ("revoked", "role removed"):
        statuses = [status for _, status in seen[who]]
        assert statuses == [200] * statuses.count(200) + [401] * statuses.count(401), who


def test_policy_changes_count_without_a_restart(guarded, identity, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("{}\n")
    with guarded.another_api("policy", {"oslo_policy": {"policy_file": file}}) as (port, _):
        manager, member = identity.token("alpha-manager"), identity.token("alpha-member")
        assert ask(port, manager, "/v1/mservices")[0] == ask(port, member, "/v1/mservices")[0] == 403
        file.write_text(yaml.safe_dump({"mservice:list": "role:manager"}))
        until(lambda: ask(port, manager, "/v1/mservices")[0] == 200)
        assert ask(port, member, "/v1/mservices")[0] == 403


LISTENER = """
import json, sys
import oslo_messaging
from oslo_config import cfg

class Endpoint:
    def info(self, context, publisher, kind, payload, metadata):
        # in one piece, since events come in several threads
        sys.stdout.write(json.dumps([publisher, kind, payload, metadata]) + chr(10))
        sys.stdout.flush()

transport = oslo_messaging.get_notification_transport(cfg.CONF, url=sys.argv[1])
target = oslo_messaging.Target(exchange=sys.argv[2], topic=sys.argv[2])
listener = oslo_messaging.get_notification_listener(transport, [target], [Endpoint()], executor="threading")
listener.start()
print("listening", flush=True)
sys.stdin.read()
listener.stop()
listener.wait()
"""


def test_a_stock_listener_reads_the_audit_events(guarded, identity, tmp_path):
    python = pathlib.Path(os.environ.get("MAGNUM_TEST_OPENSTACK", "openstack")).parent / "python"
    url = guarded.settings["DEFAULT"]["transport_url"].replace("amqp://", "rabbit://", 1)
    out = tmp_path / "events"
    with open(out, "wb") as file, open(tmp_path / "errors", "wb") as problems:
        process = subprocess.Popen(
            [str(python), "-c", LISTENER, url, guarded.name], stdin=subprocess.PIPE, stdout=file, stderr=problems
        )
    try:
        until(lambda: out.read_text().startswith("listening"))
        admin, ids = identity.token("alpha-admin"), []
        made = {"uuid": "nothing"}
        for token, method, body in (
            (identity.token("alpha-reader"), "DELETE", None), (admin, "POST", {"name": "audited"}), (admin, "DELETE", None),
        ):  # fmt: skip
            path = f"/v1/baymodels/{made['uuid']}" if method == "DELETE" else "/v1/baymodels"
            status, headers, found = ask(guarded.port, token, path, method, body=body)
            made = found if method == "POST" else made
            ids.append((headers["X-OpenStack-Request-Id"], status))
        assert [status for _, status in ids] == [403, 201, 204]

        def events():
            lines = [json.loads(line) for line in out.read_text().splitlines()[1:] if line.endswith("]")]
            return {line[2]["initiator"]["request_id"]: line for line in lines}

        until(lambda: {ident for ident, _ in ids} <= set(events()))
    finally:
        process.stdin.close()
        process.wait(30)
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    facts = base.facts("keystone")
    refusal, creation, deletion = (events()[ident] for ident, _ in ids)
    publisher, kind, payload, metadata = creation
    assert publisher.startswith("magnum-api.") and kind == "audit.http.response" and metadata["message_id"]
    assert payload["typeURI"] == "http://schemas.dmtf.org/cloud/audit/1.0/event" and payload["eventType"] == "activity"
    assert (payload["action"], payload["outcome"]) == ("create/baymodel/create", "success")
    assert payload["initiator"]["id"] == facts["users"]["alpha-admin"]["id"]
    assert payload["initiator"]["project_id"] == facts["projects"]["alpha"]
    assert (payload["reason"]["reasonCode"], payload["requestPath"]) == ("201", "/v1/baymodels")
    assert deletion[2]["requestPath"] == f"/v1/baymodels/{deletion[2]['target']['id']}"
    assert (refusal[2]["outcome"], refusal[2]["reason"]["reasonCode"]) == ("failure", "403")
    assert refusal[2]["initiator"]["id"] == facts["users"]["alpha-reader"]["id"]


@pytest.mark.parametrize("kind", ["bays", "containers", "pods"])
def test_of_fifty_at_once_the_quota_lets_ten_in(guarded, identity, kind):
    project = base.facts("keystone")["projects"]["beta"]
    headers = {"X-Auth-Token": identity.token("beta-member")}
    model = guarded.request("POST", "/v1/baymodels", {"name": f"race-{kind}"}, headers)[1]["uuid"]
    bay = None
    if kind != "bays":
        bay = guarded.request("POST", "/v1/bays?wait=60", {"name": kind, "baymodel_id": model}, headers)[1]
        assert bay["status"] == "CREATE_COMPLETE", bay
    limit = {"project_id": project, "resource": kind, "hard_limit": 10}
    assert guarded.request("POST", "/v1/quotas", limit)[0] == 201

    def body(number):
        if kind == "bays":
            return {"name": f"n{number}", "baymodel_id": model}
        if kind == "containers":
            return {"name": f"n{number}", "bay_uuid": bay["uuid"], "image": images.DEMO}
        spec = {"containers": [{"name": "c", "image": images.DEMO, "command": ["sleep", "60"]}],
                "terminationGracePeriodSeconds": 0}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"n{number}"}, "spec": spec}
        return {"bay_uuid": bay["uuid"], "manifest": json.dumps(manifest)}

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda n: guarded.request("POST", f"/v1/{kind}?wait=0", body(n), headers), range(50)))
    # 201: it stood before the answer was written
    assert collections.Counter(status // 100 * 100 if status < 300 else status for status, _ in found) == {
        200: 10, 403: 40,
    }  # fmt: skip
    for detail in (answer["errors"][0]["detail"] for status, answer in found if status == 403):
        assert f"may have 10 {kind}" in detail and "uses 10" in detail and "1 more is asked for" in detail, detail
    shown = guarded.request("GET", f"/v1/quotas/{project}/{kind}", None, headers)[1]
    assert (shown["hard_limit"], shown["used"]) == (10, 10)
    assert len(guarded.request("GET", f"/v1/{kind}", None, headers)[1][kind]) == 10
    # what goes makes room
    one = next(answer["uuid"] for status, answer in found if status < 300)
    assert guarded.request("DELETE", f"/v1/{kind}/{one}?wait=60", None, headers)[0] == 204
    assert guarded.request("POST", f"/v1/{kind}?wait=60", body(50), headers)[0] == 201
    assert guarded.request("DELETE", f"/v1/quotas/{project}/{kind}")[0] == 204
    for made in guarded.request("GET", "/v1/bays", None, headers)[1]["bays"]:
        assert guarded.request("DELETE", f"/v1/bays/{made['uuid']}?wait=80", None, headers)[0] == 204
    assert guarded.request("DELETE", f"/v1/baymodels/{model}", None, headers)[0] == 204


def test_keystone_is_told_of_magnum_by_one_command(guarded, identity):
    region = f"told-{secrets.token_hex(4)}"
    admin = {**os.environ, **identity.environ("admin"), "OS_REGION_NAME": region}
    with_password = {**admin, "MAGNUM_PASSWORD": "chosen-by-the-operator"}
    words = ("keystone", "bootstrap", "--public-url", "http://192.0.2.1:9511/v1", "--user", region)
    first = guarded.manage(*words, env=admin)
    assert first.returncode == 0, first.stderr
    assert f"user {region}: made" in first.stdout and "endpoint public: made" in first.stdout
    again = guarded.manage(*words, env=admin)
    assert again.returncode == 0 and ": made" not in again.stdout and "is there" in again.stdout
    services = {s["id"]: s["type"] for s in identity.request("GET", "/services")[0]["services"]}
    ends = identity.request("GET", f"/endpoints?region_id={region}")[0]["endpoints"]
    found = {(services[e["service_id"]], e["interface"], e["url"]) for e in ends}
    assert found == {(kind, interface, "http://192.0.2.1:9511/v1") for kind in ("container-infra", "container")
                     for interface in ("public", "internal", "admin")}  # fmt: skip
    # what it prints is a configuration that works
    printed = first.stdout.partition("[keystone_authtoken]")[2]
    options = dict(line.split(" = ", 1) for line in printed.splitlines() if " = " in line)
    with guarded.another_api("told", {"keystone_authtoken": options}) as (port, _):
        assert ask(port, identity.token("alpha-reader"))[0] == 200
    changed = guarded.manage(*words, env=with_password)
    assert changed.returncode == 0 and "chosen-by" not in changed.stdout
    options["password"] = "chosen-by-the-operator"
    with guarded.another_api("told", {"keystone_authtoken": options}) as (port, _):
        assert ask(port, identity.token("alpha-reader"))[0] == 200
    wrong = guarded.manage(*words, env={**admin, "OS_PASSWORD": "wrong"})
    assert wrong.returncode == 1 and "Keystone refuses" in wrong.stderr and "Traceback" not in wrong.stderr


def test_what_tenants_tell_their_containers_is_theirs(guarded):
    """Things with secrets are made, run, fail and are asked about; the end of the session reads all logs for them."""
    model = guarded.request("POST", "/v1/baymodels", {"name": "quiet"})[1]["uuid"]
    bay = guarded.request("POST", "/v1/bays?wait=60", {"name": "quiet", "baymodel_id": model})[1]["uuid"]
    body = {"name": "told", "bay_uuid": bay, "image": images.DEMO, "command": ["sleep", "60"], "start": True,
            "environment": {"PASSWORD": TENANTS_SECRET}, "stop_timeout": 0}  # fmt: skip
    status, made = guarded.request("POST", "/v1/containers?wait=60", body)
    assert (status, made["status"]) == (201, "Running"), made
    guarded.request("POST", "/v1/containers?wait=60", {**body, "name": "failing", "command": ["no-such-program"]})
    guarded.request("POST", "/v1/containers?wait=60", {**body, "name": "wrong", "memory": TENANTS_SECRET})
    status, ran = guarded.request("PUT", f"/v1/containers/{made['uuid']}/execute?command=env")
    assert TENANTS_SECRET in json.dumps(ran)
    for name, image in (("good", images.DEMO), ("bad", "no.such/image:1")):
        env = [{"name": "PASSWORD", "value": TENANTS_SECRET}]
        spec = {"containers": [{"name": "c", "image": image, "command": ["sleep", "60"], "env": env}],
                "terminationGracePeriodSeconds": 0}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        guarded.request("POST", "/v1/pods?wait=3", {"bay_uuid": bay, "manifest": json.dumps(manifest)})
    for method in ("GET", "DELETE"):
        status, _, _ = ask(guarded.port, guarded.headers()["X-Auth-Token"], f"/v1/bays/{bay}", method)
        assert status in (200, 202, 204)
    until(lambda: ask(guarded.port, guarded.headers()["X-Auth-Token"], f"/v1/bays/{bay}")[0] == 404)
