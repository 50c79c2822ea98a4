"""Any order of calls, rounds, reports, restarts, duplicate and late messages: the conductor's rules and the backend's
decisions as a state machine, over a real database."""

import asyncio
import shutil

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from magnum import config, errors, objects
from magnum import context as contexts
from magnum.backend import converge
from magnum.conductor import server
from magnum.db import schema, store
from magnum.engines import base as engines
from magnum.objects import base, bay, bay_model, container, host
from magnum.rpc import local

HOST = "h"
PROJECT = "p"
POWER = {"running": "Running", "stopped": "Stopped", "paused": "Paused", "created": "Created"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with the tables, to be copied."""
    path = tmp_path_factory.mktemp("interleavings") / "template.sqlite"

    async def upgrade():
        engine = store.connect(f"sqlite:///{path}")
        await schema.upgrade(engine)
        await engine.dispose()

    asyncio.run(upgrade())
    return path


class Machine(stateful.RuleBasedStateMachine):
    """One host with an engine of memory: uuid → (what it was made of, how often it changed).

    Reports are made by rounds and lie in ``mail`` until some rule delivers them: late, twice, in any order, or never.
    """

    template = None
    idents = stateful.Bundle("idents")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        path = self.template.with_name("machine.sqlite")
        for old in path.parent.glob("machine.sqlite*"):
            old.unlink()
        shutil.copy(self.template, path)
        conf = config.load([], database__connection=f"sqlite:///{path}", host="c")
        self.conductor = server.Server(conf, local.Local())
        self.engine, self.versions, self.mail, self.shown = {}, {}, [], {}
        self.deleted, self.wishes, self.clock = set(), {}, 0
        self.restart()
        self.call(
            self.conductor.create, bay_model.BayModel(uuid=base.new_uuid(), name="m", spec=bay_model.BayModelSpec())
        )
        made = bay.Bay(uuid=base.new_uuid(), name="b", spec=bay.BaySpec(baymodel_id="m", node_count=1))
        self.bay = self.call(self.conductor.create, made).uuid
        self.round(0)
        self.deliver_all()

    def teardown(self):
        self.restart()
        for _ in range(2):
            self.round(0)
            self.deliver_all()
        for uuid in self.wishes:
            # generations are without a gap, so no two changes were one
            rows = self.call(self.conductor.events, 0, 1000, "container", uuid)
            accepted = [row.generation for row in rows if row.step == "accepted"]
            assert accepted == list(range(1, len(accepted) + 1))
        rows = self.rows()
        assert {uuid for uuid in self.wishes if uuid not in self.deleted} == set(rows), "each is there unless deleted"
        assert set(rows) == set(self.engine) - {self.bay}, "the engine has what the database has"
        for uuid, item in rows.items():
            assert item.operation is None, item
            assert item.observed_generation == item.generation
            assert item.spec.power == self.wishes[uuid], "no wish is lost"
            assert item.status == POWER[self.engine[uuid]], "what is told is so"
        self.runner.run(self.conductor.store.close())
        self.runner.close()

    def call(self, method, *args, context=None):
        asker = context or contexts.Context(request_id=contexts.new_request_id(), project_id=PROJECT, user_id="u")
        return self.runner.run(method(asker, *args))

    def service(self):
        return contexts.service(HOST)

    def rows(self):
        async def work(tx):
            return {record.item.uuid: record.item for record in await tx.records(objects.KINDS["container"])}

        return self.runner.run(self.conductor.store.read(contexts.service(), work))

    # what tenants do

    @stateful.rule(target=idents, power=st.sampled_from(["running", "created"]))
    def create(self, power):
        spec = container.ContainerSpec(image="i", power=power)
        made = container.Container(uuid=base.new_uuid(), name="c", bay_uuid=self.bay, spec=spec)
        self.call(self.conductor.create, made)
        # the api's call may be sent twice
        again = self.call(self.conductor.create, made)
        assert again.generation == 1
        self.wishes[made.uuid] = power
        return made.uuid

    @stateful.rule(uuid=idents, action=st.sampled_from(["start", "stop", "pause", "unpause"]))
    def act(self, uuid, action):
        try:
            item = self.call(self.conductor.act, "container", uuid, None, action)
        except (errors.Conflict, errors.NotFound):
            return
        self.wishes[uuid] = item.spec.power

    @stateful.rule(uuid=idents, twice=st.booleans())
    def delete(self, uuid, twice):
        asker = contexts.Context(request_id=contexts.new_request_id(), project_id=PROJECT, user_id="u")
        first = uuid not in self.deleted
        try:
            self.call(self.conductor.delete, "container", uuid, context=asker)
        except errors.NotFound:
            assert not first
            return
        self.deleted.add(uuid)
        if twice and first:
            self.deliver_all()
            self.round(0)
            self.deliver_all()
            # sent again after all is over, it is no error
            self.call(self.conductor.delete, "container", uuid, context=asker)

    # what the backend does

    @stateful.rule()
    def restart(self):
        """It forgets everything but what the engine has, and registers anew."""
        beat = host.Beat(binary="magnum-backend", host=HOST, epoch=0, facts=host.Facts(engines={"docker": "1"}))
        self.epoch = self.call(self.conductor.beat, beat, context=self.service())
        self.number = 0

    @stateful.rule(steps=st.integers(0, 2))
    def round(self, steps):
        """Compare, and act on up to ``steps`` objects (0: all); the reports go into the mail."""
        wanted = self.call(self.conductor.wanted, context=self.service())
        seen = [engines.Seen(kind="bay" if u == getattr(self, "bay", "") else "container", uuid=u) for u in self.engine]
        found = converge.steps(wanted, seen, HOST)
        for item in (found.apply + found.look)[: steps or None]:
            self.one(item)
        for stranger in found.strangers:
            verdict = self.call(self.conductor.judge, [stranger.uuid], context=self.service())[stranger.uuid]
            assert verdict == "deleted", "what the engine has was once wanted"
            del self.engine[stranger.uuid]

    def one(self, item):
        kind = objects.kind_of(item)
        gone = converge.leaving(item, HOST)
        if gone:
            self.engine.pop(item.uuid, None)
        else:
            power = "made" if kind.name == "bay" else item.spec.power
            self.engine[item.uuid] = power
        self.versions[item.uuid] = self.versions.get(item.uuid, 0) + 1
        self.number += 1
        status = "CREATE_COMPLETE" if kind.name == "bay" else POWER.get(self.engine.get(item.uuid), "")
        state = {} if kind.name == "bay" else {"engine_id": str(self.versions[item.uuid])}
        report = base.Report(
            kind=kind.name, uuid=item.uuid, generation=item.generation, sequence=self.epoch << 40 | self.number,
            status=status, state=state, gone=gone,
        )  # fmt: skip
        if kind.name == "container":
            self.mail.append(report)
        else:
            self.call(self.conductor.report, [report], context=self.service())

    @stateful.rule(data=st.data())
    @stateful.precondition(lambda self: self.mail)
    def deliver(self, data):
        """Reports arrive in any order, and may arrive again later."""
        mail = data.draw(st.permutations(self.mail))
        for report in mail[: data.draw(st.integers(1, len(mail)))]:
            if data.draw(st.booleans()):
                self.mail.remove(report)
            self.call(self.conductor.report, [report], context=self.service())
            self.told()

    @stateful.rule(data=st.data(), uuid=idents, action=st.sampled_from(["start", "stop", "pause", "unpause"]))
    def crossing(self, data, uuid, action):
        """Looks are on their way while a wish comes."""
        self.round(0)
        self.deliver_all()
        self.round(0)
        self.round(0)
        self.act(uuid, action)
        if self.mail:
            self.deliver(data)

    @stateful.rule(uuid=idents)
    @stateful.precondition(lambda self: self.wishes)
    def vanish(self, uuid):
        """Somebody else removes it from the engine, which a look shows."""
        if self.engine.pop(uuid, None) is not None and uuid in (rows := self.rows()):
            self.number += 1
            self.versions[uuid] += 1
            self.mail.append(base.Report(
                kind="container", uuid=uuid, generation=rows[uuid].generation, gone=True,
                sequence=self.epoch << 40 | self.number, state={"engine_id": str(self.versions[uuid])},
            ))  # fmt: skip

    @stateful.rule()
    @stateful.precondition(lambda self: self.mail)
    def lose(self):
        self.mail.pop(0)

    def deliver_all(self):
        mail, self.mail = self.mail, []
        if mail:
            self.call(self.conductor.report, mail, context=self.service())
            self.told()

    def told(self):
        """What readers are shown never goes back to an older look at the engine, and never ahead of the wish."""
        for uuid, item in self.rows().items():
            version = int(item.state.engine_id or 0)
            assert version >= self.shown.get(uuid, 0), "an older report has overwritten a newer one"
            self.shown[uuid] = version
            assert item.observed_generation <= item.generation
            if item.operation is None:
                assert item.observed_generation == item.generation, "a change has ended that no engine has seen"


def test_any_order_of_messages_ends_as_wanted(template):
    Machine.template = template
    stateful.run_state_machine_as_test(
        Machine,
        settings=hypothesis.settings(
            max_examples=25, stateful_step_count=15, deadline=None, database=None, derandomize=True,
            # a shorter example takes longer to find than a reader to understand the long one
            phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )  # fmt: skip
