"""Which hosts and programs there are: their signs of life, and what it means for what lives on a host when they end.

Called by ``conductor.server``, and by ``rounds`` for those gone silent.
"""

import collections.abc

from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, objects
from magnum.conductor import together
from magnum.db import store, tables
from magnum.objects import base
from magnum.objects import host as hosts


class Hosts:
    """Of all. ``lost`` is called in the transaction that writes of one that it is down. ``beat`` and ``programs`` are those of ``rpc.conductor``."""

    def __init__(self, conf: cfg.ConfigOpts, store: store.Store, lost: collections.abc.Callable[[], None]) -> None:
        self._conf = conf
        self._store = store
        self._lost = lost
        self._together: together.Together[None, tuple[contexts.Context, hosts.Beat], int] = together.Together(
            self._beat
        )

    async def beat(self, context: contexts.Context, beat: hosts.Beat) -> int:
        if context.host != beat.host:
            raise errors.Forbidden(f"host {context.host!r} is not {beat.host!r}")

        return await self._together.do(None, (context, beat))

    async def _beat(self, asked: list[tuple[contexts.Context, hosts.Beat]]) -> list[int | errors.MagnumError]:
        async def work(tx: store.Transaction) -> list[int | errors.MagnumError]:
            names = {beat.host for _, beat in asked if beat.facts is not None}
            known = await tx.hosts_named(names, lock=True) if names else {}
            answers: list[int | errors.MagnumError] = []
            seen: dict[str, hosts.Host] = {}
            for context, beat in asked:
                tx.context = context
                answers.append(await self._saw(tx, beat, known, seen))
            await tx.saw_hosts(list(seen.values()))
            await tx.saw_programs({(beat.binary, beat.host) for _, beat in asked})
            return answers

        return await self._store.write(asked[0][0], work)

    async def _saw(
        self, tx: store.Transaction, beat: hosts.Beat, known: dict[str, hosts.Host], seen: dict[str, hosts.Host]
    ) -> int:
        """Take what a host tells of itself; return its epoch. ``seen``: the known ones that are to be written."""
        if beat.facts is None:
            # a program that is no host
            return 0
        machine = known.get(beat.host) or hosts.Host(uuid=base.new_uuid(), name=beat.host, status="")
        was = machine.status
        if not beat.epoch:
            machine.epoch += 1
        elif beat.epoch > machine.epoch:
            # only a database that was restored from an older dump can be behind
            machine.epoch = beat.epoch
        elif beat.epoch != machine.epoch:
            # another backend has taken the name since: it is told so, and changes nothing
            return machine.epoch
        machine.facts = beat.facts
        machine.status_reason = beat.facts.problem
        machine.status = "disabled" if machine.disabled else "up" if beat.facts.engines else "down"
        if machine.created_at is None:
            await tx.save_host(machine)
            known[machine.name] = machine
        else:
            seen[machine.name] = machine
        if was != machine.status:
            if "down" in (was, machine.status):
                await self._tell_of_host(tx, machine, lost=machine.status == "down")
            tx.note_host(machine, was)
        return machine.epoch

    async def find_silent(self) -> None:
        """Write of hosts that gave no sign of life for too long that they are down."""

        async def look(tx: store.Transaction) -> bool:
            return bool(await tx.silent(self._conf.backend.down_after))

        async def work(tx: store.Transaction) -> None:
            for machine in await tx.silent(self._conf.backend.down_after):
                machine.status = "down"
                machine.status_reason = f"no sign of life for {self._conf.backend.down_after:g} s"
                await tx.save_host(machine, down=True)
                await self._tell_of_host(tx, machine, lost=True)
                tx.note_host(machine, "up")
                # whatever hung on it alone is another's now
                self._lost()

        if await self._store.read(contexts.service(), look):
            await self._store.write(contexts.service(), work)

    async def _tell_of_host(self, tx: store.Transaction, machine: hosts.Host, *, lost: bool) -> None:
        """Add to the log what a host that comes or goes means for what lives on it."""
        reason = f"host {machine.name} is down" + (f": {machine.status_reason}" if machine.status_reason else "")
        for kind in objects.KINDS.values():
            if kind.spread != "one":
                continue
            for record in await tx.records(kind, tables.KINDS[kind.name].c.host == machine.name):
                item = record.item
                if not item.deleting:
                    was, now = (item.status, store.UNKNOWN) if lost else (store.UNKNOWN, item.status)
                    tx.note(kind, item, "observed", was=was, status=now, reason=reason if lost else item.status_reason)

    async def machines(self, context: contexts.Context, ident: str | None = None) -> list[hosts.Host]:
        async def work(tx: store.Transaction) -> list[hosts.Host]:
            if ident is None:
                return await tx.hosts()
            column = tables.HOSTS.c.uuid if base.is_uuid(ident) else tables.HOSTS.c.name
            found = await tx.hosts(column == ident)
            if not found:
                raise errors.NotFound(f"there is no host {ident!r}")
            return found

        return await self._store.read(context, work)

    async def programs(self, context: contexts.Context) -> list[hosts.Program]:
        async def work(tx: store.Transaction) -> list[hosts.Program]:
            return await tx.programs(self._conf.backend.down_after)

        return await self._store.read(context, work)
