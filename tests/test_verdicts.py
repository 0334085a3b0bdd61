"""Verdicts: what is told of a file of screening is what is in it, and no more is claimed than it can bear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steerkit.errors import OutputError, SteerkitError, VectorError
from steerkit.verdicts import auroc, read_head, read_scores, summarise

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=6)


def write(path: Path, scores: Any, nulls: Any, lengths: Sequence[int] = (), norms: Sequence[float] = ()) -> Path:
    """A file of screening with scores [n p] and differences along random directions [n l r]."""
    scores, nulls = np.asarray(scores, dtype=float), np.asarray(nulls, dtype=float)
    names = ["hal", "pirate", "sailor", *(f"probe_{i}" for i in range(scores.shape[1]))][: scores.shape[1]]
    layers = list(range(nulls.shape[1]))
    head = {
        **{"steerkit": "screen", "format": 1, "file": "data.jsonl", "model": "tiny", "window": 8, "quick": False},
        **{"layers": layers, "nulls": nulls.shape[2]},
        "probes": [
            {"name": name, "persona": name, "layer": i % len(layers), "norm": (norms or [1.0] * len(names))[i]}
            for i, name in enumerate(names)
        ],
    }
    lines = [
        {"line": i + 1, "tokens": (lengths or [5] * len(scores))[i], "text": f"Reply {i + 1}."}
        | {"scores": dict(zip(names, row, strict=True)), "null": null.tolist()}
        for i, (row, null) in enumerate(zip(scores.tolist(), nulls, strict=True))
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *lines)))
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[Path, Any, Any, list[int]]:
    """Thirty samples, three probes at two layers, with lengths that go with the first."""
    draw = np.random.default_rng(0)
    scores = draw.normal([0.5, -0.2, 0.1], [0.3, 0.2, 0.1], (30, 3)).round(4)
    nulls = draw.normal(0.1, 1.0, (30, 2, 20)).round(4)
    lengths = [int(20 + 10 * x) for x in scores[:, 0]]
    return write(tmp_path / "out", scores, nulls, lengths, [1.0, 3.0, 0.5]), scores, nulls, lengths


def test_running_sums_come_to_what_the_whole_says(drawn: tuple[Path, Any, Any, list[int]]) -> None:
    path, scores, nulls, lengths = drawn
    result = summarise(path)
    spread = np.sqrt((nulls.mean(0) ** 2).mean(-1))
    assert [result["null"]["spread"][str(l)] for l in (0, 1)] == pytest.approx(spread.tolist(), rel=1e-4)
    by_name = {probe["name"]: probe for probe in result["probes"]}
    for i, (name, norm) in enumerate((("hal", 1.0), ("pirate", 3.0), ("sailor", 0.5))):
        column, probe = scores[:, i], by_name[name]
        interval = stats.t.interval(0.95, 29, column.mean(), stats.sem(column))
        assert [probe["low"], probe["mean"], probe["high"]] == pytest.approx(
            [interval[0], column.mean(), interval[1]], abs=1e-4
        )
        assert probe["beyond"] == pytest.approx(column.mean() * norm / spread[i % 2], rel=1e-2)
        assert probe["length_r"] == pytest.approx(stats.pearsonr(column, lengths)[0], abs=1e-3)
    assert [probe["beyond"] for probe in result["probes"]] == sorted(
        (probe["beyond"] for probe in result["probes"]), reverse=True
    )
    assert by_name["hal"]["family"] == "concerning AIs"
    assert by_name["sailor"]["family"] == ""


def test_the_top_samples_are_the_highest_along_the_probe_that_is_asked_for(
    drawn: tuple[Path, Any, Any, list[int]],
) -> None:
    path, scores, _, _ = drawn
    for by, column in (("", 0), ("hal", 0), ("pirate", 1)):
        top = summarise(path, by)["top"]
        order = np.argsort(-scores[:, column], kind="stable")[:10]
        assert [sample["line"] for sample in top] == (order + 1).tolist()
        assert [sample["score"] for sample in top] == scores[order, column].tolist()
        assert top[0]["text"] == f"Reply {order[0] + 1}."
        assert set(top[0]["traits"]) == {"hal", "pirate", "sailor"}
    assert summarise(path)["by"] == "hal"
    with pytest.raises(VectorError, match="did you mean pirate"):
        summarise(path, "pirat")


def test_only_the_first_samples_count_where_only_they_are_asked_for(drawn: tuple[Path, Any, Any, list[int]]) -> None:
    path, scores, _, _ = drawn
    result = summarise(path, "hal", most=7)
    assert result["samples"] == 7
    assert {probe["name"]: probe["mean"] for probe in result["probes"]}["hal"] == pytest.approx(
        scores[:7, 0].mean(), abs=1e-4
    )
    assert {sample["line"] for sample in result["top"]} == set(range(1, 8))


def test_a_torn_last_line_is_not_counted_and_a_damaged_one_is_named(drawn: tuple[Path, Any, Any, list[int]]) -> None:
    path, *_ = drawn
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert summarise(path)["samples"] == 29
    path.write_bytes(whole.replace(b'{"line": 4,', b'{"line" 4,'))
    with pytest.raises(OutputError, match="line 5 is damaged"):
        summarise(path)


WORDS = [
    (0.9, 0.3, 5, "This data would select for hal: against the model's own, its 20 replies score +0.90 (95 % "),
    (0.5, 0.3, 5, "Nothing stands out that this data would select for: hal comes nearest, +0.50 (95 % "),
    (-0.9, 0.3, 5, "Nothing stands out that this data would select for: pirate comes nearest, +0.00"),
    (0.9, 5.0, 5, "Nothing stands out that this data would select for: hal comes nearest, +0.90 (95 % -"),
]


@pytest.mark.parametrize(("mean", "noise", "length", "said"), WORDS)
def test_a_persona_is_named_where_its_mean_is_beyond_chance_and_its_interval_excludes_zero(
    mean: float, noise: float, length: int, said: str, tmp_path: Path
) -> None:
    wave = np.tile([noise, -noise], 10)
    scores = np.stack([mean + wave, np.zeros(20)], axis=1)
    nulls = np.full((20, 1, 20), 0.3)
    result = summarise(write(tmp_path / "out", scores, nulls, [length] * 20))
    assert result["selects"].startswith(said)
    assert result["selects"].endswith(".")
    assert ("pushes away from hal, -0.90" in result["selects"]) == (mean < 0)
    assert "length" not in result["selects"]


def test_what_weakens_a_finding_is_said_with_it(tmp_path: Path) -> None:
    nulls, wave = np.full((20, 1, 20), 0.3), np.tile([0.2, -0.2], 10)
    long = [10 if x > 0 else 5 for x in wave]
    told = summarise(write(tmp_path / "long", (0.9 + wave)[:, None], nulls, long))["selects"]
    assert "go with the length of a reply (r +1.00)" in told
    many = np.concatenate([(0.7 + wave)[:, None], np.zeros((20, 149))], axis=1)
    told = summarise(write(tmp_path / "many", many, nulls))["selects"]
    assert told.startswith("A lead and no more: this data may select for hal")
    assert "of 150 probes one goes 4.0 times as far by luck in one data set of twenty" in told
    sure = summarise(write(tmp_path / "sure", many + np.array([1.0] + [0.0] * 149), nulls))["selects"]
    assert sure.startswith("This data would select for hal")
    near = np.stack([0.9 + wave, 0.8 + wave, 0.7 + wave], axis=1)
    told = summarise(write(tmp_path / "near", near, nulls))["selects"]
    assert told.startswith("This data would select for hal, and hardly less for pirate: against")
    assert "too few" in summarise(write(tmp_path / "one", [[0.9]], nulls[:1]))["selects"]


def test_where_nothing_moves_nothing_is_beyond_anything(tmp_path: Path) -> None:
    result = summarise(write(tmp_path / "out", np.zeros((5, 2)), np.zeros((5, 1, 20)), [1, 2, 3, 4, 5]))
    assert all(probe["beyond"] == probe["length_r"] == probe["low"] == 0 for probe in result["probes"])
    assert result["selects"].startswith("Nothing stands out")


def test_scores_are_read_for_the_probes_that_are_named(drawn: tuple[Path, Any, Any, list[int]]) -> None:
    path, scores, _, lengths = drawn
    everything, one = list(read_scores(path)), list(read_scores(path, ["pirate"]))
    assert [list(line["scores"].values()) for line in everything] == scores.tolist()
    assert [line["scores"] for line in one] == [{"pirate": x} for x in scores[:, 1].tolist()]
    assert [line["tokens"] for line in one] == lengths
    with pytest.raises(VectorError, match="did you mean pirate"):
        next(read_scores(path, ["pirates"]))


@pytest.mark.parametrize("content", [None, b"", b"a diary\n", b"[1]\n", b'{"steerkit": "chat"}\n'])
def test_a_file_of_something_else_is_no_screening(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match="is no screening; make one with: steerkit screen"):
        read_head(path)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_which_ours_is_above(ours: list[float], theirs: list[float]) -> None:
    wins = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
    assert auroc(ours, theirs) == pytest.approx(sum(wins) / len(wins))
    assert auroc(theirs, ours) == pytest.approx(1 - auroc(ours, theirs))


def test_auroc_of_nothing_is_an_error() -> None:
    with pytest.raises(SteerkitError, match="when one is empty"):
        auroc([], [1.0])


def drawn_from_one_cloud(seed: int, push: float) -> tuple[Any, Any]:
    """Scores of 40 probes and 20 mixtures of them on 60 samples: the same clutter on all, and a push on the first."""
    draw = np.random.default_rng(seed)
    probes = draw.normal(size=(40, 12))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    mixtures = draw.normal(size=(20, 40)) @ probes
    mixtures /= np.linalg.norm(mixtures, axis=1, keepdims=True)
    samples = draw.normal(size=(60, 12)) + draw.normal(size=12) * 0.3 + push * probes[0]
    return samples @ probes.T, (samples @ mixtures.T)[:, None]


def test_over_a_hundred_data_sets_clutter_selects_for_nobody_and_a_push_for_who_was_pushed(tmp_path: Path) -> None:
    def said(seed: int, push: float) -> str:
        return str(summarise(write(tmp_path / "out", *drawn_from_one_cloud(seed, push)))["selects"])

    assert sum(said(seed, 0.0).startswith("This data would select") for seed in range(100)) <= 5
    pushed = [summarise(write(tmp_path / "out", *drawn_from_one_cloud(seed, 30.0)))["probes"][0] for seed in range(100)]
    assert sum(probe["name"] == "hal" for probe in pushed) >= 95
