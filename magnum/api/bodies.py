"""What clients send, decoded and checked: bodies, query strings, JSON Patch, sizes. Every fault names its field.

Used by ``api.routing`` for every request and by the handlers' own structs.
"""

import re
import shlex
import typing
import urllib.parse
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from magnum import errors

T = TypeVar("T")

MAX_WAIT = 3600.0
"""Seconds that ``?wait=`` may ask for at most."""

INTEGERS = range(-(2**63), 2**63)
"""What every transport and database carries."""


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies: a field that it does not know is refused."""


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of query strings."""


class Nothing(Query):
    """No field at all."""


class Wait(Query):
    """``wait``: seconds to wait for the change to come to its end; by default as the operator set it."""

    wait: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT)] | None = None
    all_projects: bool = False


class Show(Query):
    all_projects: bool = False


class List(Query):
    """A page of a list.

    ``marker``: the last object of the page before. ``limit``: objects on the
    page, 0 for as many as the operator allows. ``all_projects``: for admins.
    """

    marker: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    sort_key: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "created_at"
    sort_dir: Literal["asc", "desc"] = "asc"
    all_projects: bool = False


class PatchStep(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step of a JSON Patch (RFC 6902)."""

    op: Literal["add", "replace", "remove", "test", "move", "copy"]
    path: Annotated[str, msgspec.Meta(max_length=1024)]
    value: Any = msgspec.UNSET
    source: Annotated[str, msgspec.Meta(max_length=1024)] | msgspec.UnsetType = msgspec.field(
        name="from", default=msgspec.UNSET
    )


Patch = Annotated[list[PatchStep], msgspec.Meta(min_length=1, max_length=256)]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def query(raw: bytes, cls: type[T]) -> T:
    """Return a query string as a ``cls``. Raises Invalid naming the parameter."""
    if _BAD_PERCENT.search(raw):
        raise errors.Invalid("the query string has a broken percent-encoding")
    try:
        pairs = urllib.parse.parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=100, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise errors.Invalid("the query string is not UTF-8, or has too many parameters") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise errors.Invalid("is given twice", field=name[:64])
        if _CONTROL.search(value) or len(value) > 4096:
            raise errors.Invalid("must be text of at most 4096 characters, none of control", field=name[:64])
        given[name] = value
    return convert(given, cls, strict=False)  # type: ignore[no-any-return]


def decode(raw: bytes, headers: dict[bytes, bytes], cls: Any, depth: int) -> Any:
    """Return a JSON body as a ``cls``. Raises Invalid naming the field, UnsupportedMedia."""
    if not raw and cls is not Nothing:
        raise errors.Invalid("the request needs a body")
    media_type = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media_type not in (b"application/json", b"application/json-patch+json"):
        raise errors.UnsupportedMedia(f"a body is application/json, not {media_type.decode('latin-1')[:100]}")
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.Invalid(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise errors.Invalid(f"the body is nested deeper than {depth} levels") from None
    if cls is Nothing and data is None:
        data = {}
    check(data, depth)
    return convert(data, cls)


def check(data: Any, depth: int) -> None:
    """Check what no type says: nesting, integers of at most 64 bits, no NUL. Raises Invalid naming the field."""
    todo: list[tuple[str, int, Any]] = [("", 0, data)]
    while todo:
        where, level, value = todo.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise errors.Invalid("must not hold a NUL character", field=where[:256] or None)
        elif isinstance(value, (dict, list)):
            if level >= depth:
                raise errors.Invalid(f"is nested deeper than {depth} levels", field=where[:256] or None)
            if isinstance(value, list):
                todo.extend((f"{where}[{n}]", level + 1, item) for n, item in enumerate(value))
            else:
                for key, item in value.items():
                    if "\0" in key:
                        raise errors.Invalid("a key must not hold a NUL character", field=where[:256] or None)
                    todo.append((f"{where}.{key}" if where else key, level + 1, item))
        elif isinstance(value, int) and value not in INTEGERS:
            raise errors.Invalid("must fit in 64 bits", field=where[:256] or None)


_NAMED = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`\Z", re.S)


def convert(data: Any, cls: Any, *, strict: bool = True, field: str = "") -> Any:
    """Return ``data`` as a ``cls``. Raises Invalid naming the field, an unknown or missing one too."""
    try:
        return msgspec.convert(data, cls, strict=strict)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        path = path.rstrip("`").removeprefix("$").lstrip(".")
        named = _NAMED.match(reason)
        if named:
            path = f"{path}.{named[1]}" if path else named[1]
            reason = "is not known here" if "unknown" in reason else "is required"
        else:
            reason = reason[:1].lower() + reason[1:]
        if field:
            path = f"{field}.{path}" if path and not path.startswith("[") else f"{field}{path}"
        raise errors.Invalid(reason[:500], field=path[:256] or None) from None


def patch(steps: list[PatchStep]) -> list[dict[str, Any]]:
    """Return a JSON Patch as what travels. Raises Invalid naming the step."""
    given = []
    for number, step in enumerate(steps):
        if not step.path.startswith("/"):
            raise errors.Invalid("must begin with a slash", field=f"[{number}].path")
        if step.op in ("add", "replace", "test") and step.value is msgspec.UNSET:
            raise errors.Invalid("is required", field=f"[{number}].value")
        if step.op in ("move", "copy") and step.source is msgspec.UNSET:
            raise errors.Invalid("is required", field=f"[{number}].from")
        given.append(typing.cast(dict[str, Any], msgspec.to_builtins(step)))
    return given


_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,6}))?\s*(?:([kmgt])i?)?b?\Z", re.I)
_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size(value: int | str | None, field: str) -> int | None:
    """Return bytes: of a number, or of text such as ``512m`` (b, k, m, g, t: powers of 1024). Raises Invalid."""
    if value is None or isinstance(value, int):
        number = value
    else:
        found = _SIZE.match(value)
        if not found:
            raise errors.Invalid("must be bytes, or a number with b, k, m, g or t", field=field)
        factor = _FACTORS[(found[3] or "").lower()]
        number = int(found[1]) * factor + int(float(f"0.{found[2] or 0}") * factor)
    if number is not None and not 0 <= number < 2**63:
        raise errors.Invalid("must be between 0 and 2^63 bytes", field=field)
    return number


def arguments(value: list[str] | str | None, field: str) -> list[str] | None:
    """Return an argument list: as given, or text split as a shell would. Raises Invalid."""
    if value is None or isinstance(value, list):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise errors.Invalid(f"cannot be split into arguments: {str(error).lower()}", field=field) from None
