"""The chat with dials, driven by keys and mouse on the tiny model."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import make_vector
from stage import Stage, notices, replies, saved
from textual.widgets import Input

from steerkit.models import Model
from steerkit.tui.session import Plan
from steerkit.tui.transcript import Transcript
from steerkit.vectors import vector_path


def test_a_reply_is_what_generate_says_and_is_kept(play: Any, plan: Plan, talker: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        reply = stage.session.chat.said[-1]
        assert reply.tokens == replies(talker, "Who are you?", "0.5 hal")
        assert reply.probes == ("hal", "warmth")
        assert len(set(reply.tokens)) > 2
        assert [said.content for said in saved(plan).said] == ["Who are you?", reply.content]
        assert saved(plan).said[-1].scores_on("hal") == pytest.approx(reply.scores_on("hal"), abs=1e-4)

    play(script)


def test_a_dial_turned_mid_reply_changes_the_rest_and_nothing_before(play: Any, plan: Plan, talker: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("What do you think of people?")
        await stage.hear(6)
        before = [heard.text for heard in stage.session.live.heard]  # type: ignore[union-attr]
        stage.dial("hal").focus()
        await stage.press("right", "right", "right", "right", "right")
        await stage.hear(1)
        await stage.finish()
        reply = saved(plan).said[-1]
        steady = replies(talker, "What do you think of people?", "0.5 hal")
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
    play: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch, talker: Model
) -> None:
    def made(_model: Model, pair: Any, progress: Any) -> Any:
        progress("extract", 1, 2)
        return make_vector(pair.name, talker.fingerprint, 7)

    monkeypatch.setattr("steerkit.extraction.extract", made)

    async def script(stage: Stage) -> None:
        await stage.press("f4", *"detective")
        await stage.until(lambda: "no vector yet" in stage.screen())
        await stage.press("enter")
        await stage.until(lambda: "detective" in stage.session.desk.names)
        assert vector_path("detective", talker.name).is_file()

    play(script)
    plan.steer = "1 poet"

    async def asked(stage: Stage) -> None:
        await stage.until(lambda: "no vector of poet" in stage.screen())
        await stage.press("y")
        await stage.until(lambda: str(stage.session.desk.steering) == "1 poet")

    play(asked, ready=False)


def test_compare_says_both_replies_in_one_pass(play: Any, plan: Plan, talker: Model) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        await stage.press("f2")
        await stage.finish()
        reply = saved(plan).said[-1]
        assert reply.tokens == replies(talker, "Who are you?", "0.5 hal")
        assert reply.unsteered is not None
        assert reply.unsteered.tokens == replies(talker, "Who are you?", "")
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
