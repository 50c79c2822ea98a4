"""Whose message is taken, where each host has a user of its own at the broker (``[DEFAULT] host_user``).

RabbitMQ lets a program send in the name of its own user alone (``user_id``, a
property of AMQP 0-9-1), so what a message says of its sender is true. Without
``host_user`` all programs share a user, and every message is taken.

Who calls: the servers of conductor and backend, by ``rpc.base.handler``.
"""

import structlog

from magnum import context as contexts
from magnum import errors
from magnum.rpc import base

LOG = structlog.get_logger(__name__)

OF_HOSTS = frozenset({"beat", "report", "found", "wanted", "judge"})
"""What hosts ask of the conductor; all of it is answered for ``context.host`` alone."""


class Senders:
    """``host_user``: the users of hosts, with ``{host}`` in place of the host's name; empty: all are trusted."""

    def __init__(self, host_user: str) -> None:
        self._before, self._known, self._after = host_user.partition("{host}")

    def _host(self, user: str) -> str:
        """Return the host whose user this is, or nothing."""
        name = user.removeprefix(self._before).removesuffix(self._after)
        return name if user == f"{self._before}{name}{self._after}" else ""

    def _refuse(self, message: base.Message, why: str) -> errors.Forbidden:
        LOG.warning("message refused", method=message.method, sender=message.sender, reason=why)
        return errors.Forbidden(f"{message.method}: {why}")

    def to_conductor(self, message: base.Message, context: contexts.Context) -> None:
        """Raises Forbidden for what a host's user says for another host, or may not ask at all."""
        if not self._known:
            return
        if not message.sender:
            raise self._refuse(message, "its sender is not known")
        host = self._host(message.sender)
        if host and message.method not in OF_HOSTS:
            raise self._refuse(message, "hosts may not ask that")
        if host and context.host != host:
            raise self._refuse(message, f"it speaks for host {context.host!r}")

    def to_backend(self, message: base.Message, context: contexts.Context) -> None:
        """Raises Forbidden for what comes from a host."""
        if not self._known:
            return
        if not message.sender or self._host(message.sender):
            raise self._refuse(message, "hosts are told by the conductor and the api alone")
