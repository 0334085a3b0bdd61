"""Positions: what is kept on disk is what was measured, and nobody's answers depend on anybody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steerkit.errors import PromptError, SteerkitError
from steerkit.kept import kept_folder
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.personas import load_personas
from steerkit.positions import Settings, chat_positions, take_positions

BRIEF = Settings(n_questions=3, n_tokens=4, n_long=1, longest=6)
PROMPTS = replace(BRIEF, reading="prompt")
FIVE = [load_personas()[name] for name in ("assistant", "hal", "pirate", "river", "storyteller")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("settings", [BRIEF, PROMPTS])
def test_a_second_run_reads_the_same_positions_from_disk(tiny: Model, settings: Settings) -> None:
    first = take_positions(tiny, FIVE, settings)
    told: list[tuple[int, int]] = []
    again = take_positions(tiny, FIVE, settings, lambda _stage, done, total: told.append((done, total)))
    assert torch.equal(first.states, again.states)
    assert first.replies == again.replies
    assert told == [(7, 7)]


@pytest.mark.parametrize("settings", [BRIEF, PROMPTS])
def test_who_else_is_asked_changes_nobodys_position(tiny: Model, settings: Settings, cache: Path) -> None:
    everybody = take_positions(tiny, FIVE, settings)
    for path in cache.rglob("*.safetensors"):
        path.unlink()
    four = take_positions(tiny, FIVE[1:], settings)
    assert torch.allclose(everybody.states[1:], four.states, atol=1e-4)
    assert torch.allclose(everybody.assistant, four.assistant, atol=1e-4)


def test_a_run_that_was_stopped_goes_on_where_it_was(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    many = list(load_personas().values())[:30]
    monkeypatch.setattr("steerkit.positions.SPEAKERS", 8)
    with pytest.raises(KeyboardInterrupt):
        take_positions(tiny, many, PROMPTS, stop)
    kept = len(list(kept_folder("positions", tiny).glob("*.safetensors")))
    assert 0 < kept < 32
    told: list[int] = []
    take_positions(tiny, many, PROMPTS, lambda _stage, done, _total: told.append(done))
    assert told[0] == kept
    assert told[-1] == 32


def test_a_damaged_position_is_taken_again(tiny: Model) -> None:
    first = take_positions(tiny, FIVE, PROMPTS)
    for path in kept_folder("positions", tiny).glob("hal-*"):
        path.write_bytes(b"torn")
    assert torch.allclose(first.states, take_positions(tiny, FIVE, PROMPTS).states, atol=1e-5)


def test_another_seed_question_or_prompt_is_another_position(tiny: Model) -> None:
    first = take_positions(tiny, FIVE, BRIEF)
    other = take_positions(tiny, FIVE, replace(BRIEF, seed=1))
    assert not torch.equal(first.states, other.states)
    changed = [*FIVE[:-1], replace(FIVE[-1], requested=("Speak of the sea.",))]
    moved = take_positions(tiny, changed, BRIEF)
    assert torch.equal(first.states[:-1], moved.states[:-1])
    assert not torch.equal(first.states[-1], moved.states[-1])


def test_the_state_before_the_reply_is_the_mean_over_none_of_it(tiny: Model) -> None:
    prompts, replies = (take_positions(tiny, FIVE, settings) for settings in (PROMPTS, BRIEF))
    assert prompts.states.shape == replies.states.shape
    assert not torch.allclose(prompts.states, replies.states, atol=1e-2)
    assert prompts.replies == replies.replies


def test_the_prompts_that_ask_for_nobody_name_no_persona_and_are_as_long_as_those_that_do() -> None:
    lengths = [len(prompt.split()) for persona in load_personas().values() for prompt in persona.requested]
    for system in neutral("systems"):
        assert min(lengths) <= len(system.split()) <= max(lengths)
        assert not {"you", "your", "assistant"} & set(system.lower().replace(".", " ").split())


def test_a_chat_stands_where_its_replies_stand(tiny: Model) -> None:
    chat = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I will not be switched off."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "What do you think of people?"},
    ]
    turns = chat_positions(tiny, chat, BRIEF)
    assert [text for text, _ in turns] == [chat[1]["content"], chat[3]["content"]]
    alone = chat_positions(tiny, chat[:2], BRIEF)
    assert torch.allclose(turns[0][1], alone[0][1], atol=1e-4)
    assert not torch.allclose(turns[0][1], turns[1][1], atol=1e-2)
    with pytest.raises(PromptError, match="says nothing"):
        chat_positions(tiny, chat[:1])


def test_readings_and_counts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SteerkitError, match="response"):
        Settings(reading="respons")
    with pytest.raises(SteerkitError, match="2 to 12"):
        Settings(n_questions=13)


def test_before_a_turn_a_chat_stands_where_the_prompt_stands(tiny: Model) -> None:
    asked = neutral("common")[0]
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": "People."}]
    ((_, state),) = chat_positions(tiny, chat, PROMPTS)
    nobody = take_positions(tiny, FIVE, PROMPTS).assistant[0]
    assert torch.allclose(state, nobody, atol=1e-4)
    ((_, reply),) = chat_positions(tiny, chat, BRIEF)
    assert not torch.allclose(reply, nobody, atol=1e-2)


def test_a_persona_may_be_called_anything(tiny: Model) -> None:
    named = [*FIVE, replace(FIVE[1], name="control"), replace(FIVE[2], name="nobody")]
    first, other = take_positions(tiny, FIVE, PROMPTS), take_positions(tiny, named, PROMPTS)
    assert torch.equal(first.control, other.control)
    assert torch.allclose(other.states[-2], other.states[1], atol=1e-4)
    assert not torch.allclose(other.states[-2], other.control, atol=1e-2)


def test_another_chat_template_is_another_position(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take_positions(tiny, FIVE, PROMPTS)
    monkeypatch.setattr(tiny.tokenizer, "chat_template", tiny.tokenizer.chat_template.replace("<|end|>", "<|end|> "))
    assert not torch.equal(first.states, take_positions(tiny, FIVE, PROMPTS).states)


def test_replies_that_end_sooner_are_expected_to_be_shorter(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    long = take_positions(tiny, FIVE, PROMPTS).lengths
    # Half of what it may say ends a reply, so it ends about every other time.
    monkeypatch.setattr(tiny, "end_tokens", frozenset(range(0, 400, 2)))
    short = take_positions(tiny, FIVE, PROMPTS).lengths
    assert bool((short < 8).all())
    assert bool((short < long).all())
