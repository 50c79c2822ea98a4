"""Virtual environments, made when missing or out of date. ``run-tests`` and ``quickstart`` call it before any exists."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from testbed import base

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLIENT = ["python-magnumclient==2.1.0", "setuptools<81"]
"""The client as it was released; it imports pkg_resources, which newer setuptools lack."""
OPENSTACK = [
    "python-magnumclient==5.0.0", "python-openstackclient==10.5.0", "openstacksdk==4.22.0", "oslo.messaging==18.3.1",
]  # fmt: skip
"""The newest clients as they were released, and what consumers of notifications are written with."""
SCHEMATHESIS = ["schemathesis==4.32.5"]
"""Makes requests out of the OpenAPI document and judges the answers by it."""
OLDEST = (3, 11)


def _interpreter() -> str:
    """Return a Python that is new enough and can make environments, installing Debian's module for that if it must."""
    if sys.version_info < OLDEST:
        raise base.Failed(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version.split()[0]}")
    if subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode:
        base.apt({"python3-venv": f"/usr/lib/python3.{sys.version_info[1]}/ensurepip/__init__.py"})
    return sys.executable


def make(folder: pathlib.Path, packages: list[str]) -> pathlib.Path:
    """Have a virtual environment with ``packages`` in ``folder`` and return its Python. Raises Failed with pip's words."""
    python = folder / "bin" / "python"
    mark = folder / "installed"
    text = repr(packages) + str(folder)
    if "-e" in packages:
        text += (ROOT / "pyproject.toml").read_text()
    wanted = hashlib.sha256(text.encode()).hexdigest()
    with base.lock(folder.with_name(f"{folder.name}.lock")):
        if not (python.exists() and mark.exists() and mark.read_text() == wanted):
            _install(folder, packages)
            mark.write_text(wanted)
    return python


def _install(folder: pathlib.Path, packages: list[str]) -> None:
    started = time.monotonic()
    few = " ".join(packages[:5]) + (f" and {len(packages) - 5} more" if len(packages) > 5 else "")
    base.say(f"{folder.name}: installing {few}")
    interpreter = _interpreter()
    shutil.rmtree(folder, ignore_errors=True)
    base.run(interpreter, "-m", "venv", str(folder))
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    argv = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--retries", "5", *packages]
    done = subprocess.run(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise base.Failed(f"pip install {few}: {(done.stdout + done.stderr)[-3000:]}")
    base.say(f"{folder.name}: ready ({time.monotonic() - started:.1f} s)")


def client() -> pathlib.Path:
    """Have the unmodified old client in an environment of its own and return that one's Python."""
    return make(ROOT / ".venv-client", CLIENT)


def schemathesis() -> pathlib.Path:
    """Have schemathesis in an environment of its own, since it pins what others need newer, and return that one's Python."""
    return make(ROOT / ".venv-schemathesis", SCHEMATHESIS)


def openstack() -> pathlib.Path:
    """Have the newest clients, unmodified, in an environment of their own and return that one's Python."""
    return make(ROOT / ".venv-openstack", OPENSTACK)
