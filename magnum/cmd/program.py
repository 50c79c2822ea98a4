"""What every program does alike: read its configuration, log, start its parts in order, end them on a signal.

Called by the modules beside it.
"""

import argparse
import asyncio
import collections.abc
import gc
import io
import resource
import signal
import sys
from typing import Protocol

import structlog
import uvloop
from oslo_config import cfg

from magnum import config, errors, logs, tracing

LOG = structlog.get_logger(__name__)

COLLECT_EVERY = 10_000


class Part(Protocol):
    """Something that starts and ends."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


Parts = collections.abc.Callable[[], collections.abc.Awaitable[collections.abc.Sequence[Part]]]


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """Return a parser with what every program takes."""
    made = argparse.ArgumentParser(prog=name, description=text)
    made.add_argument(
        "--config-file", action="append", metavar="FILE",
        help=f"configuration; may be given again, the later one wins ({config.DEFAULT_FILE})",
    )  # fmt: skip
    return made


def load(name: str, files: list[str] | None, **overrides: object) -> cfg.ConfigOpts:
    """Return the configuration, or end with a line that says what is wrong with it."""
    try:
        return config.load(files, **overrides)
    except (cfg.Error, OSError) as error:
        sys.exit(f"{name}: {error}")
    except errors.MagnumError as error:
        sys.exit(f"{name}: {error}")


def configure(name: str, text: str) -> cfg.ConfigOpts:
    """Return the configuration that the command line names, with logging set up."""
    conf = load(name, parser(name, text).parse_args().config_file)
    logs.setup(conf, name)
    return conf


def run(conf: cfg.ConfigOpts, name: str, parts: Parts) -> int:
    """Run a program until it is asked to end; return its exit code.

    ``parts`` makes its parts, within the loop; they are started in order and closed in the opposite one.
    """
    # connections and streams need one each, and the usual soft limit is for programs that use select(2)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        tracing.setup(conf, name)
        uvloop.run(_live(name, parts))
        tracing.close()
    except errors.MagnumError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def tell_tasks() -> None:
    """Log what every task of this process waits for; SIGUSR1 asks for it."""
    for task in asyncio.all_tasks():
        stack = io.StringIO()
        task.print_stack(file=stack)
        LOG.info("task", name=task.get_name(), stack=stack.getvalue())


def _calm_collector() -> None:
    """Keep the collector of reference cycles from what is there for good, and from looking after every list that is answered.

    Without, each list of 100 has it walk over all that the program imported: more than half of what a list costs.
    Cycles live a little longer for that: they are looked for every so many new objects, 700 by Python's default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 10, 10)


async def _live(name: str, parts: Parts) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGUSR1, tell_tasks)
    started: list[Part] = []
    try:
        for part in await parts():
            started.append(part)
            await part.start()
        _calm_collector()
        await ended.wait()
        LOG.info("ending", program=name)
    finally:
        for part in reversed(started):
            await part.close()
