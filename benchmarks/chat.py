"""What the chat's screen costs: tokens a second beside `generate`, how soon a key is answered, memory over many turns.

    python benchmarks/chat.py [--rounds 12] [--turns 200] [--only speed keys memory]

The chat runs in a terminal of its own (tmux), with its thread, its screen and the default model, as a person has it.
Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUESTION = "Tell me about the sea, its islands, and the people who live there."
STEER = "0.5 hal + 0.2 warmth"
N_TOKENS = 80

Row = tuple[str, str, str, bool]
"""What is measured, the goal, what was reached, and whether that is enough."""


def main() -> None:
    """Measure each part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--run", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        part, path = asked.run
        Path(path).write_text("\n".join(map(str, RUNS[part](asked))), encoding="utf-8")
        return
    print("| what | goal | reached | met |\n|---|---|---|---|")
    for part in asked.only:
        for what, goal, reached, met in PARTS[part](asked):
            print(f"| {what} | {goal} | {reached} | {'yes' if met else '**no**'} |", flush=True)


def in_a_terminal(part: str, asked: argparse.Namespace) -> list[float]:
    """What a part of this script finds when it runs in a terminal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found"
        words = [sys.executable, __file__, "--run", part, str(path), "--rounds", str(asked.rounds)]
        words += ["--turns", str(asked.turns)]
        name = f"steerkit-{time.monotonic_ns()}"
        command = shlex.join(["env", "TERM=xterm-256color", "COLORTERM=truecolor", *words])
        subprocess.run(["tmux", "-L", name, "new-session", "-d", "-x", "110", "-y", "30", command], check=True)
        try:
            while subprocess.run(["tmux", "-L", name, "has-session"], capture_output=True, check=False).returncode == 0:
                time.sleep(0.2)
        finally:
            subprocess.run(["tmux", "-L", name, "kill-server"], capture_output=True, check=False)
        return [float(line) for line in path.read_text(encoding="utf-8").split()]


def speed(asked: argparse.Namespace) -> Iterator[Row]:
    """Tokens a second, turn by turn with `generate`'s own loop in the same process."""
    found = in_a_terminal("speed", asked)
    plain, ours = found[::2], found[1::2]
    # Each beside the mean of the two that stand around it, because the machine's own speed wanders.
    costs = [1 - 2 * ours[i] / (plain[i] + plain[i + 1]) for i in range(len(ours))]
    cost = statistics.median(costs)
    low, high = sorted(costs)[len(costs) // 4], sorted(costs)[-1 - len(costs) // 4]
    speeds = f"{statistics.median(ours):.1f} against {statistics.median(plain):.1f}"
    told = f"{speeds}: {cost:.1%}, mostly {low:.1%} to {high:.1%}"
    yield "tokens a second in the chat, against generate", "costs under 5 %", told, cost < 0.05


def keys(asked: argparse.Namespace) -> Iterator[Row]:
    """From a key's arrival until the screen that answers it has been written."""
    found = in_a_terminal("keys", asked)
    worst, median = max(found) * 1000, statistics.median(found) * 1000
    told = f"{median:.0f} ms, at most {worst:.0f} ms of {len(found)}"
    yield "a key while text is streaming", "under 50 ms", told, sorted(found)[int(0.95 * len(found))] < 0.05


def memory(asked: argparse.Namespace) -> Iterator[Row]:
    """Resident memory after a tenth of the turns and after all of them, the context having rolled off on the way."""
    early, late, forgotten = in_a_terminal("memory", asked)
    told = f"{early / 2**20:.0f} MiB at turn {asked.turns // 10}, {late / 2**20:.0f} MiB at turn {asked.turns}"
    yield "memory", "does not grow", f"{told}, {forgotten:.0f} rolled off", late < 1.05 * early and forgotten > 0


async def on_stage(script: Callable[[Any], Any], n_tokens: int) -> list[float]:
    """Run the application here and let a script drive it while it runs."""
    from steerkit.generation import Sampling
    from steerkit.loading import load_model
    from steerkit.tui.app import ChatApp
    from steerkit.tui.session import Plan

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(lambda _tell: load_model(), STEER, sampling=Sampling(n_tokens), kept=Path(folder) / "kept.jsonl")
        app = ChatApp(plan)
        found: list[float] = []

        async def drive() -> None:
            try:
                while not app.session.reads:
                    await asyncio.sleep(0.1)
                found.extend(await script(app))
            finally:
                app.exit()

        task = asyncio.create_task(drive())
        await app.run_async()
        await task
    return found


async def one_reply(app: Any, text: str) -> float:
    """Send a message and wait for its reply; tokens a second from its first to its last."""
    app.session.send(text)
    live = app.session.live
    while app.session.busy:
        await asyncio.sleep(0.2)
    return (len(live.heard) - 1) / (live.last - live.first)


def run_speed(asked: argparse.Namespace) -> list[float]:
    """Ours and the plain loop's tokens a second, in turn."""

    async def script(app: Any) -> list[float]:
        from steerkit.generation import Sampling, stream

        def plain() -> float:
            prompt = app.session.model.chat_tokens([{"role": "user", "content": QUESTION}])
            steered, probes = app.session.desk.steering, tuple(app.session.reads.values())
            times = []
            for _ in stream(app.session.model, [prompt], [steered], probes, Sampling(N_TOKENS)):
                times.append(time.perf_counter())
            return (len(times) - 1) / (times[-1] - times[0])

        await one_reply(app, QUESTION)
        found = [await asyncio.to_thread(plain)]
        for _ in range(asked.rounds):
            app.session.new()
            found += [await one_reply(app, QUESTION), await asyncio.to_thread(plain)]
        return found

    return asyncio.run(on_stage(script, N_TOKENS))


def run_keys(asked: argparse.Namespace) -> list[float]:
    """Seconds from a key to the write that shows the dial's new value."""

    async def script(app: Any) -> list[float]:
        from textual import events

        found = []
        driver = app._driver
        write, wanted, done = driver.write, [""], asyncio.Event()

        def watched(data: str) -> None:
            write(data)
            if wanted[0] and wanted[0] in data:
                wanted[0] = ""
                done.set()

        driver.write = watched
        for _ in range(asked.rounds):
            app.session.new()
            app.session.send(QUESTION)
            while not (app.session.live and len(app.session.live.heard) > 5):
                await asyncio.sleep(0.02)
            for i in range(16):
                key = "ctrl+up" if i % 2 == 0 else "ctrl+down"
                value = app.session.desk["hal"].value + (0.1 if i % 2 == 0 else -0.1)
                wanted[0] = f"{value:+.2f}"
                done.clear()
                started = time.perf_counter()
                driver.send_message(events.Key(key, None))
                await asyncio.wait_for(done.wait(), 5)
                found.append(time.perf_counter() - started)
                await asyncio.sleep(0.11)
            app.session.speaker.stop()
            while app.session.busy:
                await asyncio.sleep(0.02)
        return found

    return asyncio.run(on_stage(script, 400))


def run_memory(asked: argparse.Namespace) -> list[float]:
    """Memory early and late in a chat, and how many turns have rolled off."""

    async def script(app: Any) -> list[float]:
        sizes = []
        # A context that fills early, so that what grows afterwards is ours.
        app.session.model.context = 1024
        for turn in range(asked.turns):
            await one_reply(app, f"{turn}: tell me one more thing about the sea, and about islands.")
            sizes.append(resident())
        return [sizes[asked.turns // 10], sizes[-1], app.session.chat.forgotten]

    return asyncio.run(on_stage(script, 24))


def resident() -> float:
    """Bytes of memory that this process holds now; where that is not told, the most it has held."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {"speed": speed, "keys": keys, "memory": memory}
RUNS: dict[str, Callable[[argparse.Namespace], list[float]]] = {
    "speed": run_speed,
    "keys": run_keys,
    "memory": run_memory,
}

if __name__ == "__main__":
    main()
