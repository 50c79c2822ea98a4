"""The OpenAPI document against the api that it describes: whatever is sent, by whomever, no 5xx and nothing undocumented.

schemathesis makes the requests: for each operation every boundary of its schema, right and wrong, and random ones.
"""

import json
import re
import subprocess

import pytest

from testbed import base, environments
from tests.deployment import Deployment
from tests.live import conftest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
STREAMS = "/v1/events"
"""Goes on for ever; test_sessions follows it."""
LEAST = {"coverage": 4000, "fuzzing": 100}
"""Requests of a phase at least."""


@pytest.fixture(scope="module")
def probed(docker_hosts, tmp_path_factory):
    """A deployment of its own, since an admin who asks at random leaves nothing as it was."""
    conftest.servers()
    name = f"contract-{base.TAG}"
    yield from conftest.running(Deployment(name, tmp_path_factory.mktemp("contract"), docker_hosts[:1]))


def _probe(probed, tmp_path, *words, headers=()):
    """Return what schemathesis says of a run."""
    python = environments.schemathesis()
    report = tmp_path / "report.json"
    argv = [
        python.parent / "schemathesis", "run", f"{probed.url}/openapi.json", "--checks", CHECKS, "--no-shrink", "--seed", "1",
        "--continue-on-failure", "--request-timeout", "60", "--exclude-path", STREAMS, "--suppress-health-check", "all",
        "--warnings", "off", *words,
        *(w for name, value in headers for w in ("--header", f"{name}:{value}")),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (count,) = re.findall(r"([\d,]+) generated", done.stdout)
    print(
        f"schemathesis: {json.dumps(dict(headers))} {' '.join(words)}: {count} cases, {done.stdout.count('FAILED')} failed"
    )
    report.write_text(done.stdout)
    return int(count.replace(",", ""))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("phases", ["coverage", pytest.param("fuzzing", marks=pytest.mark.long)])
def test_an_admin_who_asks_anything(probed, tmp_path, phases):
    assert _probe(probed, tmp_path, "--phases", phases, "--max-examples", "6") > LEAST[phases]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("roles", ["member", "none"])
def test_those_who_may_less(probed, tmp_path, roles):
    """``none``: someone who is known and has no role at all."""
    who = [("X-Roles", roles), ("X-Project-Id", f"project-of-{roles}")]
    assert _probe(probed, tmp_path, "--phases", "coverage", headers=who) > LEAST["coverage"]
