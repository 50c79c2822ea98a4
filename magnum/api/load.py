"""How many requests a process has in hand, in all and of one project, and how fast they come: too much is refused at once.

A refusal costs little, an answer that comes too late costs everyone. Called by ``routing`` around every handler, and
by ``app`` before it looks where a request goes.
"""

import collections
import collections.abc
import contextlib
import math
import time

from oslo_config import cfg

from magnum import errors

RETRY_AFTER = 1
"""Seconds after which a client that was refused for what is in hand may come again."""
BURST = 1.0
"""Seconds' worth of requests that a project may send at once and be within its rate."""
PROJECTS = 10_000
"""Projects whose pace is kept before those that have been quiet for long enough are forgotten."""


class Load:
    """The requests in hand."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._most = conf.api.max_requests
        self._most_of_one = conf.api.max_project_requests
        self.in_hand = 0
        self._of: collections.Counter[str] = collections.Counter()
        self._rate: float = conf.api.max_project_rate
        self._due: dict[str, float] = {}
        """Project → when the next of its requests would come if all had kept the rate: GCRA, ITU-T I.371."""

    @contextlib.contextmanager
    def request(self) -> collections.abc.Iterator[None]:
        """Have a request in hand. Raises Unavailable if there are too many."""
        if (excess := self._excess()) is not None:
            raise excess
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    @contextlib.contextmanager
    def of(self, project: str) -> collections.abc.Iterator[None]:
        """Have a request of ``project`` in hand. Raises TooMany if it has too many already, or they come too fast."""
        if (excess := self._excess_of(project)) is not None:
            raise excess
        if self._rate:
            # of what is taken: what was refused above is not of its pace
            self._pace(project)
        self._of[project] += 1
        try:
            yield
        finally:
            self._of[project] -= 1
            if not self._of[project]:
                del self._of[project]

    def excess(self, project: str | None) -> errors.MagnumError | None:
        """Return why a request of ``project`` (None: not known yet) would be refused now, None if it would not."""
        return self._excess() or (None if project is None else self._excess_of(project))

    def _excess(self) -> errors.Unavailable | None:
        if self.in_hand < self._most:
            return None
        return errors.Unavailable(
            f"{self.in_hand} requests are being served, and no more are taken", retry_after=RETRY_AFTER
        )

    def _excess_of(self, project: str) -> errors.TooMany | None:
        # not by [], which would keep a number for whoever was asked of
        held = self._of.get(project, 0)
        if held >= self._most_of_one:
            return errors.TooMany(
                f"your project has {held} requests in progress here, and no more are taken", retry_after=RETRY_AFTER
            )
        early = self._due[project] - time.monotonic() - BURST if project in self._due else 0.0
        if early > 0:
            return errors.TooMany(
                f"your project asks for more than the {self._rate:g} requests a second that are taken here",
                retry_after=math.ceil(early),
            )
        return None

    def _pace(self, project: str) -> None:
        now = time.monotonic()
        if len(self._due) >= PROJECTS:
            self._due = {name: then for name, then in self._due.items() if then > now}
        self._due[project] = max(self._due.get(project, 0.0), now) + 1 / self._rate
