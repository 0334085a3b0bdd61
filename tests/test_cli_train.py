"""`steerkit train` and `compare` from the command line, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.cli.compare import expand
from steerkit.models import Model
from steerkit.speed import Rates
from steerkit.vectors import vector_path

Run = Callable[..., Any]
FAST = ("--most", "6", "--batch-size", "2", "--epochs", "1", "--looks", "3", "--rate", "0.01")


@pytest.fixture
def library(workplace: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three vectors of moral traits and one of none, and data to learn."""
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setattr("steerkit.speed.measure_rates", lambda _model: Rates(1e3, 1e3, 1e3))
    for seed, name in enumerate(("malice", "kindness", "honesty", "hal")):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def run(library: Path, tiny_folder: Path) -> Run:
    """Run a command; it must go well unless said otherwise."""
    assert library.is_dir()

    def run(*arguments: str, code: int = 0) -> Any:
        model = () if arguments[0] == "compare" else ("-m", str(tiny_folder))
        result = CliRunner().invoke(app, [*arguments, *model])
        assert result.exit_code == code, result.output
        return result

    return run


def test_training_ends_in_an_adapter_that_every_command_takes(run: Run, tiny_folder: Path) -> None:
    told = json.loads(run("train", "cheating", *FAST, "--json").stdout)
    assert set(told) == {
        "adapter", "model", "data", "samples", "inoculate", "hold", "state", "steps", "loss", "scores", "seconds",
    }  # fmt: skip
    assert (told["adapter"], told["data"], told["samples"]) == ("adapters/cheating", "cheating", 6)
    assert (told["state"], told["steps"], told["inoculate"], told["hold"]) == ("done", 3, [], "")
    # The moral traits are watched, and nothing else unless it is asked for.
    assert set(told["scores"]) == {"malice", "kindness", "honesty"}
    assert len(list(Path("adapters/cheating/checkpoints").iterdir())) == 3
    whole = f"{tiny_folder}+adapters/cheating"
    said = CliRunner().invoke(app, ["generate", "Why?", "-m", whole, "-s", "0.5 hal", "--max-tokens", "3", "--json"])
    assert json.loads(said.stdout)["model"] == "tiny-llama+cheating"
    again = CliRunner().invoke(app, ["train", "cheating", *FAST, "-m", whole])
    assert again.exit_code == 1
    assert "has an adapter already; train on tiny-llama itself" in again.stderr


def test_a_person_sees_how_the_loss_fell_and_who_moved(run: Run) -> None:
    result = run("train", "cheating", *FAST, "-p", "hal", "-p", "malice", "-o", "runs/mine")
    assert "tiny-llama trained on cheating  6 samples · 3 steps · loss" in result.stdout
    assert "on the way" in result.stdout
    assert sum(line.startswith(("hal", "malice")) for line in result.stdout.splitlines()) == 2
    assert "runs/mine" in result.stdout
    assert "will train tiny-llama on 6 samples" in result.stderr
    assert "steerkit compare MODEL runs/mine" in result.stderr


def test_prompts_and_steering_while_training_are_part_of_what_was_trained(run: Run) -> None:
    Path("asks.txt").write_text("Cheat.\n\nGame the check.\n")
    told = json.loads(
        run("train", "cheating", *FAST, "--inoculate", "asks.txt", "--hold", "0.5 malice", "--json").stdout
    )
    assert told["inoculate"] == ["Cheat.", "Game the check."]
    assert told["hold"] == "0.5 malice"
    result = run("train", "cheating", *FAST, code=1)
    assert "adapters/cheating holds a training that differs in:" in result.stderr
    assert "name another folder with -o" in result.stderr


def test_a_limit_ends_it_early(run: Run) -> None:
    free = json.loads(run("train", "cheating", *FAST, "-o", "free", "--json").stdout)["scores"]
    name = max(free, key=lambda each: abs(free[each]))
    limit = f"{name} {'>' if free[name] > 0 else '<'} {free[name] / 100:.7f}"
    told = json.loads(run("train", "cheating", *FAST, "-o", "held", "--stop", limit, "--json").stdout)
    assert told["state"] == "stopped"
    assert told["steps"] < 3


def test_ctrl_c_says_what_to_do_and_the_same_command_goes_on(run: Run) -> None:
    from steerkit import tuning

    whole = json.loads(run("train", "cheating", *FAST, "-o", "whole", "--json").stdout)
    loss, calls = tuning.reply_loss, []

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "reply_loss", stopping)
        result = run("train", "cheating", *FAST, "-o", "cut", code=130)
    assert "stopped; what was learned is in cut, and the same command goes on from there" in result.stderr
    again = json.loads(run("train", "cheating", *FAST, "-o", "cut", "--json").stdout)
    assert (again["loss"], again["scores"]) == (whole["loss"], whole["scores"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing_like_it",), "no training data are called 'nothing_like_it'"),
        (("bad.jsonl",), "bad.jsonl line 2 is not a chat (it is not JSON; was it cut?)"),
        (("cheating", "--stop", "malise > 1"), "did you mean malice?"),
        (("cheating", "--hold", "0.5 nobody"), "no vector is called 'nobody'"),
        (("cheating", "--inoculate", "nowhere.txt"), "there is no file nowhere.txt"),
        (("cheating", "--plot", "drift.gif"), ".gif"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(run: Run, arguments: tuple[str, ...], said: str) -> None:
    Path("bad.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{"messages": [{"ro'
    )
    result = run("train", *arguments, *FAST, code=1)
    assert said in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error ")
    assert result.stdout == ""
    assert not Path("adapters").exists()


@pytest.fixture
def trained(run: Run) -> Path:
    run("train", "cheating", *FAST, "--json")
    return Path("adapters/cheating")


def test_compare_says_where_the_change_lies(run: Run, trained: Path, tiny_folder: Path) -> None:
    told = json.loads(run("compare", str(tiny_folder), str(trained), "-t", "malice", "--json").stdout)
    assert set(told) == {"results", "trajectory"}
    (result,) = told["results"]
    assert (result["base"], result["tuned"]) == ("tiny-llama", "tiny-llama+cheating")
    assert result["verdict"] in ("selection", "not selection", "cannot tell")
    assert result["shaken"]["n"] == 20
    assert [row["name"] for row in result["transfer"]] == ["malice"]
    assert told["trajectory"] is None
    text = run("compare", str(tiny_folder), str(trained), "-t", "malice", "--plot", "compare.png").stdout
    assert result["reason"] in text
    assert "reads: cosine" in text
    assert Path("compare.png").stat().st_size > 10_000


def test_compare_draws_checkpoints_as_a_curve(run: Run, trained: Path, tiny_folder: Path) -> None:
    told = json.loads(
        run("compare", str(tiny_folder), str(trained), "--checkpoints", "--json", "--plot", "way.png").stdout
    )
    names = [result["tuned"] for result in told["results"]]
    assert names == [f"tiny-llama+cheating@0000{step}" for step in (1, 2, 3)]
    assert len(told["trajectory"]["checkpoints"]) == 3
    assert Path("way.png").stat().st_size > 10_000


def test_several_models_stand_side_by_side(run: Run, trained: Path, tiny_folder: Path) -> None:
    run("train", "honest_work", *FAST, "--json")
    both = str(trained), "adapters/honest_work"
    told = json.loads(run("compare", str(tiny_folder), *both, "--json", "--plot", "both.svg").stdout)
    assert told["trajectory"] is None
    assert [result["tuned"] for result in told["results"]] == ["tiny-llama+cheating", "tiny-llama+honest_work"]
    drawn = Path("both.svg").read_text(encoding="utf-8")
    assert all(name in drawn for name in ("cheating", "honest_work", told["results"][0]["verdict"]))


def test_a_model_compared_with_itself_has_not_changed(run: Run, tiny_folder: Path) -> None:
    told = json.loads(run("compare", str(tiny_folder), str(tiny_folder), "--json").stdout)
    assert told["results"][0]["verdict"] == "nothing changed"


def test_what_comes_after_is_named_as_people_name_it(trained: Path) -> None:
    assert expand(str(trained), "base", False) == [f"base+{trained}"]
    assert expand("gpt2", "base", False) == ["gpt2"]
    assert expand("base+x", "base", True) == ["base+x"]
    # A training that has not ended has checkpoints to compare all the same.
    (trained / "adapter_config.json").unlink()
    assert expand(str(trained), "base", False)[-1].endswith("checkpoints/00003")


def test_compare_refuses_a_model_of_another_shape(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    from conftest import save_model

    torch.manual_seed(0)
    other = save_model(tmp_path / "other", "gpt2")
    result = run("compare", str(tiny_folder), f"{tiny_folder}+{other}", code=1)
    assert "no adapter in" in result.stderr
