"""Images: pulled when they are wanted and absent, with progress that a person can read.

Who calls: the Docker engine's drivers of containers and pods.
"""

import asyncio

import msgspec
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker
from magnum.engines import base

MB = 1_000_000


class _Layer(msgspec.Struct):
    done: bool = False
    current: int = 0
    total: int = 0


class Progress:
    """A pull's state, from Docker's lines of progress."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, _Layer] = {}

    def add(self, line: docker.PullLine) -> str:
        """Take one line in and return the whole as a sentence."""
        if line.id and not line.status.startswith("Pulling from"):
            layer = self._layers.setdefault(line.id, _Layer())
            if line.status == "Downloading" and line.progress:
                layer.current, layer.total = line.progress.current, line.progress.total
            elif line.status in ("Download complete", "Pull complete", "Already exists"):
                layer.current = layer.total
                layer.done = line.status != "Download complete"
        if not self._layers:
            return f"pulling {self._image}"
        done = sum(layer.done for layer in self._layers.values())
        text = f"pulling {self._image}: {done} of {len(self._layers)} layers"
        total = sum(layer.total for layer in self._layers.values())
        if total:
            current = sum(layer.current for layer in self._layers.values())
            text += f", {current // MB} MB of {total // MB} MB"
        return text


async def pull(client: docker.Client, conf: cfg.ConfigOpts, image: str, status: str, progress: base.Progress) -> None:
    """Pull ``image``; each new sentence goes to ``progress`` under ``status``.

    Raises EngineError with the engine's words, or that it took too long; Unavailable; Overtaken.
    """
    pulling = asyncio.create_task(_pull(client, conf, image, status, progress))
    overtaken = asyncio.create_task(progress.overtaken())
    try:
        await asyncio.wait({pulling, overtaken}, return_when=asyncio.FIRST_COMPLETED)
        if not pulling.done():
            raise base.Overtaken
        await pulling
    finally:
        for task in (pulling, overtaken):
            task.cancel()
        await asyncio.gather(pulling, overtaken, return_exceptions=True)


async def _pull(client: docker.Client, conf: cfg.ConfigOpts, image: str, status: str, progress: base.Progress) -> None:
    state, said = Progress(image), ""
    credentials = docker.credentials_for(image, conf.docker.registry_auth)
    try:
        async with asyncio.timeout(conf.docker.pull_timeout):
            await progress(base.Outcome(status=status, reason=f"pulling {image}", pending=True))
            async for line in client.pull(image, credentials):
                text = state.add(line)
                if text != said:
                    said = text
                    await progress(base.Outcome(status=status, reason=text, pending=True))
    except TimeoutError:
        raise errors.EngineError(f"pulling {image} took longer than {conf.docker.pull_timeout:g} s") from None
    except errors.Unavailable:
        raise
    except errors.MagnumError as error:
        raise errors.EngineError(f"pulling {image}: {error.detail}") from error
