"""How many requests a process has in hand, in all and of one project: what is too much is refused at once.

A refusal costs little, an answer that comes too late costs everyone. Called by ``routing`` around every handler.
"""

import collections
import collections.abc
import contextlib

from oslo_config import cfg

from magnum import errors

RETRY_AFTER = 1
"""Seconds after which a client that was refused may come again."""


class Load:
    """The requests in hand."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._most = conf.api.max_requests
        self._most_of_one = conf.api.max_project_requests
        self.in_hand = 0
        self._of: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def request(self) -> collections.abc.Iterator[None]:
        """Have a request in hand. Raises Unavailable if there are too many."""
        if self.in_hand >= self._most:
            raise errors.Unavailable(
                f"{self.in_hand} requests are being served, and no more are taken", retry_after=RETRY_AFTER
            )
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    @contextlib.contextmanager
    def of(self, project: str) -> collections.abc.Iterator[None]:
        """Have a request of ``project`` in hand. Raises TooMany if it has too many already."""
        if self._of[project] >= self._most_of_one:
            raise errors.TooMany(
                f"your project has {self._of[project]} requests in progress here, and no more are taken",
                retry_after=RETRY_AFTER,
            )
        self._of[project] += 1
        try:
            yield
        finally:
            self._of[project] -= 1
            if not self._of[project]:
                del self._of[project]
