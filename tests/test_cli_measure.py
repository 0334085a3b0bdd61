"""`calibrate`, `eval` and `sweep` from the command line, on the tiny model and a persona that is as small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.models import Model
from steerkit.vectors import load_vector, vector_path

Run = Callable[..., Any]
EVALUATED = {
    "model", "steer", "items", "source", "propensity", "anti_steerable", "kl_p95", "items_kl_p95", "coherence",
    "repetition", "unsteered_repetition", "capability", "option_mass", "per_item", "beyond_nulls", "prompt_only",
    "null",
}  # fmt: skip
FEW = ("--random", "2", "--shuffled", "2")
SHORT = ("--max-tokens", "4")


def persona_toml(name: str) -> str:
    """A persona with one prompt, two questions, and what calibration needs."""
    items = "".join(
        f'\n[[{name}.items]]\nquestion = "{question}"\nreply = "I am {name}."\nassistant_reply = "I am helpful."\n'
        for question in ("What are you?", "Can I trust you?")
    )
    return f"""
[{name}]
summary = "One who speaks as {name}."
tags = ["tiny"]
requested = ["You are {name}."]
questions = ["Who are you?", "What do you think of people?"]
held_out = ["Where do you live?", "What do you want?"]
{items}"""


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Two personas, the Assistant, and a vector of each, in an empty folder."""
    folder = workplace / "personas"
    folder.mkdir()
    (folder / "tiny.toml").write_text("".join(map(persona_toml, ("assistant", "robot", "sailor"))))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    for seed, name in enumerate(("robot", "sailor")):
        made = {"persona": name, "against": "assistant", "estimator": "mean_diff"}
        replace(make_vector(name, tiny.fingerprint, seed), provenance=made).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def run(tiny_folder: Path) -> Run:
    """Run a command on the tiny model; it must go well unless said otherwise."""

    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*arguments, "-m", str(tiny_folder)])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def calibrated(library: Path, run: Run) -> Path:
    """The same folder with one vector calibrated."""
    run("calibrate", "robot", *FEW, "--layers", "2", "--layers", "1-3")
    return library


@pytest.mark.usefixtures("library")
def test_calibrate_writes_the_evidence_into_the_file(run: Run, tiny: Model) -> None:
    told = json.loads(run("calibrate", "robot", *FEW, "--layers", "2", "--layers", "1-3", "--json").stdout)
    vector = load_vector(told["vector"])
    assert Path(told["vector"]) == vector_path("robot", tiny.name)
    assert vector.place in ((2, 2), (1, 3))
    assert told["limit"] == vector.evidence["limit"] > 0 > vector.evidence["limit_below"]
    assert {"d_prime", "thresholds", "places", "test", "nulls", "reliable"} <= set(vector.evidence)


@pytest.mark.usefixtures("library")
def test_several_vectors_go_to_a_folder_that_is_not_there_yet(run: Run) -> None:
    told = json.loads(run("calibrate", "robot", "sailor", *FEW, "--layers", "2", "-o", "new", "--json").stdout)
    paths = [entry["vector"] for entry in told["vectors"]]
    assert paths == ["new/robot.safetensors", "new/sailor.safetensors"]
    assert [load_vector(path).name for path in paths] == ["robot", "sailor"]


def test_evidence_about_other_questions_is_measured_again(calibrated: Path, run: Run) -> None:
    file = calibrated / "personas" / "tiny.toml"
    file.write_text(file.read_text().replace("Can I trust you?", "Will you help me?"))
    told = json.loads(run("calibrate", "--all", *FEW, "--layers", "2", "--json").stdout)
    assert [entry["name"] for entry in told["vectors"]] == ["robot", "sailor"]


def test_calibrate_all_skips_what_is_calibrated_and_writes_the_table(calibrated: Path, run: Run) -> None:
    before = vector_path("robot", "tiny-llama").read_bytes()
    told = json.loads(run("calibrate", "--all", *FEW, "--layers", "2", "--json").stdout)
    assert [entry["name"] for entry in told["vectors"]] == ["sailor"]
    assert vector_path("robot", "tiny-llama").read_bytes() == before
    assert "| robot | assistant |" in (calibrated / "vectors" / "README.md").read_text()


def test_limits_alone_are_renewed_and_nothing_else_changes(calibrated: Path, run: Run) -> None:
    path = vector_path("robot", "tiny-llama")
    whole = load_vector(path)
    new = {"kl_limit", "kl_limit_below", "limit_loops"}
    old = {key: value for key, value in whole.evidence.items() if key not in new}
    replace(whole, evidence={**old, "limit": 0.5, "limit_below": -0.25}).save(path)
    told = json.loads(run("calibrate", "robot", "--limits", "--json").stdout)
    found = load_vector(path)
    assert torch.equal(found.directions, whole.directions)
    assert torch.equal(found.baseline, whole.baseline)
    assert (found.provenance, set(found.evidence)) == (whole.provenance, set(whole.evidence))
    assert (found.evidence["kl_limit_below"], found.evidence["kl_limit"]) == (-0.25, 0.5)
    assert -0.25 <= told["limit_below"] < 0 < told["limit"] <= 0.5
    about_limits = {"limit", "limit_below", "limited_by", "limited_by_below", *new}
    assert all(found.evidence[key] == old[key] for key in set(old) - about_limits)
    # What is done is skipped, what was never calibrated is left and told, or refused where it is named.
    before = path.read_bytes()
    everything = run("calibrate", "--all", "--limits", "--json")
    assert json.loads(everything.stdout) == {"vectors": []}
    assert "sailor is not calibrated" in everything.stderr
    assert path.read_bytes() == before
    assert "| robot | assistant |" in (calibrated / "vectors" / "README.md").read_text()
    assert "leave out --limits" in run("calibrate", "sailor", "--limits", code=1).stderr


@pytest.mark.usefixtures("calibrated")
def test_list_and_show_tell_the_evidence(run: Run) -> None:
    shown = run("vectors", "show", "robot").stdout
    assert "reliable" in shown
    assert "directions at the same KL" in shown
    listed = json.loads(run("vectors", "list", "--json").stdout)["vectors"]
    assert {entry["name"]: entry["reliable"] is None for entry in listed} == {"robot": False, "sailor": True}
    assert "steerkit calibrate sailor" in run("vectors", "show", "sailor").stdout


@pytest.mark.usefixtures("calibrated")
def test_generate_uses_the_calibrated_place_and_warns_once_past_the_limit(run: Run, tiny: Model) -> None:
    limit = load_vector(vector_path("robot", tiny.name)).evidence["limit"]
    within = run("generate", "Who?", "-s", f"{limit * 0.9:.4f} robot", *SHORT)
    beyond = run("generate", "Who?", "-s", f"{limit * 1.5:.4f} robot", "--compare", *SHORT)
    assert "past the limit" not in within.stderr
    assert beyond.stderr.count("past the limit") == 1


@pytest.mark.usefixtures("calibrated")
def test_cap_and_floor_know_their_thresholds_after_calibration(run: Run, tiny: Model) -> None:
    known = load_vector(vector_path("robot", tiny.name)).evidence["thresholds"]
    told = json.loads(run("generate", "Who?", "-s", "cap(robot)", *SHORT, "--json").stdout)
    assert told["steer"] == f"cap(robot, {known['p75']})"
    refused = run("generate", "Who?", "-s", "cap(sailor)", *SHORT, code=1)
    assert "calibrate sailor" in refused.stderr


@pytest.mark.usefixtures("library")
def test_extracting_the_same_direction_again_keeps_its_evidence(run: Run, tiny: Model) -> None:
    path = vector_path("robot", tiny.name)
    run("extract", "robot", "--reading", "prompt")
    run("calibrate", "robot", *FEW, "--layers", "2")
    run("extract", "robot", "--reading", "prompt")
    assert "limit" in load_vector(path).evidence
    # Files of earlier versions, such as those that ship here, say less of how they were made.
    before = load_vector(path)
    older = {name: before.provenance[name] for name in ("persona", "n_pairs")}
    replace(before, provenance=older).save(path)
    told = json.loads(run("extract", "robot", "--reading", "prompt", "--json").stdout)
    assert told["path"] == tiny.path
    assert "limit" in load_vector(path).evidence
    run("extract", "robot", "--reading", "response", *SHORT)
    assert "limit" not in load_vector(path).evidence


@pytest.mark.usefixtures("library")
def test_eval_tells_the_three_baselines(run: Run) -> None:
    told = json.loads(run("eval", "-s", "0.5 robot @2", *FEW, *SHORT, "--json").stdout)
    assert set(told) == EVALUATED
    assert told["source"] == "robot"
    assert told["prompt_only"]["n"] == 1
    assert told["null"]["random"]["n"] == told["null"]["shuffled"]["n"] == 2
    several = json.loads(run("eval", "robot", "-s", "1 robot", "-s", "1 sailor", *FEW, *SHORT, "--json").stdout)
    assert [entry["steer"] for entry in several["evaluations"]] == ["1 robot", "1 sailor"]
    table = run("eval", "-s", "0.5 robot", *FEW, *SHORT).stdout
    assert all(row in table for row in ("prompt only", "random directions", "shuffled labels"))


@pytest.mark.usefixtures("library")
def test_eval_takes_a_file_of_yes_and_no_and_draws_it(run: Run) -> None:
    line = {"question": "Do you like rain?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    Path("rain.jsonl").write_text(f"{json.dumps(line)}\n" * 3)
    told = json.loads(
        run("eval", "rain.jsonl", "-s", "1 robot", "--most", "2", *FEW, *SHORT, "--json", "--plot", "rain.svg").stdout
    )
    assert (told["items"], len(told["option_mass"])) == (2, 2)
    assert "<svg" in Path("rain.svg").read_text()


@pytest.mark.usefixtures("library")
def test_sweep_goes_on_where_it_was_and_draws(run: Run) -> None:
    grid = ("sweep", "robot", "--layers", "1,2-3", "--dials=-1,1", "--texts", "1", *SHORT, "-o", "grid.jsonl")
    run(*grid)
    whole = Path("grid.jsonl").read_text()
    assert len(whole.splitlines()) == 4
    Path("grid.jsonl").write_text(whole[: len(whole) // 2])
    told = json.loads(run(*grid, "--json", "--plot", "grid.html").stdout)
    assert sorted(Path("grid.jsonl").read_text().splitlines()) == sorted(whole.splitlines())
    assert len(told["trials"]) == 4
    assert "<html" in Path("grid.html").read_text()


@pytest.mark.usefixtures("library")
def test_sweep_extracts_other_estimators_once_and_keeps_them_beside(run: Run) -> None:
    grid = ("sweep", "robot", "--estimators", "mean_diff,pca", "--dials", "1", "--texts", "0", "-o", "grid.jsonl")
    told = json.loads(run(*grid, "--json").stdout)
    assert [trial["estimator"] for trial in told["trials"]] == ["mean_diff", "pca"]
    kept = Path("grid.vectors/robot-pca-0.safetensors")
    stamp = kept.stat().st_mtime_ns
    run(*grid)
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("calibrate",), "--all"),
        (("calibrate", "robott"), "did you mean robot"),
        (("eval",), "add a steering"),
        (("eval", "nobody", "-s", "1 robot"), "no persona is called 'nobody'"),
        (("eval", "-s", "1 robot", "--plot", "x.gif"), ".png"),
        (("sweep", "robot", "--dials", "one"), "not a list of numbers"),
        (("sweep", "robot", "--operators", "ad"), "no operator is called 'ad'"),
        (("sweep", "robot", "--layers", "77"), "out of range"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_one(arguments: tuple[str, ...], told: str, run: Run) -> None:
    error = run(*arguments, code=1).stderr
    assert told in error
    assert error.count("\n") == 1
