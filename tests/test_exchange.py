"""Vectors of other projects, in and out: round trips, layers that stay where they are, and files that are refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, WIDTH, foreign_control, make_vector
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.errors import ExpressionError, VectorError
from steerkit.exchange.arrivals import read_arrival, settle
from steerkit.exchange.baselines import assistant_baseline
from steerkit.exchange.controls import added_rows, read_control, write_control
from steerkit.models import Model
from steerkit.steering import Steering, edits
from steerkit.vectors import SteeringVector, load_vector, vector_path

Vectors = dict[str, SteeringVector]


def logits(model: Model, steering: Steering) -> Tensor:
    """Logits of a fixed text, every token steered."""
    tokens = torch.arange(1, 13)[None]
    functions: Any = edits([steering], torch.empty(0)) if steering else {}
    found, _ = model.forward(tokens, torch.ones_like(tokens), functions=functions, keep=12)
    return found[0]


# Out: what `add` adds


@pytest.mark.parametrize("text", ["0.8 hal @3", "1 hal @1-4", "0.8 hal @2-5 - 0.3 warmth @4"])
def test_a_control_vector_holds_what_add_adds_at_each_layer(
    tiny: Model, vectors: Vectors, tmp_path: Path, text: str
) -> None:
    steering = Steering.parse(text, vectors, everywhere=True)
    write_control(steering, tmp_path / "v.gguf")
    rows = read_control(tmp_path / "v.gguf").rows
    pushes: Any = {l: [lambda h, row=row: h + row] for l, row in rows.items()}
    tokens = torch.arange(1, 13)[None]
    by_hand, _ = tiny.forward(tokens, torch.ones_like(tokens), functions=pushes, keep=12)
    assert torch.allclose(by_hand[0], logits(tiny, steering), atol=1e-5)
    moved: Any = {l - 1: functions for l, functions in pushes.items()}
    off_by_one, _ = tiny.forward(tokens, torch.ones_like(tokens), functions=moved, keep=12)
    assert not torch.allclose(off_by_one[0], logits(tiny, steering), atol=1e-2)


@pytest.mark.parametrize("text", ["cap(hal, 0.2) @3", "ablate(hal) @3", "1 hal @3 when warmth > 0.5"])
def test_what_depends_on_the_state_is_refused_by_name(vectors: Vectors, tmp_path: Path, text: str) -> None:
    with pytest.raises(ExpressionError, match="depends on what the model is thinking"):
        write_control(Steering.parse(text, vectors), tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_for_the_first_block_where_llama_cpp_takes_nothing(vectors: Vectors, tmp_path: Path) -> None:
    with pytest.raises(ExpressionError, match="layer 0"):
        write_control(Steering.parse("1 hal @0-3", vectors), tmp_path / "v.gguf")
    for nothing in (Steering(), Steering.parse("0 hal @0", vectors)):
        with pytest.raises(ExpressionError, match="nothing to export"):
            write_control(nothing, tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_the_same_steering_makes_the_same_bytes(vectors: Vectors, tmp_path: Path) -> None:
    for name in "ab":
        write_control(Steering.parse("1 hal @1-4", vectors), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# In: dial 1 does what the tool does at strength 1


@pytest.mark.parametrize("text", ["1 hal @3", "1 hal @1-4", "1 hal @1-4 + 0.5 warmth @2"])
def test_a_control_vector_comes_back_as_the_steering_it_was(
    tiny: Model, vectors: Vectors, tmp_path: Path, text: str
) -> None:
    steering = Steering.parse(text, vectors, everywhere=True)
    write_control(steering, tmp_path / "v.gguf")
    back = settle(read_arrival(tmp_path / "v.gguf"), tiny.fingerprint, "back")
    again = Steering.parse("1 back", {"back": back}, everywhere=True)
    assert torch.allclose(logits(tiny, again), logits(tiny, steering), atol=1e-5)


def test_repengs_file_steers_as_repeng_does_every_layer_by_its_own_tensor(
    tiny: Model, table: Tensor, tmp_path: Path
) -> None:
    rows = {l: table[l] for l in range(1, LAYERS)}
    vector = settle(read_arrival(foreign_control(tmp_path / "v.gguf", rows)), tiny.fingerprint, "theirs")
    assert vector.place == (1, LAYERS - 1)
    found = added_rows(Steering.parse("1 theirs", {"theirs": vector}))
    assert all(torch.allclose(found[l], row, atol=1e-5) for l, row in rows.items())


@pytest.mark.parametrize("signed", [False, True])
def test_read_as_measured_each_tensor_is_the_direction_of_the_layer_where_it_was_measured(
    tiny: Model, table: Tensor, tmp_path: Path, signed: bool
) -> None:
    rows = {l: table[l] for l in range(1, LAYERS)}
    arrival = read_arrival(foreign_control(tmp_path / "v.gguf", rows, signed), measured=True)
    directions = settle(arrival, tiny.fingerprint, "theirs").directions
    for number, row in rows.items():
        assert torch.equal(directions[number - 1 if signed else number], row)


def test_the_generator_of_llama_cpp_is_recognised_and_its_shift_is_told(table: Tensor, tmp_path: Path) -> None:
    rows = {l: table[l] for l in range(1, LAYERS)}
    assert "--measured" in read_arrival(foreign_control(tmp_path / "v.gguf", rows, signed=True)).notes[0]
    assert not read_arrival(foreign_control(tmp_path / "w.gguf", rows)).notes


def test_hidden_states_of_persona_vectors_begin_with_the_embedding(tiny: Model, table: Tensor, tmp_path: Path) -> None:
    torch.save(torch.cat([torch.full((1, WIDTH), 9.0), table]), tmp_path / "evil_response_avg_diff.pt")
    arrival = read_arrival(tmp_path / "evil_response_avg_diff.pt")
    assert arrival.name == "evil"
    assert torch.equal(settle(arrival, tiny.fingerprint, "evil").directions, table)


def test_one_row_a_block_is_taken_as_it_stands(tiny: Model, table: Tensor, tmp_path: Path) -> None:
    torch.save(table.bfloat16(), tmp_path / "axis.pt")
    assert torch.equal(
        settle(read_arrival(tmp_path / "axis.pt"), tiny.fingerprint, "x").directions, table.bfloat16().float()
    )


def test_the_assistant_axis_scores_one_at_the_default_and_zero_at_the_roles(
    tiny: Model, table: Tensor, tmp_path: Path
) -> None:
    data = {"axis": table, "default_mean": table * 3, "role_mean": table * 2, "n_default": 1, "n_roles": 9}
    torch.save(data, tmp_path / "axis.pt")
    vector = settle(read_arrival(tmp_path / "axis.pt"), tiny.fingerprint, "axis")
    scores = ((table * 3 - vector.baseline) * vector.directions).sum(-1) / vector.directions.square().sum(-1)
    assert torch.allclose(scores, torch.ones(LAYERS))
    assert vector.provenance["imported"]["n_roles"] == 9
    assert vector.provenance["baseline"] == "the file"


def test_a_role_is_measured_from_the_default_and_refused_without_it(tiny: Model, table: Tensor, tmp_path: Path) -> None:
    torch.save({"vector": table * 3, "type": "pos_3", "role": "pirate"}, tmp_path / "pirate.pt")
    with pytest.raises(VectorError, match="--against"):
        read_arrival(tmp_path / "pirate.pt")
    torch.save({"vector": table, "type": "mean", "role": "default"}, tmp_path / "default.pt")
    vector = settle(read_arrival(tmp_path / "pirate.pt"), tiny.fingerprint, "pirate")
    assert torch.allclose(vector.directions, table * 2)
    assert torch.allclose(vector.baseline, table)


def test_layers_of_saklas_go_where_their_names_say(tiny: Model, table: Tensor, tmp_path: Path) -> None:
    save_file({f"layer_{l}": table[l] for l in (2, 4)}, tmp_path / "angry.safetensors")
    vector = settle(read_arrival(tmp_path / "angry.safetensors"), tiny.fingerprint, "angry")
    assert torch.equal(vector.directions[[2, 4]], table[[2, 4]])
    assert not vector.directions[[0, 1, 3, 5]].any()
    assert vector.layer == 4


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_safetensors_file_whose_length_begins_as_another_format_does_is_read(
    tiny: Model, table: Tensor, tmp_path: Path, length: int
) -> None:
    entry = {"layer_2": {"dtype": "F32", "shape": [WIDTH], "data_offsets": [0, 4 * WIDTH]}}
    header = json.dumps(entry).encode().ljust(length)
    path = tmp_path / "angry.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + table[2].numpy().tobytes())
    vector = settle(read_arrival(path), tiny.fingerprint, "angry")
    assert torch.equal(vector.directions[2], table[2])


def test_the_baseline_is_the_mean_of_the_assistants_own_replies(talker: Model) -> None:
    found = assistant_baseline(talker)
    assert found.shape == (LAYERS, WIDTH)
    assert torch.equal(found, assistant_baseline(talker))
    assert found.norm() > 0.1


@pytest.mark.parametrize(
    ("count", "kept"),
    [(4, {"n_default": 4}), (torch.tensor(4), {"n_default": 4}), (torch.tensor([4, 5]), {}), ("four", {}), (None, {})],
)
def test_of_a_files_counts_whole_numbers_are_kept_whatever_holds_them(
    tiny: Model, table: Tensor, tmp_path: Path, count: Any, kept: dict[str, int]
) -> None:
    torch.save({"axis": table, "n_default": count}, tmp_path / "axis.pt")
    arrival = read_arrival(tmp_path / "axis.pt")
    settle(arrival, tiny.fingerprint, "axis").save(tmp_path / "axis.safetensors")
    imported = load_vector(tmp_path / "axis.safetensors").provenance["imported"]
    assert {key: imported[key] for key in imported if key.startswith("n_")} == kept
    assert not arrival.notes


@pytest.mark.parametrize(
    ("text", "name"), [("1 hal @3", "hal"), ("0.5 hal @3", "calm"), ("1 hal @3 + 1 warmth @3", "calm")]
)
def test_only_a_vector_itself_comes_back_under_its_name(vectors: Vectors, tmp_path: Path, text: str, name: str) -> None:
    write_control(Steering.parse(text, vectors), tmp_path / "calm.gguf")
    assert read_arrival(tmp_path / "calm.gguf").name == name


def test_what_a_control_vector_says_of_itself_cannot_hide_what_it_is(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerkit.exchange.controls.json.dumps", lambda *_, **__: '{"file": "x", "format": "y"}')
    write_control(Steering.parse("1 hal @3", vectors), tmp_path / "v.gguf")
    said = read_arrival(tmp_path / "v.gguf").said
    assert (said["file"], said["format"]) == ("v.gguf", "gguf")


# Refusals: one line, exit 1, nothing written


@pytest.fixture
def refuse(workplace: Path, tiny_folder: Path) -> Callable[..., str]:
    """Runs a command that must refuse; returns its one line."""

    def run(*arguments: str) -> str:
        before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
        result = CliRunner().invoke(app, [*arguments, "-m", str(tiny_folder)])
        assert result.exit_code == 1, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("error ")
        assert result.stdout == ""
        assert before == {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
        return line

    return run


class Hostile:
    """Would write a file if anybody unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pwned", "w")


def test_files_that_would_have_to_be_unpickled_are_refused(refuse: Callable[..., str], workplace: Path) -> None:
    torch.save({"axis": Hostile()}, workplace / "v.pt")
    assert "unpickled" in refuse("import", "v.pt")
    (workplace / "w.pt").write_bytes(pickle.dumps(Hostile()))
    assert "unpickled" in refuse("import", "w.pt")
    assert not (workplace / "pwned").exists()


def test_damaged_files_are_told_as_such(refuse: Callable[..., str], workplace: Path, table: Tensor) -> None:
    whole = foreign_control(workplace / "v.gguf", {1: table[1], 2: table[2]}).read_bytes()
    for length in (3, 10, 40, len(whole) // 2, len(whole) - 40):
        (workplace / "cut.gguf").write_bytes(whole[:length])
        assert "cut.gguf" in refuse("import", "cut.gguf")
    torch.save(table, workplace / "v.pt")
    data = (workplace / "v.pt").read_bytes()
    (workplace / "cut.pt").write_bytes(data[: len(data) // 2])
    assert "damaged" in refuse("import", "cut.pt")
    save_file({"layer_1": table[1]}, workplace / "v.safetensors")
    data = (workplace / "v.safetensors").read_bytes()
    (workplace / "cut.safetensors").write_bytes(data[:-7])
    assert "damaged" in refuse("import", "cut.safetensors")


def test_what_does_not_fit_the_model_is_refused(refuse: Callable[..., str], workplace: Path, table: Tensor) -> None:
    foreign_control(workplace / "wide.gguf", {1: torch.ones(WIDTH + 1)})
    assert f"{WIDTH + 1} wide" in refuse("import", "wide.gguf")
    foreign_control(workplace / "deep.gguf", {LAYERS: table[1]})
    assert f"layer {LAYERS}" in refuse("import", "deep.gguf")
    torch.save(torch.ones(LAYERS + 2, WIDTH), workplace / "rows.pt")
    assert f"{LAYERS + 2} rows" in refuse("import", "rows.pt")
    torch.save(torch.ones(WIDTH), workplace / "one.pt")
    assert "layers × width" in refuse("import", "one.pt")
    torch.save(table * torch.nan, workplace / "nan.pt")
    assert "finite" in refuse("import", "nan.pt")
    foreign_control(workplace / "model.gguf", {1: table[1]}, kind="llama")
    assert "not a control vector" in refuse("import", "model.gguf")
    save_file({"weight": table}, workplace / "strange.safetensors")
    assert "weight" in refuse("import", "strange.safetensors")
    (workplace / "text.txt").write_text("a vector, honestly")
    assert "no vector that steerkit knows" in refuse("import", "text.txt")
    assert "No such file" in refuse("import", "missing.gguf")
    (workplace / "role.json").write_text('{"instruction": []}')
    assert "personas import" in refuse("import", "role.json")


def test_names_and_formats_that_do_not_exist_are_refused(
    refuse: Callable[..., str], workplace: Path, table: Tensor
) -> None:
    torch.save(table, workplace / "v.pt")
    assert "did you mean gguf" in refuse("import", "v.pt", "--format", "ggu")
    assert "leave out --format" in refuse("import", "v.pt", "--format", "gguf")
    assert "--name" in refuse("import", "v.pt", "--name", "Two words")
    assert "steerkit personas" in refuse("import", "v.pt", "--persona", "zzzzqqqq")


def test_what_is_not_one_row_a_layer_is_refused(refuse: Callable[..., str], workplace: Path, table: Tensor) -> None:
    torch.save({"layer_2": torch.ones(2, WIDTH // 2)}, workplace / "folded.pt")
    assert f"2 × {WIDTH // 2}, not one row" in refuse("import", "folded.pt")
    foreign_control(workplace / "folded.gguf", {2: torch.ones(2, WIDTH // 2)})
    assert f"2 × {WIDTH // 2}, not one row" in refuse("import", "folded.gguf")
    torch.save({"layer_2": table[2], "2": table[3]}, workplace / "twice.pt")
    assert "layer 2 twice" in refuse("import", "twice.pt")
    torch.save({}, workplace / "empty.pt")
    save_file({}, workplace / "empty.safetensors")
    for name in ("empty.pt", "empty.safetensors"):
        assert "has no tensors" in refuse("import", name)
    torch.save(table * 0, workplace / "zero.pt")
    assert "nothing but zeros" in refuse("import", "zero.pt")


def test_a_row_may_be_a_matrix_of_one_row(tiny: Model, table: Tensor, tmp_path: Path) -> None:
    torch.save({"layer_2": table[2:3], 3: table[3]}, tmp_path / "v.pt")
    assert torch.equal(settle(read_arrival(tmp_path / "v.pt"), tiny.fingerprint, "v").directions[2:4], table[2:4])


def test_options_that_mean_nothing_for_a_file_are_refused(
    refuse: Callable[..., str], workplace: Path, table: Tensor
) -> None:
    torch.save(table, workplace / "v.pt")
    foreign_control(workplace / "v.gguf", {1: table[1]})
    assert "--measured" in refuse("import", "v.pt", "--measured")
    for name in ("v.pt", "v.gguf"):
        assert "--against" in refuse("import", name, "--against", "v.pt")


def test_only_a_control_vector_is_replaced_by_one(
    refuse: Callable[..., str], workplace: Path, tiny: Model, table: Tensor
) -> None:
    make_vector("hal", tiny.fingerprint).save(workplace / vector_path("hal", tiny.name))
    foreign_control(workplace / "model.gguf", {1: table[1]}, kind="llama")
    (workplace / "notes.txt").write_text("years of work")
    for name in ("model.gguf", "notes.txt"):
        assert "is no control vector" in refuse("export", "gguf", "hal @3", "-o", name)
    steering = Steering.parse("1 hal @3", {"hal": make_vector("hal", tiny.fingerprint)})
    for _ in range(2):
        write_control(steering, foreign_control(workplace / "v.gguf", {1: table[1]}))
    assert set(read_control(workplace / "v.gguf").rows) == {3}


def test_a_vectors_file_is_called_as_one(refuse: Callable[..., str], workplace: Path, table: Tensor) -> None:
    torch.save(table, workplace / "v.pt")
    assert ".safetensors" in refuse("import", "v.pt", "-o", "plain.txt")
