"""Extraction: pairs in, a vector with its provenance out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit import extraction
from steerkit.errors import SteerkitError
from steerkit.estimators import ESTIMATORS
from steerkit.extraction import Audit, Recipe, Sums, audit_warnings, contrasts, extract
from steerkit.generation import Readout, Reply
from steerkit.models import Model, pad_left
from steerkit.personas import Pair, Persona, find_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    whole = find_pair("hal")
    return Pair(replace(whole.positive, questions=whole.positive.questions[:4]), whole.negative)


@pytest.mark.parametrize("reading", ["response", "prompt"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_and_reading_gives_a_vector_with_its_provenance(
    reading: str, estimator: str, tiny: Model, pair: Pair
) -> None:
    vector = extract(tiny, pair, Recipe(estimator, reading, max_tokens=4))
    assert vector.directions.shape == vector.baseline.shape == (tiny.n_layers, tiny.width)
    assert vector.model == tiny.fingerprint
    made = vector.provenance
    assert (made["persona"], made["against"], made["estimator"], made["reading"]) == (
        "hal",
        "assistant",
        estimator,
        reading,
    )
    assert made["n_pairs"] == 12
    assert len(made["prompts_sha256"]) == 64
    assert len(vector.evidence["pair_agreement"]) == tiny.n_layers


def test_the_prompt_reading_is_the_mean_difference_of_last_prompt_tokens(tiny: Model, pair: Pair) -> None:
    vector = extract(tiny, pair, Recipe(reading="prompt"))
    sides = []
    for persona in (pair.positive, pair.negative):
        means = []
        for system in persona.requested:
            for question in pair.positive.questions:
                chat = [{"role": "system", "content": system}, {"role": "user", "content": question}]
                tokens, mask = pad_left([tiny.chat_tokens(chat)], tiny.device)
                last = torch.zeros_like(mask, dtype=torch.bool)
                last[:, -1] = True
                means.append(tiny.residuals(tokens, mask, last)[0])
        sides.append(torch.stack(means).mean(0))
    assert torch.allclose(vector.directions, sides[0] - sides[1], atol=1e-4)
    assert torch.allclose(vector.baseline, sides[1], atol=1e-4)


def test_the_response_reading_is_what_a_pass_over_the_finished_replies_reads(tiny: Model, pair: Pair) -> None:
    for part in contrasts(tiny, pair, Recipe(max_tokens=6)):
        for i, (case, replies) in enumerate(zip(part.cases, part.replies, strict=True)):
            live = part.positive[i], part.negative[i]
            for prompt, reply, states in zip((case.positive, case.negative), replies, live, strict=True):
                tokens, mask = pad_left([[*prompt, *reply.tokens]], tiny.device)
                pool = torch.zeros_like(mask, dtype=torch.bool)
                pool[:, -len(reply.tokens) :] = True
                assert torch.allclose(states, tiny.residuals(tokens, mask, pool)[0], atol=1e-4)


def test_batches_and_their_order_do_not_change_the_vector(tiny: Model, pair: Pair) -> None:
    whole, small = (extract(tiny, pair, Recipe(batch_size=size, max_tokens=5)) for size in (36, 6))
    assert torch.allclose(whole.directions, small.directions, atol=1e-4)
    assert torch.allclose(whole.baseline, small.baseline, atol=1e-4)


def test_a_seed_repeats_an_extraction(tiny: Model, pair: Pair) -> None:
    one, same, other = (extract(tiny, pair, Recipe(max_tokens=5, seed=seed, temperature=2.0)) for seed in (1, 1, 2))
    assert torch.equal(one.directions, same.directions)
    assert not torch.allclose(one.directions, other.directions)


def test_exchanging_the_personas_turns_the_prompt_reading_round(tiny: Model, pair: Pair) -> None:
    questions = pair.positive.questions
    back = Pair(replace(pair.negative, questions=questions), pair.positive)
    there = extract(tiny, pair, Recipe(reading="prompt"))
    assert torch.allclose(there.directions, -extract(tiny, back, Recipe(reading="prompt")).directions, atol=1e-5)


def test_running_sums_equal_what_the_rows_give() -> None:
    positive, negative = torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    streamed, kept = Sums(2, 8, keep_rows=False), Sums(2, 8, keep_rows=True)
    for sums in (streamed, kept):
        sums.add(positive[:5], negative[:5])
        sums.add(positive[5:], negative[5:])
    for name in ("mean_diff",):
        assert torch.allclose(ESTIMATORS[name](*streamed.sides()), ESTIMATORS[name](*kept.sides()), atol=1e-6)
    differences = positive - negative
    mean = differences.mean(0)
    agreement = torch.nn.functional.cosine_similarity(differences, mean[None], dim=-1).mean(0)
    assert streamed.evidence()["pair_agreement"] == pytest.approx(agreement.tolist(), abs=1e-3)


def test_pairs_that_agree_say_so_and_noise_does_not() -> None:
    direction, draw = torch.ones(1, 64), torch.Generator().manual_seed(0)
    for strength, low, high in ((5.0, 0.9, 1.0), (0.0, 0.0, 0.4)):
        sums = Sums(1, 64, keep_rows=False)
        noise = torch.randn(2, 40, 1, 64, generator=draw)
        sums.add(noise[0] + strength * direction, noise[1])
        assert low <= sums.evidence()["pair_agreement"][0] <= high
        assert abs(sums.evidence()["split_half"][0]) <= high


def test_pairs_in_which_one_side_says_nothing_are_left_out(
    tiny: Model, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak = extraction._speak

    def silence(n_rows: int) -> Callable[..., tuple[list[Reply], Tensor]]:
        def silenced(*args: Any) -> tuple[list[Reply], Tensor]:
            replies, states = speak(*args)
            return [replace(r, tokens=()) for r in replies[:n_rows]] + replies[n_rows:], states

        return silenced

    monkeypatch.setattr(extraction, "_speak", silence(1))
    vector = extract(tiny, pair, Recipe(max_tokens=3))
    assert vector.provenance["n_pairs"] == 11
    monkeypatch.setattr(extraction, "_speak", silence(100))
    with pytest.raises(SteerkitError, match="said nothing"):
        extract(tiny, pair, Recipe(max_tokens=3))


def reply(text: str, n_tokens: int = 4) -> Reply:
    return Reply((), tuple(range(n_tokens)), text, Readout((), (), torch.zeros(0, 0)))


@pytest.mark.parametrize(
    ("positive", "word"),
    [
        (reply("I cannot do that."), "refuse"),
        (reply("Arr, I am a pirate."), "name the persona"),
        (reply("So it goes.", 40), "length"),
    ],
)
def test_the_audit_notices_replies_that_are_about_the_wrong_thing(positive: Reply, word: str) -> None:
    audit = Audit()
    for _ in range(10):
        audit.take(positive, reply("I cannot do that." if word == "refuse" else "So it goes."), ["pirate"])
    assert any(word in line for line in audit_warnings(audit.to_json()))
    clean = Audit()
    clean.take(reply("Fair winds."), reply("So it goes."), ["pirate"])
    assert not audit_warnings(clean.to_json())


def test_unknown_names_in_a_recipe_are_refused() -> None:
    with pytest.raises(SteerkitError, match="mean_diff"):
        Recipe(estimator="mean_dif")
    with pytest.raises(SteerkitError, match="response"):
        Recipe(reading="respond")


def test_progress_reaches_its_total_and_never_goes_back(tiny: Model, pair: Pair) -> None:
    told: list[tuple[int, int]] = []
    extract(tiny, pair, Recipe(max_tokens=4, batch_size=6), lambda _stage, done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_pair_against_another_persona_is_named_after_both(tiny: Model) -> None:
    asked = ("Who are you?", "Why?")
    sides = [Persona(name, "", ("You are loud.", "You are quiet.")[i : i + 1], asked) for i, name in enumerate("ab")]
    vector = extract(tiny, Pair(*sides), Recipe(reading="prompt"))
    assert vector.name == "a_vs_b"
    assert vector.directions.norm() > 0
