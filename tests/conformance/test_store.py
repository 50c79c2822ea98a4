"""What the conductor needs of a database, on SQLite, PostgreSQL and MariaDB alike."""

import asyncio
import contextlib
import datetime
import uuid

import msgspec
import pytest
import sqlalchemy as sa

from magnum import config, errors, objects
from magnum import context as contexts
from magnum.conductor import quotas, server
from magnum.db import schema, store, tables
from magnum.objects import base, bay, bay_model, container, host
from magnum.rpc import local
from testbed import base as testbed
from testbed import mariadb, postgresql

CONTAINER, BAY, MODEL = (objects.KINDS[name] for name in ("container", "bay", "baymodel"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def url(request, tmp_path_factory):
    """A database with this version's tables."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path_factory.mktemp('store')}/magnum.sqlite"
    else:
        component = {"postgresql": postgresql, "mariadb": mariadb}[request.param]
        with testbed.lock(testbed.FOLDER / "lock"):
            component.install()
            component.up(0)
        made = component.database(f"store{uuid.uuid4().hex[:8]}")

    async def upgrade():
        engine = store.connect(made)
        assert await schema.version(engine) is None
        assert await schema.upgrade(engine) == schema.HEAD
        assert await schema.upgrade(engine) == schema.HEAD
        assert await schema.differences(engine) == []
        await engine.dispose()

    asyncio.run(upgrade())
    return made


@pytest.fixture
async def db(url):
    found = store.Store(store.connect(url))
    yield found
    await found.close()


@pytest.fixture
def project():
    """A context of a project that nobody else has."""
    return contexts.Context(request_id=contexts.new_request_id(), project_id=uuid.uuid4().hex, user_id="u")


def made(context, name, **more):
    spec = container.ContainerSpec(image="i", **more)
    return container.Container(
        uuid=base.new_uuid(), project_id=context.project_id, user_id="u", name=name, status="Created", spec=spec
    )


async def add(db, context, *items):
    async def work(tx):
        for item in items:
            await tx.insert(objects.kind_of(item), store.Record(item=item))

    await db.write(context, work)


async def test_what_is_written_is_read(db, project):
    item = made(project, "naïve-日本", environment={"k": "v" * 70_000}, memory=2**40)
    item.operation_deadline = datetime.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    await add(db, project, item)
    found = await db.read(project, lambda tx: tx.find(CONTAINER, item.uuid))
    assert found.item == item
    assert (await db.read(project, lambda tx: tx.find(CONTAINER, "naïve-日本"))).item.uuid == item.uuid


async def test_other_projects_see_nothing_but_what_is_public(db, project):
    other = contexts.Context(request_id="r", project_id=uuid.uuid4().hex)
    mine = made(project, "c")
    shared = bay_model.BayModel(
        uuid=base.new_uuid(), project_id=project.project_id, name="m", spec=bay_model.BayModelSpec(public=True)
    )
    await add(db, project, mine, shared)
    with pytest.raises(errors.NotFound):
        await db.read(other, lambda tx: tx.find(CONTAINER, mine.uuid))
    assert (await db.read(other, lambda tx: tx.find(MODEL, shared.uuid))).item.name == "m"
    with pytest.raises(errors.NotFound):
        await db.write(other, lambda tx: tx.find(MODEL, shared.uuid, lock="write"))
    assert (await db.read(other, lambda tx: tx.page(CONTAINER, base.Query()))) == ([], False)
    admin = contexts.Context(request_id="r", project_id="admin", all_projects=True)
    assert (await db.read(admin, lambda tx: tx.find(CONTAINER, mine.uuid))).item.name == "c"


async def test_a_name_that_several_have_is_ambiguous(db, project):
    twins = [made(project, "twin"), made(project, "twin")]
    await add(db, project, *twins)
    with pytest.raises(errors.Ambiguous) as raised:
        await db.read(project, lambda tx: tx.find(CONTAINER, "twin"))
    assert sorted(raised.value.data["uuids"]) == sorted(t.uuid for t in twins)


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_pages_join_without_gap_or_double_whatever_they_are_sorted_by(db, project, direction):
    await add(db, project, *(made(project, f"n{number % 4}") for number in range(11)))
    for key in base.Query.SORT_KEYS:
        seen, marker, more = [], None, True
        while more:
            query = base.Query(limit=3, sort_key=key, sort_dir=direction, marker=marker)
            items, more = await db.read(project, lambda tx, query=query: tx.page(CONTAINER, query))
            seen += items
            marker = items[-1].uuid
        assert len({item.uuid for item in seen}) == len(seen) == 11, key
        if key == "name":
            names = [item.name for item in seen]
            assert names == sorted(names, reverse=direction == "desc")
    query = base.Query(filters={"name": "n1"})
    assert len((await db.read(project, lambda tx: tx.page(CONTAINER, query)))[0]) == 3
    for bad, field in (
        (base.Query(sort_key="spec"), "sort_key"), (base.Query(sort_dir="up"), "sort_dir"),
        (base.Query(marker="nobody"), "marker"), (base.Query(filters={"colour": "x"}), "colour"),
    ):  # fmt: skip
        with pytest.raises(errors.Invalid) as raised:
            await db.read(project, lambda tx, bad=bad: tx.page(CONTAINER, bad))
        assert raised.value.field == field


async def test_changes_of_one_row_at_once_lose_none(db, project):
    item = made(project, "busy")
    await add(db, project, item)

    async def bump(tx):
        record = await tx.by_uuid(CONTAINER, item.uuid, lock="write")
        record.item.generation += 1
        await tx.save(CONTAINER, record)
        tx.note(CONTAINER, record.item, "accepted", action="update")

    await asyncio.gather(*(db.write(project, bump) for _ in range(20)))
    assert (await db.read(project, lambda tx: tx.find(CONTAINER, item.uuid))).item.generation == 21
    rows = await db.read(project, lambda tx: tx.events_of(tables.LOG.c.uuid == item.uuid))
    assert [row.generation for row in rows] == list(range(2, 22))
    assert [row.revision for row in rows] == sorted({row.revision for row in rows})


async def test_a_reader_that_follows_the_log_misses_nothing(db, project):
    item = made(project, "told")
    await add(db, project, item)
    start = await db.read(project, lambda tx: tx.latest())
    seen, done = [], asyncio.Event()

    async def follow():
        after = start
        while not done.is_set() or len(seen) < 30:
            rows = await db.read(project, lambda tx, after=after: tx.events_of(after=after))
            seen.extend(row.revision for row in rows)
            after = rows[-1].revision if rows else after
            await asyncio.sleep(0)

    async def tell(number):
        async def work(tx):
            tx.note(CONTAINER, item, "observed", reason=str(number))

        await db.write(project, work)

    async with asyncio.timeout(60):
        following = asyncio.create_task(follow())
        await asyncio.gather(*(tell(n) for n in range(30)))
        done.set()
        await following
    assert len(seen) == 30 and seen == sorted(seen)


async def test_what_one_alone_may_hold_goes_to_one(db, project):
    async def take(tx, uuid):
        if "80" in (await tx.claims([project.project_id]))[project.project_id]:
            raise errors.Conflict("taken")
        await tx.claim(project.project_id, "80", uuid)
        return uuid

    tasks = [db.write(project, lambda tx, n=n: take(tx, f"u{n}")) for n in range(8)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(a, str) for a in answers) == 1
    assert all(isinstance(a, str | errors.Conflict) for a in answers), answers


async def test_fifty_at_once_at_a_limit_of_ten_give_ten(db, project):
    conf = config.load([], quotas__containers=10)

    async def one(number):
        async def work(tx):
            item = made(project, f"q{number}")
            await quotas.check(tx, conf, project.project_id, CONTAINER, item.spec)
            await tx.insert(CONTAINER, store.Record(item=item))

        await db.write(project, work)

    answers = await asyncio.gather(*(one(n) for n in range(50)), return_exceptions=True)
    refused = [a for a in answers if isinstance(a, errors.QuotaExceeded)]
    assert answers.count(None) == 10 and len(refused) == 40, answers
    assert refused[-1].data == {"resource": "containers", "limit": 10, "used": 10.0, "asked": 1}
    assert len((await db.read(project, lambda tx: tx.page(CONTAINER, base.Query())))[0]) == 10


async def test_what_is_made_together_is_counted_told_and_refused_one_by_one(url, db, project):
    """Two conductors, one of which is asked twice for the same, at a limit that neither may pass."""
    where = bay.Bay(
        uuid=base.new_uuid(), name="b", project_id=project.project_id, status="CREATE_COMPLETE",
        spec=bay.BaySpec(baymodel_id="m", members=["together"]),
    )  # fmt: skip
    machine = host.Host(uuid=base.new_uuid(), name="together", status="up", facts=host.Facts(engines={"docker": "1"}))

    async def prepare(tx):
        if not await tx.hosts(tables.HOSTS.c.name == machine.name):
            await tx.save_host(machine)
        await tx.insert(BAY, store.Record(item=where))

    await db.write(project, prepare)
    conf = config.load([], database__connection=url, host="c", quotas__containers=10)
    conductors = [server.Server(conf, local.Local()) for _ in range(2)]

    async def ask(number, **more):
        asker = msgspec.structs.replace(project, request_id=contexts.new_request_id(), user_id=f"u{number}")
        spec = container.ContainerSpec(image="i", **more)
        item = container.Container(uuid=uuids[number], name=f"t{number}", bay_uuid=where.uuid, spec=spec)
        return await conductors[number % 2].create(asker, item)

    uuids = [base.new_uuid() for _ in range(24)]
    port = {"ports": [container.Port(port=80, host_port=8080)]}
    first = await asyncio.gather(
        *(ask(number, **port) for number in (20, 22, 23)), *(ask(number) for number in (0, 2, 2)),
        return_exceptions=True,
    )  # fmt: skip
    assert sum(isinstance(one, errors.NoHostFits) for one in first[:3]) == 2, first
    assert [one.uuid for one in first[3:]] == [uuids[0], uuids[2], uuids[2]]
    answers = await asyncio.gather(*(ask(number) for number in range(3, 19)), return_exceptions=True)
    made = [one for one in answers if not isinstance(one, Exception)]
    assert len(made) == 7 and sum(isinstance(one, errors.QuotaExceeded) for one in answers) == 9, answers
    events = await db.read(project, lambda tx: tx.events_of(tables.LOG.c.object_kind == "container"))
    assert [event.step for event in events] == ["accepted"] * 10
    assert {(event.uuid, event.user_id) for event in events if event.uuid in {one.uuid for one in made}} == {
        (one.uuid, f"u{uuids.index(one.uuid)}") for one in made
    }
    for conductor in conductors:
        await conductor.store.close()


async def test_what_hosts_tell_at_once_is_each_ones_own(url, db, project):
    """Thirty hosts beat by two conductors, and report on what is theirs and on what is not."""
    conf = config.load([], database__connection=url, host="c")
    conductors = [server.Server(conf, local.Local()) for _ in range(2)]
    mark = uuid.uuid4().hex[:8]
    names = [f"h{number}-{mark}" for number in range(30)]

    async def beat(number, epoch, disk=0):
        told = host.Beat(
            binary="magnum-backend",
            host=names[number],
            epoch=epoch,
            facts=host.Facts(engines={"docker": "1"}, disk=disk),
        )
        return await conductors[number % 2].beat(contexts.service(names[number]), told)

    epochs = await asyncio.gather(*(beat(number, 0) for number in range(30)))
    assert epochs == [1] * 30
    # one has begun anew meanwhile, and the beat of the old one is told so
    assert await beat(3, 0) == 2
    epochs = await asyncio.gather(*(beat(number, 1, disk=number) for number in range(30)))
    assert epochs == [2 if number == 3 else 1 for number in range(30)]
    found = {machine.name: machine for machine in await db.read(project, lambda tx: tx.hosts())}
    assert [(found[name].status, found[name].facts.disk) for name in names] == [
        ("up", 0 if number == 3 else number) for number in range(30)
    ]
    programs = {p.host: p.report_count for p in await db.read(project, lambda tx: tx.programs(60)) if p.host in names}
    assert programs == {name: 3 if name == names[3] else 2 for name in names}

    items = []
    for name in names:
        item = made(project, f"on-{name}")
        item.host, item.status, item.generation = name, "Creating", 1
        item.operation, item.operation_deadline = contexts.new_request_id(), base.now()
        items.append(item)

    async def prepare(tx):
        for item in items:
            await tx.insert(CONTAINER, store.Record(item=item, action="create"))

    await db.write(project, prepare)

    async def report(number, of, sequence, status, **more):
        one = base.Report(kind="container", uuid=items[of].uuid, generation=1, sequence=sequence, status=status, **more)
        (answer,) = await conductors[number % 2].report(contexts.service(names[number]), [one])
        return answer

    answers = await asyncio.gather(
        *(report(number, number, 5, "Running") for number in range(30)),
        *(report(number, number + 1, 9, "Stopped") for number in range(29)),
    )
    assert [answer.status for answer in answers[:30]] == ["Running"] * 30
    assert answers[30:] == [None] * 29
    # what one sends that is not even a report fails none of the others
    late = await asyncio.gather(
        *(report(number, number, 4, "Stopped") for number in range(29)),
        report(29, 29, 10, "Running", state={"deaths": "many"}), return_exceptions=True,
    )  # fmt: skip
    assert [answer.status for answer in late[:29]] == ["Running"] * 29
    assert isinstance(late[29], msgspec.ValidationError)
    events = await db.read(project, lambda tx: tx.events_of(tables.LOG.c.object_kind == "container"))
    assert sorted((event.uuid, event.step, event.request_id) for event in events) == sorted(
        (item.uuid, "completed", item.operation) for item in items
    )
    for conductor in conductors:
        await conductor.store.close()


async def test_a_writer_whose_caller_goes_away_still_writes(db, project):
    item = made(project, "left")
    begun = asyncio.Event()

    async def work(tx):
        begun.set()
        await tx.insert(CONTAINER, store.Record(item=item))

    task = asyncio.create_task(db.write(project, work))
    await begun.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    await db.close()
    assert await db.read(project, lambda tx: tx.by_uuid(CONTAINER, item.uuid)) is not None


async def test_tables_change_under_a_writer_that_holds_them_the_other_way_round(url, db, project):
    changing = asyncio.Event()

    async def work(tx):
        await tx.hosts(lock=True)
        changing.set()
        # until the change has the one table and waits for the other
        await asyncio.sleep(1)
        return await tx.page(CONTAINER, base.Query())

    def change(connection):
        for table in ("containers", "hosts"):
            connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN later INTEGER"))

    engine = store.connect(url)
    writing = asyncio.create_task(db.write(project, work))
    await changing.wait()
    try:
        await schema.change(engine, change)
        assert await writing == ([], False)
        assert len(await schema.differences(engine)) == 2
    finally:
        for table in ("containers", "hosts"):
            await schema.change(engine, lambda c, t=table: c.execute(sa.text(f"ALTER TABLE {t} DROP COLUMN later")))
        await engine.dispose()


async def test_shares_of_a_bay_come_and_go(db, project):
    item = bay.Bay(
        uuid=base.new_uuid(), project_id=project.project_id, name="b", status="CREATE_IN_PROGRESS",
        spec=bay.BaySpec(baymodel_id="m", members=["h1", "h2"]),
    )  # fmt: skip

    async def make(tx):
        await tx.insert(BAY, store.Record(item=item))
        await tx.place(BAY, item.uuid, ["h1", "h2"])

    async def go(tx):
        shares = (await tx.shares([item.uuid], lock=True))[item.uuid]
        await tx.drop_share(shares[0])
        shares[1].deleting = True
        await tx.save_share(shares[1])

    await db.write(project, make)
    await db.write(project, go)
    assert [s.host for s in (await db.read(project, lambda tx: tx.shares([item.uuid])))[item.uuid]] == ["h2"]
    everyone = contexts.service()
    here = [r for r in await db.read(everyone, lambda tx: tx.on_host("h2")) if r.item.uuid == item.uuid]
    assert here[0].item.deleting
    assert not [r for r in await db.read(everyone, lambda tx: tx.on_host("h1")) if r.item.uuid == item.uuid]
    await db.write(project, lambda tx: tx.drop(BAY, item.uuid))
    assert await db.read(project, lambda tx: tx.by_uuid(BAY, item.uuid)) is None


async def test_a_database_that_is_away_is_said_to_be():
    away = store.Store(store.connect("postgresql://u:secret@127.0.0.1:1/none"))
    with pytest.raises(errors.Unavailable) as raised:
        await away.read(contexts.service(), lambda tx: tx.latest())
    assert "secret" not in str(raised.value)
    await away.close()
