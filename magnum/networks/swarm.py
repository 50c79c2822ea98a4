"""The swarm that bays on several hosts need: formed by its managers as they start, joined by others as a bay needs it.

The operator names the managers (``[docker] swarm_managers``) and a file for the
join tokens (``swarm_token_file``), which hosts share or configuration management
brings. The first manager forms the swarm and writes the file where there is none;
every other host joins by it, and one that fell out joins again with the next bay.
No secret goes over AMQP. Without ``swarm_managers`` the swarm is the operator's own
business.

Tokens file: lines ``worker TOKEN`` and ``manager TOKEN``.

Who calls: ``networks.docker`` before it makes an overlay network, ``engines.docker`` as it starts.
"""

import asyncio
import os
import pathlib
import time
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker

LOG = structlog.get_logger(__name__)

PORT = 2377
"""Docker's default for the swarm's managers."""
TOKEN_SECONDS = 20.0
"""How long a host waits for the file of tokens."""
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 10.0
"""Until a manager that could not begin tries again."""
OUT_SECONDS = 30.0
"""How long an engine that was in a swarm has to be in none, and answer, before it joins again.

One that is ending says that it is in none, too. To join it then has it forget the swarm that it would come back to;
managers that do so cost the others their quorum. It is gone sooner than this, unless a container takes longer to stop.
"""

_joining = asyncio.Lock()
_out: dict[str, float] = {}
"""Engine's URL → when it was first seen in no swarm, of those that answered ever since."""


async def manage(client: docker.Client, conf: cfg.ConfigOpts, address: str) -> None:
    """Have the engine in the swarm if this host is one of its managers, trying until it is: others need them first."""
    if address not in [_host(manager) for manager in conf.docker.swarm_managers]:
        return
    said = ""
    while True:
        try:
            await ensure(client, conf, address)
            return
        except errors.MagnumError as error:
            if error.detail != said:
                LOG.warning("the swarm's manager cannot begin yet", reason=error.detail)
                said = error.detail
        await asyncio.sleep(AGAIN_SECONDS)


async def ensure(client: docker.Client, conf: cfg.ConfigOpts, address: str) -> None:
    """Have the engine in the swarm; ``address`` is that by which other hosts reach this one.

    Raises EngineError: it is in none and may or can not join, with the reason. Unavailable.
    """
    async with _joining:
        await _ensure(client, conf, address)


async def _ensure(client: docker.Client, conf: cfg.ConfigOpts, address: str) -> None:
    try:
        found = (await client.info()).swarm or {}
    except errors.Unavailable:
        _out.pop(client.url, None)
        raise
    state = found.get("LocalNodeState")
    out = state in ("inactive", None, "")
    if not out:
        _out.pop(client.url, None)
    was_in = pathlib.Path(conf.state_dir) / "was-in-swarm"
    managers: list[str] = conf.docker.swarm_managers
    first = bool(managers) and _host(managers[0]) == address
    path = pathlib.Path(conf.docker.swarm_token_file or "")
    if state == "active":
        await asyncio.to_thread(_note, was_in)
        told = not conf.docker.swarm_token_file or await asyncio.to_thread(path.exists)
        if first and found.get("ControlAvailable") and not told:
            await _tell(client, path)
        return
    if not managers:
        raise errors.EngineError(
            "a bay on several hosts needs Docker's Swarm mode, which this engine is not in: set [docker] swarm_managers"
            " and swarm_token_file, or use docker swarm join"
        )
    if not out:
        words = found.get("Error") or ""
        raise errors.EngineError(f"this engine's swarm is {state}" + (f": {words}" if words else ""))
    if not conf.docker.swarm_token_file:
        raise errors.EngineError("[docker] swarm_managers needs swarm_token_file")
    since = _out.setdefault(client.url, time.monotonic())
    if time.monotonic() - since < OUT_SECONDS and await asyncio.to_thread(was_in.exists):
        raise errors.EngineError("this engine's swarm is pending: it was in one, and is ending or has left it")
    others = [m for m in managers if _host(m) != address]
    if first and (not others or not await asyncio.to_thread(path.exists)):
        await _form(client, address, path)
        return
    tokens = await _tokens(path)
    role = "manager" if len(others) < len(managers) else "worker"
    if role not in tokens:
        raise errors.EngineError(f"{path} has no token for a {role}")
    body = _body(address) | {
        "RemoteAddrs": [m if ":" in m else f"{m}:{PORT}" for m in others], "JoinToken": tokens[role],
    }  # fmt: skip
    try:
        await client.request("POST", "/swarm/join", body=body)
    except errors.EngineError as error:
        # two bays may come at once
        if ((await client.info()).swarm or {}).get("LocalNodeState") != "active":
            raise errors.EngineError(f"joining the swarm of {', '.join(others)}: {error.detail}") from error


async def manages(client: docker.Client) -> bool:
    """Return whether the engine manages its swarm. Raises Unavailable."""
    return bool(((await client.info()).swarm or {}).get("ControlAvailable"))


async def silent(client: docker.Client) -> str | None:
    """Return why the swarm that the engine manages tells nothing now; None if it does, or the engine manages none.

    A manager whose swarm has no leader lists no network of it and knows none by name, which is no word on whether there
    is one. Raises Unavailable.
    """
    if not await manages(client):
        return None
    try:
        await client.request("GET", "/swarm", into=dict[str, Any])
    except (errors.Conflict, errors.EngineError) as error:
        return error.detail
    return None


def _note(path: pathlib.Path) -> None:
    """Keep that the engine is in a swarm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _host(manager: str) -> str:
    return manager.partition(":")[0]


def _body(address: str) -> dict[str, Any]:
    return {"ListenAddr": f"{address}:{PORT}", "AdvertiseAddr": address, "DataPathAddr": address}


async def _form(client: docker.Client, address: str, path: pathlib.Path) -> None:
    try:
        await client.request("POST", "/swarm/init", body=_body(address), into=str)
    except errors.EngineError as error:
        if ((await client.info()).swarm or {}).get("LocalNodeState") != "active":
            raise errors.EngineError(f"forming a swarm: {error.detail}") from error
    await _tell(client, path)


async def _tell(client: docker.Client, path: pathlib.Path) -> None:
    tokens = (await client.request("GET", "/swarm", into=dict[str, Any]))["JoinTokens"]
    await asyncio.to_thread(_write, path, f"worker {tokens['Worker']}\nmanager {tokens['Manager']}\n")


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    # nobody is to read the half of it, nor anybody else at all
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


async def _tokens(path: pathlib.Path) -> dict[str, str]:
    end = time.monotonic() + TOKEN_SECONDS
    while True:
        try:
            lines = (await asyncio.to_thread(path.read_text)).splitlines()
        except FileNotFoundError:
            if time.monotonic() > end:
                raise errors.EngineError(f"[docker] swarm_token_file {path} is not there") from None
            await asyncio.sleep(LOOK_SECONDS)
            continue
        except OSError as error:
            raise errors.EngineError(f"[docker] swarm_token_file {path}: {error.strerror}") from error
        return {role: token for role, _, token in (line.strip().partition(" ") for line in lines) if token}
