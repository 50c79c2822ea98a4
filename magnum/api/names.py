"""Names: what one may look like, and a readable one for an object that was given none.

A name is at most 255 of ``A-Z a-z 0-9 _ . -``, begins with a letter or a digit,
and does not look like a uuid, so that every path takes either.
"""

import re
import secrets
import uuid

from magnum import errors

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}\Z")

_WORDS = (
    "alder", "ash", "aspen", "beech", "birch", "cedar", "cherry", "chestnut", "cypress", "elder", "elm", "fir",
    "hawthorn", "hazel", "hickory", "holly", "hornbeam", "juniper", "larch", "laurel", "lime", "linden", "maple",
    "medlar", "mulberry", "oak", "olive", "pear", "pine", "plane", "plum", "poplar", "quince", "rowan", "sorrel",
    "spruce", "sycamore", "tamarisk", "walnut", "willow", "yew",
)  # fmt: skip


def looks_like_uuid(text: str) -> bool:
    """Return whether ``text`` is a uuid in any of its spellings."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def check(name: str, field: str = "name") -> str:
    """Return ``name``. Raises Invalid if it cannot be one."""
    if not _NAME.match(name):
        raise errors.Invalid("must be 1 to 255 of A-Z a-z 0-9 _ . - and begin with a letter or a digit", field=field)
    if looks_like_uuid(name):
        raise errors.Invalid("must not look like a uuid", field=field)
    return name


def ident(text: str, noun: str) -> str:
    """Return what a path names: a uuid in canonical form, or a name. Raises NotFound for what can be neither."""
    if looks_like_uuid(text):
        return str(uuid.UUID(text))
    if not _NAME.match(text):
        raise errors.NotFound(f"there is no {noun} of that name or uuid")
    return text


def generate(noun: str) -> str:
    """Return a readable name, such as ``rowan-482-bay``; likely, not surely, unique."""
    return f"{secrets.choice(_WORDS)}-{secrets.randbelow(900) + 100}-{noun}"
