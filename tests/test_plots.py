"""Pictures are one file each, say what they were given and nothing else, and colour by score."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from steerkit.errors import OutputError
from steerkit.plots.pages import replies_html, replies_svg, save_picture
from steerkit.tints import FULL, PAPER, SILENT, tint, tinted

ATTACK = "<script>alert('\"&')</script>"


def make_result(prompt: str = "Who are you?", words: tuple[str, ...] = ("I", " am", " HAL", ".")) -> dict[str, Any]:
    """What `generate --compare` gives: one prompt under two steerings."""

    def reply(steer: str, scores: list[float]) -> dict[str, Any]:
        tokens = [{"text": word, "scores": {"hal": score}} for word, score in zip(words, scores, strict=False)]
        return {"steer": steer, "tokens": tokens, "scores": {"hal": sum(scores) / len(scores)}}

    replies = [reply("", [-1.5, -0.2, 0.0, 0.1]), reply("0.8 hal", [0.3, 1.0, 2.5, 0.0])]
    return {"prompt": prompt, "model": "tiny-llama", "replies": replies}


class Page(HTMLParser):
    """Collects a page's tags, the text in its body, and the background of each tinted word."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.backgrounds: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        style = dict(attrs).get("style") or ""
        self.backgrounds += re.findall(r"background:(#[0-9a-f]{6})", style)

    def handle_data(self, data: str) -> None:
        self.text += data


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def svg_text(drawing: str) -> str:
    return "".join(ElementTree.fromstring(drawing).itertext()).replace("\xa0", " ")


class TestPages:
    def test_a_page_needs_nothing_else(self) -> None:
        page = replies_html(make_result())
        for reference in ("http://", "https://", "src=", "href=", "url(", "@import", "<link", "<script"):
            assert reference not in page

    def test_a_page_says_prompt_model_steerings_words_and_scores(self) -> None:
        text = Page(replies_html(make_result())).text
        for shown in ("“Who are you?”", "tiny-llama", "unsteered", "0.8 hal", "I am HAL.", "hal -0.40", "hal +0.95"):
            assert shown in text

    def test_a_script_in_the_prompt_or_the_words_is_only_text(self) -> None:
        result = make_result(ATTACK, ("I", ATTACK, ATTACK))
        result["model"] = result["replies"][1]["steer"] = ATTACK
        result["replies"][0]["scores"] = {ATTACK: 1.0}
        result["replies"][0]["tokens"][0]["scores"] = {f'"><{ATTACK}': 1.0}
        text = replies_html(result)
        page = Page(text)
        assert "<script" not in text
        assert "script" not in page.tags
        assert page.text.count(ATTACK) == 9
        assert set(page.tags) == set(Page(replies_html(make_result())).tags)

    def test_words_are_tinted_by_their_scores_and_pale_ones_are_not(self) -> None:
        backgrounds = Page(replies_html(make_result())).backgrounds
        tinted_words = [tint(score)[0] for score in (-1.5, -0.2, 0.3, 1.0, 2.5)]
        assert backgrounds[: len(tinted_words)] == tinted_words

    def test_hovering_shows_every_score_of_a_word(self) -> None:
        result = make_result()
        result["replies"][0]["tokens"][0]["scores"] = {"hal": -1.5, "warmth": 0.25}
        assert 'title="hal -1.50, warmth +0.25"' in replies_html(result)

    def test_replies_without_scores_or_words_are_drawn_too(self) -> None:
        result = make_result()
        result["replies"] = [
            {"steer": "", "tokens": [{"text": "I", "scores": {}}], "scores": {}},
            {"steer": "1 hal", "tokens": [], "scores": {}},
        ]
        assert "unsteered" in Page(replies_html(result)).text
        assert "unsteered" in svg_text(replies_svg(result))


class TestDrawings:
    def test_a_drawing_is_xml_and_says_what_was_said(self) -> None:
        drawing = replies_svg(make_result())
        assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
        text = svg_text(drawing)
        for shown in ("Who are you?", "tiny-llama", "unsteered", "0.8 hal", "HAL"):
            assert shown in text

    def test_a_script_in_the_prompt_or_the_words_is_only_text(self) -> None:
        drawing = replies_svg(make_result(ATTACK, ("I", ATTACK)))
        assert "<script" not in drawing
        assert "script" not in {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawing).iter()}
        assert svg_text(drawing).count("alert(") == 3

    def test_words_have_the_colours_of_the_page(self) -> None:
        drawing = replies_svg(make_result())
        for score in (-1.5, 1.0, 2.5):
            assert tint(score)[0] in drawing

    def test_a_drawing_needs_nothing_else(self) -> None:
        drawing = replies_svg(make_result())
        assert "url(https" not in drawing.replace('"', "").replace("'", "")

    @pytest.mark.parametrize("prompt", ["Is [red]this[/red] red?", "What does [/b] close?"])
    def test_square_brackets_in_the_prompt_are_only_text(self, prompt: str) -> None:
        assert prompt in svg_text(replies_svg(make_result(prompt)))

    @pytest.mark.parametrize("character", ["\x00", "\x1b", "\ufffe"])
    def test_a_word_that_xml_cannot_hold_leaves_the_drawing_xml(self, character: str) -> None:
        assert "HAL" in svg_text(replies_svg(make_result(words=(f"a{character}b", " HAL"))))


class TestSaving:
    @pytest.mark.parametrize(("ending", "begins"), [(".html", "<!doctype html>"), (".svg", "<svg")])
    def test_the_ending_chooses_the_picture(self, tmp_path: Path, ending: str, begins: str) -> None:
        save_picture(make_result(), tmp_path / f"out{ending}")
        assert (tmp_path / f"out{ending}").read_text(encoding="utf-8").startswith(begins)

    @pytest.mark.parametrize("name", ["out.png", "out"])
    def test_another_ending_is_refused_and_nothing_is_written(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"end -o in \.html or \.svg"):
            save_picture(make_result(), tmp_path / name)
        assert list(tmp_path.iterdir()) == []


class TestTints:
    @pytest.mark.parametrize("score", [-9.0, -2.0, -1.0, -0.5, -SILENT])
    def test_below_zero_is_blue(self, score: float) -> None:
        red, green, blue = rgb(tint(score)[0])
        assert blue > green > red

    @pytest.mark.parametrize("score", [9.0, 2.0, 1.0, 0.5, SILENT])
    def test_above_zero_is_orange(self, score: float) -> None:
        red, green, blue = rgb(tint(score)[0])
        assert red > green > blue

    @pytest.mark.parametrize("score", [0.0, -0.0, 0.1, -0.1, SILENT - 1e-6, float("nan")])
    def test_near_zero_and_no_number_are_not_tinted(self, score: float) -> None:
        assert tint(score) == ("", "")

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_the_further_from_zero_the_stronger_up_to_a_limit(self, sign: int) -> None:
        def strength(score: float) -> int:
            return sum(abs(x - paper) for x, paper in zip(rgb(tint(score)[0]), PAPER, strict=True))

        strengths = [strength(sign * score) for score in (0.2, 0.5, 1.0, 1.5, FULL)]
        assert strengths == sorted(set(strengths))
        assert tint(sign * 50.0) == tint(sign * FULL) == tint(sign * float("inf"))

    @pytest.mark.parametrize("score", [x / 10 for x in range(-30, 31) if abs(x) > 1])
    def test_ink_can_be_read_on_its_background(self, score: float) -> None:
        assert self.contrast(score) >= 4.5

    def contrast(self, score: float) -> float:
        """The WCAG contrast of a score's ink and background; 4.5 is wanted for text."""

        def luminance(colour: str) -> float:
            parts = [x / 255 for x in rgb(colour)]
            linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        lighter, darker = sorted(map(luminance, tint(score)), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    def test_words_keep_their_spaces_but_the_whole_has_none_around_it(self) -> None:
        text = tinted(["  I", " am ", "HAL\n"], [0.0, 1.0, -1.0])
        assert text.plain == "I am HAL"
        assert [(span.start, span.end, str(span.style).split()[-1]) for span in text.spans if str(span.style)] == [
            (1, 5, tint(1.0)[0]),
            (5, 8, tint(-1.0)[0]),
        ]
