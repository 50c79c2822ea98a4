"""Certificates of bays: those by which tenants reach their slice of a cluster with its own tools.

A Docker bay has none: its hosts' engines are the operator's alone.
"""

from typing import Any

import msgspec

from magnum import errors
from magnum.api import bodies, routing, verbs
from magnum.objects import bay

ROUTES = routing.Routes("certificates")


class CertificateBody(bodies.Body):
    """``bay_uuid`` or ``cluster_uuid``: name or uuid. ``csr``: a certificate signing request, PEM."""

    csr: str
    bay_uuid: str | None = None
    cluster_uuid: str | None = None


class Certificate(msgspec.Struct, kw_only=True):
    """``pem``: the certificate. ``cluster_uuid`` is the same as ``bay_uuid``, under its newer name."""

    bay_uuid: str
    cluster_uuid: str
    pem: str
    csr: str | None = None


async def _bay(call: routing.Call, ident: str, query: Any = None) -> bay.Bay:
    """Return a bay that has certificates. Raises NotFound, Ambiguous, NotSupported."""
    item: Any = await verbs.find(call, "bay", ident, query)
    if item.spec.engine != "kubernetes":
        raise errors.NotSupported(
            f"bay {item.name} is made of Docker hosts, whose engines only their operator reaches; "
            "there is nothing that a certificate would open"
        )
    found: bay.Bay = item
    return found


async def _certificate(call: routing.Call, item: bay.Bay, csr: str | None) -> Certificate:
    pem = await call.api.backend(item.spec.members[0]).certificate(call.context, item, csr)
    return Certificate(bay_uuid=item.uuid, cluster_uuid=item.uuid, pem=pem, csr=csr)


@ROUTES.post("/v1/certificates", rule="certificate:create", answers={201: Certificate})
async def create(call: routing.Call, body: CertificateBody) -> routing.Answer:
    """Have a certificate signed that is good for a bay's namespace, whatever subject is asked for."""
    where = body.bay_uuid or body.cluster_uuid
    if not where:
        raise errors.Invalid("is required", field="bay_uuid")
    item = await _bay(call, where)
    return routing.Answer(201, await _certificate(call, item, body.csr))


@ROUTES.get("/v1/certificates/{ident}", rule="certificate:get", answers={200: Certificate})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read the CA certificate by which a bay's API server is known."""
    item = await _bay(call, ident, query)
    return routing.Answer(200, await _certificate(call, item, None))


@ROUTES.patch("/v1/certificates/{ident}", rule="certificate:rotate", answers={202: None})
async def rotate(call: routing.Call, ident: str, query: verbs.Change) -> routing.Answer:
    """Have every certificate that was signed for a bay before open nothing any more."""
    item = await _bay(call, ident, query)
    await verbs.act(call, "bay", item.uuid, query, "rotate")
    return routing.Answer(202, None)


@ROUTES.patch("/v1/credentials/{ident}", rule="credential:rotate", answers={202: None})
async def rotate_credential(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Replace the credentials by which a bay speaks with other services."""
    item = await verbs.find(call, "bay", ident, query)
    raise errors.NotSupported(f"bay {item.name} holds no credentials of its own: Magnum acts for it")
