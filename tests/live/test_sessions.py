"""Streams through three programs: logs that are followed, exec and attach over WebSocket, events; none by way of AMQP."""

import asyncio
import json
import urllib.parse
import urllib.request

import pytest
import websockets.exceptions

from tests import sessions
from tests.deployment import until


def test_a_log_is_read_by_tail_and_by_stream(cloud, talker):
    path = f"/v1/containers/{talker['uuid']}/logs"
    until(lambda: "line 5" in cloud.request("GET", path)[1]["output"])
    out = cloud.request("GET", f"{path}?tail=2&stderr=false")[1]["output"].splitlines()
    assert len(out) <= 2 and all(line.startswith("line") for line in out), out
    stamped = cloud.request("GET", f"{path}?timestamps=1&tail=1")[1]["output"]
    assert stamped[:2] == "20" and "T" in stamped.split()[0]
    with urllib.request.urlopen(f"{cloud.url}{path}?follow=1&stderr=0", timeout=sessions.LIMIT) as stream:
        lines = [stream.readline().decode() for _ in range(30)]
    assert [int(line.split()[1]) for line in lines] == list(range(1, 31))


async def test_exec_is_interactive_and_tells_its_exit_code(cloud, talker):
    await sessions.exec_is_interactive(cloud, f"/v1/containers/{talker['uuid']}")


async def test_input_that_ends_ends_the_command(cloud, talker):
    data = b"x" * 300_000
    async with sessions.socket_to(cloud, f"/v1/containers/{talker['uuid']}/exec?command=wc%20-c") as socket:
        for start in range(0, len(data), 65536):
            await socket.send(b"\x00" + data[start : start + 65536])
        await socket.send(b"\x00")
        out, _, ending = await sessions.ending_of(socket)
    assert (out.strip(), ending) == (b"300000", {"exit_code": 0})


async def test_a_terminal_has_the_size_that_it_is_told(cloud, talker):
    await sessions.terminal_has_its_size(cloud, f"/v1/containers/{talker['uuid']}")


async def test_attach_shows_what_the_main_process_says(cloud, talker):
    async with (
        sessions.socket_to(cloud, f"/v1/containers/{talker['uuid']}/attach?stdin=0") as socket,
        asyncio.timeout(sessions.LIMIT),
    ):
        seen = set()
        while seen != {1, 2}:
            seen.add((await socket.recv())[0])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/containers/nobody/exec?command=ls", {}, 404),
        ("/v1/containers/{uuid}/exec", {}, 400),
        ("/v1/containers/{uuid}/exec?command=ls&colour=red", {}, 400),
        ("/v1/containers/{uuid}/dance", {}, 404),
        ("/v1/containers/{uuid}/attach", {"X-Roles": "reader"}, 403),
        ("/v1/containers/{uuid}/exec?command=ls", {"X-Project-Id": "other"}, 404),
        ("/v1/containers/{uuid}/exec?command=ls", {"Origin": "http://elsewhere.example"}, 403),
    ],
)
async def test_a_socket_is_refused_before_it_opens(cloud, talker, path, headers, status):
    with pytest.raises(websockets.exceptions.InvalidStatus) as raised:
        async with sessions.socket_to(cloud, path.format(uuid=talker["uuid"]), additional_headers=headers):
            pass
    assert raised.value.response.status_code == status
    assert json.loads(raised.value.response.body)["errors"][0]["status"] == status


async def test_events_are_resumed_by_revision(cloud, talker):
    def read(headers, count):
        request = urllib.request.Request(f"{cloud.url}/v1/events?after=0", headers=headers)
        found = []
        with urllib.request.urlopen(request, timeout=sessions.LIMIT) as stream:
            while len(found) < count:
                line = stream.readline().decode()
                if line.startswith("data: "):
                    found.append(json.loads(line[6:]))
        return found

    first = await asyncio.to_thread(read, {}, 4)
    revisions = [event["revision"] for event in first]
    assert revisions == sorted(revisions)
    rest = await asyncio.to_thread(read, {"Last-Event-ID": str(revisions[1])}, 2)
    assert [event["revision"] for event in rest] == revisions[2:]


def test_use_of_resources_and_processes_are_shown(cloud, talker):
    status, stats = cloud.request("GET", f"/v1/containers/{talker['uuid']}/stats")
    assert status == 200 and stats["memory_bytes"] > 0
    status, top = cloud.request("GET", f"/v1/containers/{talker['uuid']}/top")
    assert status == 200 and any("sh" in " ".join(row) for row in top["processes"])


def test_an_operation_tells_its_steps_and_can_be_retried(cloud, bay):
    body = {"bay_uuid": "b", "image": "no-such-image:1", "image_pull_policy": "Never"}
    status, made = cloud.request("POST", "/v1/containers?wait=60", body)
    assert (status, made["status"]) == (201, "Error"), made
    events = cloud.request("GET", f"/v1/containers/{made['uuid']}/history")[1]["events"]
    ident = events[0]["request_id"]
    status, shown = cloud.request("GET", f"/v1/operations/{ident}")
    assert (shown["state"], shown["action"], shown["kind"]) == ("failed", "create", "container")
    assert shown["reason"] == made["status_reason"]
    assert cloud.request("POST", f"/v1/operations/{ident}/cancel")[0] == 409
    status, again = cloud.request("POST", f"/v1/operations/{ident}/retry?wait=60")
    assert (status, again["status"]) == (200, "Error")
    assert cloud.request("DELETE", f"/v1/containers/{made['uuid']}?wait=60")[0] == 204
