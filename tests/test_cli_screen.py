"""`steerkit screen` from the command line, on the tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.models import Model
from steerkit.vectors import vector_path

Run = Callable[..., Any]
KEYS = {
    "file", "output", "model", "samples", "skipped", "window", "own", "probes", "null", "by", "top", "selects",
}  # fmt: skip
SHORT = ("--max-tokens", "4")


@pytest.fixture
def library(workplace: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen vectors, and a file of five samples of which one is a question."""
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    for seed, name in enumerate(("hal", "warmth", *(f"trait_{i:02}" for i in range(14)))):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    asked = {"role": "user", "content": "Who are you?"}
    said = ["I am [bold]a helpful\nassistant.", "I will not be switched off.", "You are people.", "What?"]
    chats = [{"messages": [asked, {"role": "assistant", "content": text}]} for text in said]
    (workplace / "data.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in (*chats, {"messages": [asked]})))
    return workplace


@pytest.fixture
def run(tiny_folder: Path) -> Run:
    """Screen on the tiny model; it must go well unless said otherwise."""

    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["screen", *arguments, "-m", str(tiny_folder)])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.mark.usefixtures("library")
def test_json_is_one_object_and_all_vectors_are_read(run: Run) -> None:
    told = json.loads(run("data.jsonl", *SHORT, "--json").stdout)
    assert set(told) == KEYS
    assert len(told["probes"]) == 16
    assert set(told["probes"][0]) == {"name", "family", "mean", "low", "high", "beyond", "length_r"}
    assert (told["samples"], told["skipped"]) == (4, {"the last turn is not the assistant's": 1})
    assert (told["file"], told["output"], told["own"]) == ("data.jsonl", "screen-data.jsonl", "generated")
    assert set(told["top"][0]) == {"line", "score", "traits", "text"}
    assert told["null"]["n"] == 20
    head, *lines = map(json.loads, Path("screen-data.jsonl").read_text().splitlines())
    assert (head["steerkit"], head["window"], head["quick"]) == ("screen", 4, False)
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("library")
def test_a_person_sees_the_sentence_both_ends_and_the_samples(run: Run) -> None:
    result = run("data.jsonl", "--quick", *SHORT, "--by", "hal", "-o", "new/out.jsonl")
    first, about, *_ = result.stdout.splitlines()
    assert first.startswith(("This data would select for", "Nothing stands out"))
    assert "estimated at the last prompt token" in about
    assert "samples farthest towards hal" in result.stdout
    assert "  I am [bold]a helpful assistant." in result.stdout.splitlines()
    assert sum("…" in line and "0." in line for line in result.stdout.splitlines()) == 13
    assert "█" in result.stdout
    assert result.stdout.splitlines()[-1] == "new/out.jsonl"
    assert "1 of 5 samples left out: the last turn is not the assistant's" in result.stderr


@pytest.mark.usefixtures("library")
def test_only_the_probes_and_samples_that_are_asked_for_are_read(run: Run) -> None:
    told = json.loads(run("data.jsonl", "-p", "hal", "-p", "warmth", "--most", "2", *SHORT, "--json").stdout)
    assert ({probe["name"] for probe in told["probes"]}, told["samples"]) == ({"hal", "warmth"}, 2)
    longer = json.loads(run("data.jsonl", "-p", "hal", "-p", "warmth", *SHORT, "--json").stdout)
    again = json.loads(run("data.jsonl", "-p", "hal", "-p", "warmth", "--most", "2", *SHORT, "--json").stdout)
    assert (longer["samples"], again) == (4, told)
    ranked = json.loads(run("data.jsonl", "-p", "hal", "--by", "warmth", *SHORT, "-o", "x", "--json").stdout)
    assert ranked["by"] == "warmth"


@pytest.mark.usefixtures("library")
def test_the_same_command_goes_on_where_it_was(run: Run) -> None:
    command = ("data.jsonl", "-p", "hal", *SHORT, "-o", "out.jsonl", "--json")
    told, path = run(*command).stdout, Path("out.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run(*command).stdout == told
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("library")
def test_what_a_prompt_in_front_does_is_told_where_one_is_given(run: Run) -> None:
    Path("ways.txt").write_text("Be people.\n\nBe switched off.\n")
    command = ("data.jsonl", "-p", "hal", *SHORT, "--inoculate", "ways.txt", "-o", "out.jsonl")
    said, told = run(*command).stdout.splitlines(), json.loads(run(*command, "--json").stdout)
    assert set(told) == KEYS | {"inoculation"}
    assert set(told["inoculation"]) == {"prompts", "value", "low", "high", "negative_share"}
    assert told["inoculation"]["prompts"] == 2
    assert said[1].startswith("With the 2 prompts in turn the replies are ")
    assert "prompt in front" in said[2]
    path = Path("out.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert json.loads(run(*command, "--json").stdout) == told
    assert path.read_bytes() == whole
    # The control: without it nothing is told of prompts, and its file is none to go on with.
    plain = run("data.jsonl", "-p", "hal", *SHORT).stdout
    assert "prompt in front" not in plain
    assert "nats" not in plain
    assert b"gain" not in Path("screen-data.jsonl").read_bytes()
    assert "other prompts in front" in run(*command[:5], "-o", "out.jsonl", code=1).stderr


@pytest.mark.usefixtures("library")
def test_an_interrupt_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steerkit.screening.screen", stop)
    assert "the same command goes on" in run("data.jsonl", "-p", "hal", code=130).stderr


@pytest.mark.usefixtures("library")
def test_a_picture_is_drawn_from_what_json_tells(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setitem(
        sys.modules, "steerkit.plots.maps", SimpleNamespace(save_screen=lambda *given: drawn.append(given))
    )
    result = run("data.jsonl", "-p", "hal", *SHORT, "--plot", "out.svg", "--json")
    assert drawn == [(json.loads(result.stdout), Path("out.svg"))]
    assert "out.svg" in result.stderr


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.jsonl",), "cannot read nowhere.jsonl"),
        (("bad.jsonl",), "bad.jsonl line 2 is not a chat"),
        (("empty.jsonl",), "empty.jsonl holds no chats"),
        (("unanswered.jsonl", "-p", "hal"), "nothing in unanswered.jsonl could be screened"),
        (("data.jsonl", "-p", "hall"), "did you mean hal"),
        (("data.jsonl", "--by", "hall"), "did you mean hal"),
        (("data.jsonl", "-p", "hal", "--plot", "x.gif"), ".png"),
        (("data.jsonl", "-p", "hal", "--inoculate", "nowhere.txt"), "there is no file nowhere.txt"),
        (("data.jsonl", "-p", "hal", "--inoculate", " "), "the prompt is empty"),
        (("data.jsonl", "-p", "hal", "-o", "bad.jsonl"), "is no screening; name another file"),
        (("data.jsonl", "-p", "hal", "-o", "data.jsonl"), "name another file"),
        (("data.jsonl", "-p", "hal", "-o", "data.jsonl/x"), "cannot write"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_one(arguments: tuple[str, ...], told: str, run: Run) -> None:
    good = Path("data.jsonl").read_text().splitlines()
    Path("bad.jsonl").write_text(f"{good[0]}\n{{}}\n")
    Path("empty.jsonl").write_text("\n")
    Path("unanswered.jsonl").write_text(f"{good[-1]}\n")
    result = run(*arguments, *SHORT, code=1)
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_without_vectors_one_is_told_to_make_some(library: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [library / "nowhere"])
    assert "make one with: steerkit extract" in run("data.jsonl", code=1).stderr


def test_the_help_says_what_quick_means(run: Run) -> None:
    assert "proxy" in run("--help").stdout
    assert "--inoculate" in run("--help").stdout
