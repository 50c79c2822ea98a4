"""Interfaces, and how a call becomes bytes and back; the transports carry the bytes.

A call's arguments are one msgpack array, typed by the interface's annotations;
its answer is ``[result]`` or a ``errors.Wire``. The context travels in
``Message.headers``, what is left of its deadline in ``Message.timeout``.

Who calls: cmd wires ``serve`` and ``client`` to a ``Transport``.
"""

import abc
import asyncio
import collections.abc
import functools
import inspect
import time
import typing
from typing import Any, TypeVar

import msgspec
import structlog

from magnum import context as contexts
from magnum import errors, hands, metrics, tracing

LOG = structlog.get_logger(__name__)

VERSION = "1.0"
"""Version of the messages. Within a major version, fields are only added, with defaults."""


class Interface:
    """Base of what a program can be asked; methods bear ``call`` or ``cast``."""


class Method(msgspec.Struct, frozen=True):
    """What is known of a method: see ``call``."""

    repeat_safe: bool
    answers: bool


F = TypeVar("F", bound=collections.abc.Callable[..., Any])


def call(*, repeat_safe: bool = False) -> collections.abc.Callable[[F], F]:
    """Mark a method as callable. ``repeat_safe``: a transport may send it again within the deadline."""

    def mark(function: F) -> F:
        function.rpc = Method(repeat_safe=repeat_safe, answers=True)  # type: ignore[attr-defined]
        return function

    return mark


def cast() -> collections.abc.Callable[[F], F]:
    """Mark a method as one that is sent without waiting for an answer and may be lost."""

    def mark(function: F) -> F:
        function.rpc = Method(repeat_safe=True, answers=False)  # type: ignore[attr-defined]
        return function

    return mark


class Message(msgspec.Struct, kw_only=True):
    """A call on its way.

    ``timeout``: seconds left of its deadline when it was sent. ``sender``: the broker's user that sent it,
    as the broker says; empty where there is no broker or the sender did not tell.
    """

    method: str
    body: bytes
    headers: dict[str, str] = {}
    timeout: float | None = None
    version: str = VERSION
    repeat_safe: bool = False
    sender: str = ""


Handler = collections.abc.Callable[[Message], collections.abc.Awaitable[bytes]]
"""Serves one message: returns the encoded answer; never raises but for cancellation."""

Subscriber = collections.abc.Callable[[bytes], collections.abc.Awaitable[None]]


class Transport(abc.ABC):
    """Carries messages to topics. One per process.

    Topics: ``conductor`` is shared by competing servers; ``backend.<host>`` has
    one server. Broadcast topics reach every subscriber, at most once.
    """

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect; returns at once if the far side is away and goes on trying."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish or hand back what is held, then disconnect."""

    @abc.abstractmethod
    async def serve(self, topic: str, handler: Handler, *, shared: bool) -> None:
        """Take messages of ``topic`` from now on. ``shared``: others may serve it too."""

    @abc.abstractmethod
    async def stop_serving(self) -> None:
        """Take no new messages; return once those in hand are answered."""

    @abc.abstractmethod
    async def call(self, topic: str, message: Message) -> bytes:
        """Send and return the encoded answer.

        Raises HostUnreachable (nobody serves ``topic``), DeadlineExceeded, Unavailable (far side away).
        """

    @abc.abstractmethod
    async def cast(self, topic: str, message: Message) -> None:
        """Send without an answer; a message that cannot be delivered is dropped."""

    @abc.abstractmethod
    async def broadcast(self, topic: str, body: bytes) -> None:
        """Give ``body`` to every subscriber of ``topic``; errors are logged, not raised."""

    @abc.abstractmethod
    async def subscribe(self, topic: str, subscriber: Subscriber) -> None:
        """Give every later broadcast of ``topic`` to ``subscriber``."""

    async def notify(self, exchange: str, topic: str, body: bytes, *, durable: bool = False) -> None:
        """Give ``body`` (JSON) to whichever other service consumes the queue ``topic``, bound to a topic exchange.

        Returns once the broker has it. Raises Unavailable (for the time being), NotSupported (there is no broker).
        """
        raise errors.NotSupported("notifications need a broker", field="transport_url")

    @abc.abstractmethod
    def health(self) -> str:
        """Return ``ok`` or why nothing can be sent now."""


class _Signature:
    """How one method's arguments and result are encoded."""

    def __init__(self, function: Any) -> None:
        hints = typing.get_type_hints(function)
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "context")]
        self.names = [p.name for p in parameters]
        self.meta: Method = function.rpc
        fields: list[Any] = [
            (p.name, hints[p.name]) if p.default is inspect.Parameter.empty else (p.name, hints[p.name], p.default)
            for p in parameters
        ]
        # an array of the arguments: a newer peer's further ones are ignored, an older one's missing ones default
        self.arguments = msgspec.defstruct(f"{function.__name__}_arguments", fields, array_like=True)
        self.decode = msgspec.msgpack.Decoder(self.arguments).decode
        result = hints["return"]
        answer = msgspec.defstruct(
            f"{function.__name__}_answer",
            [("error", errors.Wire | None, None), ("result", result | None if result is not type(None) else Any, None)],
        )
        self.answer = answer
        self.decode_answer = msgspec.msgpack.Decoder(answer).decode


_encode = msgspec.msgpack.Encoder().encode


def refusal(error: errors.MagnumError) -> bytes:
    """Return the encoded answer by which a transport says ``error`` in the handler's place."""
    return _encode({"error": errors.to_wire(error)})


def unreachable(topic: str) -> errors.HostUnreachable:
    """Return the error for a topic that nobody serves."""
    return errors.HostUnreachable(f"nobody serves {topic}", topic=topic)


def expired(topic: str, message: Message) -> errors.DeadlineExceeded:
    """Return the error for a call that had no answer in time."""
    return errors.DeadlineExceeded(f"{topic} did not answer {message.method} within {message.timeout or 0:.1f} s")


def lost(message: Message) -> errors.Unavailable:
    """Return the error for a call that must not be sent twice and whose first fate is unknown."""
    return errors.Unavailable(f"{message.method} was interrupted; whether it took effect is not known")


def _signatures(interface: type[Interface]) -> dict[str, _Signature]:
    return {
        name: _Signature(function)
        for name, function in inspect.getmembers(interface, inspect.isfunction)
        if hasattr(function, "rpc")
    }


def pack_context(context: contexts.Context) -> dict[str, str]:
    """Return the headers that carry ``context`` (its deadline travels apart)."""
    headers = {"request_id": context.request_id}
    for name in (
        "global_id",
        "user_id",
        "project_id",
        "domain_id",
        "user_name",
        "project_name",
        "system_scope",
        "host",
    ):
        value = getattr(context, name)
        if value:
            headers[name] = value
    if context.roles:
        headers["roles"] = ",".join(context.roles)
    if context.is_admin:
        headers["is_admin"] = "1"
    if context.all_projects:
        headers["all_projects"] = "1"
    return headers


def unpack_context(message: Message) -> contexts.Context:
    """Return the context that a message bears; its deadline counts from now."""
    headers = message.headers
    return contexts.Context(
        request_id=headers.get("request_id", ""),
        global_id=headers.get("global_id", ""),
        user_id=headers.get("user_id", ""),
        project_id=headers.get("project_id", ""),
        domain_id=headers.get("domain_id", ""),
        user_name=headers.get("user_name", ""),
        project_name=headers.get("project_name", ""),
        system_scope=headers.get("system_scope", ""),
        host=headers.get("host", ""),
        roles=tuple(headers["roles"].split(",")) if headers.get("roles") else (),
        is_admin=headers.get("is_admin") == "1",
        all_projects=headers.get("all_projects") == "1",
        deadline=None if message.timeout is None else time.monotonic() + message.timeout,
    )


I = TypeVar("I", bound=Interface)  # noqa: E741


def client(
    interface: type[I], transport: Transport, topic: str, *, timeout: float = 60.0, turns: hands.Hands | None = None
) -> I:
    """Return an ``interface`` whose methods call the server of ``topic``.

    ``timeout``: seconds, for calls whose context has no deadline of its own. ``turns``: how many calls are in hand at
    once; those that wait are made in turns of their contexts' projects.
    """
    namespace: dict[str, Any] = {}
    for name, signature in _signatures(interface).items():
        remote = _remote(name, signature, transport, topic, timeout)
        namespace[name] = remote if turns is None or not signature.meta.answers else _in_turn(remote, turns)
    derived = type(f"{interface.__name__}Client", (interface,), namespace)
    return typing.cast(I, derived())


def _remote(
    name: str, signature: _Signature, transport: Transport, topic: str, timeout: float
) -> collections.abc.Callable[..., Any]:
    async def remote(self: Any, context: contexts.Context, *args: Any, **kwargs: Any) -> Any:
        left = context.remaining()
        message = Message(
            method=name,
            body=_encode(signature.arguments(*args, **kwargs)),
            headers=pack_context(context),
            timeout=timeout if left is None else left,
            repeat_safe=signature.meta.repeat_safe,
        )
        if left is not None and left <= 0:
            raise errors.DeadlineExceeded(f"no time was left to call {name}")
        if not signature.meta.answers:
            tracing.inject(message.headers)
            await transport.cast(topic, message)
            return None
        with (
            metrics.timed(metrics.CALLS, name),
            tracing.span(f"call {name}", kind="client", messaging__destination=topic),
        ):
            tracing.inject(message.headers)
            answer: Any = signature.decode_answer(await transport.call(topic, message))
            if answer.error is not None:
                raise errors.from_wire(answer.error)
        return answer.result

    remote.__name__ = name
    return remote


def _in_turn(remote: collections.abc.Callable[..., Any], turns: hands.Hands) -> collections.abc.Callable[..., Any]:
    @functools.wraps(remote)
    async def waiting(self: Any, context: contexts.Context, *args: Any, **kwargs: Any) -> Any:
        try:
            async with asyncio.timeout(context.remaining()):
                await turns.take(context.project_id)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"others' calls left no time to call {remote.__name__}") from None
        try:
            return await remote(self, context, *args, **kwargs)
        finally:
            turns.release(context.project_id)

    return waiting


Admit = collections.abc.Callable[[Message, contexts.Context], None]
"""Raises Forbidden for a message whose sender may not send it."""


def handler(interface: type[Interface], implementation: Interface, admit: Admit | None = None) -> Handler:
    """Return what serves ``interface`` by ``implementation`` on a transport, of the messages that ``admit`` lets in."""
    signatures = _signatures(interface)

    async def serve(message: Message) -> bytes:
        signature = signatures.get(message.method)
        error: errors.MagnumError
        if signature is None or message.version.partition(".")[0] != VERSION.partition(".")[0]:
            error = errors.NotSupported(f"this version of Magnum has no {message.method} {message.version}")
            return _encode({"error": errors.to_wire(error)})
        context, headers = unpack_context(message), message.headers
        token = contexts.current.set(context)
        try:
            if admit is not None:
                admit(message, context)
            if message.timeout is not None and message.timeout <= 0:
                raise errors.DeadlineExceeded(f"{message.method} came after its deadline")
            arguments = signature.decode(message.body)
            values = [getattr(arguments, n) for n in signature.names]
            # cancelled at its deadline: nobody waits for the answer any more
            with (
                metrics.timed(metrics.SERVED, message.method), metrics.IN_HAND.track_inprogress(),
                tracing.span(f"serve {message.method}", headers, kind="server", magnum__request_id=context.request_id),
            ):  # fmt: skip
                async with asyncio.timeout(message.timeout):
                    result = await getattr(implementation, message.method)(context, *values)
            return _encode(signature.answer(result=result))
        except errors.MagnumError as raised:
            error = raised
        except TimeoutError:
            error = errors.DeadlineExceeded(f"{message.method} took longer than {message.timeout:.1f} s")
        except msgspec.ValidationError as raised:
            error = errors.Invalid(f"{message.method}: {raised}")
        except Exception as raised:
            LOG.exception("call failed", method=message.method)
            error = errors.MagnumError(
                f"{type(raised).__name__} in {message.method}; the log has it under the request id"
            )
        finally:
            contexts.current.reset(token)
        return _encode({"error": errors.to_wire(error)})

    return serve
