"""What every component of the test bed is made of: a folder, free ports, packages, daemons with pid files, facts.

A component is a module of this package with four functions: ``install()`` has
its packages, ``up(hosts)`` starts it if it is not up and writes its facts,
``down()`` ends it and removes its data, ``status()`` says "up" or "down".
``facts(name)`` gives tests what a component wrote: addresses, ports, URLs.

Only the standard library is used: this runs before any virtual environment.
"""

import collections.abc
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

FOLDER = pathlib.Path(
    os.environ.get("MAGNUM_TESTBED_DIR") or pathlib.Path(__file__).resolve().parent.parent / ".state" / "testbed"
).absolute()
TAG = hashlib.sha256(str(FOLDER).encode()).hexdigest()[:6]
"""Tells this test bed's interfaces, cgroups and nodes from those of one in another folder."""


class Failed(Exception):
    """A component cannot be had; the text says why, with the end of its log."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*argv: str, data: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it; raise Failed with its words unless ``check`` is off."""
    done = subprocess.run(argv, input=data, capture_output=True)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode:
        raise Failed(f"{' '.join(argv)}: {(err or out).strip()[-1500:]}")
    return subprocess.CompletedProcess(argv, done.returncode, out, err)


@contextlib.contextmanager
def lock(path: pathlib.Path) -> collections.abc.Iterator[None]:
    """Hold a lock among processes for as long as the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def apt(packages: dict[str, str]) -> None:
    """Install what is missing of ``packages`` (name → a path or command that shows it is there)."""

    def missing() -> list[str]:
        return [
            name for name, proof in packages.items()
            if not (os.path.exists(proof) if proof.startswith("/") else shutil.which(proof, path=search_path()))
        ]  # fmt: skip

    if not missing():
        return
    with lock(pathlib.Path("/tmp/magnum-testbed-apt.lock")):
        if not (names := missing()):
            return
        if os.geteuid() or not shutil.which("apt-get"):
            raise Failed(f"missing: {', '.join(names)}. Install them, or run this as root on Debian")
        say(f"installing {', '.join(names)} (apt-get)")
        # A package's daemon must not start by itself: the test bed starts its own.
        policy = pathlib.Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        get = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
        try:
            for argv in ([*get, "update"], [*get, "install", "--no-install-recommends", *names]):
                done = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
                # A stale list of some other source does not matter as long as the packages come.
                if done.returncode and argv[-1] != "update":
                    raise Failed(f"{' '.join(argv)}: {(done.stdout + done.stderr)[-2000:]}")
        finally:
            if ours:
                policy.unlink(missing_ok=True)
        if names := missing():
            raise Failed(f"still missing after apt-get: {', '.join(names)}")


def search_path() -> str:
    """Return PATH with the folders that servers are in and that a plain user's lacks."""
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait(condition: collections.abc.Callable[[], object], what: str, seconds: float = 90, log: pathlib.Path | None = None,
         daemon: str | None = None) -> None:  # fmt: skip
    """Return once ``condition()`` holds; raise Failed after ``seconds``, or at once when ``daemon`` has died."""
    end = time.monotonic() + seconds
    while not condition():
        dead = daemon is not None and not pid(daemon)
        if dead or time.monotonic() > end:
            tail = f"\n{log.read_text(errors='replace')[-3000:]}" if log and log.exists() else ""
            raise Failed(f"{what}: {'its process died' if dead else f'not within {seconds:.0f} s'}{tail}")
        time.sleep(0.05)


def _born(number: int) -> str | None:
    """Return when a process started (in the kernel's ticks), None if there is none or it is a zombie."""
    try:
        fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _pid_file(name: str) -> pathlib.Path:
    return FOLDER / "pids" / name


def start(name: str, argv: list[str], log: pathlib.Path, env: dict[str, str] | None = None,
          cwd: pathlib.Path | None = None) -> int:  # fmt: skip
    """Start a daemon in a session of its own and remember it as ``name``. Return its process id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=cwd,
            env=(os.environ | {"PATH": search_path()}) | (env or {}),
        )  # fmt: skip
    process.returncode = 0  # a daemon is meant to outlive this object, which would warn of it
    file = _pid_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{process.pid} {_born(process.pid)}\n")
    return process.pid


def pid(name: str) -> int | None:
    """Return the process id of the daemon ``name``, None unless that very process still runs."""
    try:
        number, born = _pid_file(name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(number), os.WNOHANG)
    return int(number) if born == _born(int(number)) else None


def lives(file: pathlib.Path) -> bool:
    """Return whether the process that a pid file is of runs."""
    try:
        number, born = file.read_text().split()
    except (OSError, ValueError):
        return False
    return born == _born(int(number))


def stop(name: str, seconds: float = 20, number: int = signal.SIGTERM) -> None:
    """End the daemon ``name`` and what is left of its process group, by id; wait until it is gone."""
    if (found := pid(name)) is not None:
        os.kill(found, number)
        end = time.monotonic() + seconds
        while pid(name) and time.monotonic() < end:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found, signal.SIGKILL)
        while pid(name):
            time.sleep(0.02)
        # one that was seen as it died is not reaped yet, and would look alive to its successor
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found, 0)
    _pid_file(name).unlink(missing_ok=True)


def write_facts(component: str, values: dict[str, Any]) -> None:
    """Keep what a user of ``component`` must know."""
    file = FOLDER / "facts" / f"{component}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(values, indent=1))
    new.replace(file)


def facts(component: str) -> dict[str, Any]:
    """Return what ``component`` wrote when it came up. Raises Failed if it is not up."""
    try:
        found: dict[str, Any] = json.loads((FOLDER / "facts" / f"{component}.json").read_text())
    except FileNotFoundError:
        raise Failed(f"{component} is not up: python3 -m testbed up {component}") from None
    return found


def drop(component: str) -> None:
    """Remove the data and facts of a component that has ended."""
    (FOLDER / "facts" / f"{component}.json").unlink(missing_ok=True)
    shutil.rmtree(FOLDER / component, ignore_errors=True)
    for folder in (FOLDER / "facts", FOLDER / "pids"):
        with contextlib.suppress(OSError):
            folder.rmdir()
