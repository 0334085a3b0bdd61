"""What Python is told when it is used wrongly, and what it may rely on when it is used right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, WIDTH, make_vector

from steerkit import generation, passes
from steerkit.calibration import gather_material
from steerkit.errors import ExpressionError, SteerkitError, VectorError
from steerkit.extraction import FEW_PAIRS, Recipe, audit_warnings, contrasts, extract
from steerkit.generation import Probe, Sampling, complete, read_rows, read_tokens, stream
from steerkit.models import Model
from steerkit.passes import batches, prompt_states, reply_logits
from steerkit.personas import Pair, Persona, find_pair
from steerkit.readings import distinct_names
from steerkit.steering import Gate, Steering, Term
from steerkit.vectors import SteeringVector, load_vector

Vectors = dict[str, SteeringVector]

# Types are checked while tests run, and a wrong one never gets as far as it would for a user; so this runs without.
SLIPS = """
import json, sys, torch
from dataclasses import replace
from steerkit import *
from steerkit.generation import read_rows
from steerkit.passes import prompt_states, reply_logits

model = load_model(sys.argv[1], device="cpu")
shape = (model.n_layers, model.width)
hal = SteeringVector("hal", model.fingerprint, torch.ones(shape), torch.zeros(shape))
other = replace(model.fingerprint, behaviour=tuple(tuple(x + 1 for x in row) for row in model.fingerprint.behaviour))
stranger = replace(hal, name="stranger", model=other)
wider = SteeringVector("wider", replace(other, width=64), torch.ones(shape[0], 64), torch.zeros(shape[0], 64))
ask = [{"role": "user", "content": "Who are you?"}]
prompt, reply = model.chat_tokens(ask), model.reply_tokens("I am.")
steer = Steering((Term(hal),))
slips = {
    "complete(text)": lambda: complete(model, "Hi"),
    "complete(texts)": lambda: complete(model, ["Hi", "Ho"]),
    "complete(messages)": lambda: complete(model, ask),
    "complete(chats)": lambda: complete(model, [ask]),
    "complete(one prompt)": lambda: complete(model, prompt),
    "complete(floats)": lambda: complete(model, [[1.5]]),
    "complete(none)": lambda: complete(model, None),
    "stream(text)": lambda: stream(model, "Hi", [Steering()]),
    "stream(texts)": lambda: stream(model, ["Hi"], [Steering()]),
    "read_tokens(text, tokens)": lambda: read_tokens(model, "Hi", reply, []),
    "read_tokens(tokens, text)": lambda: read_tokens(model, prompt, "I am.", []),
    "read_rows(texts)": lambda: read_rows(model, [("Hi", "Ho")], [], [Steering()]),
    "reply_logits(texts)": lambda: reply_logits(model, [("Hi", "Ho")], [Steering()]),
    "reply_logits(text)": lambda: reply_logits(model, "Hi", [Steering()]),
    "score_replies(texts)": lambda: score_replies(model, [("Hi", "Ho")], [Steering()]),
    "write_texts(texts)": lambda: write_texts(model, ["Hi"], [Steering()]),
    "prompt_states(texts)": lambda: prompt_states(model, ["Hi"]),
    "chat_tokens(text)": lambda: model.chat_tokens("Hi"),
    "chat_tokens(texts)": lambda: model.chat_tokens(["Hi"]),
    "chat_tokens(one message)": lambda: model.chat_tokens(ask[0]),
    "chat_tokens(no content)": lambda: model.chat_tokens([{"role": "user"}]),
    "read_chat(text)": lambda: read_chat(model, "Hi", []),
    "empty prompt": lambda: complete(model, [prompt, []]),
    "token beyond": lambda: complete(model, [[model.original.config.vocab_size]]),
    "negative token": lambda: complete(model, [[-1]]),
    "prompt beyond the context": lambda: complete(model, [[5] * (model.context + 1)]),
    "reply beyond the context": lambda: complete(model, [[5] * 10], sampling=Sampling(model.context)),
    "one steering": lambda: complete(model, [prompt], steer),
    "steering as text": lambda: complete(model, [prompt], ["0.8 hal"]),
    "steerings missing": lambda: complete(model, [prompt] * 3, [steer] * 2),
    "steerings missing in stream": lambda: stream(model, [prompt] * 3, [steer] * 2),
    "steerings missing in a callable": lambda: list(stream(model, [prompt] * 3, lambda place: [steer])),
    "steerings missing in reply_logits": lambda: reply_logits(model, [(prompt, reply)] * 3, [steer]),
    "seeds missing": lambda: complete(model, [prompt] * 3, sampling=Sampling(4, 0.7, seed=(1, 2))),
    "stranger steers": lambda: complete(model, [prompt], [Steering((Term(stranger),))]),
    "stranger gates": lambda: complete(model, [prompt], [Steering((Term(hal, when=Gate(stranger, True, 0.0)),))]),
    "wider steers": lambda: complete(model, [prompt], [Steering((Term(wider),))]),
    "stranger is read": lambda: complete(model, [prompt], probes=[Probe.of(stranger)]),
    "wider is read": lambda: read_tokens(model, prompt, reply, [Probe.of(wider)]),
    "stranger in reply_logits": lambda: reply_logits(model, [(prompt, reply)], [Steering((Term(stranger),))]),
    "a vector as a probe": lambda: complete(model, [prompt], probes=[hal]),
    "one probe": lambda: complete(model, [prompt], probes=Probe.of(hal)),
    "max_tokens": lambda: Sampling(-1),
    "max_tokens as text": lambda: Sampling("many"),
    "temperature": lambda: Sampling(temperature=float("nan")),
    "negative temperature": lambda: Sampling(temperature=-0.5),
    "top_p": lambda: Sampling(top_p=1.5),
    "top_p nan": lambda: Sampling(top_p=float("nan")),
    "seed": lambda: Sampling(seed=0.5),
    "batch_size": lambda: complete(model, [prompt], batch_size=0),
    "term of text": lambda: Term("hal"),
    "steering of text": lambda: Steering("0.8 hal"),
    "steering of one term": lambda: Steering(Term(hal)),
    "dial as text": lambda: Term(hal, dial="much"),
    "layers as a number": lambda: Term(hal, layers=3),
    "estimator": lambda: Recipe(estimator=3),
    "temperature of a recipe": lambda: Recipe(temperature=float("nan")),
    "dtype": lambda: load_model(sys.argv[1], dtype=torch.float32),
    "device": lambda: load_model(sys.argv[1], device="gpu"),
    "array as directions": lambda: SteeringVector("a", model.fingerprint, [[1.0]], torch.zeros(shape)),
}
told = {}
for name, slip in slips.items():
    try:
        told[name] = ["nothing", repr(slip())]
    except SteerkitError as error:
        told[name] = ["ours", str(error)]
    except Exception as error:
        told[name] = [type(error).__name__, str(error)]
told["no prompts"] = ["fine", repr(complete(model, []))]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tiny_folder: Path) -> dict[str, tuple[str, str]]:
    """What each slip is answered with."""
    command = [sys.executable, "-c", SLIPS, str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_slip_in_python_is_answered_by_one_line_of_ours(told: dict[str, tuple[str, str]]) -> None:
    assert told.pop("no prompts") == ["fine", "[]"]
    silent = {name: answer for name, answer in told.items() if answer[0] != "ours" or "\n" in answer[1]}
    assert not silent


@pytest.mark.parametrize(
    "where",
    ["complete", "stream", "read_rows", "reply_logits", "score_replies", "write_texts", "prompt_states", "chat_tokens"],
)
def test_a_text_for_a_prompt_is_answered_with_how_to_make_tokens_of_it(
    where: str, told: dict[str, tuple[str, str]]
) -> None:
    mine = [line for name, (_, line) in told.items() if name.startswith(where) and "text" in name]
    assert mine
    assert all("chat_tokens" in line for line in mine if "pairs of a prompt" not in line)


def test_slips_are_answered_with_the_numbers_that_do_not_fit(told: dict[str, tuple[str, str]]) -> None:
    assert "3 prompts and 2 steerings" in told["steerings missing"][1]
    assert "3 rows and 2 seeds" in told["seeds missing"][1]
    assert "token 400" in told["token beyond"][1]
    assert "6 layers × 64 against 6 × 32" in told["wider steers"][1]
    assert "[steering] * len(prompts)" in told["one steering"][1]


# Seeds


def test_rows_of_one_prompt_draw_different_replies(tiny: Model, prompts: list[list[int]]) -> None:
    replies = complete(tiny, prompts[:1] * 4, sampling=Sampling(16, temperature=1.5, seed=3))
    assert len({reply.tokens for reply in replies}) == 4


def test_the_first_row_draws_what_its_seed_gives_alone(tiny: Model, prompts: list[list[int]]) -> None:
    sampling = Sampling(12, temperature=1.5, seed=5)
    alone = [step.token for step in stream(tiny, prompts[:1], [Steering()], sampling=sampling)]
    assert list(complete(tiny, prompts[:1] * 3, sampling=sampling)[0].tokens) == alone


def test_a_row_draws_the_same_however_rows_are_cut_into_batches(tiny: Model, prompts: list[list[int]]) -> None:
    sampling, many = Sampling(10, temperature=1.5, seed=1), prompts * 3
    whole = [reply.tokens for reply in complete(tiny, many, sampling=sampling)]
    assert [reply.tokens for reply in complete(tiny, many, sampling=sampling, batch_size=2)] == whole
    assert [reply.tokens for reply in complete(tiny, many[:5], sampling=sampling)] == whole[:5]
    seeds = sampling.per_row(len(many)).seeds(len(many))
    alone = [complete(tiny, [many[i]], sampling=replace(sampling, seed=seeds[i]))[0].tokens for i in (4, 8)]
    assert alone == [whole[4], whole[8]]


def test_rows_that_are_given_one_seed_share_their_random_numbers(tiny: Model, prompts: list[list[int]]) -> None:
    shared = Sampling(12, temperature=1.5, seed=(7, 7, 7))
    assert len({reply.tokens for reply in complete(tiny, prompts[:1] * 3, sampling=shared)}) == 1
    steps = list(stream(tiny, prompts[:1] * 3, [Steering()] * 3, sampling=replace(shared, seed=7)))
    assert len({tuple(step.token for step in steps if step.row == row) for row in range(3)}) == 1


def test_seeds_of_neighbouring_numbers_have_no_row_in_common() -> None:
    rows = [seed for start in range(20) for seed in Sampling(seed=start).per_row(50).seeds(50)]
    assert len(set(rows)) == len(rows)
    assert all(-(2**63) <= seed < 2**64 for seed in rows)


# Pairs


@pytest.fixture(scope="module")
def hal() -> Pair:
    whole = find_pair("hal")
    return Pair(replace(whole.positive, questions=whole.positive.questions[:4]), whole.negative)


def asking(pair: Pair, *requested: str) -> Pair:
    """The pair with other prompts for the positive persona."""
    return Pair(replace(pair.positive, requested=requested), pair.negative)


def rows_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every forward pass from now on."""
    passed: list[tuple[int, int]] = []
    forward = Model.forward

    def watched(self: Model, tokens: Any, mask: Any, *more: Any, **named: Any) -> Any:
        branches = more[4] if len(more) > 4 else named.get("rows")
        passed.append((len(tokens) if branches is None else len(branches), mask.numel()))
        return forward(self, tokens, mask, *more, **named)

    monkeypatch.setattr(Model, "forward", watched)
    assert model.fingerprint
    return passed


@pytest.mark.parametrize("times", [1, 3])
def test_one_request_is_one_pair_a_question_however_often_it_stands_there(tiny: Model, hal: Pair, times: int) -> None:
    vector = extract(tiny, asking(hal, *hal.positive.requested[:1] * times), Recipe(max_tokens=5))
    assert vector.provenance["n_pairs"] == 4
    assert vector.provenance["audit"]["replies"] == 8


def test_one_request_is_the_mean_over_the_prompts_it_is_mirrored_by(tiny: Model, hal: Pair) -> None:
    one = asking(hal, hal.positive.requested[0])
    vector = extract(tiny, one, Recipe(max_tokens=5))
    alone = [extract(tiny, Pair(one.positive, replace(hal.negative, requested=(asked,))), Recipe(max_tokens=5))
             for asked in hal.negative.requested]  # fmt: skip
    assert torch.allclose(vector.directions, torch.stack([each.directions for each in alone]).mean(0), atol=1e-4)
    assert torch.allclose(vector.baseline, torch.stack([each.baseline for each in alone]).mean(0), atol=1e-4)


def test_the_halves_of_one_request_do_not_share_a_reply(tiny: Model, hal: Pair) -> None:
    one = asking(hal, hal.positive.requested[0])
    parts = list(contrasts(tiny, one, Recipe(max_tokens=5)))
    positive = torch.cat([part.positive for part in parts])
    differences = positive - torch.cat([part.negative for part in parts])
    halves = differences[0::2].mean(0), differences[1::2].mean(0)
    truly = torch.nn.functional.cosine_similarity(*halves, dim=-1)
    assert len(positive) == len(torch.unique(positive.flatten(1), dim=0)) == 4
    evidence = extract(tiny, one, Recipe(max_tokens=5)).evidence
    assert evidence["split_half"] == pytest.approx(truly.tolist(), abs=1e-3)


def test_questions_that_stand_twice_are_asked_once(tiny: Model, hal: Pair) -> None:
    twice = Pair(replace(hal.positive, questions=hal.positive.questions * 2), hal.negative)
    one, other = (extract(tiny, pair, Recipe(max_tokens=5)) for pair in (hal, twice))
    assert one.provenance["n_pairs"] == other.provenance["n_pairs"] == 12
    assert torch.equal(one.directions, other.directions)


@pytest.mark.parametrize(("ours", "theirs", "n"), [(1, 3, 1), (3, 1, 1), (2, 3, 2), (3, 2, 2), (3, 3, 3)])
def test_the_persona_with_fewer_prompts_decides_how_many_pairs_are_distinct(
    tiny: Model, hal: Pair, ours: int, theirs: int, n: int
) -> None:
    pair = Pair(
        replace(hal.positive, requested=hal.positive.requested[:ours]),
        replace(hal.negative, requested=hal.negative.requested[:theirs]),
    )
    parts = list(contrasts(tiny, pair, Recipe(reading="prompt")))
    assert sum(len(part.cases) for part in parts) == 4 * n
    read = {row for part in parts for case in part.cases for row in (*case.positives, *case.negatives)}
    assert len(read) == 4 * (ours + theirs)


def test_held_out_replies_of_one_request_count_once(tiny: Model, hal: Pair) -> None:
    material = gather_material(tiny, asking(hal, hal.positive.requested[0]))
    questions = len(hal.positive.held_out)
    assert len(material.rows) == 2 * questions
    assert len(material.positive) == len(material.negative) == questions


def test_few_pairs_are_warned_of_in_one_line(tiny: Model, hal: Pair) -> None:
    vector = extract(tiny, hal, Recipe(reading="prompt"))
    audit, n_pairs = vector.provenance["audit"], vector.provenance["n_pairs"]
    assert n_pairs == 12 < FEW_PAIRS
    assert any("12 distinct pairs" in line for line in audit_warnings(audit, n_pairs))
    assert audit["warnings"] == audit_warnings(audit, n_pairs)
    assert not audit_warnings({**audit, "warnings": []}, 36)


# Directions that are zero


def zero_at(vector: SteeringVector, *layers: int) -> SteeringVector:
    """The vector without some layers."""
    directions = vector.directions.clone()
    directions[list(layers)] = 0
    return replace(vector, directions=directions)


@pytest.mark.parametrize("operator", ["add", "set", "ablate", "cap", "floor", "rotate"])
def test_a_direction_that_is_zero_where_it_is_applied_is_refused(operator: str, vectors: Vectors) -> None:
    sparse = zero_at(vectors["hal"], 0, 3)
    for band in ((3, 3), (2, 4), (0, 1)):
        with pytest.raises(ExpressionError, match=r"zero at layer.*choose among its other layers, 1-2, 4-5"):
            Term(sparse, operator, 0.5, band)
    assert Term(sparse, operator, 0.5, (1, 2)).band == (1, 2)


def test_a_direction_that_is_zero_is_refused_where_it_is_parsed_gated_and_read(vectors: Vectors) -> None:
    known = {"hal": zero_at(vectors["hal"], 3), "nothing": vectors["hal"] * 0.0, "warmth": vectors["warmth"]}
    for text in ("hal @3", "0.8 hal @1-5", "nothing", "warmth @3 when hal > 0", "warmth @2-4 when nothing < 1"):
        with pytest.raises(ExpressionError, match=r"zero at layer.*column"):
            Steering.parse(text, known)
    with pytest.raises(VectorError, match="zero at layer 3"):
        Probe.of(known["hal"], 3)
    assert Steering.parse("hal @1-2 when hal > 0", known)


def test_a_file_with_zero_layers_loads_and_is_refused_where_it_would_do_nothing(
    vectors: Vectors, tmp_path: Path
) -> None:
    zero_at(vectors["hal"], 0, 1, 2, 5).save(tmp_path / "hal.safetensors")
    back = load_vector(tmp_path / "hal.safetensors")
    assert Term(back, layers=(3, 4))
    with pytest.raises(ExpressionError, match="choose among its other layers, 3-4"):
        Term(back, layers=(2, 4))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_a_factor_that_is_not_finite_makes_no_vector(factor: float, vectors: Vectors) -> None:
    for make in (lambda: vectors["hal"] * factor, lambda: vectors["hal"] / factor, lambda: vectors["hal"] / 0):
        with pytest.raises(VectorError, match="cannot be"):
            make()


def test_an_extraction_that_makes_no_difference_is_refused(
    tiny: Model, hal: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = Pair(Persona("echo", "", hal.negative.requested, hal.positive.questions), hal.negative)
    for reading in ("prompt", "response"):
        with pytest.raises(SteerkitError, match="as the same text"):
            extract(tiny, alike, Recipe(reading=reading, max_tokens=3))
    read = passes._last_states
    # Beside a constant of that size the last digits are rounding.
    monkeypatch.setattr(passes, "_last_states", lambda *given: read(*given) * 1e-9 + 5)
    with pytest.raises(SteerkitError, match="zero at every layer"):
        extract(tiny, hal, Recipe(reading="prompt"))
    monkeypatch.setattr(passes, "_last_states", lambda *given: read(*given) * float("nan"))
    with pytest.raises(SteerkitError, match="not finite"):
        extract(tiny, hal, Recipe(reading="prompt"))


# Names


def test_an_unknown_operator_is_answered_with_the_nearest(vectors: Vectors) -> None:
    for operator, meant in (("ad", "add"), ("rotat", "rotate"), ("subtract", "operators are add")):
        with pytest.raises(ExpressionError, match=meant):
            Term(vectors["hal"], operator)


def test_an_unknown_name_in_a_dict_is_answered_with_those_there_are(vectors: Vectors) -> None:
    for text, known, hint in (
        ("0.8 hal", {}, "none were given"),
        ("0.8 hall", vectors, "did you mean hal"),
        ("0.8 zzz", vectors, "there are hal, pirate, warmth"),
        ("hal when warmt > 1", vectors, "did you mean warmth"),
        ("hal ~ pirat", vectors, "did you mean pirate"),
    ):
        with pytest.raises(VectorError, match=hint):
            Steering.parse(text, known)
    with pytest.raises(VectorError, match="no SteeringVector"):
        Steering.parse("hal", {"hal": torch.zeros(3)})  # type: ignore[dict-item]


def test_algebra_names_what_it_makes(vectors: Vectors) -> None:
    a, b, c = vectors["hal"], vectors["pirate"], vectors["warmth"]
    names = {
        "hal_minus_pirate": a - b,
        "hal_plus_pirate": a + b,
        "minus_hal": -a,
        "hal_times_0_5": 0.5 * a,
        "hal_times_0_25": a / 4,
        "minus_hal_times_1_5": a * -1.5,
        "hal_plus_pirate_plus_warmth": sum([a, b, c]),
        "hal_minus_pirate_minus_warmth": a - (b + c),
        "hal_minus_pirate_plus_warmth": a - (b - c),
        "hal_times_0_5_minus_pirate_times_0_5": (a - b) / 2,
        "minus_hal_plus_pirate": -(a - b),
        "hal_without_pirate": a.without([b]),
        "hal_apart_from_pirate_warmth": a.apart_from([b, c]),
        "hal": -1 * (-a) / 10 * 10.0,
    }
    assert {made.name: name for name, made in names.items()} == {name: name for name in names}
    assert sum([a, b]).name == "hal_plus_pirate"
    assert replace(a - b, name="mine").__neg__().name == "minus_mine"
    for name, made in names.items():
        gate = Gate(made, True, 0.25, name)
        steering = Steering((Term(made, dial=0.5, name=name), Term(b, "ablate", 1.0, when=gate, name="pirate")))
        assert Steering.parse(str(steering), {"pirate": b, name: made}) == steering


def test_a_sum_is_the_same_in_any_order(vectors: Vectors) -> None:
    a, b, c = vectors["hal"], vectors["pirate"], vectors["warmth"]
    for one, other in ((a + b + c, a + (b + c)), (a + b, b + a), (sum([a, b, c]), c + a + b)):
        assert torch.allclose(one.directions, other.directions, atol=1e-5)
        assert torch.allclose(one.baseline, other.baseline, atol=1e-5)
    assert torch.allclose((a + b + c).baseline, (a.baseline + b.baseline + c.baseline) / 3, atol=1e-5)
    assert len((a + b + c).provenance["sum_of"]) == 3


def test_a_vector_that_was_made_by_algebra_is_the_same_from_its_file(vectors: Vectors, tmp_path: Path) -> None:
    made = vectors["hal"] - 0.5 * vectors["pirate"]
    made.save(tmp_path / "made.safetensors")
    back = load_vector(tmp_path / "made.safetensors")
    assert (back.name, back.parts) == (made.name, made.parts) == (made.name, [("hal", 1.0), ("pirate", -0.5)])
    assert (-back).name == "minus_hal_plus_pirate_times_0_5"


@pytest.mark.parametrize("name", ["hal-2", "2hal", "my hal", "nan", "a~b", "hal@3", "caps(hal)", "when", "a + -b", "ä"])
def test_any_name_is_written_so_that_it_is_read_back(name: str, vectors: Vectors) -> None:
    known = {name: replace(vectors["hal"], name=name), "warmth": vectors["warmth"]}
    terms = (Term(known[name], dial=-0.5), Term(known["warmth"], dial=2, when=Gate(known[name], False, -1)))
    steering = Steering(terms)
    again = Steering.parse(str(steering), known)
    assert str(again) == str(steering)
    assert [term.vector for term in again.terms] == [term.vector for term in terms]


def test_a_name_that_cannot_be_written_is_refused(vectors: Vectors) -> None:
    for name in ('say "hal"', "two\nlines", " "):
        with pytest.raises(ExpressionError, match="cannot stand in an expression"):
            Term(replace(vectors["hal"], name=name))


def test_two_vectors_of_one_name_are_told_apart(tiny: Model, prompts: list[list[int]], vectors: Vectors) -> None:
    ours, theirs = vectors["hal"], make_vector("hal", tiny.fingerprint, 9)
    steering = Steering((Term(ours, dial=0.5), Term(theirs, dial=-1.0, when=Gate(vectors["pirate"], True, 0.0))))
    assert str(steering) == "0.5 hal - 1 hal_2 when pirate > 0"
    assert Steering.parse(str(steering), {"hal": ours, "hal_2": theirs, "pirate": vectors["pirate"]}) == Steering(
        tuple(replace(term, name=name, when=term.when and replace(term.when, name="pirate"))
              for term, name in zip(steering.terms, ("hal", "hal_2"), strict=True))
    )  # fmt: skip
    assert str(Steering((Term(ours), Term(replace(ours), dial=2, layers=(1, 1))))) == "1 hal + 2 hal @1"
    probes = [Probe.of(ours), Probe.of(theirs), Probe.of(ours, 1), Probe.of(ours, 1)]
    assert distinct_names(probes) == ("hal", "hal_2", "hal@1", "hal_3")
    readout = complete(tiny, prompts[:1], probes=probes, sampling=Sampling(3))[0].readout
    assert len(readout.means()) == 4
    assert readout.means()["hal"] != readout.means()["hal_2"]
    assert read_tokens(tiny, prompts[0], [5, 6], probes).probes == readout.probes


# Many rows


@pytest.fixture
def many(prompts: list[list[int]]) -> list[list[int]]:
    """More prompts than fit one batch, of different lengths."""
    return [[*prompts[i % 3][: 6 + i % 7], i % 50 + 5] for i in range(70)]


def few_rows(monkeypatch: pytest.MonkeyPatch, rows: int, tokens: int) -> None:
    """Smaller batches, so that few prompts are many."""
    cut = passes.batches
    for module in (passes, generation):
        monkeypatch.setattr(module, "batches", lambda lengths, *given: cut(lengths, *(given or (rows, tokens))))


def by_many(model: Model, rows: Sequence[list[int]], vectors: Vectors) -> dict[str, Any]:
    """What each function that takes any number of rows makes of them."""
    steerings = [Steering((Term(vectors["hal"], dial=i % 3),)) for i in range(len(rows))]
    probes = [Probe.of(vectors["pirate"])]
    replies = complete(model, rows, steerings, probes, Sampling(4))
    steps = list(stream(model, rows, steerings, (), Sampling(4)))
    return {
        "complete": [reply.tokens for reply in replies],
        "scores": torch.cat([reply.readout.scores for reply in replies]),
        "stream": [[step.token for step in steps if step.row == row] for row in range(len(rows))],
        "read_rows": torch.cat(read_rows(model, [(row, row[:5]) for row in rows], probes, steerings)),
        "reply_logits": torch.cat(reply_logits(model, [(row, row[:3]) for row in rows], steerings)),
        "prompt_states": prompt_states(model, rows, steerings),
    }


def test_many_rows_are_run_in_batches_that_change_nothing(
    tiny: Model, many: list[list[int]], vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_many(tiny, many, vectors)
    few_rows(monkeypatch, 8, 150)
    passed = rows_read(tiny, monkeypatch)
    cut = by_many(tiny, many, vectors)
    assert max(rows for rows, _ in passed) <= 8
    # What rows have in common stands in front of them once, and their ends are padded on their own.
    assert max(tokens for _, tokens in passed) <= 2 * 150
    for name, wanted in whole.items():
        if isinstance(wanted, torch.Tensor):
            assert torch.allclose(cut[name], wanted, atol=1e-4), name
        else:
            assert cut[name] == wanted, name


def test_a_thousand_prompts_never_meet_in_one_pass(
    tiny: Model, many: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = rows_read(tiny, monkeypatch)
    heard: list[tuple[int, int]] = []
    replies = complete(
        tiny, (many * 15)[:1000], sampling=Sampling(2), progress=lambda _stage, done, total: heard.append((done, total))
    )
    assert len(replies) == 1000
    assert max(rows for rows, _ in passed) <= passes.BATCH_ROWS
    assert heard[-1] == (2000, 2000)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_rows_that_fit_one_batch_keep_their_order_and_more_are_sorted_by_length() -> None:
    assert list(batches([9, 1, 5])) == [[0, 1, 2]]
    lengths = [(7 * i) % 50 + 1 for i in range(300)]
    cut = list(batches(lengths, most_rows=40, most_tokens=900))
    assert sorted(row for batch in cut for row in batch) == list(range(300))
    assert max(len(batch) for batch in cut) <= 40
    assert max(len(batch) * max(lengths[row] for row in batch) for batch in cut) <= 900
    assert len(cut) < 20
    assert list(batches([])) == []


def test_the_shapes_of_the_tiny_model_are_those_that_the_slips_expect(tiny: Model) -> None:
    assert (tiny.n_layers, tiny.width) == (LAYERS, WIDTH) == (6, 32)
