"""Certificates for a bay's tenants: signed through the cluster's certificates API, good for the bay's namespace alone.

What a certificate opens hangs on the group in it, which is the bay's and its own
after each rotation; a request's own subject never counts, since clients ask for
``system:masters``. With a CA that the operator gave for it (``[kubernetes]
client_ca``) Magnum is the signer, of the name below, and sets the subject. Without
one the cluster signs, which takes the subject as it is: then only the right one will do.
https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/

Who calls: ``engines.kubernetes.bay``.
"""

import asyncio
import base64
import binascii
import contextlib
import datetime
import uuid
from typing import Any

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import oid
from oslo_config import cfg

from magnum import errors
from magnum.clients import kubernetes
from magnum.engines import base
from magnum.engines.kubernetes import bodies
from magnum.objects import bay

LOG = structlog.get_logger(__name__)

PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER = "magnum.openstack.org/bay-tenant"
CLUSTERS = "kubernetes.io/kube-apiserver-client"
"""The cluster's own signer of clients' certificates."""
SECONDS = 20.0
"""How long the cluster may take to sign."""
SKEW = datetime.timedelta(minutes=5)
"""How far clocks may be apart."""
MIN_RSA = 2048


class _Status(msgspec.Struct):
    certificate: str | None = None
    conditions: list[dict[str, Any]] = []


class _Request(msgspec.Struct):
    metadata: dict[str, Any] = {}
    status: _Status = msgspec.field(default_factory=_Status)


def _subject(item: bay.Bay, user: str) -> x509.Name:
    return x509.Name([
        x509.NameAttribute(oid.NameOID.ORGANIZATION_NAME, bodies.group(item)),
        x509.NameAttribute(oid.NameOID.COMMON_NAME, _name(item, user)),
    ])  # fmt: skip


def _name(item: bay.Bay, user: str) -> str:
    return f"magnum:{item.uuid[:8]}:{user}"[:64]


def read(csr: str) -> x509.CertificateSigningRequest:
    """Return a certificate signing request, PEM, checked. Raises Invalid."""
    try:
        found = x509.load_pem_x509_csr(csr.encode())
        valid = found.is_signature_valid
        key = found.public_key()
    except Exception:
        # each fault of a foreign text has an exception of its own
        raise errors.Invalid("must be a certificate signing request, PEM", field="csr") from None
    if not valid:
        raise errors.Invalid("is not signed by its own key", field="csr")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA:
        raise errors.Invalid(f"its key must have at least {MIN_RSA} bits", field="csr")
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise errors.Invalid("its key must be RSA, ECDSA or Ed25519", field="csr")
    return found


async def sign(conf: cfg.ConfigOpts, client: kubernetes.Client, item: bay.Bay, csr: str, user: str) -> str:
    """Return a certificate, PEM, by which ``user`` may act in the bay's namespace. Raises Invalid, EngineError."""
    request = read(csr)
    ca = conf.kubernetes.client_ca.get(client.name)
    if ca is None and request.subject != _subject(item, user):
        wanted = f"O={bodies.group(item)}, CN={_name(item, user)}"
        raise errors.Invalid(f"its subject must be {wanted}: cluster {client.name} signs it as it is", field="csr")
    name = f"magnum-{uuid.uuid4()}"
    body = {
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name, "labels": {base.DEPLOYMENT: conf.deployment, base.BAY: item.uuid}},
        "spec": {"request": base64.b64encode(csr.encode()).decode(), "signerName": SIGNER if ca else CLUSTERS,
                 "usages": ["client auth"]},
    }  # fmt: skip
    made = await client.request("POST", PATH, body=body, into=dict)
    try:
        made["status"] = {"conditions": [{
            "type": "Approved", "status": "True", "reason": "MagnumBayTenant",
            "message": f"asked for by {user} for bay {item.uuid}",
        }]}  # fmt: skip
        made = await client.request("PUT", f"{PATH}/{name}/approval", body=made, into=dict)
        if ca is not None:
            pem = await asyncio.to_thread(_issue, conf, client.name, ca, request, item, user)
            made.setdefault("status", {})["certificate"] = base64.b64encode(pem).decode()
            await client.request("PUT", f"{PATH}/{name}/status", body=made, into=dict)
            return pem.decode()
        return await _signed(client, name)
    finally:
        with contextlib.suppress(errors.MagnumError):
            await client.delete(f"{PATH}/{name}")


async def _signed(client: kubernetes.Client, name: str) -> str:
    """Wait for the cluster's signer."""
    try:
        async with asyncio.timeout(SECONDS):
            found = await client.request("GET", f"{PATH}/{name}", into=dict)
            revision = found["metadata"]["resourceVersion"]
            while True:
                status = msgspec.convert(found, _Request).status
                if status.certificate:
                    return base64.b64decode(status.certificate).decode()
                for condition in status.conditions:
                    if condition.get("type") in ("Failed", "Denied"):
                        raise errors.EngineError(str(condition.get("message") or condition.get("reason")))
                async with contextlib.aclosing(client.watch(PATH, revision)) as changes:
                    async for _, seen in changes:
                        revision = seen.metadata.resource_version
                        if seen.metadata.name == name:
                            break
                found = await client.request("GET", f"{PATH}/{name}", into=dict)
    except TimeoutError:
        raise errors.EngineError(f"cluster {client.name} did not sign within {SECONDS:g} s") from None
    except binascii.Error as error:
        raise errors.EngineError(f"cluster {client.name} signed something else: {error}") from error


def _issue(
    conf: cfg.ConfigOpts, cluster: str, ca: str, request: x509.CertificateSigningRequest, item: bay.Bay, user: str
) -> bytes:
    """Return a certificate for the request's key, and nothing else of it. Runs off the loop: it reads files."""
    path = conf.kubernetes.client_ca_key.get(cluster)
    if path is None:
        raise errors.EngineError(f"[kubernetes] client_ca_key has no key for cluster {cluster}")
    try:
        with open(ca, "rb") as file:
            authority = x509.load_pem_x509_certificate(file.read())
        with open(path, "rb") as file:
            key = serialization.load_pem_private_key(file.read(), None)
    except (OSError, ValueError, TypeError) as error:
        raise errors.EngineError(f"the CA for tenants of cluster {cluster} cannot be read: {error}") from error
    now = datetime.datetime.now(datetime.UTC)
    until = min(now + datetime.timedelta(days=conf.kubernetes.certificate_days), authority.not_valid_after_utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(_subject(item, user)).issuer_name(authority.subject).public_key(request.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - SKEW).not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())  # type: ignore[arg-type]
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)
