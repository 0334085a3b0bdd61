"""Whatever happens, what was said and where the dials stand is not lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from stage import Stage, new_plan, notices, saved
from textual import events

from steerkit.chats import Chat, Said
from steerkit.generation import Sampling
from steerkit.models import Model
from steerkit.steering import Steering
from steerkit.tui.desk import Desk
from steerkit.tui.session import Plan, Session
from steerkit.tui.transcript import Transcript


def test_leaving_in_the_middle_of_a_reply_keeps_it(play: Any, plan: Plan) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(5)

    play(script)
    assert [turn.content for turn in saved(plan).said[:1]] == ["Who are you?"]
    assert len(saved(plan).said[1].tokens) >= 5


def test_a_chat_goes_on_with_its_dials_also_at_rest_turned_later_and_held(play: Any, plan: Plan) -> None:
    async def script(stage: Stage) -> None:
        await stage.press("f3")
        await stage.say("Who are you?")
        await stage.finish()
        stage.dial("warmth").focus()
        await stage.press("right", "right")

    play(script)
    assert (saved(plan).steer, saved(plan).floor) == ("0.5 hal + 0.2 warmth", True)
    plan.chat, plan.steer = saved(plan), saved(plan).steer

    async def resumed(stage: Stage) -> None:
        assert [(dial.name, dial.value) for dial in stage.session.desk.dials] == [("hal", 0.5), ("warmth", 0.2)]
        assert stage.session.desk.floor

    play(resumed)


def test_loading_a_chat_brings_its_dials(play: Any, plan: Plan) -> None:
    other = plan.kept.with_name("other.jsonl")
    said = (Said("user", "Hi"), Said("assistant", "Hi."), Said("user", "Well?"))
    Chat("tiny", said, "-0.3 warmth + 0 hal").save(other)

    async def script(stage: Stage) -> None:
        for _ in range(2):
            await stage.say("Who are you?")
            await stage.finish()
        stage.app.query_one(Transcript).focus()
        await stage.press("up")
        await stage.app._load(str(other))
        assert str(stage.session.desk.stands) == "-0.3 warmth + 0 hal"
        # A message without an answer is there to be sent again; the turn that was chosen is gone.
        assert stage.app.query_one("#message").value == "Well?"  # type: ignore[attr-defined]
        await stage.press("f5")
        await stage.finish()

    play(script)


def test_stopping_another_try_brings_the_reply_back(play: Any, plan: Plan) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        before = stage.session.chat.said
        await stage.press("f2")
        await stage.hear(1)
        await stage.press("escape")
        await stage.hear(1)
        await stage.until(lambda: not stage.session.live)
        assert stage.session.chat.said == before

    play(script)
    assert len(saved(plan).said[1].tokens) == 24


def test_another_try_draws_other_words(play: Any, plan: Plan) -> None:
    plan.sampling = Sampling(24, temperature=2.0)

    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.finish()
        first = stage.session.chat.said[-1].tokens
        await stage.press("f5")
        await stage.finish()
        assert stage.session.chat.said[-1].tokens != first

    play(script)


def test_stopped_before_the_first_word_the_message_comes_back(play: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.press("escape")
        await stage.hear(1)
        await stage.until(lambda: not stage.session.live)
        assert stage.session.chat.said == ()
        assert stage.app.query_one("#message").value == "Who are you?"  # type: ignore[attr-defined]

    play(script)


def test_two_that_go_on_with_one_chat_do_not_overwrite_each_other(talker: Model, plan: Plan) -> None:
    chat = Chat(talker.name, (Said("user", "Hi"), Said("assistant", "Hi.")))
    chat.save(plan.kept)
    told: list[str] = []
    both = []
    for name in ("first", "second"):
        own = new_plan(talker, plan.kept.parent, chat=chat)
        session = Session(own, lambda text, _severity: told.append(text))
        both.append((name, session))
    for name, session in both:
        session.chat = replace(session.chat, said=(*session.chat.said, Said("user", name)))
        assert session.keep()
        assert session.keep()
    kept = [session.plan.kept for _, session in both]
    assert kept[0] != kept[1]
    assert ["first" in kept[0].read_text(), "second" in kept[1].read_text()] == [True, True]
    assert len(told) == 1


def test_keys_that_come_late_find_no_dial_and_break_nothing(play: Any) -> None:
    async def script(stage: Stage) -> None:
        from steerkit.tui.dials import DialView

        view = stage.dial("warmth")
        view.focus()
        await stage.press("x")
        stage.app.post_message(DialView.Turned("warmth", 0.1))
        stage.app.post_message(DialView.Changed("warmth", "mute"))
        await stage.pilot.pause()
        assert stage.session.desk.names == ["hal"]

    play(script)


def test_a_score_that_is_no_number_is_drawn_as_none(play: Any) -> None:
    async def script(stage: Stage) -> None:
        await stage.say("Who are you?")
        await stage.hear(2)
        live = stage.session.live
        live.heard[:] = [replace(heard, scores=(math.nan, math.inf)) for heard in live.heard]  # type: ignore[union-attr]
        stage.app.draw()
        await stage.press("f6")
        assert "?" in stage.screen()
        await stage.finish()

    play(script)


def test_without_the_vector_that_was_refused_it_begins_and_what_waits_is_said(play: Any, plan: Plan) -> None:
    plan.steer = "0.5 hal + 1 poet"

    async def script(stage: Stage) -> None:
        await stage.until(lambda: "no vector of poet" in stage.screen())
        await stage.press("n")
        await stage.until(lambda: "poet has no vector" in notices(stage))
        assert stage.session.laid_out
        await stage.say("Who are you?")
        await stage.finish()
        assert len(stage.session.chat.said) == 2

    play(script, ready=False)


def test_a_paste_is_taken_whole(play: Any) -> None:
    async def script(stage: Stage) -> None:
        message = stage.app.query_one("#message")
        message.focus()
        message.post_message(events.Paste("one\ntwo\nthree"))
        await stage.pilot.pause()
        assert message.value == "one two three"  # type: ignore[attr-defined]

    play(script)


def test_names_from_elsewhere_drive_neither_markup_nor_the_terminal(play: Any, plan: Plan) -> None:
    plan.chat = Chat(
        "evil [/x]", (Said("user", "Hi"), Said("assistant", "a", ((0, "\x1b]0;x\x1b\\"),), ("hal",), ("a",), ((0.0,),)))
    )

    async def script(stage: Stage) -> None:
        assert "evil [/x]" in notices(stage)
        assert "\x1b" not in stage.screen()
        assert "]0;x" in stage.screen()

    play(script)


def test_where_dials_stand_is_an_expression_that_gives_them_back(play: Any) -> None:
    async def script(stage: Stage) -> None:
        desk = stage.session.desk
        muted = desk.with_dial(replace(desk["hal"], muted=True))
        again = Desk.of(Steering.parse(muted.stands, stage.session.vectors))
        assert [(dial.name, dial.value) for dial in again.dials] == [("hal", 0.0), ("warmth", 0.0)]

    play(script)
