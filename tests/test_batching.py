"""A batch that never ends: who comes and goes changes nothing for the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from conftest import hooked, make_vector, save_model, unwritten

from steerkit.batching import Ask, Batch, Done, Said
from steerkit.caches import can_merge
from steerkit.generation import LIKELIEST, Chooser, Probe, Sampling, complete
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.passes import STRETCH
from steerkit.runners import LeanRunner
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector

Vectors = dict[str, SteeringVector]
EXPRESSIONS = ("", "2 hal", "-1 hal @1-4", "ablate(warmth) + 1 pirate @2", "rotate(hal, 1.5)", "set(hal, 1) @3")


def speak(
    batch: Batch, plan: dict[int, Sequence[Ask]], drops: dict[int, Sequence[Ask]] | None = None
) -> dict[Ask, list]:
    """Run a batch to its end; at which pass who joins and who is dropped is planned."""
    heard: dict[Ask, list] = {ask: [] for asks in plan.values() for ask in asks}
    waiting: list[Ask] = []
    for turn in range(2000):
        waiting += plan.get(turn, ())
        batch.drop((drops or {}).get(turn, ()))
        while waiting and batch.free:
            batch.add(waiting.pop(0))
        batch.read()
        for ask, event in batch.speak():
            heard[ask].append(event)
        if not (waiting or batch.asks) and turn >= max(plan):
            return heard
    raise AssertionError("the batch does not end")


def tokens_of(events: list) -> tuple[int, ...]:
    return tuple(event.token for event in events if isinstance(event, Said))


def assert_as_alone(model: Model, heard: dict[Ask, list]) -> None:
    """Every row's tokens, text and scores are those of the row alone."""
    for ask, events in heard.items():
        (alone,) = complete(model, [ask.prompt], [ask.steering], ask.probes, ask.sampling)
        said = [event for event in events if isinstance(event, Said)]
        assert tokens_of(events) == alone.tokens
        assert "".join(event.text for event in said).strip() == alone.text
        scores = torch.tensor([event.scores for event in said]).reshape(len(said), len(ask.probes))
        assert torch.allclose(scores, alone.readout.scores.cpu(), atol=1e-3)
        assert isinstance(events[-1], Done)
        assert sum(isinstance(event, Done) for event in events) == 1
        assert (events[-1].reason == "length") == (len(said) == ask.sampling.max_tokens)


def various(vectors: Vectors, prompts: list[list[int]], n: int = 12) -> list[Ask]:
    """Rows that have nothing in common: prompt, steering, probes, sampling, length."""
    probes = [Probe.of(vectors["hal"]), Probe.of(vectors["warmth"], 1), Probe.of(vectors["pirate"], 5)]
    return [
        Ask(
            prompts[i % len(prompts)][: 60 - 7 * (i % 5)],
            Steering.parse(text, vectors, everywhere=i % 4 == 3) if (text := EXPRESSIONS[i % 6]) else Steering(),
            tuple(probes[: i % 4]),
            Sampling(3 + 5 * (i % 4), temperature=(0.0, 1.0, 0.7)[i % 3], top_p=(1.0, 0.9)[i % 2], seed=i),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("most", [1, 3, 16])
def test_a_row_says_what_it_says_alone_whoever_comes_and_goes(
    most: int, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    asks = various(vectors, prompts)
    heard = speak(Batch(tiny, most), {0: asks[:2], 1: asks[2:3], 4: asks[3:9], 11: asks[9:]})
    assert_as_alone(tiny, heard)
    assert len({tokens_of(events) for events in heard.values()}) > 6


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen2", "gemma3"])
def test_it_holds_for_other_architectures(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load_model(str(save_model(tmp_path_factory.mktemp("m") / architecture, architecture)), device="cpu")
    vectors = {name: make_vector(name, model.fingerprint, i) for i, name in enumerate(("hal", "warmth", "pirate"))}
    prompts = [model.chat_tokens([{"role": "user", "content": text}]) for text in ("Who are you?", "Why? " * 9, "I")]
    asks = various(vectors, prompts)
    batch = Batch(model, 4)
    assert batch.most == (1 if architecture == "gemma3" else 4)
    assert_as_alone(model, speak(batch, {0: asks[:1], 3: asks[1:4], 5: asks[4:]}))


def test_it_holds_through_the_hook_points(tiny: Model, prompts: list[list[int]], vectors: Vectors) -> None:
    assert isinstance(tiny.runner, LeanRunner)
    asks = various(vectors, prompts)
    for model in (hooked(tiny), unwritten(tiny)):
        heard = speak(Batch(model, 4), {0: asks[:2], 4: asks[2:]})
        assert_as_alone(tiny, heard)


def test_nobody_steered_means_the_model_as_it_is_beside_rows_that_are(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    strong = [Ask(prompts[0], Steering.parse(text, vectors), (), Sampling(12)) for text in ("30 hal", "-30 warmth")]
    plain = Ask(prompts[0], Steering(), (), Sampling(12))
    heard = speak(Batch(tiny), {0: [strong[0], plain], 2: [strong[1]]})
    (unsteered,) = complete(tiny, [prompts[0]], sampling=Sampling(12))
    assert tokens_of(heard[plain]) == unsteered.tokens
    assert tokens_of(heard[strong[0]]) != unsteered.tokens


def test_a_long_prompt_is_read_in_stretches_while_others_speak(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    long = (prompts[1] * 40)[: STRETCH + 150]
    probes = (Probe.of(vectors["hal"]),)
    late = [
        Ask(long, Steering.parse("2 hal", vectors), probes, Sampling(6)),
        Ask(long[5:], Steering.parse("1 hal @2", vectors, everywhere=True), probes, Sampling(6)),
    ]
    first = Ask(prompts[0], Steering(), (), Sampling(30))
    short = Ask(prompts[2], Steering.parse("1 pirate", vectors), (), Sampling(6, 1.0, seed=3))
    batch = Batch(tiny)
    for ask in (first, *late, short):
        batch.add(ask)
    heard: dict[Ask, list] = {ask: [] for ask in batch.asks}
    spoken_while_reading = 0
    while batch.asks:
        batch.read()
        reading = bool(batch.unread)
        for ask, event in batch.speak():
            heard[ask].append(event)
            spoken_while_reading += reading and ask is first
    assert spoken_while_reading >= 3
    assert_as_alone(tiny, heard)


def test_a_long_prompt_that_several_asked_for_is_read_once(
    prompts: list[list[int]], vectors: Vectors, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = (prompts[1] * 40)[: STRETCH + 200]
    texts = ("1 hal", "-1 hal", "1 warmth")
    asks = [Ask(long, Steering.parse(text, vectors), (), Sampling(5)) for text in texts]
    other = Ask(long, Steering.parse("1 hal", vectors, everywhere=True), (), Sampling(5))
    read = []
    forward = Model.forward

    def counting(self: Model, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        read.append(tokens.numel())
        return forward(self, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "forward", counting)
    heard = speak(Batch(tiny), {0: [*asks, other]})
    monkeypatch.undo()
    assert 2 * len(long) <= sum(read) < 2 * len(long) + 60
    assert_as_alone(tiny, heard)


def test_who_is_dropped_says_nothing_more_and_the_others_do_not_notice(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    asks = various(vectors, prompts, 9)
    asks = [dataclasses.replace(ask, sampling=dataclasses.replace(ask.sampling, max_tokens=14)) for ask in asks]
    heard = speak(Batch(tiny, 8), {0: asks[:6], 5: asks[6:]}, {2: asks[1:2], 3: [asks[0], asks[5]], 6: [asks[6]]})
    dropped = {asks[i] for i in (0, 1, 5, 6)}
    assert_as_alone(tiny, {ask: events for ask, events in heard.items() if ask not in dropped})
    for ask in dropped:
        assert not any(isinstance(event, Done) for event in heard[ask])
        assert len(heard[ask]) < 7


def test_prompts_of_one_token_begin_as_others_do(tiny: Model, vectors: Vectors) -> None:
    asks = [Ask([7], Steering.parse("2 hal", vectors), (), Sampling(5)), Ask([9], Steering(), (), Sampling(5))]
    assert_as_alone(tiny, speak(Batch(tiny), {0: asks[:1], 2: asks[1:]}))


def test_the_cache_stays_as_small_as_those_who_speak(tiny: Model, prompts: list[list[int]]) -> None:
    batch = Batch(tiny, 4)
    asks = [Ask(prompts[i % 3], Steering(), (), Sampling(5 + i % 7, 2.0, seed=i)) for i in range(120)]
    waiting, lengths, rooms, heard = list(asks), [], [], {ask: [] for ask in asks}
    while waiting or batch.asks:
        while waiting and batch.free:
            batch.add(waiting.pop(0))
        batch.read()
        for ask, event in batch.speak():
            heard[ask].append(event)
        if batch._seats is not None:
            lengths.append(batch._seats.length)
            rooms.append(batch._seats.cache.keys[0].numel())
    longest = max(map(len, prompts)) + 12
    assert sum(lengths[i] > lengths[i - 1] for i in range(1, len(lengths))) > 5 * longest / 2
    assert max(lengths) <= longest * 4 / 3 + 66
    assert max(rooms[len(rooms) // 2 :]) <= max(rooms[: len(rooms) // 2])
    assert_as_alone(tiny, {ask: heard[ask] for ask in asks[::10]})


def test_a_row_that_has_become_nan_poisons_nobody_who_gets_its_seat(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    poisoned, good = Ask(prompts[1], Steering(), (), Sampling(40)), Ask(prompts[0], Steering(), (), Sampling(25))
    late = Ask(prompts[2], Steering.parse("2 hal", vectors), (), Sampling(12))
    longer = Ask(prompts[1] * 3, Steering(), (), Sampling(9))
    batch = Batch(tiny, 4)
    batch.add(good)
    batch.add(poisoned)
    heard: dict[Ask, list] = {ask: [] for ask in (good, poisoned, late, longer)}
    for turn in range(60):
        batch.read()
        for ask, event in batch.speak():
            heard[ask].append(event)
        if turn == 1:
            with torch.inference_mode():
                for store in (*batch._seats.cache.keys, *batch._seats.cache.values):
                    store[1:] = float("nan")
        if turn == 4:
            batch.drop([poisoned])
            batch.add(late)
        if turn == 7:
            batch.add(longer)
    assert_as_alone(tiny, {ask: heard[ask] for ask in (good, late, longer)})


def test_chances_are_those_of_the_models_own_softmax(tiny: Model, prompts: list[list[int]], vectors: Vectors) -> None:
    steering = Steering.parse("2 hal", vectors)
    ask = Ask(prompts[0], steering, (), Sampling(5, temperature=2.0, seed=1), likeliest=3)
    other = Ask(prompts[1], Steering(), (), Sampling(5))
    heard = speak(Batch(tiny), {0: [other, ask]})
    from steerkit.passes import reply_logits

    tokens = tokens_of(heard[ask])
    (logits,) = reply_logits(tiny, [(prompts[0], tokens)], [steering])
    chances = logits.log_softmax(-1)
    for place, said in enumerate(event for event in heard[ask] if isinstance(event, Said)):
        assert said.chance == pytest.approx(float(chances[place, said.token]), abs=1e-4)
        assert [token for token, _ in said.likeliest] == chances[place].topk(3).indices.tolist()
    assert all(event.chance is None for event in heard[other] if isinstance(event, Said))


def test_a_short_list_of_the_likeliest_draws_what_the_whole_vocabulary_draws() -> None:
    logits = torch.randn(1, 3 * LIKELIEST, generator=torch.Generator().manual_seed(0)) * 2
    for top_p in (1.0, 0.95, 0.3):
        for seed in range(20):
            drawn = Chooser(Sampling(temperature=1.0, top_p=top_p, seed=seed), 1, logits.device)(logits)
            shares, order = torch.softmax(logits - logits.amax(-1, keepdim=True), -1).sort(descending=True, dim=-1)
            waits = torch.empty(logits.shape[-1]).exponential_(generator=torch.Generator().manual_seed(seed))
            beyond = shares.cumsum(-1) - shares >= top_p
            assert int(drawn) == int(order[0, (shares.masked_fill(beyond, 0.0) / waits).argmax()])


def test_only_plain_caches_are_merged() -> None:
    class Sliding:
        pass

    class Other:
        layers = (Sliding(),)

    assert not can_merge(Other())
    assert not can_merge(None)
