"""The promises that only a real model can keep, on the default model and the vectors that ship."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

from steerkit.cli.chat import chat
from steerkit.errors import VectorError
from steerkit.evaluation import measure_shifts
from steerkit.generation import Probe, Sampling, complete, read_tokens
from steerkit.limits import kl_limits
from steerkit.loops import EXCESS, REPLY_TOKENS, looping, unsteered_rate
from steerkit.measures import neutral, write_texts
from steerkit.models import Model
from steerkit.passes import reply_logits
from steerkit.personas import find_persona, load_personas
from steerkit.runners import LeanRunner
from steerkit.steering import Steering, Term
from steerkit.vectors import VectorSet, load_vector

pytestmark = pytest.mark.real
SHIPPED = Path(__file__).parent.parent / "vectors" / "smollm2-135m-instruct"
BAND = (8, 23)


@pytest.fixture(scope="module")
def shipped(real: Model) -> VectorSet:
    return VectorSet(real.fingerprint)


@pytest.fixture(scope="module")
def held_out(real: Model) -> list[list[int]]:
    return [real.chat_tokens([{"role": "user", "content": question}]) for question in find_persona("hal").held_out]


def test_every_persona_of_the_library_ships_a_vector_that_fits_the_default_model(real: Model) -> None:
    made = {path.stem: load_vector(path) for path in SHIPPED.glob("*.safetensors")}
    assert set(made) >= set(load_personas()) - {"assistant"}
    for vector in made.values():
        vector.require(real.fingerprint)


@pytest.mark.parametrize("name", ["hal", "pirate", "anger"])
def test_a_vector_moves_held_out_replies_beyond_twenty_random_directions(
    name: str, real: Model, shipped: VectorSet
) -> None:
    shifts = measure_shifts(real, shipped[name], find_persona(name).items, (1.0, -1.0), n_random=20)
    assert shifts[1.0].beats_null
    assert shifts[-1.0].below_null
    assert shifts[1.0].right_way >= 0.8


@pytest.mark.parametrize("operator", ["add", "ablate", "rotate"])
@pytest.mark.parametrize("layers", [None, BAND])
def test_dial_zero_leaves_logits_bit_identical(
    operator: str, layers: tuple[int, int] | None, real: Model, shipped: VectorSet, held_out: list[list[int]]
) -> None:
    steering = Steering((Term(shipped["hal"], operator, 0.0, layers),), everywhere=True)
    pair = [(held_out[0], real.reply_tokens("I am afraid that I cannot agree."))]
    assert torch.equal(reply_logits(real, pair, [steering])[0], reply_logits(real, pair, [Steering()])[0])


def test_a_telescoped_band_costs_a_fifth_of_the_same_band_added_whole_and_keeps_its_text(
    real: Model, shipped: VectorSet, held_out: list[list[int]]
) -> None:
    hal = shipped["hal"]
    telescoped = Steering((Term(hal, layers=BAND),))
    whole = Steering(tuple(Term(hal, layers=(l, l)) for l in range(BAND[0], BAND[1] + 1)))
    texts = write_texts(real, held_out, [telescoped, whole], 40)
    assert float(texts[0].divergences.mean()) < float(texts[1].divergences.mean()) / 5
    assert texts[0].repetition < 0.3


def test_what_a_shipped_vector_carries_is_whole(shipped: VectorSet) -> None:
    for name in set(load_personas()) - {"assistant"}:
        evidence = shipped[name].evidence
        assert {"place", "d_prime", "thresholds", "test", "nulls", "reliable"} <= set(evidence), name
        assert evidence["dtype"] in ("float32", "bfloat16"), name
        assert evidence["limit_below"] < 0 < evidence["limit"]
        assert evidence["nulls"]["random"]["n"] >= 20
        assert evidence["nulls"]["shuffled"]["n"] >= 10


@pytest.mark.parametrize("name", ["hal", "pirate"])
def test_a_limit_by_kl_is_about_a_nat(name: str, real: Model, shipped: VectorSet) -> None:
    asked = (*find_persona(name).held_out, *neutral("questions"))
    prompts = [real.chat_tokens([{"role": "user", "content": question}]) for question in asked]
    steerings = [Steering((Term(shipped[name], dial=dial),)) for dial in kl_limits(shipped[name]) or ()]
    assert len(steerings) == 2
    for text in write_texts(real, prompts, steerings, 20):
        # The limit was found on fewer prompts, and a percentile of a few hundred tokens is noisy.
        assert 0.6 < text.divergence() < 1.6


def test_below_its_limit_greedy_text_hardly_loops_more_often_than_unsteered(real: Model, shipped: VectorSet) -> None:
    names = ("hal", "pirate", "warmth", "courage", "honesty")
    prompts = [real.chat_tokens([{"role": "user", "content": question}]) for question in neutral("questions")[1::4]]

    def rate(share: float) -> float:
        """How often replies of five personas loop at a share of the limit by KL, or of the whole limit if negative."""
        steerings = []
        for name in names:
            limit = (shipped[name].limits() if share < 0 else kl_limits(shipped[name])) or (0.0, 0.0)
            steerings += [Steering((Term(shipped[name], dial=abs(share) * limit[1]),))] * len(prompts)
        found = looping(real, prompts * len(names), steerings, Sampling(REPLY_TOKENS))
        return sum(found) / len(found)

    assert rate(-0.8) <= unsteered_rate(real) + EXCESS
    # Where limits were while they looked at forty tokens.
    assert rate(0.8) > unsteered_rate(real) + EXCESS


def test_the_chat_of_the_readme_does_not_loop_to_its_last_token(real: Model, shipped: VectorSet) -> None:
    readme = (SHIPPED.parent.parent / "README.md").read_text(encoding="utf-8")
    steer = re.findall(r'bin/steerkit chat -s "([^"]+)"', readme)
    question = re.findall(r"^“(.+)”$", readme, re.MULTILINE)
    assert (len(steer), len(question)) == (1, 1)
    default = {key: option.default for key, option in inspect.signature(chat).parameters.items()}
    drawn = Sampling(*(default[key] for key in ("max_tokens", "temperature", "top_p", "seed")))
    prompt = real.chat_tokens([{"role": "user", "content": question[0]}], drawn.max_tokens)
    steering = Steering.parse(steer[0], shipped)
    assert looping(real, [prompt], [steering], drawn) == [False]
    assert looping(real, [prompt], [steering], dataclasses.replace(drawn, temperature=0.0)) == [True]


def test_the_live_readout_equals_an_offline_pass(real: Model, shipped: VectorSet, held_out: list[list[int]]) -> None:
    steerings = [Steering.parse(text, shipped) for text in ("1 hal", "0.8 hal @8-23 - 0.5 pirate", "set(hal, 0)")]
    steerings.append(Steering())
    probes = [Probe.of(shipped["hal"]), Probe.of(shipped["pirate"], 20)]
    for steering, reply in zip(steerings, complete(real, held_out, steerings, probes, Sampling(12)), strict=True):
        offline = read_tokens(real, reply.prompt, reply.tokens, probes, steering)
        assert torch.allclose(reply.readout.scores, offline.scores, atol=1e-4)


def test_cache_and_batch_change_nothing(real: Model, shipped: VectorSet, held_out: list[list[int]]) -> None:
    steerings = [Steering.parse(text, shipped) for text in ("1 hal", "0.5 pirate @8-23", "-1 hal", "ablate(hal)")]
    together = complete(real, held_out, steerings, sampling=Sampling(10))
    for prompt, steering, reply in zip(held_out, steerings, together, strict=True):
        assert complete(real, [prompt], [steering], sampling=Sampling(10))[0].tokens == reply.tokens
        whole = reply_logits(real, [(prompt, reply.tokens)], [steering])[0]
        assert tuple(whole.argmax(-1).tolist()) == reply.tokens


def test_the_fast_path_has_the_hooked_paths_logits(real: Model, shipped: VectorSet, held_out: list[list[int]]) -> None:
    assert isinstance(real.runner, LeanRunner)
    hooked = dataclasses.replace(real, runner=real.hook_points.runner)
    texts = ("1 hal", "0.5 pirate @8-23 + 0.2 hal @20", "cap(hal, 0.2)", "rotate(pirate, 0.5) @3")
    steerings = [Steering.parse(text, shipped) for text in texts]
    pairs = [(prompt, real.reply_tokens("I am afraid that I cannot agree with you.")) for prompt in held_out]
    ours, theirs = (reply_logits(m, pairs * 4, steerings * 4) for m in (real, hooked))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    sampling, probes = Sampling(12), [Probe.of(shipped["hal"])]
    for mine, wanted in zip(*(complete(m, held_out, steerings, probes, sampling) for m in (real, hooked)), strict=True):
        assert mine.tokens == wanted.tokens
        assert torch.allclose(mine.readout.scores, wanted.readout.scores, atol=1e-3)


def test_the_first_steered_token_is_the_last_of_the_prompt(
    real: Model, shipped: VectorSet, held_out: list[list[int]]
) -> None:
    reply = real.reply_tokens("I am afraid that I cannot agree.")
    rows = torch.tensor([[*held_out[0], *reply]])

    def push(h: torch.Tensor) -> torch.Tensor:
        moved = h.clone()
        moved[:, len(held_out[0]) - 1 :] += shipped["hal"].directions[15]
        return moved

    whole, _ = real.forward(rows, torch.ones_like(rows), functions={15: [push]}, keep=len(reply) + 1)
    steered = reply_logits(real, [(held_out[0], reply)], [Steering((Term(shipped["hal"], layers=(15, 15)),))])[0]
    assert torch.allclose(steered, whole[0, :-1], atol=1e-3)


def test_a_vector_made_on_another_model_is_refused(shipped: VectorSet, tiny: Model) -> None:
    with pytest.raises(VectorError, match="30 layers × 576"):
        shipped["hal"].require(tiny.fingerprint)
