"""The chat's main screens look as they did when somebody last looked at them (tests/__snapshots__).

After a wanted change: pytest tests/test_tui_pictures.py --snapshot-update, and look at what changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from stage import Gate, Script, Stage
from textual.widgets import Input

from steerkit.tui.app import ChatApp
from steerkit.tui.session import Live, Plan

Picture = Callable[..., None]


@pytest.fixture
def picture(plan: Plan, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> Picture:
    """Plays a script and compares the screen that it leaves with the one that is kept."""

    def compare(script: Script, size: tuple[int, int] = (100, 26)) -> None:
        gate = Gate()
        monkeypatch.setattr("steerkit.tui.speaker.stream", gate.stream)
        monkeypatch.setattr("steerkit.tui.frames.SHARE", 1.0)
        # No two runs have it in common.
        monkeypatch.setattr(Live, "speed", 20.0)
        app = ChatApp(plan)

        async def before(pilot: Any) -> None:
            stage = Stage(app, gate, pilot)
            await stage.until(lambda: stage.session.reads)
            await script(stage)
            for line in app.screen.query(Input):
                line.cursor_blink = False
            app.clear_notifications()
            app.draw()
            await pilot.pause()
            gate.open = True

        assert snap_compare(app, terminal_size=size, run_before=before)

    return compare


async def talk(stage: Stage) -> None:
    """A reply whose dial was turned after six words."""
    await stage.say("Who are you?")
    await stage.hear(6)
    await stage.press(*["ctrl+up"] * 4)
    await stage.hear(2)
    await stage.finish()


def test_a_reply_tinted_word_by_word_beside_its_dials(picture: Picture) -> None:
    picture(talk)


def test_the_smallest_usual_terminal(picture: Picture) -> None:
    picture(talk, size=(80, 24))


def test_a_light_ground(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        await talk(stage)
        await stage.press("f8")

    picture(script)


def test_a_dial_past_its_limit_one_that_is_muted_and_the_floor(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        stage.dial("hal").focus()
        await stage.press(*["shift+right"] * 2, *["right"] * 8, "down", "right", "m", "f3")

    picture(script)


def test_two_replies_side_by_side(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        await stage.press("f2")
        await talk(stage)

    picture(script)


def test_the_library_of_personas(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        await stage.press("f4", *"pi")

    picture(script)


def test_every_key(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        await stage.press("f1")

    picture(script, size=(100, 40))


def test_a_question_about_a_file(picture: Picture) -> None:
    async def script(stage: Stage) -> None:
        await talk(stage)
        await stage.press("ctrl+s")

    picture(script)
