"""What asking who asks costs: ``python -m benchmarks.identity [--seconds N] [--users N]``.

One api that validates tokens and one that believes everyone serve the same objects
from the same conductor; their lists and gets are asked turn by turn over one
connection each. Then a crowd of users, a token each: what first requests take beside
Keystone's own validation of a token, and the rate once all tokens are known.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import pathlib
import statistics
import sys
import tempfile
import time

from testbed import base, docker, images, keystone, postgresql, rabbitmq
from tests.conftest import hosts
from tests.deployment import Deployment, keystone_authtoken

ITEMS = 100
TURN_SECONDS = 0.5
RECHECK_SECONDS = 3600
"""No second look falls into the figures: the test bed's Keystone validates a few tokens a second."""
ROOM = "identity-bench"


class Asker:
    """One kept connection to one api."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = headers

    def reset(self) -> None:
        """Have a new connection at the next request: idle ones are closed by the api after a while."""
        self._connection.close()

    def __call__(self, path: str) -> float:
        """Return the seconds of a GET that was answered with 200."""
        started = time.perf_counter()
        self._connection.request("GET", path, headers=self.headers)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, (path, answer.status)
        return time.perf_counter() - started


def _rates(askers: dict[str, Asker], path: str, seconds: float) -> dict[str, float]:
    """Return name → requests a second, asked turn by turn."""
    counts, spent = dict.fromkeys(askers, 0), dict.fromkeys(askers, 0.0)
    end = time.monotonic() + seconds
    for name in itertools.cycle(askers):
        if time.monotonic() > end and name == next(iter(askers)):
            break
        turn = time.monotonic() + TURN_SECONDS
        while time.monotonic() < turn:
            spent[name] += askers[name](path)
            counts[name] += 1
    return {name: counts[name] / spent[name] for name in askers}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="seconds of each comparison (12)")
    parser.add_argument("--users", type=int, default=200, help="users with a token each (200)")
    asked = parser.parse_args()
    with base.lock(base.FOLDER / "lock"):
        for component in (docker, postgresql, rabbitmq, keystone):
            component.install()
            component.up(1)
    host = hosts()[0]
    print(f"{asked.users} users and their tokens: ", end="", flush=True)
    tokens = []
    for number in range(asked.users):
        keystone.join(f"bench-{number}", "alpha", "member")
        tokens.append(keystone.token(f"bench-{number}"))
    print("there", flush=True)
    mine = keystone.token("alpha-admin")
    rows: list[tuple[str, float, float | None, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        cloud = Deployment(
            f"identity-{base.TAG}", pathlib.Path(folder), [host],
            {"api": {"auth_strategy": "keystone", "token_recheck": RECHECK_SECONDS},
             "keystone_authtoken": keystone_authtoken()},
            headers=lambda: {"X-Auth-Token": mine},
        )  # fmt: skip
        try:
            cloud.start()
            cloud.ready()
            with cloud.another_api("noauth", {"api": {"auth_strategy": "noauth"}}) as (open_port, _):
                model = cloud.request("POST", "/v1/baymodels", {"name": ROOM})[1]["uuid"]
                bay = cloud.request("POST", "/v1/bays?wait=60", {"name": ROOM, "baymodel_id": model})[1]
                for _ in range(ITEMS):
                    body = {"bay_uuid": bay["uuid"], "image": images.DEMO}
                    status, made = cloud.request("POST", "/v1/containers?wait=0", body)
                    assert status == 202, made
                believed = {"X-Project-Id": bay["project_id"], "X-User-Id": "bench", "X-Roles": "member,reader"}
                askers = {"token": Asker(cloud.port, {"X-Auth-Token": tokens[0]}), "open": Asker(open_port, believed)}
                for what, path in (
                    ("list of 100", "/v1/containers?limit=100"),
                    ("get", f"/v1/containers/{made['uuid']}"),
                ):
                    for asker in askers.values():
                        asker(path)
                    found = _rates(askers, path, asked.seconds)
                    rows.append(
                        (f"{what}, known token, requests/s", found["token"], found["open"], "no authentication")
                    )
                # a crowd: first requests, then all known
                path = f"/v1/containers/{made['uuid']}"
                crowd = [Asker(cloud.port, {"X-Auth-Token": token}) for token in tokens[1:]]
                half = len(crowd) // 2
                cold = [asker(path) for asker in crowd[:half]]
                direct = []
                for token in tokens[1 : half + 1]:
                    started = time.perf_counter()
                    keystone.request("GET", "/auth/tokens", token=mine, subject=token)
                    direct.append(time.perf_counter() - started)
                rows.append(("first request of a token, median ms", statistics.median(cold) * 1000,
                             statistics.median(direct) * 1000, "Keystone's own validation"))  # fmt: skip
                # twice over, since the api closes connections that have been idle while others waited for Keystone
                for _ in range(2):
                    for asker in [*crowd, *askers.values()]:
                        asker.reset()
                    with concurrent.futures.ThreadPoolExecutor(16) as pool:
                        list(pool.map(lambda asker: asker(path), [*crowd, askers["token"]]))
                warm = {"crowd": 0, "one": 0}
                spent = dict.fromkeys(warm, 0.0)
                for _ in range(5):
                    for asker in crowd:
                        spent["crowd"] += asker(path)
                        spent["one"] += askers["token"](path)
                        warm = {name: count + 1 for name, count in warm.items()}
                rows.append((f"get, {len(crowd)} users in turn, requests/s", warm["crowd"] / spent["crowd"],
                             warm["one"] / spent["one"], "one user"))  # fmt: skip
                cloud.request("DELETE", f"/v1/bays/{bay['uuid']}?wait=80")
        finally:
            cloud.stop()
    width = max(len(row[0]) for row in rows)
    print(f"{'':{width}}  {'magnum':>8}  {'beside':>8}  ratio")
    for what, ours, beside, peer in rows:
        ratio = f"{ours / beside:5.2f}" if beside else ""
        print(f"{what:{width}}  {ours:8.1f}  {beside or 0:8.1f}  {ratio}  ({peer})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
