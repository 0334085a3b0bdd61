"""Chats: files, what fits, and what is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_model
from hypothesis import given
from hypothesis import strategies as some

from steerkit.chats import Chat, Said, load_chat, markdown, read_chats
from steerkit.errors import PromptError
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.plots.pages import chat_html

REPLY = Said(
    "assistant",
    "No, <b>never</b>.",
    ((0, "0.2 hal"), (2, "0.9 hal")),
    ("hal", "warmth"),
    ("No", ", <b>", "never</b>", "."),
    ((0.1, 1.0), (0.2, 1.0), (1.5, 1.0), (1.0, 1.0)),
)
CHAT = Chat("Tiny", (Said("system", "Be brief."), Said("user", "Shall I go?"), REPLY), "0.9 hal")
BESIDE = replace(REPLY, unsteered=replace(REPLY, content="Yes.", tokens=("Yes", "."), scores=((0.0, 1.0), (0.1, 1.0))))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(save_model(tmp_path_factory.mktemp("models") / "llama")), device="cpu")


@given(some.text(), some.floats(-1e3, 1e3), some.booleans())
def test_save_and_load_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str, score: float, beside: bool
) -> None:
    said = Said("assistant", text, ((0, ""),), ("hal",), (text, "."), ((round(score, 4),), (0.0,)))
    said = replace(said, unsteered=said) if beside else said
    chat = Chat("Tiny", (Said("user", text), said), "1 hal")
    path = tmp_path_factory.mktemp("chats") / "chat.jsonl"
    chat.save(path)
    assert load_chat(path) == (chat, "")


def test_a_file_that_was_cut_gives_back_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    CHAT.save(path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    chat, notice = load_chat(path)
    assert chat.said == CHAT.said[:-1]
    assert "cut in line 4" in notice


def test_wherever_a_file_was_cut_whole_turns_come_back(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    chat = replace(CHAT, said=(Said("user", "Schläfst du? 你好 🤖"), *CHAT.said[1:2], Said("user", "你好 🤖")))
    whole = chat.written().encode()
    head = whole.index(b"\n")
    for n_bytes in range(head, len(whole)):
        path.write_bytes(whole[:n_bytes])
        found, _ = load_chat(path)
        assert found.said == chat.said[: len(found.said)]
        assert len(found.said) >= whole[:n_bytes].count(b"\n") - 1


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    CHAT.save(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(PromptError, match="line 2 is damaged"):
        load_chat(path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"steerkit": "chat", "format": 99}', '{"messages": []}', "\x00", '{"steerkit": "chat"}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match="not a chat that steerkit saved"):
        load_chat(path)


def test_scores_that_do_not_match_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    Chat("Tiny", (REPLY, REPLY)).save(path)
    lines = path.read_text().splitlines()
    broken = json.loads(lines[1]) | {"scores": [[1.0]]}
    path.write_text("\n".join([lines[0], json.dumps(broken), lines[2]]))
    with pytest.raises(PromptError, match="do not match"):
        load_chat(path)


def test_read_understands_what_chat_saves_between_other_chats(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    other = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    path.write_text(json.dumps(other) + "\n" + CHAT.written() + json.dumps({"messages": other}) + "\n")
    assert read_chats(path) == [other, CHAT.messages(), other]


def test_a_chat_that_fits_is_whole(small: Model) -> None:
    chat = replace(CHAT, model=small.name, said=CHAT.said[:2])
    assert chat.fitted(small, 10) == (chat, small.chat_tokens(chat.messages(), 10))


def test_the_oldest_turns_go_in_one_stride_and_the_system_prompt_stays(small: Model) -> None:
    chat = Chat("Tiny", (Said("system", "Be brief."),))
    goings = 0
    for turn in range(40):
        chat = replace(chat, said=(*chat.said, Said("user", f"Question {turn} about people and their ways?")))
        before = chat.forgotten
        chat, tokens = chat.fitted(small, 20)
        assert len(tokens) + 20 <= small.context
        assert chat.messages()[0] == {"role": "system", "content": "Be brief."}
        assert chat.messages()[1]["role"] == "user"
        assert chat.messages()[-1]["content"].startswith(f"Question {turn} ")
        goings += chat.forgotten > before
        chat = replace(chat, said=(*chat.said, Said("assistant", "Well, it depends on whom you ask.")))
    assert 1 <= goings <= 20
    assert len(chat.said) == 81


def test_a_message_that_cannot_fit_says_so(small: Model) -> None:
    chat = Chat("Tiny", (Said("user", "Why?"), Said("assistant", "So."), Said("user", "people " * 600)))
    with pytest.raises(PromptError, match="shorten the prompt"):
        chat.fitted(small, 20)


def test_drift_has_a_mean_a_reply_that_was_read() -> None:
    unread = Said("assistant", "Well.")
    chat = replace(CHAT, said=(*CHAT.said, unread, REPLY))
    assert chat.drift("hal") == pytest.approx([0.7, 0.7])
    assert chat.drift("nobody") == []


def test_markdown_tells_how_each_reply_was_steered() -> None:
    text = markdown(CHAT, "hal")
    assert "**assistant** _(0.2 hal, then 0.9 hal · hal +0.70)_" in text
    assert "> Shall I go?" in text


@pytest.mark.parametrize("reply", [REPLY, BESIDE])
def test_the_page_is_one_file_that_says_everything_and_runs_nothing(reply: Said) -> None:
    page = chat_html(replace(CHAT, said=(*CHAT.said[:-1], reply)), "hal")
    assert "<b>never" not in page
    assert "never&lt;/b&gt;" in page
    assert 'title="0.9 hal"' in page
    assert "hal +0.70" in page
    assert "http" not in page
    assert ("beside" in page.split("</style>")[1]) == (reply is BESIDE)
