"""Writes the generated references, as Markdown. Called by Sphinx (``conf.py``)."""

import pathlib
from typing import Any

from magnum import config, policy
from magnum.api import openapi
from magnum.objects import manifest


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


def api() -> str:
    """Return the page of all operations, from the declarations that serve them."""
    found = openapi.document()
    lines = ["# API reference", "", "Every api serves this as `/openapi.json` and, to browse, as `/docs`.", ""]
    tags: dict[str, list[tuple[str, str, Any]]] = {}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            tags.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for tag, operations in tags.items():
        lines += [
            f"## {tag.capitalize()}",
            "",
            "| request | what it does | query | answers | policy |",
            "|---|---|---|---|---|",
        ]
        for method, path, operation in operations:
            query = ", ".join(f"`{p['name']}`" for p in operation["parameters"] if p["in"] == "query")
            answers = ", ".join(code for code in operation["responses"] if code < "400")
            rule = operation.get("description", "").removeprefix("Policy rule: ")
            lines.append(f"| `{method} {path}` | {_cell(operation['summary'])} | {query} | {answers} | {rule} |")
        lines.append("")
    lines += ["## Refusals", "", "| status | meaning |", "|---|---|"]
    lines += [f"| {status} | {text} |" for status, text in openapi.FAILURES.items()]
    lines += [
        "", "A refusal's body is `{\"errors\": [{status, code, title, detail, request_id, links, field}]}`.", "",
        "## WebSockets", "",
        "`GET /v1/containers/{ident}/attach`, `…/exec?command=…` and the same of pods (`container` names one of a pod's).",
        "Messages are binary and begin with a channel: 0 stdin, 1 stdout, 2 stderr, 3 the ending as JSON, 4 the terminal's",
        "size as JSON (`{\"Width\": 80, \"Height\": 24}`).", "",
    ]  # fmt: skip
    return "\n".join(lines)


def rules() -> str:
    """Return the page of all policy rules with their defaults."""
    lines = ["# Policy reference", "", "| rule | default | what it allows |", "|---|---|---|"]
    lines += [f"| `{r.name}` | `{_cell(r.check_str)}` | {_cell(r.description)} |" for r in policy.list_rules()]
    return "\n".join([*lines, ""])


def fields() -> str:
    """Return the table of manifest fields, from the structs and lists that check them."""
    names = manifest.Row.__struct_fields__
    lines = ["# Fields of manifests", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in manifest.table():
        lines.append("| " + " | ".join(_cell(getattr(row, name)) for name in names) + " |")
    return "\n".join([*lines, ""])


PAGES = {"configuration": configuration, "api": api, "policy": rules, "manifest-fields": fields}


def all_pages(folder: pathlib.Path) -> None:
    """Write every generated page into ``folder``."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        target = folder / f"{name}.md"
        text = page()
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
