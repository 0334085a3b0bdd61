"""Whoever drives workers may be killed, have no Ray, or name a cluster that is not there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.engines.boards import DEATHS, Board
from steerkit.errors import SteerkitError
from steerkit.models import Model
from steerkit.work import Job

pytest.importorskip("ray")
ROOT = Path(__file__).parent.parent
SWEEP = ("sweep", "hal.safetensors", "--items", "hal", "--dials=" + ",".join(str(i / 8) for i in range(1, 26)))
SWEEP += ("--operators", "add,rotate,ablate", "--layers", "2,3", "--texts", "1", "--max-tokens", "8", "-o", "out.jsonl")


def jobs(n: int, drawn: list[int]) -> Iterator[Job]:
    for i in range(n):
        drawn.append(i)
        yield Job({}, [i], f"piece {i}")


def test_results_come_in_order_and_only_few_pieces_are_ahead() -> None:
    drawn: list[int] = []
    board = Board(jobs(9, drawn), 3, lambda _: None)
    first, second, third = (board.draw() for _ in range(3))
    assert first
    assert second
    assert third
    assert board.draw() is None
    assert drawn == [0, 1, 2]
    board.take(third, "c")
    board.take(second, "b")
    assert list(board.ready()) == []
    board.take(first, "a")
    assert list(board.ready()) == ["a", "b", "c"]
    assert not board.over
    while turn := board.draw():
        board.take(turn, str(turn.index))
        list(board.ready())
    assert board.over
    assert drawn == list(range(9))


def test_what_pieces_have_in_common_is_sent_once() -> None:
    sent: list[object] = []
    both = {}, {}
    listed = [Job(both[i // 3], i, str(i)) for i in range(6)]
    board = Board(listed, 10, lambda shared: sent.append(shared) or len(sent))
    assert [turn.parcel for turn in iter(board.draw, None) if turn] == [1, 1, 1, 2, 2, 2]


def test_a_piece_whose_workers_die_is_done_first_and_gives_up_by_name() -> None:
    board = Board(jobs(3, []), 3, lambda _: None)
    first = board.draw()
    assert first
    for _ in range(DEATHS - 1):
        board.again(first)
        assert board.draw() is first
    with pytest.raises(SteerkitError, match=f"{DEATHS} workers died of piece 0") as caught:
        board.again(first)
    assert "\n" not in str(caught.value)


def running(session: int) -> list[str]:
    """What Ray runs for a process, whose number is in the name of the session's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes()
            whole = told + (path / "environ").read_bytes()
            if re.search(rf"session_[0-9_-]+_{session}\b".encode(), whole) and path.name != str(session):
                found.append(told.replace(b"\0", b" ").decode(errors="replace")[:80])
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole(tiny: Model, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vector and what a sweep of it writes that nobody stops, with one thread, as workers have here."""
    folder = tmp_path_factory.mktemp("whole")
    make_vector("hal", tiny.fingerprint).save(folder / "hal.safetensors")
    alone(folder, tiny_folder)
    return folder


def alone(folder: Path, model: Path) -> None:
    """Sweep in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)
            done = CliRunner().invoke(app, [*SWEEP, "-m", str(model), "--device", "cpu"])
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_its_lines_and_no_workers(
    sent: signal.Signals, whole: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(whole / "hal.safetensors", tmp_path)
    path, said = tmp_path / "out.jsonl", tmp_path / "said"
    arguments = [
        "-m",
        "steerkit",
        *SWEEP,
        "-m",
        str(tiny_folder),
        "--device",
        "cpu",
        "--ray",
        "local",
        "--workers",
        "2",
    ]
    with said.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,
            # Whoever runs these tests in the background may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 300
    while child.poll() is None and time.monotonic() < deadline and not (path.exists() and path.read_bytes()):
        time.sleep(0.02)
    child.send_signal(sent)
    assert child.wait(timeout=60) == (130 if sent == signal.SIGINT else -sent), said.read_text()
    begun = path.read_bytes()
    assert 0 < begun.count(b"\n") < 150
    if sent == signal.SIGINT:
        assert "the same command goes on from there" in said.read_text()
        assert said.read_text().count("\n") == 1, said.read_text()
    # Killed outright, workers with their models go within seconds; two small helpers of Ray's within two minutes.
    left, deadline = running(child.pid), time.monotonic() + 30
    while time.monotonic() < deadline and any(sent == signal.SIGINT or "Agent" not in each for each in left):
        time.sleep(0.2)
        left = running(child.pid)
    assert not [each for each in left if sent == signal.SIGINT or "Agent" not in each]
    alone(tmp_path, tiny_folder)
    assert path.read_bytes() == (whole / "out.jsonl").read_bytes()
    assert path.read_bytes().startswith(begun)


NOWHERE = ("127.0.0.1:9", "nowhere", "http://x:80", "ray://127.0.0.1:10001", "localhost:99999")


@pytest.mark.parametrize("address", NOWHERE)
def test_a_cluster_that_is_not_there_is_one_line_and_soon(address: str, workplace: Path, tiny_folder: Path) -> None:
    del workplace
    started = time.monotonic()
    done = CliRunner().invoke(app, ["extract", "hal", "--ray", address, "-m", str(tiny_folder)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error no Ray at {address} (")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 20


def test_without_ray_one_is_told_what_to_install(
    workplace: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del workplace
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["extract", "hal", "--workers", "2", "-m", str(tiny_folder)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error Ray is not installed; install it with: pip install 'persona-steerkit[ray]'\n"


def test_the_plain_way_needs_no_ray(tiny: Model, tiny_folder: Path, tmp_path: Path) -> None:
    make_vector("hal", tiny.fingerprint).save(tmp_path / "hal.safetensors")
    code = (
        "import sys; sys.modules['ray'] = None\nfrom steerkit.cli import app\n"
        f"app(['sweep', 'hal.safetensors', '--items', 'hal', '--texts', '0', '-m', {str(tiny_folder)!r}])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
