"""What is wanted and what is there → what to do. Pure: no I/O, no clock.

Called by ``backend.server`` with what the conductor wants of this host and what
the engines show.
"""

from typing import Any

import msgspec

from magnum.engines import base as engines
from magnum.objects import base, bay


class Steps(msgspec.Struct, kw_only=True):
    """``apply``: make it so. ``look``: it was so, see whether it still is. ``strangers``: to be judged by the conductor."""

    apply: list[Any] = []
    look: list[Any] = []
    strangers: list[engines.Seen] = []


def leaving(item: base.Object, host: str) -> bool:
    """Return whether nothing of ``item`` is to be left on ``host``."""
    if item.deleting:
        return True
    return isinstance(item, bay.Bay) and host not in item.spec.members


def steps(wanted: list[Any], seen: list[engines.Seen], host: str) -> Steps:
    """Return what to do on ``host``: an object that the engine has not caught up with is applied, others looked at.

    Bays come first, since what is in them stands on their network, and go last.
    """
    found = Steps()
    there = {one.uuid for one in seen}
    for item in sorted(wanted, key=lambda i: (isinstance(i, bay.Bay) == leaving(i, host), i.uuid)):
        behind = item.observed_generation < item.generation or item.operation is not None
        missing = item.uuid not in there
        (found.apply if behind or missing or leaving(item, host) else found.look).append(item)
    known = {item.uuid for item in wanted}
    strangers = {one.uuid: one for one in seen if one.uuid not in known}
    found.strangers = list(strangers.values())
    return found
