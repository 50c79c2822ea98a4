"""Runs that an engine lost: containerd still has the task, Docker knows nothing of it and says that its container ended.

An engine that is ended while it starts a container leaves one behind. The container
can never start again ("task … already exists"), and the tenant's processes go on
unseen. containerd watches over each run by a process of its own, the shim; once
that is gone it ends the run and forgets it, and the container starts again with all its files.

Who calls: the drivers of containers and pods, when a start is refused by ``clients.docker.STUCK``.
"""

import asyncio
import contextlib
import itertools
import os
import pathlib
import signal

import structlog

LOG = structlog.get_logger(__name__)

SHIM = "containerd-shim"
PROC = pathlib.Path("/proc")


async def end(ident: str) -> bool:
    """End the run of the engine's container ``ident`` (its whole id); return whether there was one on this machine."""
    return await asyncio.to_thread(_end, ident)


def _end(ident: str) -> bool:
    found = False
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        # it may end meanwhile, or be another user's
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if _watches(words, ident):
                os.kill(int(entry.name), signal.SIGKILL)
                LOG.warning("ended a run that the engine had lost", container=ident, shim=int(entry.name))
                found = True
    return found


def _watches(words: list[str], ident: str) -> bool:
    """Return whether a command line is that of the shim of ``ident``: ``containerd-shim-runc-v2 … -id ID …``."""
    if not os.path.basename(words[0]).startswith(SHIM):
        return False
    return any(a.lstrip("-") == "id" and b == ident for a, b in itertools.pairwise(words))
