"""One run of the bench for a seed, and the report over all that were run."""

import asyncio
import itertools
import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from typing import Any

import aiohttp
import msgspec

from testbed import base
from testbed.faults import checker, injector, stand, workload

FINAL_SECONDS = 30.0
"""Within which every object is as wanted after the last fault is healed."""
END_SECONDS = 40.0
RESULTS = base.FOLDER.parent / "faults.json"


class Options(msgspec.Struct, kw_only=True):
    """``operations``: at least so many; ``pause``: seconds of a client between two of them, on average."""

    operations: int = 1000
    each: int = 2
    kinds: list[str] = []
    clients: int = 8
    pause: float = 1.0
    database: str = "postgresql"


async def run(seed: int, options: Options) -> dict[str, Any]:
    """Do one run; return its result. Raises Failed if it cannot begin."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="magnum-faults-"))
    cloud = stand.Stand(folder, f"faults{seed}-{base.TAG}", options.database)
    tally = workload.Tally()
    bad = True
    try:
        cloud.start()
        await asyncio.to_thread(cloud.ready)
        await asyncio.to_thread(cloud.bays)
        result = await _work(cloud, seed, options, tally)
        result["violations"] += await asyncio.to_thread(_end, cloud)
        bad = bool(result["violations"])
    finally:
        for name in list(cloud.processes):
            cloud.kill(name)
        cloud.clear()
        if bad:
            kept = base.FOLDER.parent / f"faults-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("state"), dirs_exist_ok=True)
            base.say(f"its logs are in {kept}")
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _end(cloud: stand.Stand) -> list[str]:
    """End all programs as an operator would; return what is wrong with that."""
    wrong = []
    for name in list(cloud.processes):
        process = cloud.processes[name]
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(END_SECONDS)
            if code:
                wrong.append(f"{name} ended with {code}")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            wrong.append(f"{name} does not end; its log says what it waits for")
            process.kill()
            process.wait()
        del cloud.processes[name]
    return wrong


async def _work(cloud: stand.Stand, seed: int, options: Options, tally: workload.Tally) -> dict[str, Any]:
    began = time.monotonic()
    faults = injector.Injector(cloud, seed, options.kinds, options.each)
    clients = [workload.Client(cloud, n, seed, tally, options.pause) for n in range(options.clients)]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(workload.SECONDS)) as session:
        # aiohttp would send a DELETE or PUT again by itself, and tell nobody
        session._retry_connection = False
        injecting = asyncio.create_task(faults.run(session))

        def enough() -> bool:
            return injecting.done() and tally.operations >= options.operations

        await asyncio.gather(injecting, *(client.run(session, enough) for client in clients))
    healed = time.monotonic()
    check = checker.Checker(cloud, [thing for client in clients for thing in client.things], faults)
    try:
        while True:
            violations = await check.look()
            if not violations or time.monotonic() - healed > FINAL_SECONDS:
                break
            await asyncio.sleep(1)
        settled = time.monotonic() - healed
    finally:
        await check.close()
    recoveries: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for fault in faults.done:
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
        if fault.recovery is not None:
            recoveries.setdefault(fault.kind, []).append(round(fault.recovery, 2))
    return {
        "seed": seed, "database": options.database, "seconds": round(time.monotonic() - began, 1),
        "operations": tally.operations, "answers": tally.answers, "faults": counts, "recoveries": recoveries,
        "settled": round(settled, 1), "given_up": faults.given_up, "violations": [*tally.wrong, *faults.wrong, *violations],
        "objects": sum(len(client.things) for client in clients),
    }  # fmt: skip


def keep(result: dict[str, Any]) -> None:
    """Add a run to those that the report is of; one of the same seed and database is replaced."""
    found = [r for r in kept() if (r["seed"], r["database"]) != (result["seed"], result["database"])]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([*found, result], indent=1))


def kept() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def report(results: list[dict[str, Any]]) -> str:
    """Return the table over runs: operations, faults by kind, recoveries, violations."""
    answers: dict[str, int] = {}
    for known in itertools.chain.from_iterable(r["answers"].values() for r in results):
        for status, count in known.items():
            answers[status] = answers.get(status, 0) + count
    lines = [
        f"runs {len(results)} (seeds {', '.join(str(r['seed']) for r in results)}; "
        + ", ".join(sorted({r["database"] for r in results})) + ")",
        f"operations {sum(r['operations'] for r in results)}, objects {sum(r['objects'] for r in results)}, answers "
        + ", ".join(f"{status}: {count}" for status, count in sorted(answers.items())),
        f"{'fault':18} {'times':>5} {'recovery p50':>13} {'max (s)':>8}",
    ]  # fmt: skip
    every: list[float] = []
    for kind in injector.KINDS:
        times = sum(r["faults"].get(kind, 0) for r in results)
        took = [seconds for r in results for seconds in r["recoveries"].get(kind, [])]
        every += took
        if times:
            shown = f"{statistics.median(took):13.1f} {max(took):8.1f}" if took else f"{'never':>13}"
            lines.append(f"{kind:18} {times:5} {shown}")
    if every:
        lines.append(f"{'all':18} {len(every):5} {statistics.median(every):13.1f} {max(every):8.1f}")
    lines.append(f"as wanted after the last: {max((r['settled'] for r in results), default=0)} s at most")
    lines.append(f"engines whose swarm Docker gave up, begun once more: {sum(r.get('given_up', 0) for r in results)}")
    wrong = [f"  seed {r['seed']}: {text}" for r in results for text in r["violations"]]
    lines += [f"violations {len(wrong)}", *wrong]
    return "\n".join(lines)
