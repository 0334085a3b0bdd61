"""Speed: numbers that are there and hang together; nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.models import Model
from steerkit.personas import find_pair
from steerkit.speed import Speed, measure_rates, measure_speed

RATES = ("unsteered", "steered", "probed", "batch", "pairs")


def test_everything_is_timed_and_progress_ends_where_it_said(tiny: Model) -> None:
    told: list[tuple[int, int]] = []
    found = measure_speed(tiny, find_pair("hal"), 2, 4, lambda _stage, done, total: told.append((done, total)))
    assert told == [(i, 15) for i in range(1, 16)]
    assert all(getattr(found, name) > 0 for name in RATES)
    assert found.path == "llama"
    assert 0 < found.judging < found.loading
    assert found.weights == sum(p.numel() * 4 for p in set(tiny.bridge.original_model.parameters()))
    assert found.memory > found.weights
    assert (found.model, found.device, found.dtype) == ("tiny-llama", "cpu", "float32")


def test_the_ceiling_is_how_often_the_weights_can_be_read() -> None:
    speed = Speed(
        "m", "cpu", "float32", 1.0, 1.0, 1.0, 1.0, 1.0,
        memory=5, weights=200, bandwidth=1000.0, path="llama", judging=0.1, loading=4.0,
    )  # fmt: skip
    assert speed.ceiling == 5.0
    assert speed.to_json()["ceiling"] == 5.0


@pytest.mark.parametrize("form", ["json", "table"])
def test_the_command_prints_what_was_measured(form: str, tiny_folder: Path) -> None:
    asked = ["bench", "--turns", "1", "--max-tokens", "3", "-m", str(tiny_folder)]
    result = CliRunner().invoke(app, [*asked, "--json"] if form == "json" else asked)
    assert result.exit_code == 0, result.output
    if form == "json":
        told = json.loads(result.stdout)
        known = {"model", "device", "dtype", "path", "memory", "weights", "bandwidth", "ceiling", "judging", "loading"}
        assert {*RATES, *known} == set(told)
    else:
        assert "tiny-llama · cpu float32" in result.stdout
        assert "ceiling" in result.stdout


def test_a_short_look_tells_how_fast_what_experiments_do_is(tiny: Model) -> None:
    rates = measure_rates(tiny, n_rows=2, looks=1)
    assert min(rates.read, rates.scored, rates.written) > 0
