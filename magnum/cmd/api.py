"""``magnum-api``: the REST server, in one process or several on one port."""

import os
import pathlib
import signal
import socket
import sys
import tempfile
import time

from oslo_config import cfg

from magnum import errors
from magnum.cmd import program

RESTART_SECONDS = 1.0
"""Seconds before a worker that died is replaced."""


def main() -> int:
    parser = program.parser("magnum-api", "The REST server of Magnum.")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that serve the port ([api] workers)")
    asked = parser.parse_args()
    overrides = {} if asked.workers is None else {"api__workers": asked.workers}
    conf = program.load("magnum-api", asked.config_file, **overrides)
    if conf.api.workers > 1:
        # read by prometheus-client when it is first imported
        folder = tempfile.mkdtemp(prefix="magnum-api-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from magnum import logs
    from magnum.cmd import http

    logs.setup(conf, "magnum-api")
    try:
        sock = http.bind(conf.api.host, conf.api.port)
    except errors.MagnumError as error:
        print(f"magnum-api: {error}", file=sys.stderr)
        return 1
    print(f"magnum-api serves http://{conf.api.host}:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
    if conf.api.workers == 1:
        return _serve(conf, sock, 0)
    return _watch(conf, sock)


def _serve(conf: cfg.ConfigOpts, sock: socket.socket, number: int) -> int:
    from magnum.api import app
    from magnum.cmd import http
    from magnum.rpc import transports

    async def parts() -> list[program.Part]:
        transport = transports.open(conf.transport_url, name=f"magnum-api-{number}@{conf.host}")
        return [transport, http.Http(app.Api(conf, transport, number), sock)]

    return program.run(conf, "magnum-api", parts)


def _watch(conf: cfg.ConfigOpts, sock: socket.socket) -> int:
    """Keep as many workers as asked for until the end; one that dies is replaced."""
    workers: dict[int, int] = {}
    ending = False

    def end(signum: int, frame: object) -> None:
        nonlocal ending
        ending = True
        for pid in workers:
            os.kill(pid, signal.SIGTERM)

    def begin(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os._exit(_serve(conf, sock, number))
        workers[pid] = number

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    for number in range(conf.api.workers):
        begin(number)
    code = 0
    while workers:
        pid, status = os.wait()
        number = workers.pop(pid, -1)
        if number < 0:
            continue
        if ending:
            continue
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
            # refused its configuration: another one would, too
            code = 1
            end(0, None)
            continue
        print(f"magnum-api: worker {number} died and is replaced", file=sys.stderr, flush=True)
        time.sleep(RESTART_SECONDS)
        begin(number)
    for file in pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        file.unlink(missing_ok=True)
    pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).rmdir()
    return code
