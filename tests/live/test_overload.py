"""Too much at once: refused at once, with a time to come again, and only to who asks too much."""

import concurrent.futures
import time
import urllib.error
import urllib.request

from tests.deployment import until

LIMITS = {"api": {"max_requests": 5, "max_project_requests": 3}}


def _headers(url, project):
    """Return (status, headers) of a list, asked in the name of a project."""
    request = urllib.request.Request(f"{url}/v1/bays", headers={"X-Project-Id": project})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_who_asks_too_fast_is_held_to_the_rate(cloud):
    rate = 10
    with cloud.another_api("paced", {"api": {"max_project_rate": rate}}) as (port, _):
        url = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        found = [_headers(url, "fast") for _ in range(5 * rate)]
        taken, seconds = [status for status, _ in found].count(200), time.monotonic() - began
        refused = [headers for status, headers in found if status == 429]
        # a burst of a second's worth, and what the time has allowed since
        assert rate < taken <= rate * (1 + seconds) + 1 and len(refused) == len(found) - taken
        assert {headers["Retry-After"] for headers in refused} <= {"1"}
        # it is nobody else's rate, and its own again after the time that it was told
        assert _headers(url, "slow")[0] == 200
        if refused:
            time.sleep(int(refused[-1]["Retry-After"]))
        assert _headers(url, "fast")[0] == 200


def test_who_asks_too_much_is_told_when_to_come_again(cloud, docker_hosts):
    """What takes its time to stop keeps the requests in hand that wait for it."""
    body = {
        "bay_uuid": "b",
        "image": docker_hosts[0].image,
        "command": ["sleep", "600"],
        "stop_timeout": 20,
        "start": True,
    }
    with cloud.another_api("limited", LIMITS) as (port, _), concurrent.futures.ThreadPoolExecutor(8) as pool:
        other, url = cloud.at(port), f"http://127.0.0.1:{port}"
        for project in ("flood", "else"):
            asker = {"X-Project-Id": project}
            assert other("POST", "/v1/baymodels", {"name": "m"}, asker)[0] == 201
            assert other("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m"}, asker)[0] == 201
            for number in range(3):
                assert other("POST", "/v1/containers?wait=60", {**body, "name": f"c{number}"}, asker)[0] == 201

        def stop(project, number):
            """Ask until it is taken: a look at how the api answers may be what leaves no room for it."""
            path, asker = f"/v1/containers/c{number}/stop?wait=60", {"X-Project-Id": project}
            return until(lambda: (found := other("PUT", path, None, asker))[0] not in (429, 503) and found)

        def occupy(project, times):
            return [pool.submit(stop, project, number) for number in range(times)]

        held = occupy("flood", 3)
        _, headers = until(lambda: (found := _headers(url, "flood"))[0] == 429 and found)
        assert int(headers["Retry-After"]) >= 1
        # the flood's own refusals, and nobody else's
        assert _headers(url, "else")[0] == 200
        held += occupy("else", 2)
        _, headers = until(lambda: (found := _headers(url, "third"))[0] == 503 and found)
        assert int(headers["Retry-After"]) >= 1
        # what an operator looks at answers all the same
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.status == 200
        assert {each.result()[0] for each in held} == {200}
        until(lambda: _headers(url, "flood")[0] == 200)
        for project in ("flood", "else"):
            asker = {"X-Project-Id": project}
            assert other("DELETE", "/v1/bays/b?wait=60", headers=asker)[0] == 204
            assert other("DELETE", "/v1/baymodels/m", headers=asker)[0] == 204
