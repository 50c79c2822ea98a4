"""Text of a manifest → plain data: YAML or JSON, read as Kubernetes reads it but with limits.

Called by ``objects.manifest``. YAML is built straight from libyaml's events, so
that aliases cannot multiply (every node of an expansion counts), nesting is
bounded, a key given twice is refused and nothing but strings, numbers,
booleans, null, lists and mappings can come out.
"""

import json
import math
from typing import Any

import yaml

from magnum import errors

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
"""Scalars, lists and mappings in all, aliases counted as what they stand for."""
MAX_DEPTH = 64

STRING, NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{t}" for t in ("str", "null", "bool", "int", "float"))
TEXT = {STRING, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
"""Tags of scalars whose text is the value; JSON knows no dates."""
MERGE = "tag:yaml.org,2002:merge"


def _wrong(detail: str, at: Any = None) -> errors.Invalid:
    """``at``: an event or mark of libyaml's, for the line."""
    mark = getattr(at, "start_mark", at)
    return errors.Invalid(detail if mark is None else f"line {mark.line + 1}: {detail}", field="manifest")


def load(text: str) -> dict[str, Any]:
    """Return the one object that ``text`` holds, without its nulls (to Kubernetes the same as absent).

    Raises Invalid (field ``manifest``, with the line) and TooLarge.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise errors.TooLarge(f"a manifest has at most {MAX_BYTES} bytes", field="manifest")
    data = _json(text) if text.lstrip().startswith("{") else None
    return clean(data if data is not None else _Yaml(text).document())


def clean(data: Any) -> dict[str, Any]:
    """Return ``data``, what a manifest's text would give, checked against the limits and without nulls. Raises Invalid."""
    _measure(data)
    if not isinstance(data, dict) or not data:
        raise _wrong("must hold one object")
    return _without_nulls(data)  # type: ignore[no-any-return]


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    if isinstance(data, list):
        return [_without_nulls(value) for value in data]
    return data


def _measure(data: Any) -> None:
    """Raise Invalid for what is too deep or too big; without recursion, since that is what it guards."""
    nodes, level = 0, [data]
    for _ in range(MAX_DEPTH + 1):
        nodes += len(level)
        if nodes > MAX_NODES:
            raise _wrong(f"holds more than {MAX_NODES} values")
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise _wrong(f"is nested deeper than {MAX_DEPTH} levels")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _wrong(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _constant(name: str) -> None:
    raise _wrong(f"{name} is not a number in JSON")


def _json(text: str) -> Any:
    """Return the data of JSON text, None if it is none (it may be YAML's flow style)."""
    try:
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except RecursionError:
        raise _wrong(f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        return None


class _Yaml:
    """One text's events, read once from front to back."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def document(self) -> Any:
        try:
            self._loader = yaml.CSafeLoader(self._text)
            return self._documents()
        except yaml.MarkedYAMLError as error:
            raise _wrong(error.problem or "is not YAML", error.problem_mark or error.context_mark) from None
        except (yaml.YAMLError, ValueError, LookupError) as error:
            raise _wrong(f"is not YAML: {error}") from None

    def _documents(self) -> Any:
        found: list[Any] = []
        event = self._loader.get_event()
        while not isinstance(event, yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                data = self._value(self._loader.get_event(), 0)
                if data is not None:
                    found.append(data)
                if len(found) > 1:
                    raise _wrong("must hold one document, not several", event)
            event = self._loader.get_event()
        return found[0] if found else None

    def _count(self, event: yaml.Event, number: int = 1) -> None:
        self._nodes += number
        if self._nodes > MAX_NODES:
            raise _wrong(f"holds more than {MAX_NODES} values", event)

    def _value(self, event: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _wrong(f"is nested deeper than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _wrong(f"no anchor {event.anchor!r} stands before its alias", event)
            data, size = self._anchors[event.anchor]
            self._count(event, size)
            return data
        self._count(event)
        before = self._nodes - 1
        if isinstance(event, yaml.ScalarEvent):
            data = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._untagged(event)
            data = []
            while not isinstance(inner := self._loader.get_event(), yaml.SequenceEndEvent):
                data.append(self._value(inner, depth + 1))
        else:
            self._untagged(event)
            data = self._mapping(depth)
        if event.anchor:
            self._anchors[event.anchor] = (data, self._nodes - before)
        return data

    def _mapping(self, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _wrong("a key must be a string", event)
            self._count(event)
            if self._tag(event) == MERGE:
                value = self._value(self._loader.get_event(), depth + 1)
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise _wrong("'<<' merges mappings alone", event)
                    merged = part | merged
                continue
            key = self._scalar(event)
            if not isinstance(key, str):
                raise _wrong(f"the key {event.value} must be a string: put it in quotes", event)
            if key in own:
                raise _wrong(f"the key {key!r} is given twice", event)
            own[key] = self._value(self._loader.get_event(), depth + 1)
        return merged | own

    def _untagged(self, event: Any) -> None:
        if event.tag not in (None, "!", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            raise _wrong(f"the tag {event.tag} is not known here", event)

    def _tag(self, event: yaml.ScalarEvent) -> str:
        if event.tag is None or event.tag == "!":
            return str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))  # type: ignore[no-untyped-call]
        return str(event.tag)

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        tag = self._tag(event)
        if tag in TEXT:
            return event.value
        if tag not in (NULL, BOOL, INT, FLOAT):
            raise _wrong(f"the tag {tag} is not known here", event)
        value = self._loader.construct_object(yaml.ScalarNode(tag, event.value))
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(f"{event.value} is not a number in JSON", event)
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _wrong(f"{event.value[:40]} is too large a number", event)
        return value
