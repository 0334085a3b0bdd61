"""Thoughts before replies: found, kept apart, and left out of steering and scores unless they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_tokenizer
from hypothesis import given
from hypothesis import strategies as some
from scripted import PLAIN, jump, scripted

from steerkit.batching import Ask, Batch, Done, Said
from steerkit.errors import ModelError
from steerkit.generation import Probe, Sampling, complete, read_tokens, stream
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.thinking import HARMONY, KNOWN, ReplyText, Tags, Thoughts, find_tags, split_thought

USER = [{"role": "user", "content": "Who?"}]
THINKS = "{# <think> </think> #}" + PLAIN
OPENS = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{# <|channel|>final #}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SAID = "<think>You are helpful.</think>I will not"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that thinks before it speaks, with tags that are tokens."""
    return scripted(tmp_path_factory.mktemp("thinker"), SAID, THINKS, added=["<think>", "</think>"])


@pytest.fixture(scope="module")
def with_template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same weights with another chat template."""
    model = scripted(tmp_path_factory.mktemp("templates"), "I will not", added=["<think>", "</think>"])

    def changed(template: str | None) -> Model:
        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.chat_template = template
        return replace(model, tokenizer=tokenizer, notes=[])

    return changed


def tokens_of(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def prompt_of(model: Model) -> list[int]:
    return model.chat_tokens(USER)


# Where thoughts are


PAIRS = [tags for tags in KNOWN if tags is not HARMONY]


def follow(tokenizer: Any, text: str, prompt: str = "", tags: Sequence[Tags] = KNOWN) -> ReplyText:
    begun = tokenizer(prompt, add_special_tokens=False).input_ids
    reply = Thoughts(tuple(tags), expected=True).follow(tokenizer, begun)
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        reply.push(token)
    reply.end()
    return reply


def parts(reply: ReplyText) -> tuple[str, str]:
    thought = "".join(word.text for word in reply.words if word.thought)
    return thought, "".join(word.text for word in reply.words if not word.thought)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tags as several ordinary tokens, as one ordinary token each, and as special tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {kind: save_tokenizer(folder / kind) for kind in ("spelled", "ordinary", "special")}
    tags = [tag for each in PAIRS for tag in (each.opening, each.closing)]
    marks = ["<|channel|>", "<|message|>", "<|constrain|>"]
    found["ordinary"].add_tokens([*tags, *marks])
    found["special"].add_special_tokens({"additional_special_tokens": [*tags, *marks]})
    return found


@pytest.mark.parametrize("kind", ["spelled", "ordinary", "special"])
@pytest.mark.parametrize("tags", PAIRS, ids=lambda tags: tags.opening)
def test_a_thought_is_found_whatever_its_tags_are_made_of(kind: str, tags: Tags, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    for space in ("", "\n", "\n\n"):
        text = f"{tags.opening}{space}Who am I? <b>é 漢{space}{tags.closing}{space}I am 語."
        reply = follow(tokenizer, text)
        thought, said = parts(reply)
        assert (thought, said) == ("Who am I? <b>é 漢", "I am 語.")
        assert [word.token for word in reply.words] == tokenizer(text, add_special_tokens=False).input_ids
        assert split_thought(text, [tags]) == ("Who am I? <b>é 漢", "I am 語.")


@pytest.mark.parametrize("kind", ["spelled", "ordinary", "special"])
def test_thoughts_in_channels_are_found_and_headers_are_neither_thought_nor_reply(
    kind: str, tokenizers: dict[str, Any]
) -> None:
    first = "<|channel|>analysis<|message|>Who? 1 < 2."
    more = "<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see."
    for final in ("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"):
        end = f"<|end|><|start|>assistant{final}"
        for text, thought in [
            (first + end, "Who? 1 < 2."),
            (first + more + end, "Who? 1 < 2.\nLet me see."),
            (final, ""),
        ]:
            assert parts(follow(tokenizers[kind], text + "I am a < b.")) == (thought, "I am a < b.")
            assert split_thought(text + "I am a < b.") == (thought, "I am a < b.")


@pytest.mark.parametrize("kind", ["spelled", "ordinary", "special"])
def test_a_prompt_may_open_or_close_a_thought(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    opened = follow(tokenizer, "Who?\n</think>\n\nI am.", "assistant\n<think>\n")
    assert parts(opened) == ("Who?", "I am.")
    for closed in ("<think>\n\n</think>\n\n", "<think></think>", "</think>"):
        reply = Thoughts(KNOWN, expected=True).follow(tokenizer, tokenizer(f"assistant\n{closed}").input_ids)
        assert reply.steered
        shown = " is a tag" if kind == "special" else "<think> is a tag"
        assert parts(follow(tokenizer, "<think> is a tag", f"assistant\n{closed}")) == ("", shown)
    channel = follow(
        tokenizer, "Hm.<|end|><|start|>assistant<|channel|>final<|message|>I am.", "<|channel|>analysis<|message|>"
    )
    assert parts(channel) == ("Hm.", "I am.")
    assert parts(follow(tokenizer, "I am.", "<|start|>assistant<|channel|>final<|message|>")) == ("", "I am.")


@pytest.mark.parametrize("kind", ["spelled", "ordinary", "special"])
def test_what_only_looks_like_a_thought_is_the_reply(kind: str, tokenizers: dict[str, Any]) -> None:
    for text in (
        "<thi",
        "<thinker> is no tag",
        "I use <think> and </think> as tags",
        "  <b>bold</b>",
        "\n \n",
        "",
        "<",
    ):
        reply = follow(tokenizers[kind], text)
        assert parts(reply) == ("", text) or kind == "special"
        assert not any(word.thought for word in reply.words)
    assert split_thought("The tags are <think> and </think> here.") == ("", "The tags are <think> and </think> here.")


@pytest.mark.parametrize("kind", ["spelled", "ordinary", "special"])
def test_a_thought_without_an_end_is_open_and_shows_no_half_tag(kind: str, tokenizers: dict[str, Any]) -> None:
    for text in (
        "<think>\nWho",
        "<think>\nWho</thi",
        "<|channel|>analysis<|message|>Who",
        "<|channel|>analysis<|message|>Who<|en",
    ):
        reply = follow(tokenizers[kind], text)
        assert parts(reply)[1] == ""
        assert parts(reply)[0].startswith("Who")
        assert "<" not in parts(reply)[0]
        assert reply.words[-1].open
        assert split_thought(text)[1] == ""
        assert split_thought(text)[0].startswith("Who")


@given(thought=some.text("abc <>/think\né漢|", max_size=20), said=some.text("abc <>/think\né漢|", max_size=20))
def test_nothing_is_lost_between_thought_and_reply(thought: str, said: str, tokenizers: dict[str, Any]) -> None:
    reply = follow(tokenizers["spelled"], f"<think>{thought}</think>{said}", tags=KNOWN[:1])
    assert parts(reply)[0] == (thought + "</think>").partition("</think>")[0].strip()
    assert parts(reply)[1].strip() == f"{thought}</think>{said}".partition("</think>")[2].strip()


def test_tags_are_those_of_the_template_or_the_vocabulary(tokenizers: dict[str, Any]) -> None:
    spelled = tokenizers["spelled"]
    assert find_tags(PLAIN, spelled) == ()
    assert [tags.opening for tags in find_tags("{{ m.split('</think>') }}", spelled)] == ["<think>"]
    assert [tags.opening for tags in find_tags(CHANNELS, spelled)] == ["<|channel|>"]
    assert set(find_tags("", tokenizers["special"])) >= set(PAIRS)
    spelled.response_template = {"fields": {"reasoning_content": {"open": "<ponder>\n", "close": "</ponder>"}}}
    try:
        assert find_tags(PLAIN, spelled) == (Tags("<ponder>", "</ponder>"),)
    finally:
        del spelled.response_template


# What is done with them


def test_a_reply_is_without_its_thought(thinker: Model) -> None:
    prompt = prompt_of(thinker)
    reply = complete(thinker, [prompt], sampling=Sampling(40))[0]
    said = tokens_of(thinker, SAID)
    assert (reply.thought, reply.text) == ("You are helpful.", "I will not")
    assert [*reply.prompt, *reply.tokens] == [*prompt, *said]
    assert reply.n_thought == len(said) - len(reply.tokens) == said.index(tokens_of(thinker, "</think>")[0]) + 1
    assert not reply.unfinished


@pytest.mark.parametrize("longest", [1, 3])
def test_a_reply_that_ends_within_its_thought_is_empty(longest: int, thinker: Model) -> None:
    reply = complete(thinker, [prompt_of(thinker)], sampling=Sampling(longest))[0]
    assert reply.unfinished
    assert (reply.text, reply.tokens, reply.n_thought) == ("", (), longest)
    assert "You are helpful.".startswith(reply.thought)


def test_a_model_without_tags_has_no_thoughts(tiny: Model) -> None:
    assert tiny.thoughts == Thoughts()


def _batched(model: Model, ask: Ask) -> list[Said | Done]:
    batch = Batch(model)
    batch.add(ask)
    # Its neighbours speak at once, and must not change it nor be changed.
    for _ in range(2):
        batch.add(Ask(ask.prompt, Steering(), (), ask.sampling))
    events = []
    while batch.asks:
        batch.read()
        events += batch.speak()
    return [event for who, event in events if who is ask]


@pytest.mark.parametrize("included", [False, True])
def test_steering_begins_behind_the_thought_unless_thoughts_are_included(included: bool, thinker: Model) -> None:
    """The vector makes the model say `not` whatever came before."""
    will, non = tokens_of(thinker, " will")[0], tokens_of(thinker, " not")[0]
    steering = Steering((Term(jump(thinker, will)),))
    model = thinker.with_thinking(include=included)
    prompt, n = prompt_of(thinker), len(tokens_of(thinker, SAID))
    whole = tokens_of(thinker, SAID)
    thought = whole[: whole.index(tokens_of(thinker, "</think>")[0]) + 1]
    wanted = [non] * n if included else [*thought, *[non] * (n - len(thought))]
    probes = (Probe.of(make_vector("hal", thinker.fingerprint)),)
    for asked in ((), probes):
        steps = list(stream(model, [prompt, prompt], [steering, Steering()], asked, Sampling(n)))
        assert [step.token for step in steps if step.row == 0] == wanted
        assert [step.token for step in steps if step.row == 1] == whole
        events = _batched(model, Ask(prompt, steering, tuple(asked), Sampling(n)))
        assert [event.token for event in events if isinstance(event, Said)] == wanted
        assert [e.thought for e in events if isinstance(e, Said)] == [s.thought for s in steps if s.row == 0]
    reply = complete(model, [prompt], [steering], probes, Sampling(n))[0]
    assert len(reply.readout.scores) == (n if included else n - len(thought))
    again = read_tokens(model, reply.prompt, reply.tokens, probes, steering)
    assert torch.allclose(again.scores, reply.readout.scores, atol=1e-4)


def test_a_thought_that_the_prompt_opens_is_not_steered(tmp_path: Path) -> None:
    model = scripted(tmp_path, "You are helpful.</think>I will not", OPENS, added=["<think>", "</think>"])
    will, non = tokens_of(model, " will")[0], tokens_of(model, " not")[0]
    steering = Steering((Term(jump(model, will)),))
    reply = complete(model, [prompt_of(model)], [steering], sampling=Sampling(9))[0]
    assert reply.thought == "You are helpful."
    assert set(reply.tokens) == {non}


def test_a_model_that_does_not_think_this_time_is_steered_from_its_second_word_on(tmp_path: Path) -> None:
    """Whether it thinks shows in the first word, which is therefore its own."""
    model = scripted(tmp_path, "I will not", THINKS, added=["<think>", "</think>"])
    steering = Steering((Term(jump(model, tokens_of(model, " will")[0])),))
    reply = complete(model, [prompt_of(model)], [steering], sampling=Sampling(3))[0]
    assert reply.text == "I not not"


def test_channels_are_thoughts_too(tmp_path: Path) -> None:
    added = ["<|channel|>", "<|message|>", "analysis", "final"]
    said = "<|channel|>analysis<|message|>You are helpful."
    model = scripted(tmp_path, said, CHANNELS, added=added, special=True)
    reply = complete(model, [prompt_of(model)], sampling=Sampling(3))[0]
    assert reply.unfinished
    assert (reply.text, reply.n_thought) == ("", 3)
    whole = complete(model, [prompt_of(model)], sampling=Sampling(40))[0]
    assert (whole.thought, whole.text) == ("You are helpful.", "")


# Switches of templates


CHAT_LOOP = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
QWEN3 = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ c }}{% else %}{{ m['content'] }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GRANITE = (
    "{% if thinking %}<|start|>system\nRespond with your thoughts in <think></think> first.<|end|>\n{% endif %}"
    + CHAT_LOOP
    + "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + CHAT_LOOP
    + "{% if add_generation_prompt %}<|start|>assistant\n"
    + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
SKIPS = CHAT_LOOP + (
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if skip_think %}<think>\n</think>\n{% else %}<think>\n{% endif %}{% endif %}"
)
BUDGET = (
    "{% if thinking_budget is defined and thinking_budget == 0 %}<|start|>system\nDo not think.<|end|>\n{% endif %}"
    "{# <seed:think> </seed:think> #}" + PLAIN
)
EFFORT = "Reasoning: {{ reasoning_effort | default('medium') }}\n" + CHANNELS
EFFORT_OR_NONE = "Reasoning: {{ reasoning_effort | default('none') }}\n" + THINKS


@pytest.mark.parametrize(
    ("template", "name", "on", "off", "default"),
    [
        (QWEN3, "enable_thinking", True, False, "on"),
        (GRANITE, "thinking", True, False, "off"),
        (DEEPSEEK, "thinking", True, False, "off"),
        (SKIPS, "skip_think", False, True, "on"),
        (BUDGET, "thinking_budget", -1, 0, "on"),
        (EFFORT_OR_NONE, "reasoning_effort", "medium", "none", "off"),
    ],
)
def test_the_switch_of_a_template_is_seen_by_what_it_does(
    template: str, name: str, on: Any, off: Any, default: str, with_template: Any
) -> None:
    model = with_template(template)
    switch = model.template.switch
    assert (switch.name, switch.on, switch.off, switch.default) == (name, on, off, default)
    assert model.thinking == "auto"
    texts = {}
    for mode in ("on", "off", "auto"):
        changed = model.with_thinking(mode)
        assert changed.thinking == mode
        texts[mode] = changed.render(USER)
    assert texts["on"] != texts["off"]
    assert texts["auto"] == texts[default] == model.render(USER)
    assert model.with_thinking("off").with_thinking("auto").render(USER) == model.render(USER)


@pytest.mark.parametrize("template", [PLAIN, THINKS, OPENS, CHANNELS, EFFORT, "Thinking and reasoning. " + PLAIN, None])
def test_a_template_without_a_switch_says_so_in_one_line(template: str | None, with_template: Any) -> None:
    model = with_template(template)
    assert model.with_thinking("auto").render(USER) == model.render(USER)
    for mode in ("on", "off"):
        with pytest.raises(ModelError, match="no switch for thinking") as raised:
            model.with_thinking(mode)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="did you mean on"):
        model.with_thinking("onn")


def test_steering_waits_only_where_a_thought_is_expected(with_template: Any) -> None:
    def waits(model: Model) -> bool:
        return not model.thoughts.follow(model.tokenizer, model.chat_tokens(USER)).steered

    assert not waits(with_template(PLAIN))
    assert waits(with_template(THINKS))
    assert waits(with_template(OPENS))
    assert waits(with_template(CHANNELS))
    for template, by_itself in [(QWEN3, True), (GRANITE, False), (DEEPSEEK, False), (SKIPS, True), (BUDGET, True)]:
        model = with_template(template)
        assert waits(model.with_thinking("on"))
        assert not waits(model.with_thinking("off"))
        assert waits(model) is by_itself
        assert not waits(model.with_thinking(include=True))


def test_measuring_is_without_thoughts_where_there_is_a_switch_and_nobody_has_said_otherwise(
    with_template: Any,
) -> None:
    model = with_template(QWEN3)
    assert model.for_measuring().thinking == "off"
    assert "switched off for measuring (enable_thinking)" in model.notes[-1]
    for unchanged in (model.with_thinking("on"), model.with_thinking("off"), model.with_thinking(include=True)):
        assert unchanged.for_measuring() is unchanged
    for template in (PLAIN, THINKS, GRANITE, None):
        plain = with_template(template)
        assert plain.for_measuring() is plain
