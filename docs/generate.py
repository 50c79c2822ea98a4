"""Writes the generated references, as Markdown. Called by Sphinx (``conf.py``)."""

import pathlib
from typing import Any

from magnum import config


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def configuration() -> str:
    """Return the page of all options, from the lists that the programs read."""
    lines = ["# Configuration reference", ""]
    for group, options in config.list_opts():
        lines += [f"## [{group}]", "", "| option | default | meaning |", "|---|---|---|"]
        for option in options:
            default = option.sample_default if option.sample_default is not None else option.default
            lines.append(
                f"| `{option.dest}` | {'' if default is None else f'`{_cell(default)}`'} | {_cell(option.help)} |"
            )
        lines.append("")
    return "\n".join(lines)


PAGES = {"configuration": configuration}


def all_pages(folder: pathlib.Path) -> None:
    """Write every generated page into ``folder``."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        target = folder / f"{name}.md"
        text = page()
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
