"""JSON Patches (RFC 6902) of what an object is to be. Called by ``conductor.server`` for every update."""

from typing import Any

import jsonpatch
import jsonpointer
import msgspec

from magnum import errors
from magnum.objects import base


def patched(kind: base.Kind, item: Any, patch: list[dict[str, Any]]) -> tuple[str, Any]:
    """Return (name, spec) of ``item`` after a JSON Patch, checked. Raises Invalid naming the field."""
    document = msgspec.to_builtins(item.spec) | {"name": item.name}
    try:
        changed = jsonpatch.JsonPatch(patch).apply(document)
    except jsonpatch.JsonPatchTestFailed as error:
        raise errors.Conflict(f"a test of the patch failed: {str(error)[:200]}") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError) as error:
        words = error.args[0] if error.args else "cannot be applied"
        raise errors.Invalid(f"the patch cannot be applied: {str(words)[:200]}", field=_path(patch)) from None
    if not isinstance(changed, dict):
        raise errors.Invalid("must leave an object", field=_path(patch))
    name = changed.pop("name", None)
    if not isinstance(name, str) or not name:
        raise errors.Invalid("must be a name", field="name")
    if name != item.name and kind.unique_in_bay:
        raise errors.Invalid("cannot be changed", field="name")
    unknown = sorted(set(changed) - set(kind.spec.__struct_fields__))
    if unknown:
        raise errors.Invalid("is not known here", field=unknown[0])
    spec = base.convert(changed, kind.spec)
    for field in kind.chosen:
        if getattr(spec, field) != getattr(item.spec, field):
            raise errors.Invalid("cannot be changed", field=field)
    return name, kind.patch(item, spec) if kind.patch is not None else spec


def _path(patch: list[dict[str, Any]]) -> str | None:
    paths = {str(step.get("path", "")).lstrip("/").replace("/", ".") for step in patch}
    return paths.pop() if len(paths) == 1 else None
