"""``magnum-standalone``: api, conductor and backend in one process, with SQLite, for one machine and one user."""

import contextlib
import fcntl
import os
import pathlib
import sys
from typing import IO

from magnum import errors, logs
from magnum.cmd import program


def main() -> int:
    parser = program.parser("magnum-standalone", "All of Magnum in one process. Needs nothing but a Docker Engine.")
    parser.add_argument("--port", type=int, help="port on loopback (9511; 0 takes any free one)")
    parser.add_argument("--state-dir", metavar="DIR", help="folder for the database (~/.local/share/magnum)")
    parser.add_argument("--docker", metavar="URL", help="where Docker answers (unix:///var/run/docker.sock)")
    asked = parser.parse_args()
    base = pathlib.Path(os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share")
    state = pathlib.Path(asked.state_dir or base / "magnum").absolute()
    overrides: dict[str, object] = {
        "transport_url": "local://", "state_dir": str(state), "api__host": "127.0.0.1",
        "api__auth_strategy": "noauth", "api__workers": 1, "api__stream_host": "127.0.0.1",
        "database__connection": f"sqlite:///{state}/magnum.sqlite",
    }  # fmt: skip
    if asked.port is not None:
        overrides["api__port"] = asked.port
    if asked.docker is not None:
        overrides["docker__url"] = asked.docker
    conf = program.load("magnum-standalone", asked.config_file or [], **overrides)
    logs.setup(conf, "magnum-standalone")
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock(state)
        from magnum.cmd import http

        sock = http.bind(conf.api.host, conf.api.port)
    except errors.MagnumError as error:
        print(f"magnum-standalone: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"magnum-standalone: {state}: {error.strerror}", file=sys.stderr)
        return 1
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    async def parts() -> list[program.Part]:
        from magnum.api import app
        from magnum.backend import server as backend
        from magnum.conductor import server as conductor
        from magnum.rpc import local

        hub = local.Hub()
        transports = [local.Local(hub, name=name) for name in ("conductor", "backend", "api")]
        database = conductor.Server(conf, transports[0])
        return [
            *transports, Upgrade(database), database, backend.Server(conf, transports[1]),
            http.Http(app.Api(conf, transports[2]), sock), Greeting(url),
        ]  # fmt: skip

    try:
        return program.run(conf, "magnum-standalone", parts)
    finally:
        held.close()


def lock(state: pathlib.Path) -> IO[str]:
    """Return the lock of a state directory, held until it is closed. Raises Conflict: another process has it."""
    file = open(state / "lock", "a+")  # noqa: SIM115  held for the process' life
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise errors.Conflict(
            f"{state} is in use by another magnum-standalone (process {holder}); end it or give another --state-dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


class Upgrade:
    """Brings the database to this version before anything uses it."""

    def __init__(self, conductor: object) -> None:
        self._conductor = conductor

    async def start(self) -> None:
        from magnum.db import schema

        await schema.upgrade(self._conductor.store.engine)  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Nothing to close."""


class Greeting:
    """Says how Magnum is reached."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def start(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(
                f"Magnum is ready: {self._url}/v1 (described at {self._url}/docs). For the command lines:\n"
                f"  export OS_AUTH_URL={self._url}/identity/v3 OS_USERNAME=admin OS_PASSWORD=any "
                "OS_PROJECT_NAME=default OS_TENANT_NAME=default OS_USER_DOMAIN_ID=default OS_PROJECT_DOMAIN_ID=default\n"
                "  magnum bay-list",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    async def close(self) -> None:
        """Nothing to close."""
