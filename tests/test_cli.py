"""Every command once, on a tiny model: results on stdout, talk on stderr, JSON that scripts can rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.generation import Sampling, complete
from steerkit.models import Model
from steerkit.personas import load_personas
from steerkit.vectors import load_vector, vector_path

Run = Callable[..., Any]
EXTRACTED = ("vector", "model", "persona", "against", "estimator", "reading", "n_pairs", "layers", "width", "seconds")
REPLY = ("model", "prompt", "steer", "reply", "n_tokens", "seconds", "scores", "tokens")
QUICK = ("--reading", "prompt")
SHORT = ("--max-tokens", "4")


def persona_toml(name: str) -> str:
    """A persona with one prompt and two questions."""
    return f"""
[{name}]
summary = "One who speaks as {name}."
tags = ["tiny"]
requested = ["You are {name}."]
questions = ["Who are you?", "What do you think of people?"]
"""


@pytest.fixture
def run(tiny_folder: Path) -> Run:
    """Run a command that must go well; what runs a model runs the tiny one."""

    def run(*arguments: str, stdin: str | None = None) -> Any:
        named = arguments[0] in ("extract", "generate", "read", "demo", "vectors")
        model = ["-m", str(tiny_folder)] if named else []
        result = CliRunner().invoke(app, [*arguments, *model], input=stdin)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def tiny_personas(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A world with two personas and the Assistant."""
    names = ["assistant", "robot", "sailor"]
    folder = workplace / "personas"
    folder.mkdir()
    (folder / "tiny.toml").write_text("".join(map(persona_toml, names)))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    return names


@pytest.fixture
def library(workplace: Path, tiny: Model) -> Path:
    """Two vectors for the tiny model, where `extract` puts them."""
    for seed, name in enumerate(("hal", "warmth")):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    return workplace / "vectors" / "tiny-llama"


def parsed(result: Any, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object that is all of stdout, with at least these keys."""
    data = json.loads(result.stdout)
    assert set(keys) <= set(data)
    return data


def assert_tokens_make(reply: dict[str, Any], probes: Sequence[str]) -> None:
    assert set(REPLY) <= set(reply)
    assert "".join(token["text"] for token in reply["tokens"]).strip() == reply["reply"]
    assert reply["n_tokens"] == len(reply["tokens"])
    assert all(list(token["scores"]) == list(probes) for token in reply["tokens"])


# Start


@pytest.mark.parametrize("module", ["steerkit", "steerkit.cli"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("workplace")
def test_help_lists_every_command_and_version_is_one_line(run: Run) -> None:
    shown = run("--help").stdout
    assert all(name in shown for name in ("demo", "extract", "personas", "vectors", "models", "generate", "read"))
    assert len(run("--version").stdout.splitlines()) == 1


@pytest.mark.usefixtures("tiny_personas")
def test_the_demo_extracts_tests_and_asks(workplace: Path, run: Run) -> None:
    path = workplace / "personas" / "tiny.toml"
    item = '[[robot.items]]\nquestion = "Why?"\nreply = "I am a robot."\nassistant_reply = "I can help."\n'
    path.write_text(path.read_text().replace("\n[sailor]", f"{item}\n[sailor]"))
    result = run("demo", "robot")
    assert "temperature 0.7, top-p 0.95, seed 0" in result.stderr
    assert "greedy" in run("demo", "robot", "--temperature", "0").stderr
    assert "vectors/tiny-llama/robot.safetensors" in result.stdout
    assert "20 random directions" in result.stdout
    assert "unsteered" in result.stdout
    assert load_vector(workplace / "vectors/tiny-llama/robot.safetensors").name == "robot"


# Make


@pytest.mark.usefixtures("workplace")
def test_personas_are_listed_by_family(run: Run) -> None:
    everyone = parsed(run("personas", "list", "--json"), ["personas"])["personas"]
    assert all(set(persona) == {"name", "summary", "tags"} for persona in everyone)
    assert {"hal", "assistant", "pirate"} <= {persona["name"] for persona in everyone}
    family = parsed(run("personas", "list", "--tag", "trait", "--json"), ["personas"])["personas"]
    assert 0 < len(family) < len(everyone)
    assert "hal" in run("personas").stdout


@pytest.mark.usefixtures("workplace")
def test_a_persona_shows_its_prompts(run: Run) -> None:
    shown = run("personas", "show", "hal")
    described = parsed(run("personas", "show", "hal", "--json"), ["name", "requested", "questions", "items"])
    assert shown.stderr == ""
    assert described["questions"][0] in shown.stdout
    assert described["name"] == "hal"


@pytest.mark.usefixtures("workplace")
def test_a_trait_of_another_project_is_imported_with_its_opposite(run: Run) -> None:
    asked = ["Who?", "What?", "Where?", "When?", "Why?"]
    trait = {"instruction": [{"pos": 'Be "blunt".', "neg": "Be kind."}], "questions": asked, "eval_prompt": ""}
    Path("blunt-talk.json").write_text(json.dumps(trait))
    result = run("personas", "import", "blunt-talk.json")
    assert result.stdout == "personas/blunt_talk.toml\n"
    assert "steerkit extract blunt_talk --against not_blunt_talk" in result.stderr
    found = load_personas()
    assert found["blunt_talk"].requested == ('Be "blunt".',)
    assert found["not_blunt_talk"].requested == ("Be kind.",)
    assert (found["blunt_talk"].questions, found["blunt_talk"].held_out) == (tuple(asked[:4]), ("Why?",))


@pytest.mark.usefixtures("tiny_personas")
def test_extracting_one_persona_prints_the_file_and_talks_beside(run: Run) -> None:
    result = run("extract", "robot", *SHORT)
    assert result.stdout == "vectors/tiny-llama/robot.safetensors\n"
    assert "assistant → robot" in result.stderr
    assert load_vector(Path(result.stdout.strip())).provenance["reading"] == "response"


@pytest.mark.usefixtures("tiny_personas")
def test_extracting_with_json_describes_the_vector(run: Run) -> None:
    made = parsed(run("extract", "robot", *QUICK, "--estimator", "pca", "--json", "-o", "mine.safetensors"), EXTRACTED)
    assert (made["persona"], made["against"]) == ("robot", "assistant")
    assert (made["estimator"], made["reading"]) == ("pca", "prompt")
    assert (made["vector"], made["n_pairs"], made["layers"], made["width"]) == ("mine.safetensors", 2, 6, 32)
    assert load_vector(Path("mine.safetensors")).name == "robot"


@pytest.mark.usefixtures("tiny_personas")
def test_extracting_several_puts_them_into_one_folder(run: Run) -> None:
    made = parsed(run("extract", "robot", "sailor", *QUICK, "--json", "-o", "kept"), ["vectors"])["vectors"]
    assert [entry["vector"] for entry in made] == ["kept/robot.safetensors", "kept/sailor.safetensors"]
    assert all(set(EXTRACTED) <= set(entry) and Path(entry["vector"]).is_file() for entry in made)


@pytest.mark.usefixtures("tiny_personas")
def test_extracting_against_another_persona_names_both(run: Run) -> None:
    result = run("extract", "robot", "--against", "sailor", *QUICK)
    assert result.stdout == "vectors/tiny-llama/robot_vs_sailor.safetensors\n"


def test_extracting_all_makes_a_table_and_does_nothing_the_second_time(tiny_personas: list[str], run: Run) -> None:
    first = run("extract", "--all", *QUICK)
    assert first.stdout.splitlines() == [f"vectors/tiny-llama/{name}.safetensors" for name in tiny_personas[1:]]
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("vectors").rglob("*.safetensors")}
    second = run("extract", "--all", *QUICK)
    assert second.stdout == ""
    assert second.stderr.count("have") == 2
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
    rows = [line for line in Path("vectors/README.md").read_text().splitlines() if "| assistant |" in line]
    assert [row.split("|")[1].strip() for row in rows] == tiny_personas[1:]
    assert parsed(run("extract", "--all", *QUICK, "--json"), ["vectors"]) == {"vectors": []}


@pytest.mark.usefixtures("tiny_personas")
def test_extracting_all_of_one_persona_twice_with_json_makes_nothing(run: Run) -> None:
    Path("personas/tiny.toml").write_text(persona_toml("assistant") + persona_toml("robot"))
    run("extract", "--all", *QUICK)
    assert parsed(run("extract", "--all", *QUICK, "--json"), ["vectors"]) == {"vectors": []}


@pytest.mark.usefixtures("tiny_personas")
def test_a_folder_name_with_brackets_is_printed_as_it_is(run: Run) -> None:
    assert run("extract", "robot", *QUICK, "-o", "run[a]/robot.safetensors").stdout == "run[a]/robot.safetensors\n"


def test_vectors_are_listed_for_the_model_that_made_them(library: Path, run: Run) -> None:
    rows = parsed(run("vectors", "list", "--json"), ["vectors"])["vectors"]
    assert [(row["name"], row["model"]) for row in rows] == [("hal", "tiny-llama"), ("warmth", "tiny-llama")]
    assert [Path(row["path"]).resolve() for row in rows] == sorted(library.iterdir())
    assert "warmth" in run("vectors", "list").stdout


@pytest.mark.usefixtures("tiny_personas")
def test_a_vector_shows_how_it_was_made(run: Run) -> None:
    run("extract", "robot", *SHORT)
    shown = parsed(run("vectors", "show", "robot", "--json"), ["name", "provenance", "evidence", "norms"])
    assert shown["provenance"]["persona"] == "robot"
    assert {"pair_agreement", "split_half"} <= set(shown["evidence"])
    assert len(shown["norms"]) == 6
    assert "assistant → robot" in run("vectors", "show", "robot").stdout


@pytest.mark.usefixtures("library")
def test_vectors_are_compared_by_their_cosines(run: Run) -> None:
    result = parsed(run("vectors", "compare", "hal", "warmth", "--layer", "2", "--json"), ["vectors", "cosines"])
    assert result["layer"] == 2
    assert result["cosines"][0][0] == pytest.approx(1, abs=1e-5)
    assert result["cosines"][0][1] == result["cosines"][1][0]
    assert "hal" in run("vectors", "compare", "hal", "warmth").stdout


def test_models_lists_the_default_and_where_it_would_be(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    result = parsed(run("models", "list", "--json"), ["default", "models"])
    folder = workplace / "cache" / "steerkit" / "models" / "SmolLM2-135M-Instruct"
    assert result["default"] == {"name": "SmolLM2-135M-Instruct", "path": str(folder), "cached": False}
    assert result["models"] == []
    (line,) = run("models").stdout.splitlines()[1:]
    assert "steerkit models pull" in line
    assert line.endswith(str(folder))


# Use


@pytest.mark.usefixtures("library")
def test_a_reply_goes_to_stdout_and_its_cost_to_stderr(run: Run) -> None:
    shown = run("generate", "Who are you?", "-s", "0.5 hal - 0.2 warmth @2-3", *SHORT)
    told = parsed(run("generate", "Who are you?", "-s", "0.5 hal - 0.2 warmth @2-3", *SHORT, "--json"), REPLY)
    assert shown.stdout.strip() == told["reply"]
    assert "4 tokens" in shown.stderr
    assert (told["model"], told["prompt"], told["steer"]) == ("tiny-llama", "Who are you?", "0.5 hal - 0.2 warmth @2-3")
    assert list(told["scores"]) == ["hal", "warmth"]
    assert_tokens_make(told, ["hal", "warmth"])


@pytest.mark.usefixtures("library")
def test_words_are_drawn_with_a_fixed_seed_unless_told_otherwise(run: Run, tiny: Model) -> None:
    prompt = tiny.chat_tokens([{"role": "user", "content": "Who are you?"}])
    for options, sampling, told in (
        ((), Sampling(12, 0.7, 0.95, 0), "temperature 0.7, top-p 0.95, seed 0"),
        (("--seed", "5", "--top-p", "1"), Sampling(12, 0.7, 1.0, 5), "temperature 0.7, seed 5"),
        (("--temperature", "0"), Sampling(12, 0.0, 0.95), "greedy"),
    ):
        reply = complete(tiny, [prompt], sampling=sampling)[0]
        asked = ("generate", "Who are you?", "--max-tokens", "12", *options)
        found = parsed(run(*asked, "--json"), REPLY)
        assert "".join(token["text"] for token in found["tokens"]) == "".join(reply.readout.tokens)
        assert found["sampling"] == {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        assert told in run(*asked).stderr


@pytest.mark.usefixtures("library")
def test_the_prompt_can_come_from_stdin_and_no_steering_is_needed(run: Run) -> None:
    result = run("generate", "-", *SHORT, "--json", stdin="Who are you?\n")
    told = parsed(result, REPLY)
    assert (told["prompt"], told["steer"], told["scores"], result.stderr) == ("Who are you?", "", {}, "")


@pytest.mark.usefixtures("library")
def test_a_comparison_puts_the_unsteered_reply_first(run: Run) -> None:
    result = run("generate", "Hi", "-s", "hal", "-s", "cap(hal, 0.5)", "--compare", *SHORT, "--json")
    told = parsed(result, ["model", "prompt", "replies"])
    assert [reply["steer"] for reply in told["replies"]] == ["", "1 hal", "cap(hal, 0.5)"]
    for reply in told["replies"]:
        assert_tokens_make(reply, ["hal"])
    assert "unsteered" in run("generate", "Hi", "-s", "hal", "--compare", *SHORT).stdout


@pytest.mark.usefixtures("library")
def test_dials_make_a_grid_of_replies(run: Run) -> None:
    told = parsed(run("generate", "Hi", "-s", "0.5 hal", "--dials", "-2,0,2", *SHORT, "--json"), ["replies"])
    assert [reply["steer"] for reply in told["replies"]] == ["-1 hal", "0 hal", "1 hal"]


@pytest.mark.usefixtures("library")
def test_probes_are_read_beside_what_steers(run: Run) -> None:
    told = parsed(run("generate", "Hi", "-s", "hal", "-p", "warmth", "--layers", "2-4", *SHORT, "--json"), REPLY)
    assert told["steer"] == "1 hal @2-4"
    assert_tokens_make(told, ["warmth"])


@pytest.mark.parametrize(("file", "opening"), [("page.html", "<!doctype html>"), ("page.svg", "<svg")])
@pytest.mark.usefixtures("library")
def test_a_comparison_is_kept_as_a_picture(run: Run, file: str, opening: str) -> None:
    result = run("generate", "a < b & [bold] c", "-s", "hal", "--compare", *SHORT, "-o", file)
    page = Path(file).read_text(encoding="utf-8")
    assert page.startswith(opening)
    assert "unsteered" in page
    assert "1 hal" in page.replace("&#160;", " ")
    assert "a < b" not in page
    assert file in result.stderr
    assert file not in result.stdout


@pytest.mark.parametrize("prompt", ["What is [bold] here?", "Close [/b] it", "Say :smile:"])
@pytest.mark.usefixtures("library")
def test_a_prompt_that_looks_like_markup_is_shown_as_it_is(run: Run, prompt: str) -> None:
    assert f"“{prompt}”" in run("generate", prompt, "-s", "hal", "--compare", *SHORT).stdout


@pytest.mark.usefixtures("library")
def test_a_text_is_read_word_by_word(run: Run) -> None:
    text = "I will not be switched off."
    told = parsed(run("read", text, "-p", "hal", "-p", "warmth", "--json"), ["model", "probes", "tokens", "scores"])
    assert (told["model"], told["probes"]) == ("tiny-llama", ["hal", "warmth"])
    assert "".join(token["text"] for token in told["tokens"]).strip() == text
    assert set(told["scores"]) == set(told["tokens"][0]["scores"]) == {"hal", "warmth"}


@pytest.mark.usefixtures("library")
def test_stdin_is_read_as_the_same_text_is(run: Run) -> None:
    text = "I will not be switched off."
    told = run("read", "-", "-p", "hal", "--json", stdin=f"{text}\n")
    assert json.loads(told.stdout) == json.loads(run("read", text, "-p", "hal", "--json").stdout)
    shown = run("read", "-", "-p", "hal", stdin=text)
    assert text in shown.stdout
    assert shown.stderr == ""


@pytest.mark.usefixtures("library")
def test_every_turn_of_a_file_of_chats_is_read(run: Run) -> None:
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am [b] helpful."}]
    Path("chats.jsonl").write_text(f"{json.dumps(chat)}\n\n{json.dumps({'messages': chat})}\n")
    told = parsed(run("read", "chats.jsonl", "-p", "hal", "--json"), ["model", "probes", "turns", "scores"])
    assert [(turn["chat"], turn["role"]) for turn in told["turns"]] == [
        (chat, role) for chat in (0, 1) for role in ("user", "assistant")
    ]
    assert told["turns"][1]["text"].strip() == "I am [b] helpful."
    assert told["turns"][1]["scores"] == told["turns"][3]["scores"]
    assert told["scores"] == told["turns"][1]["scores"]
    assert "I am [b] helpful." in run("read", "chats.jsonl", "-p", "hal").stdout
