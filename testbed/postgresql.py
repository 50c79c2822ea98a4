"""PostgreSQL: one server on loopback; every test makes databases of its own in it.

It refuses to be root, and whoever it is then may not enter the folder of this
checkout; so it has a mount namespace of its own, in which its data is at ``/mnt``.

Facts: ``url`` (of the server; a database's name goes after it), ``port``, ``log``.
"""

import pathlib
import secrets
import shlex
import shutil
import signal

from testbed import base

NAME = "postgresql"
USER = "postgres"


def _bin() -> pathlib.Path:
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise base.Failed("postgresql is not installed")
    return found[-1].parent


def install() -> None:
    """Have the server, without the cluster that the package would start."""
    base.apt({"postgresql": "/usr/lib/postgresql/15/bin/postgres", "util-linux": "setpriv"})


def _within(command: list[str]) -> list[str]:
    """Return the words that run ``command`` as the server's user with the data at ``/mnt``."""
    data = shlex.quote(str(base.FOLDER / NAME / "data"))
    user = f"setpriv --reuid {USER} --regid {USER} --clear-groups"
    return [
        "unshare", "--mount", "--", "sh", "-c",
        f"mount --bind {data} /mnt && cd / && exec {user} {shlex.join(command)}",
    ]  # fmt: skip


def up(hosts: int) -> None:
    if base.pid(NAME):
        return
    folder = base.FOLDER / NAME
    data = folder / "data"
    secret = folder / "password"
    if not (data / "PG_VERSION").exists():
        shutil.rmtree(folder, ignore_errors=True)
        data.mkdir(parents=True)
        shutil.chown(data, USER, USER)
        data.chmod(0o700)
        secret.write_text(secrets.token_hex(16))
        base.run(
            *_within(["sh", "-c", f"cat > /tmp/$$ && {_bin()}/initdb -D /mnt -U {USER} -A scram-sha-256 "
                      "--pwfile=/tmp/$$ --no-sync -E UTF8 --locale=C.UTF-8; code=$?; rm -f /tmp/$$; exit $code"]),
            data=secret.read_bytes(),
        )  # fmt: skip
    try:
        port = base.facts(NAME)["port"]
    except base.Failed:
        (port,) = base.free_ports(1)
    log = folder / "log"
    # a crash of the machine may cost the test bed its data, a crash of a program may not
    settings = {
        "port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
        "max_connections": "200", "shared_buffers": "64MB",
    }  # fmt: skip
    words = [str(_bin() / "postgres"), "-D", "/mnt", *(w for k, v in settings.items() for w in ("-c", f"{k}={v}"))]
    base.start(NAME, _within(words), log)
    url = f"postgresql://{USER}:{secret.read_text()}@127.0.0.1:{port}/"
    base.write_facts(NAME, {"url": url, "port": port, "log": str(log)})
    base.wait(lambda: base.run(str(_bin() / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), check=False).returncode == 0,
              "PostgreSQL", log=log, daemon=NAME)  # fmt: skip


def stop(*, kill: bool = False) -> None:
    """End the server and keep its data; ``kill``: as a crash does. ``up`` brings it back, at the same port."""
    base.stop(NAME, number=signal.SIGKILL if kill else signal.SIGINT)


def down() -> None:
    base.stop(NAME, number=signal.SIGINT)
    base.drop(NAME)


def status() -> str:
    return "up" if base.pid(NAME) else "down"


def database(name: str) -> str:
    """Make an empty database and return its URL; one of that name is dropped first."""
    url = base.facts(NAME)["url"]
    for statement in (f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}"'):
        base.run(str(_bin() / "psql"), f"{url}postgres", "-qXc", statement)
    return f"{url}{name}"


def dump(url: str, file: pathlib.Path) -> None:
    """Write a dump of a database to ``file``."""
    base.run(str(_bin() / "pg_dump"), url, "-f", str(file))


def restore(name: str, file: pathlib.Path) -> None:
    """Make the database ``name`` anew of a dump."""
    url = database(name)
    base.run(str(_bin() / "psql"), url, "-qXv", "ON_ERROR_STOP=1", "-f", str(file))
