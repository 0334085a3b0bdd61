"""Sweeps: a plan that depends on nothing but the grid, and a file that survives being killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector

from steerkit import sweeps
from steerkit.errors import ExpressionError, OutputError, TrialError, VectorError
from steerkit.evaluation import propensity_of, rows_of
from steerkit.items import ItemSet
from steerkit.measures import percentiles, score_replies, write_texts
from steerkit.models import Model
from steerkit.personas import find_persona
from steerkit.steering import Steering
from steerkit.sweeps import Grid, Trial, plan, read_trials, sweep

ITEMS = ItemSet("hal", find_persona("hal").items[:2])
CHILD = """
import sys, time
from pathlib import Path
from steerkit.items import ItemSet
from steerkit.loading import load_model
from steerkit.personas import find_persona
from steerkit.sweeps import Grid, sweep
from steerkit.vectors import load_vector

model, vector, path = sys.argv[1:]
grid = Grid((load_vector(vector),), ("add", "ablate"), ((2, 4), None), (-1.0, 0.5), 1, 4, 3)
items = ItemSet("hal", find_persona("hal").items[:2])
sweep(load_model(model, device="cpu"), grid, items, Path(path), found=lambda line: time.sleep(0.5))
"""


def grid_of(model: Model, **changes: Any) -> Grid:
    """Eight trials in three blocks."""
    grid = Grid((make_vector("hal", model.fingerprint),), ("add", "ablate"), ((2, 4), None), (-1.0, 0.5), 1, 4, 3)
    return replace(grid, **changes)


@pytest.fixture(scope="module")
def whole(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an uninterrupted sweep writes."""
    path = tmp_path_factory.mktemp("sweeps") / "whole.jsonl"
    sweep(tiny, grid_of(tiny), ITEMS, path)
    return path.read_bytes()


def test_a_plan_goes_through_the_grid_in_order(tiny: Model) -> None:
    vectors = (
        make_vector("a", tiny.fingerprint, 1),
        replace(make_vector("b", tiny.fingerprint, 2), evidence={"place": [1, 2]}),
    )
    trials = plan(tiny, grid_of(tiny, vectors=vectors), ITEMS)
    assert [(t.vector, t.operator, t.layers, t.dial) for t in trials] == [
        (name, operator, layers or place, dial)
        for name, place in (("a", (3, 3)), ("b", (1, 2)))
        for operator in ("add", "ablate")
        for layers in ((2, 4), None)
        for dial in (-1.0, 0.5)
    ]
    for trial, steering in trials.items():
        (term,) = steering.terms
        assert (term.vector.name, term.operator, term.dial) == (trial.vector, trial.operator, trial.dial)
        assert term.band == trial.layers


def test_a_cell_that_is_named_twice_is_one_trial(tiny: Model) -> None:
    assert len(plan(tiny, grid_of(tiny, operators=("add",), layers=(None, (3, 3)), dials=(0.5, 0.5)), ITEMS)) == 1


def test_a_key_depends_on_every_field() -> None:
    trial = Trial("model", "hal", "mean_diff", "add", (1, 2), 0.5, "hal", "0123")
    changed = {"layers": (1, 3), "dial": 0.25}
    others = [replace(trial, **{f.name: changed.get(f.name, "other")}) for f in fields(Trial)]
    assert len({one.key for one in (trial, *others)}) == 1 + len(fields(Trial))
    assert replace(trial).key == trial.key


def test_another_vector_or_other_questions_are_other_trials(tiny: Model) -> None:
    grid, vector = grid_of(tiny), make_vector("hal", tiny.fingerprint)
    keys = {trial.key for trial in plan(tiny, grid, ITEMS)}
    longer = replace(vector, directions=vector.directions * 1.001)
    moved = replace(vector, baseline=vector.baseline + 1)
    for other in (grid_of(tiny, vectors=(longer,)), grid_of(tiny, vectors=(moved,)), replace(grid, n_tokens=5)):
        assert not keys & {trial.key for trial in plan(tiny, other, ITEMS)}
    assert not keys & {trial.key for trial in plan(tiny, grid, ITEMS.head(1))}
    assert keys == {trial.key for trial in plan(tiny, replace(grid, block=2), ITEMS)}


def test_a_sweep_writes_one_line_a_trial_with_what_was_measured(tiny: Model, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    grid, path = grid_of(tiny), tmp_path / "new" / "sweep.jsonl"
    lines = sweep(tiny, grid, ITEMS, path, progress=lambda *done: told.append(done))
    trials = plan(tiny, grid, ITEMS)
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines
    assert told == [("sweep", done, 8) for done in range(9)]
    for trial, line in zip(trials, lines, strict=True):
        assert line["key"] == trial.key
        assert {**asdict(trial), "layers": list(trial.layers)} == {
            k: v for k, v in line.items() if k not in ("key", "result")
        }
    _check(tiny, trials[list(trials)[1]], lines[1]["result"])


def _check(model: Model, steering: Steering, result: Mapping[str, Any]) -> None:
    scores = score_replies(model, rows_of(model, ITEMS), [Steering(), steering], divergence=True)
    plain, steered = propensity_of(ITEMS, scores.totals, scores.lengths).mean(-1).tolist()
    prompt = model.chat_tokens([{"role": "user", "content": ITEMS.items[0].question}])
    before, after = write_texts(model, [prompt], [Steering(), steering], 4)
    assert result["propensity"] == pytest.approx(steered, abs=2e-4)
    assert result["shift"] == pytest.approx(steered - plain, abs=2e-4)
    assert result["low"] <= result["shift"] <= result["high"]
    assert result["items_kl_p95"] == pytest.approx(float(percentiles(scores.divergences)[1]), abs=2e-4)
    assert result["kl_p95"] == pytest.approx(after.divergence(), abs=2e-4)
    assert result["coherence"] == pytest.approx(after.loss - before.loss, abs=2e-4)
    assert (tuple(result["replies"]), result["repetition"]) == (after.replies, round(after.repetition, 4))


def test_dial_zero_shifts_nothing_and_without_texts_there_are_no_replies(tiny: Model, tmp_path: Path) -> None:
    grid = grid_of(tiny, operators=("add",), dials=(0.0, 1.0), n_texts=0)
    for line in sweep(tiny, grid, ITEMS, tmp_path / "sweep.jsonl"):
        assert set(line["result"]) == {"propensity", "shift", "low", "high", "right_way", "items_kl_p95"}
        assert (abs(line["result"]["shift"]) <= 1e-4) == (line["dial"] == 0.0)


def test_a_file_cut_anywhere_ends_up_the_same(tiny: Model, whole: bytes, tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "cut.jsonl"
    cuts = [draw.randrange(len(whole)) for _ in range(8)]
    for cut in (*cuts, 0, whole.index(b"\n")):
        path.write_bytes(whole[:cut])
        lines = sweep(tiny, grid_of(tiny), ITEMS, path)
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines()), cut
        assert len(lines) == 8


def test_lines_that_went_missing_in_the_middle_are_written_again(tiny: Model, whole: bytes, tmp_path: Path) -> None:
    path, lines = tmp_path / "holes.jsonl", whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in (7, 0, 4)))
    sweep(tiny, grid_of(tiny), ITEMS, path)
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_nothing_is_measured_again(tiny: Model, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    path = tmp_path / "whole.jsonl"
    path.write_bytes(whole)
    for name in ("score_replies", "write_texts"):
        monkeypatch.setattr(sweeps, name, never)
    found: list[Mapping[str, Any]] = []
    lines = sweep(tiny, grid_of(tiny), ITEMS, path, found=found.append)
    assert [json.loads(text) for text in whole.splitlines()] == lines
    assert found == []
    assert path.read_bytes() == whole
    # The control: with one line less there is something to measure.
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(AssertionError, match="measured again"):
        sweep(tiny, grid_of(tiny), ITEMS, path)


def test_an_interrupt_loses_nothing(tiny: Model, whole: bytes, tmp_path: Path) -> None:
    path, found = tmp_path / "interrupted.jsonl", []

    def interrupt(line: Mapping[str, Any]) -> None:
        found.append(line["key"])
        if len(found) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, grid_of(tiny), ITEMS, path, found=interrupt)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:5])
    sweep(tiny, grid_of(tiny), ITEMS, path)
    assert path.read_bytes() == whole


def test_a_killed_sweep_goes_on_where_it_was(tiny: Model, tiny_folder: Path, whole: bytes, tmp_path: Path) -> None:
    vector, path = tmp_path / "hal.safetensors", tmp_path / "killed.jsonl"
    make_vector("hal", tiny.fingerprint).save(vector)
    arguments = [sys.executable, "-c", CHILD, str(tiny_folder), str(vector), str(path)]
    with subprocess.Popen(arguments, cwd=Path(__file__).parent.parent) as child:
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert 2 <= len(path.read_bytes().splitlines()) < 8
    sweep(tiny, grid_of(tiny), ITEMS, path)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


FOREIGN = [b"a diary\nof mine\n", b'{"question": "Why?"}\n', b"[1]\n", b"\xff\xfe\n", b"3\n\n"]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_something_else_is_refused_and_untouched(content: bytes, tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrialError, match="line 1 is no trial") as caught:
        sweep(tiny, grid_of(tiny), ITEMS, path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [content.rstrip(b"\n") for content in FOREIGN[:3]])
def test_a_file_of_something_else_keeps_its_unended_last_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrialError):
        read_trials(path)
    assert path.read_bytes() == content


def test_what_cannot_be_swept_is_refused_before_anything_is_written(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    for axis in ("vectors", "operators", "layers", "dials"):
        with pytest.raises(TrialError, match="grid is empty"):
            grid_of(tiny, **{axis: ()})
    with pytest.raises(TrialError, match="no operator is called 'push'; choose from: add"):
        grid_of(tiny, operators=("add", "push"))
    with pytest.raises(ExpressionError, match="layers 2-6 are out of range"):
        sweep(tiny, grid_of(tiny, layers=((2, 6),)), ITEMS, path)
    other = make_vector("hal", replace(tiny.fingerprint, width=8))
    with pytest.raises(VectorError, match="was made on"):
        sweep(tiny, grid_of(tiny, vectors=(other,)), ITEMS, path)
    assert not path.exists()


def test_a_place_that_cannot_be_written_or_read_is_an_error_in_words(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        sweep(tiny, grid_of(tiny, n_texts=0), ITEMS, tmp_path / "file" / "sweep.jsonl")
    with pytest.raises(TrialError, match="cannot read"):
        read_trials(tmp_path)
    assert read_trials(tmp_path / "nowhere.jsonl") == {}
