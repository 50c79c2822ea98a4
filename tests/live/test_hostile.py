"""Clients that mean harm: bodies, manifests, names, headers, paths, slow and many connections, sockets; never a 5xx, never a hang."""

import asyncio
import contextlib
import http.client
import json
import resource
import socket

import psutil
import pytest
import websockets

from tests import sessions
from tests.deployment import until


def _raw(port, data, *, more=(), seconds=20):
    """Send bytes as they are, then each of ``more``; return the status of the answer, None if the connection just ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            for part in more:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else None


def _alive(cloud):
    assert cloud.request("GET", "/v1/bays")[0] == 200


HEAD = b"POST /v1/baymodels HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_large_bodies_are_refused_before_they_are_read(cloud):
    ten = 10 * 2**20
    assert _raw(cloud.port, HEAD + f"Content-Length: {ten}\r\n\r\n".encode()) == 413
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert _raw(cloud.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", more=[chunk] * 160) == 413
    assert _raw(cloud.port, HEAD + b"Content-Length: 99999999999999999999\r\n\r\n") in (400, 413, None)
    _alive(cloud)


def test_a_body_that_trickles_is_given_up(cloud):
    with cloud.another_api("impatient", {"api": {"body_timeout": 0.5}}) as (port, _):
        assert _raw(port, HEAD + b"Content-Length: 100\r\n\r\n{") == 408
        assert cloud.at(port)("GET", "/v1/bays")[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/bays HTTP/1.1\r\nHost: x\r\nX-Project-Id: a\r\nX-Project-Id: b\r\n\r\n",
        b"GET /v1/bays HTTP/1.1\r\nHost: x\r\nX-Auth-Token: " + b"t" * 100_000 + b"\r\n\r\n",
        b"GET /v1/bays HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"GET /v1/bays HTTP/1.1\r\nHost: x\r\nX-Roles: ad\x00min\r\n\r\n",
        b"GET /v1/bays HTTP/1.1\r\nHost: x\r\nX Roles: admin\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"GET http://other.example/v1/bays HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/hosts HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        "twice",
        "long",
        "many",
        "nul",
        "space",
        "smuggled",
        "lengths",
        "negative",
        "chunk",
        "version",
        "tls",
        "pipelined",
    ],
)
def test_headers_play_no_tricks(cloud, head):
    status = _raw(cloud.port, head)
    # one that is well formed after all is served as what it says: by its length alone, or by its own path
    assert status is None or status < 500, status
    _alive(cloud)


@pytest.mark.parametrize(
    "path",
    ["//v1/bays", "/v1//bays", "/v1/../v1/bays", "/v1/%2e%2e/v1/hosts", "/v1/bays/%00", "/v1/bays/%ff%fe", "/v1/bays;x=y",
     "/v1/bays/..%2fhosts", "/v1/bays/%252e%252e", "/v1/" + "a/" * 2000, "/v1/bays?" + "a=b&" * 5000, "/%0d%0aX-Roles:%20admin"],
    ids=range(12),
)  # fmt: skip
def test_paths_play_no_tricks(cloud, path):
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=30)
    connection.putrequest("GET", path, skip_host=False)
    connection.putheader("X-Roles", "member")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status < 500 and answer.status in (200, 400, 404, 405, 414), (answer.status, body[:200])
    if answer.status == 200:
        assert set(json.loads(body)) <= {"bays", "next"}, "it is the list of bays or nothing"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MANIFESTS = {
    "bomb": BOMB, "deep": "a: " + "[" * 5000 + "]" * 5000, "deep-block": "\n".join(" " * n + "a:" for n in range(500)),
    "deep-json": '{"a":' * 3000 + "1" + "}" * 3000, "python": "!!python/object/apply:os.system ['true']", "self": "&a [*a]",
    "merge": "<<: *nothing", "huge": "a: " + "x" * 300_000, "tabs": "a:\n\t- b", "nul": "a: \x00", "many": "a: 1\n--- \nb: 2",
    "twice": "kind: Pod\nkind: Service", "number": "a: " + "9" * 100_000, "infinite": "apiVersion: v1\nkind: Pod\nspec: .inf",
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_bombs_are_refused(cloud, bay, name):
    status, body = cloud.request("POST", "/v1/pods", {"bay_uuid": "b", "manifest": MANIFESTS[name]})
    assert status in (400, 413), (status, str(body)[:300])
    assert body["errors"][0]["field"].startswith("manifest"), body


SCRIPTS = ["日本語", "Ελληνικά", "Русский", "العربية", "עברית", "हिन्दी", "한국어", "ภาษาไทย", "emoji-🐳", "e\u0301", "a\u202eb", "\u200b",
           "'; DROP TABLE bay; --", "$(reboot)", "`id`", "a b", "a\nb", "a\x00b", "../../etc", "-rf", "%s%n", "{{x}}", "\ud83d"]  # fmt: skip


@pytest.mark.parametrize("kind", ["baymodels", "bays", "containers"])
def test_names_in_every_script_are_taken_as_they_are_or_refused_by_name(cloud, bay, docker_hosts, kind):
    bodies = {"baymodels": {}, "bays": {"baymodel_id": "m"},
              "containers": {"bay_uuid": "b", "image": docker_hosts[0].image, "command": ["$(touch /x)", "`id`"]}}  # fmt: skip
    for name in SCRIPTS:
        # JSON may say half a surrogate pair, which is no text
        status, made = cloud.request("POST", f"/v1/{kind}?wait=30", {**bodies[kind], "name": name})
        assert status in (201, 202, 400), (name, status, made)
        if status == 400:
            # what is no text at all is found before there are fields
            assert made["errors"][0].get("field") in ("name", None), made
            continue
        status, shown = cloud.request("GET", f"/v1/{kind}/{made['uuid']}")
        assert (status, shown["name"]) == (200, name)
        assert cloud.request("DELETE", f"/v1/{kind}/{made['uuid']}?wait=30")[0] == 204


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/openapi.json", "http://localhost:{port}/openapi.json", "http://[::1]:{port}/",
     "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0:{port}/", "http://169.254.169.254/latest/meta-data",
     "http://10.0.0.1/", "http://[::ffff:127.0.0.1]:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "http:///x",
     "http://user:password@127.0.0.1:{port}/", "unix:///var/run/docker.sock"],
)  # fmt: skip
def test_the_api_fetches_nothing_from_where_it_stands(cloud, bay, url):
    body = {"bay_uuid": "b", "manifest_url": url.format(port=cloud.port)}
    status, refused = cloud.request("POST", "/v1/pods", body)
    assert (status, refused["errors"][0]["field"]) == (400, "manifest_url"), refused


def test_what_is_checked_when_made_is_checked_when_changed(cloud, bay, docker_hosts):
    """What a member may not have of a new container, it may not have of one that it changes either."""
    member = {"X-Roles": "member"}
    body = {"name": "changed", "bay_uuid": "b", "image": docker_hosts[0].image, "command": ["sleep", "600"]}
    status, made = cloud.request("POST", "/v1/containers?wait=30", body, member)
    assert status == 201
    for path, value in (
        ("/privileged", True), ("/cap_add", ["SYS_ADMIN"]), ("/devices", ["/dev/mem"]), ("/host_network", True),
        ("/mounts", [{"type": "bind", "source": "/", "target": "/host"}]), ("/labels", {"org.openstack.magnum.uuid": "x"}),
    ):  # fmt: skip
        patch = [{"op": "add", "path": path, "value": value}]
        status, refused = cloud.request("PATCH", f"/v1/containers/{made['uuid']}", patch, member)
        assert status in (400, 403), (path, status, refused)
    pod = {"containers": [{"name": "a", "image": docker_hosts[0].image, "command": ["sleep", "600"]}],
           "terminationGracePeriodSeconds": 0}  # fmt: skip
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "changed"}, "spec": pod}
    status, made_pod = cloud.request("POST", "/v1/pods?wait=30", {"bay_uuid": "b", "manifest": manifest}, member)
    assert status in (201, 202), made_pod
    for path, value in (
        ("/manifest/spec/hostNetwork", True), ("/manifest/spec/containers/0/securityContext", {"privileged": True}),
        ("/manifest/spec/volumes", [{"name": "v", "hostPath": {"path": "/"}}]), ("/foreign", True), ("/controller", "x"),
    ):  # fmt: skip
        patch = [{"op": "add", "path": path, "value": value}]
        status, refused = cloud.request("PATCH", f"/v1/pods/{made_pod['uuid']}", patch, member)
        assert status in (400, 403), (path, status, refused)
    for plural, one in (("containers", made), ("pods", made_pod)):
        assert cloud.request("DELETE", f"/v1/{plural}/{one['uuid']}?wait=30")[0] == 204


async def test_sockets_are_abused_in_vain(cloud, talker):
    path = f"/v1/containers/{talker['uuid']}/exec?command=cat"
    # more than a message may have
    async with sessions.socket_to(cloud, path) as one:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            await one.send(b"\x00" + b"x" * (3 * 2**20))
            async with asyncio.timeout(20):
                async for _ in one:
                    pass
    # channels that there are not, sizes that are none, then an honest word that is echoed all the same
    async with sessions.socket_to(cloud, path) as one:
        for frame in (
            b"\x07abc",
            b"\xff",
            b"",
            b"\x04nonsense",
            b"\x04" + b"\xff" * 8,
            b'\x04{"Width": -1, "Height": 99999999}',
        ):
            await one.send(frame)
        await one.send(b"\x00honest\n")
        seen = b""
        async with asyncio.timeout(20):
            while b"honest" not in seen:
                seen += await one.recv()
    # opened and left, many times over
    for _ in range(30):
        async with sessions.socket_to(cloud, path):
            pass
    _alive(cloud)
    until(lambda: b" cat" not in json.dumps(cloud.request("GET", f"/v1/containers/{talker['uuid']}/top")[1]).encode())


@pytest.mark.timeout(300)
async def test_ten_thousand_streams_and_no_more(cloud, capsys):
    """As many as configured are open, each is told what happens, others are served as ever, and one more is refused."""
    most, more = 10_000, 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 2 * most), max(hard, 2 * most)))
    with cloud.another_api("streams", {"api": {"max_streams": most}}) as (port, process):
        idle = psutil.Process(process.pid).memory_info().rss
        held, few = [], asyncio.Semaphore(50)

        async def follow():
            async with few:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                held.append(writer)
                writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
                status = int((await reader.readline()).split(b" ")[1])
                if status == 200:
                    await reader.readuntil(b": following\n\n")
            return status, reader

        async def told(reader, uuid):
            while uuid not in await reader.readline():
                pass

        try:
            opened = [await each for each in asyncio.as_completed([follow() for _ in range(most)])]
            assert {status for status, _ in opened} == {200}
            refused = await asyncio.gather(*(follow() for _ in range(more)))
            assert [status for status, _ in refused] == [429] * more
            full = psutil.Process(process.pid).memory_info().rss
            status, made = await asyncio.to_thread(cloud.at(port), "POST", "/v1/baymodels", {"name": "streamed"})
            assert status == 201, made
            await asyncio.gather(*(told(reader, made["uuid"].encode()) for _, reader in opened))
            assert (await asyncio.to_thread(cloud.at(port), "DELETE", "/v1/baymodels/streamed"))[0] == 204
        finally:
            for writer in held:
                writer.close()
        with capsys.disabled():
            print(f"\n{most} streams: {idle / 1e6:.0f} MB without, {full / 1e6:.0f} MB with them")
        await asyncio.to_thread(until, lambda: _raw(port, b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n") == 200)
