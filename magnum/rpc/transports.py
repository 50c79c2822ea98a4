"""Chooses the transport that ``transport_url`` names. ``cmd`` calls it once for each program of a process."""

import urllib.parse

from magnum import errors
from magnum.rpc import amqp, base, local

_hubs: dict[str, local.Hub] = {}


def open(url: str, *, name: str, prefetch: int = 64) -> base.Transport:
    """Return a transport, not yet started, for ``url``.

    ``amqp://`` and ``amqps://``: see ``amqp.addresses``. ``local://`` (or ``local://<name>``) joins the programs of this process that
    ask for the same. ``name`` shows in the broker's list of connections;
    ``prefetch`` is the number of calls in hand at most. Raises Invalid.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme == "local":
        return local.Local(_hubs.setdefault(url, local.Hub()), name=name, prefetch=prefetch)
    if scheme in ("amqp", "amqps"):
        return amqp.Amqp(url, name=name, prefetch=prefetch)
    raise errors.Invalid(f"{scheme}:// is no transport; amqp, amqps and local are", field="transport_url")
