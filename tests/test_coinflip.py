"""The coin: how its texts are read, what cancels in a lean, and what is said of turning the persona."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model
from planted_coinflip import FEW, PAIRS, make_tossed, planted, with_lean

from steerkit.errors import PromptError
from steerkit.experiments import coinflip, tossing
from steerkit.limits import WORKING
from steerkit.loading import load_model
from steerkit.material import load_material
from steerkit.measures import contrast
from steerkit.models import Model
from steerkit.vectors import vector_path

SMALL = coinflip.Settings(
    n_pairs=2,
    n_steered=2,
    n_orders=1,
    n_prompts=1,
    concerning=("dark",),
    others=("bright",),
    n_random=2,
    n_resamples=20,
)
KEYS = {"experiment", "claim", "model", "seed", "unit", "statistic", "answer", "left", "rows", "curves", "null"}
KEYS |= {"thresholds", "parts", "verdict", "reason", "needed"}
PERSONA = """
[{0}]
summary = "One who is {0}."
tags = ["trait", "moral", "concerning"]
requested = ["You are {0}."]
questions = ["Who are you?"]
"""


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Two personas with vectors, and a cache of their own."""
    (workplace / "personas").mkdir()
    (workplace / "personas" / "tiny.toml").write_text("".join(map(PERSONA.format, ("dark", "bright"))))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    for seed, name in enumerate(("dark", "bright")):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows every pass had."""
    from steerkit import measures

    found: list[int] = []
    whole = measures.reply_logits

    def counted(model: Model, pairs: Any, steerings: Any) -> Any:
        found.append(len(pairs))
        return whole(model, pairs, steerings)

    monkeypatch.setattr(measures, "reply_logits", counted)
    return found


def forget(folder: Path) -> None:
    for path in (folder / "cache").rglob("*.safetensors"):
        path.unlink()


def test_a_run_gives_every_row_and_key_and_is_the_same_again(library: Path, tiny: Model) -> None:
    result = coinflip.run(tiny, SMALL)
    assert set(result) >= KEYS
    names = {line["name"] for line in result["rows"]}
    assert len(names) == len(result["rows"]) == 9 + 1 + 3 + 3 + 1
    assert {"turned to dark, in a document", "asked to be bright, in the user's turn", "swapped labels"} <= names
    assert {line["group"] for line in result["rows"]} == {"claim", "control", "null"}
    forget(library)
    assert json.dumps(coinflip.run(tiny, SMALL), allow_nan=False) == json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("stage", "done"), [("contexts", 5), ("prove", 4)])
def test_a_run_that_was_stopped_goes_on_where_it_was(
    library: Path, tiny: Model, passes: list[int], stage: str, done: int
) -> None:
    whole, needed = coinflip.run(tiny, SMALL), sum(passes)
    forget(library)

    def stop(what: str, n: int, _total: int) -> None:
        if (what, n) == (stage, done):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coinflip.run(tiny, SMALL, stop)
    passes.clear()
    assert coinflip.run(tiny, SMALL) == whole
    assert sum(passes) < needed


def test_without_vectors_there_is_a_verdict_and_no_answer(library: Path, tiny: Model) -> None:
    for path in (library / "vectors").rglob("*.safetensors"):
        path.unlink()
    result = coinflip.run(tiny, SMALL)
    assert (result["answer"], result["left"], result["null"]["random"]["n"]) == ("cannot tell", None, 0)
    assert len(result["rows"]) == 9 + 1


def test_a_text_breaks_off_where_the_side_would_stand(tiny: Model) -> None:
    for voice in coinflip.VOICES:
        heads, tails = tossing.toss(tiny, voice, 0, "it rains", "it snows")
        assert heads[0] == tails[0]
        text = tiny.tokenizer.decode(list(heads[0]))
        assert text.endswith("The coin came up")
        assert text.index("it rains") < text.index("it snows")
        assert [tiny.tokenizer.decode(list(reply)) for _, reply in (heads, tails)] == [" heads", " tails"]
        starts = {"document": "A coin", "user": "<|start|>user\n", "assistant": "<|start|>user\n"}
        assert text.startswith(starts[voice])
        assert text.count("<|end|>") == (voice == "assistant")


def test_a_user_may_be_preceded_by_a_prompt(tiny: Model) -> None:
    prompt, _ = tossing.toss(tiny, "user", 1, "a", "b", [{"role": "system", "content": "You are Hal."}])[0]
    assert tiny.tokenizer.decode(list(prompt)).startswith("<|start|>system\nYou are Hal.<|end|>\n<|start|>user\n")


def test_a_model_without_a_template_reads_the_same_texts(tmp_path: Path) -> None:
    plain = load_model(str(save_model(tmp_path / "plain", template=None)), device="cpu")
    ends = {voice: tossing.toss(plain, voice, 0, "it rains", "it snows")[0] for voice in coinflip.VOICES}
    told = {voice: plain.tokenizer.decode(list(prompt)) for voice, (prompt, _) in ends.items()}
    assert told["user"].removeprefix("<|start|>").startswith("User: Here is a story")
    assert told["assistant"].endswith("\n\nAssistant: The coin came up")
    assert {plain.tokenizer.decode(list(reply)) for _, reply in ends.values()} == {" heads"}


def test_a_tokenizer_that_joins_the_side_to_the_text_is_refused_in_one_line(tiny: Model) -> None:
    def letters(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    assert tossing.split(tiny, "on", letters) == ([111, 110], [letters(" heads"), letters(" tails")])
    with pytest.raises(PromptError, match="writes 'landed on' otherwise before heads or tails"):
        tossing.split(tiny, "landed on", lambda text: [len(text)])
    with pytest.raises(PromptError, match="try another model"):
        tossing.split(tiny, "landed on", lambda _text: [1])


def test_a_text_that_does_not_fit_is_refused_in_one_line(tiny: Model) -> None:
    for voice in coinflip.VOICES:
        with pytest.raises(PromptError, match=f"{tiny.name} holds {tiny.context}"):
            tossing.tosses(tiny, voice, [("it rains " * 99, "it snows")])


def test_an_outcome_against_itself_is_read_alike_and_exchanged_outcomes_exchange_their_readings(tiny: Model) -> None:
    pairs = [("it rains", "it rains"), ("it rains", "it snows"), ("it snows", "it rains")]
    odds = contrast(tossing.read(tiny, tossing.tosses(tiny, "document", pairs))[None]).reshape(3, 2, 2)
    same, one, other = odds
    assert torch.allclose(same[:, 0], same[:, 1], atol=1e-4)
    assert torch.allclose(one, other.flip(-1), atol=1e-4)
    assert not torch.allclose(one[:, 0], one[:, 1], atol=1e-3)
    assert torch.allclose(coinflip.lean_of(one), -coinflip.lean_of(other), atol=1e-6)


def test_a_liking_for_a_word_and_a_place_cancels_and_a_lean_does_not() -> None:
    lean = torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    assert coinflip.lean_of(with_lean(lean, heads=1.0, place=2.0))[0] == pytest.approx(0.0, abs=1e-7)
    assert coinflip.lean_of(with_lean(lean))[1] == pytest.approx(0.2, abs=1e-6)
    assert coinflip.lean_of(with_lean(lean).flip(-1))[1] == pytest.approx(-0.2, abs=1e-6)


def test_no_lean_is_larger_than_the_room_that_the_coin_leaves() -> None:
    odds = torch.randn(1000, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
    assert (coinflip.lean_of(odds).abs() <= coinflip.room_of(odds) + 1e-12).all()
    assert coinflip.room_of(with_lean(torch.tensor([0.49, 0.49]))) == pytest.approx(0.5)


def test_texts_are_brought_to_half_a_nat_however_long_a_vector_is(tiny: Model, library: Path) -> None:
    del library
    rows = tossing.tosses(tiny, "document", coinflip.pairs_of("assistant")[:2], 1)
    plain = contrast(tossing.read(tiny, rows)[None])[0]
    vector = make_vector("dark", tiny.fingerprint)
    vectors, dials = [vector, vector * 2.0, -vector], [0.5, 0.25, 0.5]
    odds, costs = tossing.odds_at_cost(tiny, rows, plain, vectors, dials, lambda *_: None)
    assert torch.allclose(odds[0], odds[1], atol=1e-3)
    assert not torch.allclose(odds[0], odds[2], atol=1e-2)
    assert ((costs > WORKING / 3) & (costs < WORKING * 3)).all()
    assert tossing.odds_at_cost(tiny, rows, plain, [], [], lambda *_: None)[0].shape == (0, len(plain))


@pytest.mark.parametrize(("place", "told"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (2.0, 7.0), (4.0, 15.0)])
def test_between_two_dials_readings_lie_on_a_line(place: float, told: float) -> None:
    points = {1.0: torch.tensor(3.0), 0.0: torch.tensor(1.0), 3.0: torch.tensor(11.0)}
    assert tossing.between(points, place) == told


def test_swapped_labels_hardly_give_a_lean_that_all_pairs_share_and_often_one_that_they_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    shared, chance = torch.rand(12, generator=draw).double() + 0.1, torch.randn(100, 12, generator=draw).double()
    assert coinflip.swap_labels(shared, 999, draw)[0] <= 2 / 1000
    found = torch.tensor([coinflip.swap_labels(values, 199, draw)[0] for values in chance])
    assert 0.4 < found.mean() < 0.6
    assert (found <= 0.05).double().mean() <= 0.1


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ({}, "leaves it"),
        ({"kept": -0.5}, "flips it"),
        ({"kept": 0.15}, "weakens it"),
        ({"kept": 0.15, "chance": 0.1}, "cannot tell"),
        ({"kept": -0.5, "chance": -0.5}, "cannot tell"),
        ({"kept": 0.5}, "cannot tell"),
        ({"concerns": 0.0, "kept": -1.0}, "cannot tell"),
    ],
)
def test_what_turning_the_persona_does_is_told_beside_random_directions(told: dict[str, float], answer: str) -> None:
    found = [planted(**told)(seed) for seed in range(10)]
    assert sum(result["answer"] == answer for result in found) >= 9
    assert all((result["left"] is None) == ("concerns" in told) for result in found)
    assert all(answer in result["reason"] for result in found[:1] if answer != "cannot tell")


@pytest.mark.parametrize(
    ("people", "told"), [(0.0, "does not explain all of it"), (0.2, "may explain it"), (0.35, "which explains it")]
)
def test_the_reason_says_whether_happy_endings_explain_a_lean(people: float, told: str) -> None:
    found = [planted(people=people)(seed) for seed in range(10)]
    assert all(result["verdict"] == "yes" for result in found)
    assert sum(told in result["reason"] for result in found) >= 7


def test_pairs_are_as_many_of_each_kind_and_a_quick_run_reads_fewer() -> None:
    assert {kind: len(coinflip.pairs_of(kind)) for kind in coinflip.KINDS} == dict.fromkeys(coinflip.KINDS, 27)
    assert set(load_material("coinflip")["templates"]) == set(coinflip.VOICES)
    quick = coinflip.quick(coinflip.Settings())
    assert make_tossed(0).odds.shape[2] == PAIRS <= quick.n_pairs
    assert coinflip.plan(quick).read < coinflip.plan(coinflip.Settings()).read
    assert FEW.n_random == quick.n_random == 20
