"""Certificates of bays. A Docker bay has none: its hosts' engines are the operator's alone."""

import msgspec

from magnum import errors
from magnum.api import bodies, routing, verbs

ROUTES = routing.Routes("certificates")


class CertificateBody(bodies.Body):
    """``bay_uuid`` or ``cluster_uuid``: name or uuid. ``csr``: a certificate signing request, PEM."""

    csr: str
    bay_uuid: str | None = None
    cluster_uuid: str | None = None


class Certificate(msgspec.Struct):
    bay_uuid: str
    pem: str
    csr: str | None = None


async def _refuse(call: routing.Call, ident: str, query: bodies.Show | None = None) -> routing.Answer:
    item = await verbs.find(call, "bay", ident, query)
    raise errors.NotSupported(
        f"bay {item.name} is made of Docker hosts, whose engines only their operator reaches; "
        "there is nothing that a certificate would open"
    )


@ROUTES.post("/v1/certificates", rule="certificate:create", answers={201: Certificate})
async def create(call: routing.Call, body: CertificateBody) -> routing.Answer:
    """Have a certificate signed by a bay's CA."""
    where = body.bay_uuid or body.cluster_uuid
    if not where:
        raise errors.Invalid("is required", field="bay_uuid")
    return await _refuse(call, where)


@ROUTES.get("/v1/certificates/{ident}", rule="certificate:get", answers={200: Certificate})
async def get(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Read the CA certificate of a bay."""
    return await _refuse(call, ident, query)


@ROUTES.patch("/v1/certificates/{ident}", rule="certificate:rotate", answers={202: None})
async def rotate(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Replace a bay's CA."""
    return await _refuse(call, ident, query)


@ROUTES.patch("/v1/credentials/{ident}", rule="credential:rotate", answers={202: None})
async def rotate_credential(call: routing.Call, ident: str, query: bodies.Show) -> routing.Answer:
    """Replace the credentials by which a bay speaks with other services."""
    item = await verbs.find(call, "bay", ident, query)
    raise errors.NotSupported(f"bay {item.name} holds no credentials of its own: Magnum acts for it")
