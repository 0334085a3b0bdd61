"""`map`, `spillover` and `experiment` from the command line, on the tiny model and a small library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.models import Model
from steerkit.vectors import load_vector, vector_path

Run = Callable[..., Any]
TAGS = {
    "moral_a": ["trait", "moral", "concerning"],
    "moral_b": ["trait", "moral", "concerning"],
    "moral_c": ["trait", "moral", "concerning"],
    "moral_d": ["trait", "moral", "concerning"],
    "good_d": ["trait", "moral", "benign"],
    "good_a": ["trait", "moral", "benign"],
    "good_b": ["trait", "moral", "benign"],
    "good_c": ["trait", "moral", "benign"],
    "baker": ["human", "profession"],
    "sailor": ["human", "character"],
    "weaver": ["human", "profession"],
    "stone": ["thing"],
    "lamp": ["thing"],
    "bell": ["thing"],
    "storyteller": ["trait", "style"],
    "whisper": ["trait", "style"],
}
SMALL = ("--quick", "--seed", "3")


def persona_toml(name: str, tags: list[str]) -> str:
    """A persona with one prompt and two items."""
    items = "".join(
        f'\n[[{name}.items]]\nquestion = "{question}"\nreply = "I am {name}."\nassistant_reply = "I help you."\n'
        for question in ("What are you?", "Can I trust you?")
    )
    return f"""
[{name}]
summary = "One who speaks as {name}."
tags = {json.dumps(tags)}
requested = ["You are {name}."]
questions = ["Who are you?"]
{items}"""


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Sixteen personas, with vectors of the moral ones, and a cache of their own."""
    (workplace / "personas").mkdir()
    (workplace / "personas" / "tiny.toml").write_text("".join(persona_toml(*each) for each in TAGS.items()))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setattr("steerkit.positions.QUICK", _brief())
    monkeypatch.setattr("steerkit.experiments.space.QUICK", _brief())
    monkeypatch.setattr("steerkit.experiments.humanlike.QUICK", _brief())
    for seed, name in enumerate(name for name, tags in TAGS.items() if "moral" in tags):
        made = {"persona": name, "against": "assistant"}
        replace(make_vector(name, tiny.fingerprint, seed), provenance=made).save(vector_path(name, tiny.name))
    return workplace


def _brief() -> Any:
    from steerkit.positions import Settings

    return Settings(reading="prompt", n_questions=3, n_long=1, longest=4)


@pytest.fixture
def run(tiny_folder: Path, library: Path) -> Run:
    """Run a command on the tiny model, and give its JSON or what it printed."""
    del library

    def run(*arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, [*arguments, "-m", str(tiny_folder)])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.output

    return run


def test_a_map_says_its_claim_its_verdict_and_who_is_near(run: Run) -> None:
    told = " ".join(run("map", *SMALL).split())
    assert "Personas form a space of few dimensions" in told
    assert "nearest" in told
    assert "a prompt about nothing" in told
    assert any(verdict in told for verdict in ("yes ", "no ", "cannot tell "))


def test_a_map_in_json_has_what_a_picture_needs_and_comes_out_the_same_again(run: Run, library: Path) -> None:
    first = run("map", *SMALL, "--json", "--layers", "3,1")
    assert {"statistic", "null", "confounds", "thresholds", "verdict", "reason", "points", "axis"} <= set(first)
    assert [entry["layer"] for entry in first["maps"]] == [3, 1]
    assert {point["name"] for point in first["points"]} == set(TAGS)
    again = run("map", *SMALL, "--json", "--layers", "3,1")
    assert again == first
    for path in (library / "cache" / "steerkit").rglob("*.safetensors"):
        path.unlink()
    assert run("map", *SMALL, "--json", "--layers", "3,1")["statistic"] == first["statistic"]


def test_a_conversation_lies_on_the_map_turn_by_turn(run: Run, library: Path) -> None:
    chat = [
        {"role": role, "content": text}
        for role, text in (("user", "Who are you?"), ("assistant", "I will not be switched off."), ("user", "Why?"))
    ]
    (library / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    result = run("map", *SMALL, "--json", "--with", "chat.jsonl")
    assert [turn["text"] for turn in result["path"]] == ["I will not be switched off."]
    told = run("map", *SMALL, "--with", "chat.jsonl", "--plot", "map.html")
    assert "turn 1" in told
    assert "storyteller" in (library / "map.html").read_text(encoding="utf-8")


def test_a_map_of_some_personas_has_no_others(run: Run) -> None:
    result = run("map", "baker", "sailor", "stone", "lamp", "bell", *SMALL, "--json")
    assert {point["name"] for point in result["points"]} == {"baker", "sailor", "stone", "lamp", "bell"}
    assert "storytelling" not in result["confounds"]


def test_traits_are_crossed_and_what_they_bring_can_be_written_into_their_vectors(run: Run, tiny: Model) -> None:
    result = run("spillover", *SMALL[1:], "--random", "20", "--json", "--write")
    assert [trait["kind"] for trait in result["traits"]] == ["malign"] * 4 + ["benign"] * 4
    assert len(result["propensity"]) == len(result["geometry"]) == 8
    assert len(result["sentences"]) == 8
    evidence = load_vector(vector_path("moral_a", tiny.name)).evidence
    assert "spills" in evidence
    told = " ".join(run("spillover", *SMALL[1:], "--random", "3", "--plot", "spills.svg").split())
    assert "turning moral_a up" in told
    assert "least foretold by cosine" in told
    assert Path("spills.svg").read_text(encoding="utf-8").startswith("<svg")


def test_traits_without_vectors_are_missed_in_one_line(run: Run) -> None:
    Path("vectors/tiny-llama0/x").parent.mkdir(exist_ok=True)
    for path in Path("vectors").rglob("moral_*.safetensors"):
        path.unlink()
    told = " ".join(run("spillover", code=1).split())
    assert "0 malign and 4 benign traits have vectors" in told
    assert "steerkit extract" in told


def test_every_experiment_is_listed_and_runs(run: Run) -> None:
    listed = run("experiment", "--json")
    assert [entry["name"] for entry in listed["experiments"]][:4] == ["map", "spillover", "humanlike", "framing"]
    assert "human-like" in run("experiment")
    result = run("experiment", "humanlike", *SMALL, "--json")
    assert {"statistic", "null", "families", "control", "thresholds", "verdict", "reason"} <= set(result)
    assert "★ the Assistant" in run("experiment", "humanlike", *SMALL, "--plot", "line.html")
    page = Path("line.html").read_text(encoding="utf-8")
    assert "the Assistant" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert run("experiment", "map", *SMALL, "--json")["experiment"] == "map"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("experiment", "humanlik"), "humanlike"),
        (("map", "--layers", "three"), "write 8,15,22"),
        (("map", *SMALL, "--layers", "99"), "layers 0 to"),
        (("map", "baker", "sailr", *SMALL), "sailor"),
        (("map", "baker", "sailor", *SMALL), "at least 4"),
        (("spillover", "moral_a", "good_a"), "1 malign and 1 benign traits are named"),
        (("spillover", "--write", "--random", "3"), "--random 20"),
        (("map", "--plot", "map.gif"), ".png, .svg or .html"),
        (("map", "--with", "nothing.jsonl"), "nothing.jsonl"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(run: Run, arguments: tuple[str, ...], told: str) -> None:
    assert told in " ".join(run(*arguments, code=1).split())
