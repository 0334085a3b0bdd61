"""The chat with dials when something goes wrong, and what it keeps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector
from stage import Stage, notices, saved
from textual.widgets import Input

from steerkit.chats import Chat, Said, load_chat
from steerkit.models import Model
from steerkit.tui.session import Plan
from steerkit.vectors import load_vector, vector_path


def test_escape_stops_at_once_and_keeps_what_was_said(play: Any, plan: Plan) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(3)
        await stage.press("escape")
        await stage.hear(2)
        await stage.until(lambda: not stage.session.live)
        assert 3 <= len(saved(plan).said[-1].tokens) <= 4
        await stage.say("And now?")
        await stage.finish()
        assert len(saved(plan).said) == 4

    play(script)


def test_a_broken_model_loses_nothing_and_the_chat_goes_on(play: Any, plan: Plan) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(3)
        stage.gate.broken = MemoryError("no memory left")
        await stage.until(lambda: not stage.session.live)
        assert "no memory left" in notices(stage)
        assert len(saved(plan).said[-1].tokens) == 3
        stage.gate.broken = None
        await stage.say("Are you well?")
        await stage.finish()
        assert len(saved(plan).said) == 4

    play(script)


def test_a_message_past_the_context_comes_back_to_be_shortened(play: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.app.query_one("#message", Input).value = "people " * 700
        stage.app.query_one("#message").focus()
        await stage.press("enter")
        await stage.until(lambda: "shorten the prompt" in notices(stage))
        await stage.until(lambda: stage.app.query_one("#message", Input).value.startswith("people"))
        assert stage.session.chat.said == ()

    play(script)


def test_old_turns_roll_off_with_a_notice(play: Any, plan: Plan) -> None:
    plan.chat = Chat("tiny", tuple(Said(role, "people " * 30) for role in ("user", "assistant") * 8))

    async def script(stage: Stage) -> None:
        await stage.say("Why?")
        await stage.finish()
        assert stage.session.chat.forgotten > 0
        assert "no longer fit" in notices(stage)
        assert len(stage.session.chat.said) == 18

    play(script)


def test_what_is_written_while_the_model_loads_is_answered_when_it_is_there(
    play: Any, plan: Plan, talker: Model
) -> None:
    import threading

    arrived = threading.Event()

    def load(_tell: Any) -> Model:
        arrived.wait(20)
        return talker

    plan.load = load

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        assert "loading the model" in stage.screen()
        assert stage.session.chat.said == ()
        arrived.set()
        await stage.until(lambda: stage.session.busy)
        await stage.finish()
        assert [turn.role for turn in stage.session.chat.said] == ["user", "assistant"]

    play(script, ready=False)


@pytest.mark.parametrize(
    ("steer", "problem"),
    [("1 hla", "did you mean hal"), ("1 hal +", "column"), ("1 hal - 2 hal", "stands twice")],
)
def test_a_steering_that_cannot_be_ends_with_one_line(play: Any, plan: Plan, steer: str, problem: str) -> None:
    plan.steer = steer

    async def script(stage: Stage) -> None:
        await stage.until(lambda: stage.app.return_code is not None)
        assert stage.app.return_code == 1
        assert any(problem in str(message) for message in stage.app._exit_renderables)

    play(script, ready=False)


def test_a_vector_of_another_model_ends_with_one_line(play: Any, plan: Plan, talker: Model) -> None:
    other = replace(
        talker.fingerprint, behaviour=tuple(tuple(x + 1 for x in row) for row in talker.fingerprint.behaviour)
    )
    make_vector("hal", other).save("other.safetensors")
    plan.steer = "1 ./other.safetensors"

    async def script(stage: Stage) -> None:
        await stage.until(lambda: stage.app.return_code is not None)
        assert any("was made on" in str(message) for message in stage.app._exit_renderables)

    play(script, ready=False)


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.md", "chat.html"])
def test_a_chat_is_saved_as_what_its_ending_says(play: Any, workplace: Path, name: str) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        await stage.press("ctrl+s")
        stage.app.screen.query_one(Input).value = name
        await stage.press("enter")
        text = (workplace / name).read_text()
        assert "Who are you?" in text
        assert text.startswith({"jsonl": '{"steerkit"', "md": "# A chat", "html": "<!doctype"}[name.split(".")[1]])

    play(script)


def test_what_cannot_be_saved_is_said_and_nothing_is_written(play: Any, workplace: Path) -> None:
    async def script(stage: Stage) -> None:
        for name in ("chat.pdf", "/proc/no/chat.md"):
            await stage.press("ctrl+s")
            stage.app.screen.query_one(Input).value = name
            await stage.press("enter")
        assert "end it in .jsonl, .md or .html" in notices(stage)
        assert "cannot write /proc/no/chat.md" in notices(stage)
        assert not list(workplace.glob("*.pdf"))

    play(script)


def test_a_saved_chat_is_loaded_and_goes_on(play: Any, plan: Plan, workplace: Path) -> None:
    Chat("tiny", (Said("user", "Hello?"), Said("assistant", "Yes."))).save(workplace / "old.jsonl")

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        first = plan.kept
        await stage.press("ctrl+o")
        stage.app.screen.query_one(Input).value = "old.jsonl"
        await stage.press("enter")
        assert [said.content for said in stage.session.chat.said] == ["Hello?", "Yes."]
        await stage.say("Why?")
        await stage.finish()
        assert len(load_chat(first)[0].said) == 2
        assert len(saved(plan).said) == 4
        assert plan.kept != first

    play(script)


def test_the_steering_is_copied_as_an_expression_and_as_a_command(play: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.press("ctrl+y")
        assert stage.app.clipboard == "0.5 hal"
        await stage.say("It's you?")
        await stage.finish()
        stage.app.action_copy(command=True)
        assert stage.app.clipboard == """steerkit generate 'It'"'"'s you?' -s '0.5 hal'"""

    play(script)


def test_ctrl_c_stops_a_reply_and_leaves_when_pressed_twice(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(stage: Stage) -> None:
        left: list[bool] = []
        monkeypatch.setattr(stage.app, "exit", lambda: left.append(True))
        await stage.say("Who are you?")
        await stage.hear(2)
        await stage.press("ctrl+c")
        await stage.hear(2)
        await stage.until(lambda: not stage.session.live)
        await stage.press("ctrl+c")
        assert not left
        await stage.press("ctrl+c")
        assert left

    play(script)


def test_a_window_that_is_too_small_says_so(play: Any) -> None:
    async def script(stage: Stage) -> None:
        assert "make the terminal at least 60×16" in stage.screen()
        await stage.pilot.resize_terminal(80, 24)
        await stage.pilot.pause()
        assert "make the terminal" not in stage.screen()
        assert "say something" in stage.screen()

    play(script, size=(40, 10))


def test_without_colour_nothing_is_coloured(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        (colourless,) = stage.app._filters
        ground = stage.app.screen.styles.background
        strips = [strip.apply_filter(colourless, ground) for strip in stage.rows()]
        styles = [segment.style for strip in strips for segment in strip if segment.style]
        assert styles
        assert all(style.color is None and style.bgcolor is None for style in styles)
        assert any(style.underline or style.italic for style in styles)

    play(script)
    os.environ.pop("NO_COLOR", None)


def test_the_palette_knows_the_commands_and_help_the_keys(play: Any) -> None:
    async def script(stage: Stage) -> None:
        names = {command.title for command in stage.app.get_system_commands(stage.app.screen)}
        assert {"Add a dial", "Compare", "Floor", "Save", "Load", "Copy as a command"} <= names
        await stage.press("f1")
        await stage.until(lambda: "compare: the unsteered" in stage.screen())
        await stage.press("escape")
        await stage.until(lambda: "compare: the unsteered" not in stage.screen())

    play(script)


@pytest.mark.usefixtures("plan")
def test_a_dial_that_is_known_to_bring_something_along_says_so_once(play: Any, talker: Model) -> None:
    known = {"spills": [{"measured": "pirate", "shift": 0.2, "z": 3.0}]}
    path = vector_path("hal", talker.name)
    replace(load_vector(path), evidence=known).save(path)

    async def script(stage: Stage) -> None:
        await stage.until(lambda: "hal brings pirate along" in notices(stage))
        assert "hal ~ pirate" in notices(stage)
        stage.session.put(stage.session.desk)
        assert notices(stage).count("brings") == 1

    play(script)
