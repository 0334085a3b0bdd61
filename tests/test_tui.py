"""The chat with dials, driven by keys and mouse on the tiny model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model
from stage import Stage, new_plan, saved, staged
from textual.widgets import Input

from steerkit.chats import Chat, Said, load_chat
from steerkit.generation import Sampling, complete
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.steering import Steering
from steerkit.tui.session import Plan
from steerkit.tui.transcript import Transcript
from steerkit.vectors import VectorSet, vector_path

LIMITS = {"limit": 1.2, "limit_below": -0.8, "place": [1, 4], "thresholds": {"p75": 0.3, "p25": -0.3}}

Script = Callable[[Stage], Awaitable[None]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model that never says a token without text, and so never ends."""
    model = load_model(str(save_model(tmp_path_factory.mktemp("models") / "tiny")), device="cpu")
    texts = [model.tokenizer.decode([token]) for token in range(model.original.config.vocab_size)]
    silent = [not (text.isascii() and text.isprintable() and text.strip()) for text in texts]
    with torch.no_grad():
        model.original.lm_head.weight[torch.tensor(silent)] = 0.0
    return model


@pytest.fixture
def plan(tiny: Model, workplace: Path) -> Plan:
    """A plan beside whose chat three vectors lie, of which one is calibrated."""
    for seed, name in enumerate(("hal", "warmth", "pirate")):
        vector = make_vector(name, tiny.fingerprint, seed)
        replace(vector, evidence=LIMITS if name == "hal" else {}).save(vector_path(name, tiny.name))
    return new_plan(tiny, workplace)


@pytest.fixture
def play(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script once the dials are there."""

    def run(script: Script, size: tuple[int, int] = (110, 30), ready: bool = True) -> None:
        async def whole() -> None:
            async with staged(plan, monkeypatch, size) as stage:
                if ready:
                    await stage.until(lambda: stage.session.reads or not plan.steer)
                await script(stage)

        asyncio.run(whole())

    return run


def replies(model: Model, question: str, steer: str, n_tokens: int = 24) -> tuple[str, ...]:
    """What `generate` says."""
    prompt = model.chat_tokens([{"role": "user", "content": question}])
    steering = Steering.parse(steer, VectorSet(model.fingerprint)) if steer else Steering()
    return complete(model, [prompt], [steering], sampling=Sampling(n_tokens))[0].readout.tokens


def test_a_reply_is_what_generate_says_and_is_kept(play: Any, plan: Plan, tiny: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        reply = stage.session.chat.said[-1]
        assert reply.tokens == replies(tiny, "Who are you?", "0.5 hal")
        assert reply.probes == ("hal", "warmth")
        assert len(set(reply.tokens)) > 2
        assert [said.content for said in saved(plan).said] == ["Who are you?", reply.content]
        assert saved(plan).said[-1].scores_on("hal") == pytest.approx(reply.scores_on("hal"), abs=1e-4)

    play(script)


def test_a_dial_turned_mid_reply_changes_the_rest_and_nothing_before(play: Any, plan: Plan, tiny: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("What do you think of people?")
        await stage.hear(6)
        before = [heard.text for heard in stage.session.live.heard]  # type: ignore[union-attr]
        stage.dial("hal").focus()
        await stage.press("right", "right", "right", "right", "right")
        await stage.hear(1)
        await stage.finish()
        reply = saved(plan).said[-1]
        steady = replies(tiny, "What do you think of people?", "0.5 hal")
        assert [text for _, text in reply.steer] == ["0.5 hal", "1 hal"]
        place = reply.steer[1][0]
        assert place in (7, 8)
        assert list(reply.tokens[:6]) == before
        assert reply.tokens[:place] == steady[:place]
        assert reply.tokens[place:] != steady[place:]
        assert "▸" in stage.screen()

    play(script)


def test_keys_turn_mute_solo_reset_and_remove(play: Any) -> None:
    async def script(stage: Stage) -> None:
        def steering() -> str:
            return str(stage.session.desk.steering)

        stage.dial("hal").focus()
        await stage.press("right", "shift+right")
        assert steering() == "0.62 hal"
        await stage.press("down", "left", "left")
        assert steering() == "0.62 hal - 0.2 warmth"
        await stage.press("s")
        assert steering() == "-0.2 warmth"
        await stage.press("s", "up", "m")
        assert steering() == "-0.2 warmth"
        await stage.press("m", "0")
        assert steering() == "-0.2 warmth"
        await stage.press("down", "x")
        assert steering() == ""
        assert stage.session.desk.names == ["hal"]
        assert [view.called for view in stage.app.query("DialView")] == ["hal"]  # type: ignore[attr-defined]

    play(script)


def test_ctrl_up_turns_the_dial_while_one_writes(play: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.app.query_one("#message").focus()
        await stage.press(*"why", "ctrl+up", "ctrl+up", "ctrl+down", *"?")
        assert stage.app.query_one("#message", Input).value == "why?"
        assert str(stage.session.desk.steering) == "0.6 hal"

    play(script)


def test_the_mouse_puts_the_handle_and_the_wheel_turns(play: Any) -> None:
    async def script(stage: Stage) -> None:
        view = stage.dial("hal")
        await stage.pilot.click(view, offset=(view.size.width - 1, 1))
        assert stage.session.desk["hal"].value == pytest.approx(stage.session.desk["hal"].reach)
        await stage.pilot.click(view, offset=(view.size.width // 2, 1))
        assert abs(stage.session.desk["hal"].value) <= 0.1
        await stage.pilot.mouse_down(view, offset=(3, 1))
        await stage.pilot.hover(view, offset=(8, 1))
        await stage.pilot.mouse_up(view, offset=(8, 1))
        assert -1.5 < stage.session.desk["hal"].value < -0.3

    play(script)


def test_the_limit_is_drawn_and_past_it_the_dial_is_marked(play: Any) -> None:
    async def script(stage: Stage) -> None:
        assert "▒" in str(stage.dial("hal").render())
        assert "▒" not in str(stage.dial("warmth").render())
        stage.dial("hal").focus()
        await stage.press(*["right"] * 9)
        assert stage.session.desk["hal"].past_limit
        assert any(
            "red" in str(span.style) and "dim" not in str(span.style) for span in stage.dial("hal").render().spans
        )

    play(script)


def test_operators_and_layers_are_a_dials_own(play: Any) -> None:
    async def script(stage: Stage) -> None:
        stage.dial("hal").focus()
        await stage.press("o", "o", "o", "o")
        assert str(stage.session.desk.steering) == "cap(hal, 0.3)"
        await stage.press("o", "o", "l")
        stage.app.screen.query_one(Input).value = "2-5"
        await stage.press("enter")
        await stage.press("right")
        assert str(stage.session.desk.steering) == "0.1 hal @2-5"
        await stage.press("l")
        stage.app.screen.query_one(Input).value = "4-99"
        await stage.press("enter")
        assert "out of range" in notices(stage)
        assert stage.session.desk["hal"].layers == (2, 5)

    play(script)


def notices(stage: Stage) -> str:
    return " / ".join(notice.message for notice in stage.app._notifications)


def test_a_dial_is_added_from_the_library_while_talking(play: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(3)
        await stage.press("f4", *"pira", "enter")
        assert stage.session.desk.names == ["hal", "warmth", "pirate"]
        await stage.press("right")
        assert str(stage.session.desk.steering) == "0.5 hal + 0.1 pirate"
        await stage.hear(2)
        assert stage.session.live is not None
        assert stage.session.live.steer[-1][1] == "0.5 hal + 0.1 pirate"
        await stage.finish()

    play(script)


def test_a_vector_that_is_not_there_is_made_with_progress(
    play: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch, tiny: Model
) -> None:
    def made(_model: Model, pair: Any, progress: Any) -> Any:
        progress("extract", 1, 2)
        return make_vector(pair.name, tiny.fingerprint, 7)

    monkeypatch.setattr("steerkit.extraction.extract", made)

    async def script(stage: Stage) -> None:
        await stage.press("f4", *"detective")
        await stage.until(lambda: "no vector yet" in stage.screen())
        await stage.press("enter")
        await stage.until(lambda: "detective" in stage.session.desk.names)
        assert vector_path("detective", tiny.name).is_file()

    play(script)
    plan.steer = "1 poet"

    async def asked(stage: Stage) -> None:
        await stage.until(lambda: "no vector of poet" in stage.screen())
        await stage.press("y")
        await stage.until(lambda: str(stage.session.desk.steering) == "1 poet")

    play(asked, ready=False)


def test_compare_says_both_replies_in_one_pass(play: Any, plan: Plan, tiny: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        await stage.press("f2")
        await stage.finish()
        reply = saved(plan).said[-1]
        assert reply.tokens == replies(tiny, "Who are you?", "0.5 hal")
        assert reply.unsteered is not None
        assert reply.unsteered.tokens == replies(tiny, "Who are you?", "")
        assert "│" in stage.screen()
        assert len(stage.session.chat.said) == 2

    play(script)


def test_a_chosen_reply_is_said_again_and_what_came_after_goes(play: Any) -> None:
    async def script(stage: Stage) -> None:
        for text in ("Who are you?", "Why?"):
            await stage.say(text)
            await stage.finish()
        first = stage.session.chat.said[1]
        stage.app.query_one(Transcript).focus()
        await stage.press("up", "up", "up", "r")
        await stage.finish()
        assert [said.role for said in stage.session.chat.said] == ["user", "assistant"]
        assert stage.session.chat.said[1].tokens == first.tokens

    play(script)


def test_the_floor_holds_every_score_at_its_threshold(play: Any, plan: Plan) -> None:
    plan.steer = "2 hal"

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(4)
        stage.app.query_one("#message").focus()
        await stage.press("f3")
        await stage.hear(1)
        await stage.finish()
        reply = saved(plan).said[-1]
        place = reply.steer[1][0]
        scores = reply.scores_on("hal")
        assert reply.steer[1][1] == "2 hal + cap(hal, 0.3)"
        assert max(scores[: place - 1]) > 0.5
        assert max(scores[place:]) <= 0.3 + 1e-3
        assert "held: cap(hal, 0.3)" in stage.screen()

    play(script)


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


def test_what_is_written_while_the_model_loads_is_answered_when_it_is_there(play: Any, plan: Plan, tiny: Model) -> None:
    import threading

    arrived = threading.Event()

    def load(_tell: Any) -> Model:
        arrived.wait(20)
        return tiny

    plan.load = load

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        assert "loading the model" in stage.screen()
        assert stage.session.chat.said == ()
        arrived.set()
        await stage.finish()
        await stage.until(lambda: len(stage.session.chat.said) == 2)

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


def test_a_vector_of_another_model_ends_with_one_line(play: Any, plan: Plan, tiny: Model) -> None:
    other = replace(tiny.fingerprint, behaviour=tuple(tuple(x + 1 for x in row) for row in tiny.fingerprint.behaviour))
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


def test_ctrl_c_stops_a_reply_and_leaves_when_pressed_twice(play: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(2)
        await stage.press("ctrl+c")
        await stage.hear(2)
        await stage.until(lambda: not stage.session.live)
        await stage.press("ctrl+c")
        assert stage.app.is_running
        await stage.press("ctrl+c")
        await stage.until(lambda: stage.app._exit)

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
