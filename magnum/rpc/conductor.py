"""What the conductor can be asked. The only door to the database.

``ident`` is a uuid or a name everywhere. A call sees the rows of the context's
project alone, unless ``context.all_projects``. Every method may raise
Unavailable (database away) and DeadlineExceeded beside what it names.
"""

import msgspec

from magnum import context, objects
from magnum.objects import base, explanation, host
from magnum.rpc import base as rpc

TOPIC = "conductor"
EVENTS = "events"
"""Broadcast topic: the ``objects.base.Event`` of each commit, an array in msgpack, at most once; gaps show by revision."""


class Page(msgspec.Struct, kw_only=True):
    """One page of a list; ``more`` says whether another follows it."""

    items: list[objects.AnyObject]
    more: bool = False


class Quota(msgspec.Struct, kw_only=True):
    """A project's limits and use, by resource: bays, nodes, pods, services, containers, memory (bytes), cpus (cores).

    ``own``: the resources for which the project has a limit of its own.
    """

    project_id: str
    limits: dict[str, int] = {}
    used: dict[str, float] = {}
    own: list[str] = []


class Conductor(rpc.Interface):
    @rpc.call(repeat_safe=True)
    async def create(self, context: context.Context, item: objects.AnyObject) -> objects.AnyObject:
        """Check quota, choose the host(s), write the intent; return the stored object.

        Keyed by ``item.uuid``: a repeated call returns what the first one wrote.
        Raises NotFound (bay, bay model), Conflict (name taken in the bay, bay not
        usable), QuotaExceeded, NoHostFits.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def get(self, context: context.Context, kind: str, ident: str, bay: str | None = None) -> objects.AnyObject:
        """Return one object. Raises NotFound, Ambiguous (data.uuids lists them)."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def explain(
        self, context: context.Context, kind: str, ident: str, bay: str | None = None
    ) -> explanation.Explanation:
        """Return why one object is not as wanted, and its last deaths. Raises as ``get``."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def page(self, context: context.Context, kind: str, query: base.Query) -> Page:
        """Return a page of objects.

        Raises Invalid (sort_key, sort_dir, marker, filters), NotFound (bay).
        """
        raise NotImplementedError

    @rpc.call()
    async def update(
        self, context: context.Context, kind: str, ident: str, bay: str | None, patch: list[dict[str, object]]
    ) -> objects.AnyObject:
        """Apply a JSON Patch (RFC 6902) to the spec (and ``/name``) and write the new intent; return the object.

        Raises Invalid (patch, field), NotFound, Ambiguous, Conflict (deleting), QuotaExceeded, NoHostFits.
        """
        raise NotImplementedError

    @rpc.call()
    async def act(
        self, context: context.Context, kind: str, ident: str, bay: str | None, action: str
    ) -> objects.AnyObject:
        """Write the intent of an action (start, stop …); return the object. Raises NotFound, Ambiguous, Conflict."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def delete(
        self, context: context.Context, kind: str, ident: str, bay: str | None = None, keep: bool = False
    ) -> objects.AnyObject | None:
        """Write the intent to delete, of a bay with all that is in it; return the object.

        What lives on no host is gone at the return. ``keep`` leaves a replication
        controller's pods. Repeats are no error while the object exists, and None once
        the very request that is repeated has ended it.
        Raises NotFound, Ambiguous, Conflict (a bay model in use).
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def report(self, context: context.Context, reports: list[base.Report]) -> list[objects.AnyObject | None]:
        """Write what ``context.host`` observed; return the objects as they now are (None: no such object here).

        None tells the backend that the object is deleted or another host's: it is to be removed.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def found(self, context: context.Context, items: list[objects.AnyObject]) -> list[objects.AnyObject]:
        """Write down what others made in bays that the calling backend keeps; return what is known of it now.

        What is refused (its bay is another host's, or is going; its name is taken) is left out.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def wanted(self, context: context.Context, uuids: list[str] | None = None) -> list[objects.AnyObject]:
        """Return every object (or those of ``uuids``) that is to live, or is being deleted, on ``context.host``."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def judge(self, context: context.Context, uuids: list[str]) -> dict[str, str]:
        """Say of uuids found on ``context.host``'s engine but not wanted there what the log knows.

        ``deleted`` or ``moved``: remove; ``unknown``: nothing was ever logged of it: an orphan.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def beat(self, context: context.Context, beat: host.Beat) -> int:
        """Take a sign of life; return the program's epoch (see ``objects.host.Beat``)."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def hosts(self, context: context.Context, ident: str | None = None) -> list[host.Host]:
        """Return all hosts, or the one named. Raises NotFound."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def programs(self, context: context.Context) -> list[host.Program]:
        """Return every program that ever beat."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def events(
        self,
        context: context.Context,
        after: int = 0,
        limit: int = 1000,
        kind: str | None = None,
        uuid: str | None = None,
        request_id: str | None = None,
    ) -> list[base.Event]:
        """Return rows of the log with a revision above ``after``, oldest first, of the context's project."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def latest(self, context: context.Context) -> int:
        """Return the highest revision of the log."""
        raise NotImplementedError

    @rpc.call()
    async def settle(self, context: context.Context, request_id: str, verb: str) -> objects.AnyObject:
        """``cancel`` or ``retry`` the operation of a request; return its object.

        Cancel of a create deletes the object; of another change it leaves the
        object to read as the engine shows it. Retry writes the same intent again.
        Raises NotFound, Conflict (nothing to cancel or retry).
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def quotas(self, context: context.Context, project: str | None = None) -> list[Quota]:
        """Return a project's limits and what it uses; without ``project`` all that an admin set, unused ones too."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def set_quota(self, context: context.Context, project: str, limits: dict[str, int | None]) -> Quota:
        """Give a project limits of its own (-1: none); None goes back to the configuration's. Raises Invalid (resource)."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def health(self, context: context.Context) -> dict[str, str]:
        """Return ``{"database": "ok" | reason}``."""
        raise NotImplementedError
