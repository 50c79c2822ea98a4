"""The figures of a run: printed as a table, kept as JSON, and held against the last ones that were kept.

A figure stands beside a floor or a peer of the same run, since a machine's speed
changes by the minute; what is compared with another run is the ratio alone.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from typing import Any

import msgspec
import psutil

from benchmarks import asking
from testbed import base

KEPT = pathlib.Path(__file__).with_name("kept.json")
NOISE = 0.25
"""By how much of itself a ratio may be worse than the kept one before that is said."""


def quantile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of ``values`` are."""
    found = sorted(values)
    return found[min(int(len(found) * share), len(found) - 1)]


def spread(values: list[float]) -> str:
    """Return the quartiles of ``values`` in words."""
    return f"{quantile(values, 0.25):.4g} to {quantile(values, 0.75):.4g}"


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One figure. ``beside`` is what ``peer`` names, in the same unit; ``reach`` is ``<=`` or ``>=`` and a number.

    The reach is the ratio's where there is a peer, and else the figure's. ``note`` bears spread and p99.
    """

    what: str
    unit: str
    ours: float
    beside: float | None = None
    peer: str = ""
    reach: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.beside if self.beside else None

    @property
    def met(self) -> bool | None:
        """Whether what was to be reached is; None where nothing was."""
        if not self.reach:
            return None
        sign, _, number = self.reach.partition(" ")
        found = self.ratio if self.beside is not None else self.ours
        return found is not None and (found <= float(number) if sign == "<=" else found >= float(number))


def medians(
    what: str, unit: str, ours: list[float], beside: list[float], peer: str, reach: str = "", scale: float = 1.0
) -> Row:
    """Return the row of two lists of figures that were taken in turn."""
    mine, other = [v * scale for v in ours], [v * scale for v in beside]
    return Row(
        what=what, unit=unit, ours=statistics.median(mine), beside=statistics.median(other), peer=peer, reach=reach,
        note=f"{spread(mine)}, p99 {quantile(mine, 0.99):.4g}; {spread(other)}, p99 {quantile(other, 0.99):.4g}",
    )  # fmt: skip


def rates(
    what: str,
    ours: list[asking.Load],
    beside: list[asking.Load],
    peer: str,
    reach: str = "",
    *,
    by_processor: bool = False,
) -> Row:
    """Return the row of the answers a second, or by second of the processor, of loads that took turns."""

    def figures(loads: list[asking.Load]) -> list[float]:
        return [load.by_processor if by_processor else load.rate for load in loads]

    def p99(loads: list[asking.Load]) -> float:
        return quantile([t for load in loads for t in load.took], 0.99) * 1000

    mine, other = figures(ours), figures(beside)
    return Row(
        what=what, unit="1/cpu s" if by_processor else "1/s", ours=statistics.median(mine), beside=statistics.median(other),
        peer=peer, reach=reach,
        note=f"{spread(mine)}, p99 {p99(ours):.3g} ms; {spread(other)}, p99 {p99(beside):.3g} ms",
    )  # fmt: skip


def machine() -> dict[str, Any]:
    """Return what the figures were taken on: processors, memory, versions."""
    model = next(
        (line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ("aiormq", "asyncpg", "litestar", "msgspec", "sqlalchemy", "uvicorn", "uvloop")
    return {
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "commit": commit, "processor": model,
        "processors": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(), "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }  # fmt: skip


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def show(rows: list[Row], *, markdown: bool = False) -> str:
    """Return the table in words."""
    head = ["what", "unit", "Magnum", "beside", "ratio", "reach", "", "beside it; quartiles, p99"]
    cells = [
        [r.what, r.unit, _number(r.ours), _number(r.beside), f"{r.ratio:.2f}" if r.ratio else "", r.reach,
         {True: "yes", False: "NO", None: ""}[r.met], f"{r.peer}{'; ' if r.peer and r.note else ''}{r.note}"]
        for r in rows
    ]  # fmt: skip
    if markdown:
        lines = [" | ".join(line) for line in (head, ["---"] * len(head), *cells)]
        return "\n".join(f"| {line} |" for line in lines)
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *cells)
    )


def worse(rows: list[Row]) -> list[str]:
    """Return a line for each ratio that is worse than the kept one by more than noise."""
    if not KEPT.exists():
        return []
    kept = {row.what: row for row in msgspec.convert(json.loads(KEPT.read_text())["rows"], list[Row])}
    found = []
    for row in rows:
        old = kept.get(row.what)
        if old is None or row.ratio is None or old.ratio is None or not row.reach:
            continue
        change = row.ratio / old.ratio if row.reach.startswith("<=") else old.ratio / row.ratio
        if change > 1 + NOISE:
            found.append(f"{row.what}: {row.ratio:.2f}, was {old.ratio:.2f}")
    return found


def keep(rows: list[Row], where: pathlib.Path = base.FOLDER.parent / "benchmarks.json") -> None:
    """Write rows and machine as JSON; rows of another run that are not among these stay."""
    old: list[Any] = json.loads(where.read_text())["rows"] if where.exists() else []
    new = {row.what for row in rows}
    found = [row for row in old if row["what"] not in new] + msgspec.to_builtins(rows)
    where.write_text(json.dumps({"machine": machine(), "rows": found}, indent=1) + "\n")
