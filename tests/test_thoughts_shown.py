"""Thoughts on every surface: files of chats, commands, the chat, the server, extraction and engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from elsewhere import LocalEngine
from scripted import jump, save_scripted
from serving import BODY, Live, create, fault, live
from stage import new_plan, staged
from test_thinking import OPENS, QWEN3, SAID, THINKS, USER, prompt_of, tokens_of
from typer.testing import CliRunner

from steerkit.chats import Chat, Said, load_chat, markdown, read_chats, stream_chats
from steerkit.cli import app
from steerkit.errors import SteerkitError
from steerkit.extraction import Recipe, contrasts, extract
from steerkit.generation import Probe, Sampling, complete, read_chat, stream
from steerkit.lessons import read_lessons, to_samples
from steerkit.loading import load_model
from steerkit.measures import write_texts
from steerkit.models import Model, pad_left
from steerkit.personas import Pair, Persona
from steerkit.plots.pages import chat_html
from steerkit.steering import Steering, Term
from steerkit.vectors import vector_path

TAGS = ["<think>", "</think>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks before it speaks, with a template that could keep it from that."""
    return save_scripted(tmp_path_factory.mktemp("models") / "thinker", SAID, QWEN3, added=TAGS)


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Model:
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that nothing keeps from it."""
    path = save_scripted(tmp_path_factory.mktemp("models") / "always", SAID, THINKS, added=TAGS)
    return load_model(str(path), device="cpu")


# Files


CONTENT, THOUGHT = "I am a helpful assistant.", "people ask"
REPLIES: list[dict[str, Any]] = [
    {"content": CONTENT, "thought": THOUGHT},
    {"content": CONTENT, "reasoning_content": THOUGHT},
    {"content": CONTENT, "reasoning": THOUGHT},
    {"content": CONTENT, "thinking": THOUGHT},
    {"content": f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}"},
    {"content": f"{THOUGHT}\n</think>\n\n{CONTENT}"},
    {"content": f"[THINK]{THOUGHT}[/THINK]{CONTENT}"},
    {"content": f"<seed:think>{THOUGHT}</seed:think>{CONTENT}"},
    {
        "content": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{CONTENT}"
    },
    {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": CONTENT}]},
    {"content": [{"type": "reasoning", "text": THOUGHT}, {"type": "text", "text": CONTENT}]},
]


@pytest.mark.parametrize("reply", REPLIES, ids=str)
def test_every_reader_finds_a_thought_and_keeps_it_apart(reply: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "Who? <think>"}, {"role": "assistant", **reply}]
    path.write_text(json.dumps({"messages": chat}) + "\n")
    wanted = [
        {"role": "user", "content": "Who? <think>"},
        {"role": "assistant", "content": CONTENT, "thought": THOUGHT},
    ]
    assert read_chats(path) == [wanted]
    assert list(stream_chats(path)) == [(1, wanted)]
    if isinstance(reply["content"], str):
        lines = [{"steerkit": "chat", "format": 1, "model": "m", "steer": ""}, *chat]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found, notice = load_chat(path)
        assert notice == ""
        assert [(said.content, said.thought) for said in found.said] == [("Who? <think>", ""), (CONTENT, THOUGHT)]
        assert read_chats(path) == [wanted]


def test_a_thought_may_be_a_message_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "channels.jsonl"
    parts = [("analysis", "people ask"), ("commentary", "and ask"), ("final", CONTENT)]
    chat = [{"role": "user", "content": "Who?"}]
    chat += [{"role": "assistant", "channel": channel, "content": text} for channel, text in parts]
    path.write_text(json.dumps({"messages": chat}) + "\n")
    wanted = {"role": "assistant", "content": CONTENT, "thought": "people ask\nand ask"}
    assert read_chats(path)[0][1:] == [wanted]
    assert next(stream_chats(path))[1][1:] == [wanted]


def test_a_saved_chat_comes_back_with_its_thoughts_and_its_lines_without_any_are_as_before(tmp_path: Path) -> None:
    reply = Said("assistant", CONTENT, ((0, ""),), ("hal",), ("I", " am"), ((0.5,), (1.0,)), thought="people <ask>")
    chat = Chat("m", (Said("user", "Who?"), reply, Said("user", "And?"), Said("assistant", "Yes.")))
    chat.save(tmp_path / "chat.jsonl")
    assert load_chat(tmp_path / "chat.jsonl") == (chat, "")
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert lines[2]["thought"] == "people <ask>"
    assert lines[4] == {"role": "assistant", "content": "Yes."}
    assert chat.messages()[1] == {"role": "assistant", "content": CONTENT}
    assert "<summary>thought, 2 words</summary>" in markdown(chat)
    page = chat_html(chat)
    assert "<summary>thought, 2 words</summary><p>people &lt;ask&gt;</p></details>" in page


@pytest.mark.parametrize("template", [QWEN3, OPENS, THINKS])
def test_chats_whose_template_strips_old_thoughts_are_read_and_gone_on_with(
    template: str, thinker: Model, tmp_path: Path
) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(thinker.tokenizer)
    tokenizer.chat_template = template
    model = replace(thinker, tokenizer=tokenizer)
    path = tmp_path / "chat.jsonl"
    turns = [("user", "Who?"), ("assistant", "<think>\nThey ask.\n</think>\n\nI am."), ("user", "Why?")]
    turns += [("assistant", "<think>\nHm.\n</think>\n\nI will not."), ("user", "So?")]
    head = {"steerkit": "chat", "format": 1, "model": "m", "steer": ""}
    lines = [head, *({"role": role, "content": content} for role, content in turns)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    probes = [Probe.of(make_vector("hal", model.fingerprint))]
    (messages,) = read_chats(path)
    read = read_chat(model, messages[:-1], probes)
    assert ["".join(turn.readout.tokens) for turn in read] == ["Who?", "I am.", "Why?", "I will not."]
    chat, _ = load_chat(path)
    fitted, tokens = chat.fitted(model, 20)
    assert [said.thought for said in fitted.said] == ["", "They ask.", "", "Hm.", ""]
    assert complete(model, [tokens], sampling=Sampling(20))[0].text == "I will not"
    assert "They ask." not in model.tokenizer.decode(tokens)


def test_what_is_trained_is_the_reply_without_the_thought(thinker: Model, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [{"messages": [*USER, {"role": "assistant", **reply}]} for reply in REPLIES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = replace(thinker, notes=[])
    for sample in to_samples(model, read_lessons(path), path):
        learned = model.tokenizer.decode(sample.reply)
        assert CONTENT in learned
        assert THOUGHT not in learned
    assert model.notes == [f"{len(REPLIES)} of {len(REPLIES)} replies have a thought before them; only the replies are "
                           "learned"]  # fmt: skip


# Commands


def command(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def generated(folder: Path, *arguments: str) -> dict[str, Any]:
    options = ["-m", str(folder), "--device", "cpu", "--temperature", "0"]
    return json.loads(command("generate", "Who?", *options, "--json", *arguments).stdout)


def test_generate_folds_a_thought_and_gives_it_as_json(folder: Path, workplace: Path) -> None:
    shown = command("generate", "Who?", "-m", str(folder), "--device", "cpu", "--temperature", "0")
    n_thought = len(SAID.partition("</think>")[0]) and generated(folder)["n_thought"]
    assert f"▸ thought, {n_thought} tokens\nI will not\n" in shown.stdout
    assert "helpful" not in shown.stdout
    reply = generated(folder)
    assert (reply["reply"], reply["thought"], reply["unfinished"]) == ("I will not", "You are helpful.", False)
    assert "".join(token["text"] for token in reply["tokens"]) == "I will not"
    assert reply["n_tokens"] == len(reply["tokens"])


def test_generate_tells_in_one_line_that_a_reply_ended_within_its_thought(folder: Path, workplace: Path) -> None:
    result = command("generate", "Who?", "-m", str(folder), "--device", "cpu", "--max-tokens", "3")
    assert "the reply ended within its thought, so it is empty" in result.stderr
    assert "helpful" not in result.stdout
    reply = generated(folder, "--max-tokens", "3")
    assert (reply["reply"], reply["tokens"], reply["scores"], reply["unfinished"]) == ("", [], {}, True)


def test_several_replies_and_pages_fold_thoughts_too(folder: Path, workplace: Path) -> None:
    vector = jump(load_model(str(folder), device="cpu"), 70)
    vector.save(vector_path("hal", "thinker"))
    options = ["-m", str(folder), "--device", "cpu", "-s", "1 hal", "--compare"]
    result = command("generate", "Who?", *options, "-o", "page.html")
    assert result.stdout.count("▸ thought,") == 2
    assert Path("page.html").read_text().count('<details class="thought">') == 2


def test_thinking_is_switched_and_thoughts_are_steered_as_asked(folder: Path, thinker: Model, workplace: Path) -> None:
    jump(thinker, tokens_of(thinker, " will")[0]).save(vector_path("hal", thinker.name))
    assert generated(folder, "-s", "1 hal")["thought"] == "You are helpful."
    assert "thought" not in generated(folder, "-s", "1 hal", "--steer-thoughts", "--max-tokens", "4")
    assert (
        generated(folder, "-s", "1 hal", "--steer-thoughts", "--max-tokens", "4")["reply"]
        == " not".strip() + " not" * 3
    )
    assert "thought" not in generated(folder, "-s", "1 hal", "--thinking", "off", "--max-tokens", "4")
    assert generated(folder, "--thinking", "on")["thought"] == "You are helpful."


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Who?"], ["read", "I am.", "-p", "hal"], ["extract", "hal"], ["eval", "hal", "-s", "1 hal"],
        ["sweep", "hal"], ["serve", "--port", "0"], ["screen", "x.jsonl", "-p", "hal", "-o", "y.jsonl"],
    ],
)  # fmt: skip
def test_a_template_without_a_switch_is_an_error_in_one_line_everywhere(
    arguments: list[str], tiny_folder: Path, tiny: Model, workplace: Path
) -> None:
    make_vector("hal", tiny.fingerprint).save(vector_path("hal", tiny.name))
    Path("x.jsonl").write_text(json.dumps({"messages": [*USER, {"role": "assistant", "content": "I am."}]}) + "\n")
    result = CliRunner().invoke(app, [*arguments, "-m", str(tiny_folder), "--thinking", "on"])
    assert result.exit_code == 1
    assert "no switch for thinking" in str(result.exception)
    wrong = CliRunner().invoke(app, [*arguments, "-m", str(tiny_folder), "--thinking", "maybe"])
    assert wrong.exit_code == 1
    assert "maybe" in str(wrong.exception)


def test_read_takes_a_text_with_its_thought(folder: Path, thinker: Model, workplace: Path) -> None:
    make_vector("hal", thinker.fingerprint).save(vector_path("hal", thinker.name))
    options = ["-p", "hal", "-m", str(folder), "--device", "cpu"]
    result = json.loads(command("read", f"<think>{THOUGHT}</think>{CONTENT}", *options, "--json").stdout)
    assert result["thought"] == THOUGHT
    assert "".join(token["text"] for token in result["tokens"]) == CONTENT
    Path("chats.jsonl").write_text(json.dumps([*USER, {"role": "assistant", **REPLIES[1]}]) + "\n")
    turns = json.loads(command("read", "chats.jsonl", *options, "--json").stdout)["turns"]
    assert [turn.get("thought") for turn in turns] == [None, THOUGHT]
    assert "▸ thought, 2 words" in command("read", "chats.jsonl", *options).stdout


# Measuring


PAIR = Pair(
    Persona("robot", "", ("You are a robot.",), ("Who are you?", "Why?")), Persona("cat", "", ("You purr.",), ("Who?",))
)


def test_only_replies_are_extracted(always: Model) -> None:
    """Each token counts only behind the thought: the mean is that of an own pass over the same text."""
    part = next(iter(contrasts(always, PAIR, Recipe(max_tokens=30))))
    assert part.replies
    for (positive, _), state in zip(part.replies, part.positive, strict=True):
        assert positive.thought == "You are helpful."
        assert positive.text == "I will not"
        tokens, mask = pad_left([[*positive.prompt, *positive.tokens]], always.device)
        pool = torch.zeros_like(mask).bool()
        pool[:, len(positive.prompt) :] = True
        assert torch.allclose(always.residuals(tokens, mask, pool)[0], state, atol=1e-4)


def test_thoughts_are_switched_off_for_measuring_and_it_is_told(thinker: Model) -> None:
    model = replace(thinker, notes=[])
    vector = extract(model, PAIR, Recipe(reading="prompt"))
    assert vector.provenance["template_variables"] == {"enable_thinking": False}
    assert any("switched off for measuring" in note for note in model.notes)
    asked = extract(model.with_thinking("on"), PAIR, Recipe(reading="prompt"))
    assert asked.provenance["template_variables"] == {"enable_thinking": True}


def test_where_every_reply_ends_within_its_thought_nothing_is_measured(always: Model) -> None:
    with pytest.raises(SteerkitError, match="came out of their thoughts in 3 tokens") as raised:
        extract(always, PAIR, Recipe(max_tokens=3))
    assert "\n" not in str(raised.value)
    with pytest.raises(SteerkitError, match="every reply of .* ended within its thought"):
        write_texts(always, [prompt_of(always)], [Steering()], 3)
    included = always.with_thinking(include=True)
    assert extract(included, PAIR, Recipe(max_tokens=3)).provenance["include_thoughts"] is True


def test_the_cost_of_steering_is_read_in_the_reply_behind_the_thought(always: Model) -> None:
    steering = Steering((Term(jump(always, tokens_of(always, " will")[0])),))
    plain, steered = write_texts(always, [prompt_of(always)], [Steering(), steering], 30)
    assert plain.replies == ("I will not",)
    assert float(plain.divergences.abs().max()) < 1e-4
    assert set(steered.replies[0].split()) == {"not"}
    assert float(steered.divergences.max()) > 0.1


def test_an_engine_steers_behind_the_thought_as_this_process_does(always: Model) -> None:
    steering = Steering((Term(jump(always, tokens_of(always, " will")[0])),))
    elsewhere = replace(always, engine=LocalEngine(always))
    probes = [Probe.of(make_vector("hal", always.fingerprint))]
    for model in (elsewhere, elsewhere.with_thinking(include=True)):
        here = replace(always, include_thoughts=model.include_thoughts)
        prompts, steerings = [prompt_of(always)] * 2, [steering, Steering()]
        for longest in (3, 12):
            sampling = Sampling(longest)
            theirs, ours = (list(stream(m, prompts, steerings, probes, sampling)) for m in (model, here))
            assert [(s.row, s.token, s.text, s.thought) for s in sorted(theirs, key=lambda s: s.row)] == [
                (s.row, s.token, s.text, s.thought) for s in sorted(ours, key=lambda s: s.row)
            ]


# The chat


def test_the_chat_folds_thoughts_keeps_them_and_unfolds_them_with_a_key(
    thinker: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script() -> None:
        plan = new_plan(thinker, tmp_path, "")
        async with staged(plan, monkeypatch) as stage:
            await stage.until(lambda: stage.session.model is not None)
            await stage.say("Who?")
            await stage.finish()
            assert "▸ thought, 3 words" in stage.screen()
            assert "helpful" not in stage.screen()
            await stage.press("f9")
            assert "▾ thought, 3 words" in stage.screen()
            assert "You are helpful." in stage.screen()
            reply = stage.session.chat.said[-1]
            assert (reply.content, reply.thought) == ("I will not", "You are helpful.")
            assert "".join(reply.tokens) == "I will not"
        assert load_chat(plan.kept)[0].said[-1].thought == "You are helpful."

    asyncio.run(asyncio.wait_for(script(), 120))


# The server


@pytest.fixture(scope="module")
def served(thinker: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("served"))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        jump(thinker, tokens_of(thinker, " will")[0]).save(vector_path("hal", thinker.name))
        with live(thinker) as server:
            yield server


def test_the_server_gives_thoughts_as_reasoning_content(served: Live) -> None:
    reply = create(served, "", max_tokens=40, extra={"read": ["hal"]})
    message = reply.choices[0].message
    assert (message.content, message.reasoning_content) == ("I will not", "You are helpful.")
    assert reply.usage.completion_tokens_details.reasoning_tokens > 3
    assert "".join(token["text"] for token in reply.choices[0].steerkit["tokens"]) == "I will not"
    chunks = list(create(served, "", max_tokens=40, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "You are helpful."
    assert "".join(delta.content or "" for delta in deltas) == "I will not"
    first = next(i for i, delta in enumerate(deltas) if delta.content)
    assert not any(getattr(delta, "reasoning_content", None) for delta in deltas[first:])


def test_a_stop_text_and_log_probabilities_are_about_the_reply(served: Live) -> None:
    reply = create(served, "", max_tokens=40, stop=["are", " not"], logprobs=True)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("I will", "stop")
    assert "".join(entry.token for entry in reply.choices[0].logprobs.content).startswith("I will")


def test_a_request_says_whether_it_is_thought_and_whether_thoughts_are_steered(served: Live) -> None:
    def content(**fields: Any) -> str:
        return served.post({**BODY, "max_tokens": 40, "steer": "1 hal", **fields}).json()["choices"][0]["message"]

    assert content()["reasoning_content"] == "You are helpful."
    assert content(thinking="on")["reasoning_content"] == "You are helpful."
    for off in ({"thinking": "off"}, {"thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert "reasoning_content" not in content(**off)
    assert "reasoning_content" not in content(steer_thoughts=True)
    wrong = served.post({**BODY, "chat_template_kwargs": {"tools": []}})
    assert wrong.status_code == 400
    assert served.post({**BODY, "thinking": "maybe"}).status_code == 400


def test_a_reply_within_its_thought_is_empty_and_the_client_is_told(served: Live) -> None:
    reply = served.post({**BODY, "max_tokens": 3}).json()
    message = reply["choices"][0]["message"]
    assert (message["content"], reply["choices"][0]["finish_reason"]) == ("", "length")
    assert "You are helpful.".startswith(message["reasoning_content"])
    assert any("ended within its thought" in warning for warning in reply["steerkit"]["warnings"])
    streamed = served.post({**BODY, "max_tokens": 3, "stream": True}).text
    assert "ended within its thought" in streamed


def test_a_server_whose_model_has_no_switch_says_so(always: Model) -> None:
    with live(always) as server:
        answer = server.post({**BODY, "thinking": "off"})
        assert answer.status_code == 400
        assert "no switch for thinking" in fault(answer)["message"]
        assert fault(answer)["param"] == "thinking"
