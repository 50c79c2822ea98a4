"""The backend: makes this machine's engines as the database wants them, and tells what they show.

It takes calls of the api and nudges of the conductor, hears the engines' events,
and compares everything from time to time; ``backend.work`` does what follows for
each object, ``backend.converge`` decides what that is. Nothing is kept here that
the database and the engines do not have: a backend may die at any moment.

Who calls: ``cmd``; the api and the conductor by RPC.
"""

import asyncio
import contextlib
import importlib.metadata
import time
from typing import Any

import structlog
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, hands, metrics, objects
from magnum.backend import converge, reports, streams, work
from magnum.engines import base as engines
from magnum.objects import base, host
from magnum.rpc import backend as backend_rpc
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc
from magnum.rpc import senders

LOG = structlog.get_logger(__name__)

ENGINES = "magnum.engines"
"""Entry points: name → Engine class, made with the configuration."""
CALL_SECONDS = 10.0
FACTS_SECONDS = 5.0
AGAIN = 1.0
MEET_SECONDS = 0.2
MEET_AT_ONCE = 200
ORPHANS = 100
"""Objects unknown to the conductor that a sign of life tells of at most."""
END_SECONDS = 5.0
"""Seconds that work in hand has to come to its end."""


def load(conf: cfg.ConfigOpts) -> dict[str, engines.Engine]:
    """Return the engines that ``[backend] engines`` names. Raises Invalid for one that is not installed."""
    known = {point.name: point for point in importlib.metadata.entry_points(group=ENGINES)}
    found = {}
    for name in conf.backend.engines:
        if name not in known:
            raise errors.Invalid(f"there is no engine {name!r}; there are {', '.join(sorted(known))}",
                                 field="[backend] engines")  # fmt: skip
        found[name] = known[name].load()(conf)
    return found


class Server(backend_rpc.Backend):
    """One backend. ``start`` returns at once; what is away is waited for, and said once."""

    def __init__(
        self, conf: cfg.ConfigOpts, transport: rpc.Transport, found: dict[str, engines.Engine] | None = None
    ) -> None:
        self.conf = conf
        self.host: str = conf.host
        self.transport = transport
        self.engines = load(conf) if found is None else found
        self.conductor = rpc.client(conductor_rpc.Conductor, transport, conductor_rpc.TOPIC, timeout=CALL_SECONDS)
        self.reports = reports.Reports(self.conductor, self.host)
        self.hands = hands.Hands(conf.backend.concurrency)
        self._works: dict[str, work.Work] = {}
        self._nudged: set[str] = set()
        self._woken = asyncio.Event()
        self._whole = True
        self._met: set[tuple[str, str]] = set()
        self._meeting = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._streams = streams.Streams(conf)
        self._said: dict[str, str] = {}
        self._orphans: dict[str, list[host.Orphan]] = {}
        self._facts: dict[str, tuple[float, dict[str, Any]]] = {}
        """Engine's name → when it last answered, and what it said of itself."""
        self._asking: dict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = {}
        self._closing = False
        metrics.WORKS.set_function(lambda: len(self._works))
        metrics.ROUNDS.set_function(lambda: sum(each.busy for each in list(self._works.values())))
        metrics.REPORTS.set_function(lambda: self.reports.waiting)

    async def start(self) -> None:
        """Begin; see the class."""
        await asyncio.gather(*(engine.start() for engine in self.engines.values()))
        self.reports.start()
        admit = senders.Senders(self.conf.host_user).to_backend
        await self.transport.serve(
            f"{backend_rpc.TOPIC}.{self.host}", rpc.handler(backend_rpc.Backend, self, admit), shared=False
        )
        loops = [
            self._beat(),
            self._converge(),
            self._introduce(),
            *(self._watch(engine) for engine in self.engines.values()),
        ]
        self._tasks = [asyncio.create_task(each) for each in loops]

    async def close(self) -> None:
        """Take nothing new, give work in hand a few seconds, report it, let the rest be found at the next start."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for _, asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self.transport.stop_serving()
                await asyncio.gather(*(each.wait() for each in self._works.values()))
        for each in list(self._works.values()):
            each.cancel()
        await self._streams.close()
        await self.reports.close(END_SECONDS)
        for engine in self.engines.values():
            await engine.close()

    def _say(self, key: str, text: str) -> None:
        """Log ``text`` when it is news about ``key``; an empty one tells that all is well again."""
        if self._said.get(key, "") != text:
            self._said[key] = text
            if text:
                LOG.warning(f"waiting for {key}", reason=text)
            else:
                LOG.info(f"{key} answers")

    # objects

    def engine(self, item: base.Object) -> engines.Engine:
        """Return the engine that has ``item``: that of its bay. Raises NotSupported."""
        kind = objects.kind_of(item).name
        if isinstance(item, objects.bay.Bay):
            name = item.spec.engine
        else:
            known = self._works.get(item.bay_uuid or "")
            name = known.item.spec.engine if known is not None and known.item is not None else ""
        candidates = [self.engines[name]] if name in self.engines else list(self.engines.values())
        for engine in candidates:
            if kind in engine.drivers:
                return engine
        raise errors.NotSupported(f"no engine of {self.host} has objects of kind {kind}")

    def driver(self, item: base.Object) -> engines.Driver:
        """Return what makes ``item``. Raises NotSupported."""
        return self.engine(item).drivers[objects.kind_of(item).name]

    def _work(self, kind: str, uuid: str) -> work.Work:
        if uuid not in self._works:
            self._works[uuid] = work.Work(self, kind, uuid)
        return self._works[uuid]

    def forget(self, done: work.Work) -> None:
        """Drop the work of an object of which nothing is left."""
        if self._works.get(done.uuid) is done:
            del self._works[done.uuid]

    # calls

    async def apply(self, context: contexts.Context, item: objects.AnyObject) -> objects.AnyObject | None:
        if self._closing:
            raise errors.Unavailable(f"the backend of {self.host} is ending")
        future = self._work(objects.kind_of(item).name, item.uuid).apply(item)
        # the work goes on when nobody waits for it any more
        return await asyncio.shield(future)

    async def kick(self, context: contexts.Context, uuids: list[str]) -> None:
        self._nudged.update(uuids)
        self._woken.set()

    async def stream(self, context: contexts.Context, item: objects.AnyObject, asked: backend_rpc.StreamAsked) -> None:
        session = await self.driver(item).stream(item, asked)
        await self._streams.join(session, item.uuid, asked)

    async def stats(self, context: contexts.Context, item: objects.AnyObject) -> dict[str, object]:
        return await self.driver(item).stats(item)

    async def top(self, context: contexts.Context, item: objects.AnyObject) -> dict[str, object]:
        return await self.driver(item).top(item)

    async def certificate(self, context: contexts.Context, item: objects.AnyObject, csr: str | None) -> str:
        return await self.driver(item).certificate(item, csr, context.user_id)

    async def ping(self, context: contexts.Context) -> dict[str, str]:
        found = {}
        for name, engine in self.engines.items():
            try:
                async with asyncio.timeout(FACTS_SECONDS):
                    await engine.facts()
                found[name] = "ok"
            except errors.MagnumError as error:
                found[name] = error.detail
            except TimeoutError:
                found[name] = f"no answer within {FACTS_SECONDS:g} s"
        return found

    # signs of life

    async def facts(self) -> host.Facts:
        """Return what is known of this machine now; of an engine that does not answer ``problem`` says why.

        It stands as it last was for ``down_after`` seconds, as a host does: what is asked for meanwhile waits for it,
        rather than being refused for a hiccup or a restart. Then it is absent.
        """
        found = host.Facts(
            labels=self.conf.backend.labels, address=self.conf.backend.address or "",
            orphans=[orphan for orphans in self._orphans.values() for orphan in orphans][:ORPHANS],
        )  # fmt: skip
        for name, engine in self.engines.items():
            if name not in self._asking:
                self._asking[name] = time.monotonic(), asyncio.create_task(engine.facts())
        # a host lives even if its engine is slow to say how it is, but is of no use before it has said so once
        met = all(name in self._facts or self._said.get(name) for name in self.engines)
        if self._asking:
            patience = self.conf.backend.beat_interval if met else FACTS_SECONDS
            await asyncio.wait([task for _, task in self._asking.values()], timeout=patience)
        for name, engine in self.engines.items():
            problem = self._answered(name)
            self._say(name, problem)
            if problem:
                found.problem = f"{name}: {problem}"
            at, seen = self._facts.get(name, (0.0, {}))
            if problem and time.monotonic() - at > self.conf.backend.down_after:
                continue
            for field, value in seen.items():
                if field in ("cpus", "memory", "containers") and engine.shared and len(self.engines) > 1:
                    # a cluster's, while this host's own are what others are placed by
                    continue
                if field == "clusters":
                    found.clusters = base.convert(value, dict[str, host.Cluster])
                elif field == "problem":
                    found.problem = value or found.problem
                elif field == "engines":
                    found.engines.update(value)
                elif isinstance(value, (int, float)) and field != "disk":
                    setattr(found, field, max(getattr(found, field), value))
                else:
                    setattr(found, field, value)
        return found

    def _answered(self, name: str) -> str:
        """Keep what an engine that was asked has answered; return why it has not, as far as that is known."""
        since, task = self._asking[name]
        now = time.monotonic()
        if task.done():
            del self._asking[name]
            try:
                self._facts[name] = now, task.result()
            except errors.MagnumError as error:
                return error.detail
            return ""
        if now - since < FACTS_SECONDS:
            return self._said.get(name, "")
        task.cancel()
        del self._asking[name]
        return f"no answer within {FACTS_SECONDS:g} s"

    async def _beat(self) -> None:
        while True:
            try:
                beat = host.Beat(
                    binary="magnum-backend", host=self.host, epoch=self.reports.epoch, facts=await self.facts()
                )
                context = contexts.service(self.host).within(max(self.conf.backend.beat_interval, 2.0))
                epoch = await self.conductor.beat(context, beat)
                if not self.reports.epoch:
                    self.reports.register(epoch)
                    LOG.info("registered", host=self.host, epoch=epoch, engines=beat.facts and beat.facts.engines)
                elif epoch != self.reports.epoch:
                    self._say("this host's name", f"another backend calls itself {self.host}; end one of the two")
                if self._said.get("the conductor"):
                    # nudges may have been lost meanwhile
                    self._whole = True
                    self._woken.set()
                self._say("the conductor", "")
            except errors.MagnumError as error:
                self._say("the conductor", error.detail)
                await asyncio.sleep(min(AGAIN, self.conf.backend.beat_interval))
                continue
            except Exception:
                LOG.exception("beat failed")
            await asyncio.sleep(self.conf.backend.beat_interval)

    async def verdict(self, uuid: str) -> str | None:
        """Return what the conductor's log says of an object that is not wanted here: see ``Conductor.judge``."""
        found = await self.conductor.judge(contexts.service(self.host).within(CALL_SECONDS), [uuid])
        return found.get(uuid)

    # convergence

    async def _watch(self, engine: engines.Engine) -> None:
        while True:
            try:
                async for notice in engine.watch():
                    if not notice.uuid:
                        self._whole = True
                        self._woken.set()
                    elif notice.uuid in self._works:
                        self._works[notice.uuid].look()
                    elif engine.shared:
                        self._met.add((notice.kind, notice.uuid))
                        self._meeting.set()
            except Exception:
                LOG.exception("watch failed", engine=engine.name)
            await asyncio.sleep(AGAIN)

    async def _converge(self) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            # nudges may come for ever, the next whole comparison comes all the same
            whole, self._whole = self._whole or loop.time() >= due, False
            nudged, self._nudged = self._nudged, set()
            self._woken.clear()
            try:
                await (self._compare() if whole else self._follow(nudged))
                if whole:
                    due = loop.time() + self.conf.backend.resync_interval
                    metrics.COMPARED.set_to_current_time()
            except errors.MagnumError as error:
                LOG.debug("comparison waits", reason=str(error))
                self._whole = self._whole or whole
                self._nudged |= nudged
                await asyncio.sleep(AGAIN)
                continue
            except Exception:
                LOG.exception("comparison failed")
                await asyncio.sleep(AGAIN)
            if self._whole:
                # an engine was away, or something was left: soon once more
                await asyncio.sleep(AGAIN)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._woken.wait()

    async def _wanted(self, uuids: list[str] | None = None) -> list[Any]:
        return await self.conductor.wanted(contexts.service(self.host).within(CALL_SECONDS * 3), uuids)

    async def _follow(self, uuids: set[str]) -> None:
        """Do what the conductor wants of a few objects."""
        if not uuids:
            return
        wanted = await self._wanted(sorted(uuids))
        for item in wanted:
            if isinstance(item, objects.bay.Bay) and item.uuid not in self._works and self.engine(item).shared:
                # another kept it: what others made in it is to be seen, too
                self._whole = True
                self._woken.set()
            self._work(objects.kind_of(item).name, item.uuid).apply(item)
        for uuid in uuids - {item.uuid for item in wanted}:
            known = self._works.get(uuid)
            if known is not None and known.item is not None:
                known.apply(known.item)

    async def _compare(self) -> None:
        """Compare everything that is wanted with everything that is there."""
        wanted = await self._wanted()
        # bays are known before what is in them, which engine it is hangs on them
        for item in wanted:
            if isinstance(item, objects.bay.Bay):
                known = self._work("bay", item.uuid)
                known.item = known.item or item
        for name, engine in self.engines.items():
            try:
                seen = await engine.seen()
            except errors.Unavailable as error:
                self._say(name, error.detail)
                self._whole = True
                continue
            mine = [item for item in wanted if self._has(engine, item)]
            steps = converge.steps(mine, seen, self.host)
            for item in steps.apply:
                self._work(objects.kind_of(item).name, item.uuid).apply(item)
            for item in steps.look:
                self._work(objects.kind_of(item).name, item.uuid).look(item)
            await self._judge(engine, steps.strangers)
            if engine.shared:
                self._met |= set(engine.others())
                self._meeting.set()

    async def _introduce(self) -> None:
        """Tell the conductor what others made in the bays of this host."""
        while True:
            await self._meeting.wait()
            # much of it comes at once
            await asyncio.sleep(MEET_SECONDS)
            self._meeting.clear()
            met, self._met = self._met, set()
            found = [
                item
                for engine in self.engines.values() if engine.shared
                for kind, uuid in met if uuid not in self._works
                if (item := engine.other(kind, uuid)) is not None and item.bay_uuid in self._works
            ]  # fmt: skip
            for start in range(0, len(found), MEET_AT_ONCE):
                part = found[start : start + MEET_AT_ONCE]
                try:
                    known = await self.conductor.found(contexts.service(self.host).within(CALL_SECONDS), part)
                except errors.MagnumError as error:
                    LOG.debug("not introduced", reason=str(error))
                    self._met |= {(objects.kind_of(item).name, item.uuid) for item in part}
                    self._meeting.set()
                    await asyncio.sleep(AGAIN)
                    continue
                for item in known:
                    self._work(objects.kind_of(item).name, item.uuid).look(item)

    def _has(self, engine: engines.Engine, item: Any) -> bool:
        """Return whether ``item`` is compared with what ``engine`` shows; what no engine has is told by any round."""
        try:
            return self.engine(item) is engine
        except errors.NotSupported:
            return engine is next(iter(self.engines.values()))

    async def _judge(self, engine: engines.Engine, strangers: list[engines.Seen]) -> None:
        """Remove what the log knows to be deleted or moved; leave, and name, what nothing is known of."""
        asked = [one for one in strangers if one.uuid not in self._works or not self._works[one.uuid].busy]
        orphans: list[host.Orphan] = []
        verdicts: dict[str, str] = {}
        if asked:
            verdicts = await self.conductor.judge(
                contexts.service(self.host).within(CALL_SECONDS), [one.uuid for one in asked]
            )
        for one in asked:
            verdict = verdicts.get(one.uuid)
            if verdict == "moved" and engine.shared:
                continue
            known = self._works.get(one.uuid)
            if known is not None and verdict == "unknown":
                # the database has forgotten it
                known.cancel()
                self.forget(known)
            elif known is not None:
                if verdict is not None and known.item is not None:
                    known.apply(known.item)
                continue
            if verdict in ("deleted", "moved") and one.kind in engine.drivers:
                LOG.info("removing what is not wanted here", kind=one.kind, uuid=one.uuid, verdict=verdict)
                driver = engine.drivers[one.kind]
                left = await (driver.leave(one.uuid) if verdict == "moved" else driver.remove(one.uuid, None))
                if not left.gone:
                    self._whole = True
                    self._say(one.uuid, left.reason or "something of it is left")
            elif verdict == "unknown":
                orphans.append(one)
                self._say(f"a word on orphan {one.kind} {one.uuid}", "nothing is known of it; adopt or remove it")
        # at once: a beat in between would tell of some alone
        self._orphans[engine.name] = orphans
