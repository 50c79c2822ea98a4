"""What a cluster alone can show: gaps in watches, foreign changes, certificates by the cluster's own signer."""

import asyncio
import contextlib
import importlib.metadata
import json
import pathlib
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from magnum import config, errors
from magnum.engines.kubernetes import bodies, certificates
from testbed import base, images, kubernetes
from tests import wanted


def _kubectl(*words, data=None):
    return base.run("kubectl", f"--kubeconfig={base.facts('kubernetes')['kubeconfig']}", *words, data=data).stdout


async def _until(what, seconds=60):
    for _ in range(seconds * 20):
        if found := what():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


class Way:
    """A way to the API server that can be cut."""

    def __init__(self, address):
        self._address = address
        self._open = True
        self._pairs = set()

    async def start(self):
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _join(self, reader, writer):
        with contextlib.suppress(OSError):
            if not self._open:
                return writer.close()
            far_reader, far_writer = await asyncio.open_connection(self._address, 6443)
            self._pairs |= {writer, far_writer}

            async def copy(source, target):
                with contextlib.suppress(OSError):
                    while data := await source.read(65536):
                        target.write(data)
                        await target.drain()
                target.close()

            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    def cut(self):
        self._open = False
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()

    def heal(self):
        self._open = True

    async def close(self):
        self.cut()
        self._server.close()
        await asyncio.sleep(0.05)


def _made(conf):
    (point,) = importlib.metadata.entry_points(group="magnum.engines", name="kubernetes")
    return point.load()(conf)


def _by_way(kubeconfig, port, folder):
    """Return a kubeconfig like the one given, of a server on a port of this machine."""
    data = json.loads(pathlib.Path(kubeconfig).read_text())
    data["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    (folder / "kubeconfig").write_text(json.dumps(data))
    return str(folder / "kubeconfig")


@pytest.fixture
async def cuttable(kubernetes_cluster, tmp_path):
    """(engine, way): an engine that reaches the cluster by a way that can be cut."""
    way = Way(kubernetes_cluster["address"])
    port = await way.start()
    clusters = {"main": _by_way(kubernetes_cluster["kubeconfig"], port, tmp_path)}
    engine = _made(config.load([], deployment=f"t{uuid.uuid4().hex[:8]}", kubernetes__clusters=clusters))
    await engine.start()
    await wanted.answers(engine)
    yield engine, way
    way.heal()
    await wanted.answers(engine)
    for seen in sorted(await engine.seen(), key=lambda s: s.kind == "bay"):
        await wanted.gone(engine.drivers[seen.kind], seen.uuid, None)
    await engine.close()
    await way.close()


async def test_what_went_during_a_gap_is_found(cuttable):
    """Cut off, with the server's memory of what changed gone when the way is there again."""
    engine, way = cuttable
    bay = await wanted.bay(engine)
    stays = wanted.pod(engine, bay, name="stays", containers=[{"name": "c", "command": ["sleep", "1000"]}])
    goes = wanted.pod(engine, bay, name="goes", containers=[{"name": "c", "command": ["sleep", "1000"]}])
    await stays.settle(lambda item: item.state.ready)
    await goes.settle(lambda item: item.state.ready)
    space = f"magnum-{bay.item.uuid}"
    way.cut()
    with pytest.raises(errors.Unavailable):
        await engine.facts()
    with pytest.raises(errors.Unavailable):
        await stays.driver.apply(stays.item, wanted.ignore)
    _kubectl("-n", space, "delete", "pod", "goes", "--now")
    _kubectl("-n", space, "label", "pod", "stays", "app=other", "--overwrite")
    kubernetes.kill("apiserver")
    kubernetes.restart("apiserver")
    kubernetes.up()
    _kubectl("-n", space, "create", "service", "clusterip", "theirs", "--tcp=80:80")
    way.heal()
    await _until(lambda: engine.clusters["main"].mirrors["pods"].by_uuid(goes.item.uuid) is None)
    await _until(lambda: engine.clusters["main"].mirrors["services"].get(space, "theirs"))
    outcome = await goes.driver.observe(goes.item)
    assert outcome.retry_after == 0 and "gone from cluster main" in outcome.reason
    assert [engine.other(*found).name for found in engine.others()] == ["theirs"]
    # what was changed meanwhile is set again
    await stays.settle(lambda item: "stays" in _kubectl("-n", space, "get", "pods", "-l", "app=stays", "-o", "name"))
    await goes.settle(lambda item: item.state.ready)


async def test_a_watch_from_before_the_servers_memory_begins_anew(kubernetes):
    client = kubernetes.clusters["main"].client
    with pytest.raises(errors.Unavailable):
        async for _ in client.watch("/api/v1/pods", "1"):
            pass


def _csr(subject):
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


async def test_without_a_ca_the_cluster_signs_the_right_subject_alone(kubernetes_cluster):
    clusters = {"main": kubernetes_cluster["kubeconfig"]}
    engine = _made(config.load([], deployment=f"t{uuid.uuid4().hex[:8]}", kubernetes__clusters=clusters))
    await engine.start()
    await wanted.answers(engine)
    try:
        bay = await wanted.bay(engine)
        masters = x509.Name([
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "system:masters"),
        ])  # fmt: skip
        with pytest.raises(errors.Invalid, match=bodies.group(bay.item)):
            await bay.driver.certificate(bay.item, _csr(masters), "someone")
        pem = await bay.driver.certificate(bay.item, _csr(certificates._subject(bay.item, "someone")), "someone")
        found = x509.load_pem_x509_certificate(pem.encode())
        assert found.subject == certificates._subject(bay.item, "someone")
        authority = x509.load_pem_x509_certificate((await bay.driver.certificate(bay.item, None, "")).encode())
        found.verify_directly_issued_by(authority)
        # nothing is left of the request
        assert bay.item.uuid not in _kubectl("get", "csr", "-o", "json")
        await bay.remove()
    finally:
        await engine.close()


async def test_a_cluster_that_is_away_keeps_nothing_of_another(kubernetes_cluster, tmp_path):
    clusters = {
        "away": _by_way(kubernetes_cluster["kubeconfig"], 1, tmp_path),
        "main": kubernetes_cluster["kubeconfig"],
    }
    engine = _made(config.load([], deployment=f"t{uuid.uuid4().hex[:8]}", kubernetes__clusters=clusters))
    await engine.start()
    try:
        facts = await wanted.answers(engine)
        assert list(facts["clusters"]) == ["main"] and "cluster away" in facts["problem"]
        bay = await wanted.bay(engine, "main")
        web = wanted.container(engine, bay)
        assert (await web.apply()).status == "Running"
        assert {seen.kind for seen in await engine.seen()} == {"bay", "container"}
        assert engine.others() == []
        await bay.remove()
        await web.remove()
        with pytest.raises(errors.Unavailable, match="away"):
            await web.driver.remove(web.item.uuid, None)
    finally:
        await engine.close()


async def test_a_full_quota_takes_nothing_from_tenants(kubernetes):
    """The trial of what tenants may make is refused by the quota: it says nothing of the cluster."""
    bay = await wanted.bay(kubernetes, labels={"quota.pods": "1"})
    web = wanted.container(kubernetes, bay)
    assert (await web.apply()).status == "Running"
    space = f"magnum-{bay.item.uuid}"

    def rules():
        return json.loads(_kubectl("-n", space, "get", "role", bodies.TENANT, "-o", "json"))["rules"]

    before = rules()
    assert any("pods" in rule["resources"] and "create" in rule["verbs"] for rule in before)
    kubernetes.drivers["bay"]._writes.clear()
    assert (await bay.apply()).status == "CREATE_COMPLETE"
    assert rules() == before
    await web.remove()
    await bay.apply()
    assert rules() == before
    await bay.remove()


async def test_a_manifests_confinement_stands(kubernetes):
    bay = await wanted.bay(kubernetes)
    main = {"name": "c", "command": ["sleep", "1000"], "securityContext": {"capabilities": {"drop": ["CHOWN"]}}}
    pod = wanted.pod(kubernetes, bay, containers=[main])
    await pod.settle(lambda item: item.state.ready)
    found = json.loads(_kubectl("-n", f"magnum-{bay.item.uuid}", "get", "pod", "p", "-o", "json"))["spec"]
    assert found["automountServiceAccountToken"] is False and found["enableServiceLinks"] is False
    security = found["containers"][0]["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert {"CHOWN", "NET_RAW", "MKNOD"} <= set(security["capabilities"]["drop"])
    assert "volumeMounts" not in found["containers"][0]
    assert found["containers"][0]["image"] == images.DEMO
    await pod.remove()
