"""Why an object is not as wanted: a tree of causes, down to the engine's own words, and its last deaths.

``GET /v1/{kind}/{id}/explain`` shows it; ``conductor.causes`` makes it.
"""

import msgspec

KEPT = 5
"""Deaths of an object that are kept, and 20 last lines of each one's log."""
LINES = 20


class Death(msgspec.Struct, kw_only=True):
    """One end of a run that its owner did not ask for. ``container``: which of a pod's. ``at``: the engine's time (RFC 3339)."""

    at: str
    exit_code: int | None = None
    reason: str | None = None
    container: str | None = None
    log: list[str] = []


class Cause(msgspec.Struct, kw_only=True):
    """One reason. ``code`` is a stable word for programs, ``detail`` a sentence with the engine's own words.

    Codes: host-down, host-disabled, in-progress, image, memory, port-taken, quota, disk-full, network, probe, exited,
    crash-loop, no-host, no-endpoints, configuration, bay, pod, engine. ``kind`` and ``uuid`` name the object that the
    cause is about, where that is another one; ``causes`` say why that in turn.
    """

    code: str
    detail: str
    kind: str | None = None
    uuid: str | None = None
    name: str | None = None
    causes: list["Cause"] = []


class Explanation(msgspec.Struct, kw_only=True):
    """``as_wanted``: there is nothing to explain. ``wanted`` and ``status`` in the kind's words."""

    kind: str
    uuid: str
    name: str
    status: str
    wanted: str
    as_wanted: bool
    host: str | None = None
    causes: list[Cause] = []
    deaths: list[Death] = []
