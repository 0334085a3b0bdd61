"""The picture of a claim says what was measured, and what it was held against, however much or little that is."""

from __future__ import annotations

import html
import itertools
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_maps import make_map, make_spillover

from steerkit.errors import OutputError
from steerkit.plots.claims import draw_inline, save_claim
from steerkit.plots.curves import spread
from steerkit.plots.figures import looks
from steerkit.plots.inlined import inlined, picture_svg
from steerkit.plots.layouts import GROUPS, TELEPHONE, Layout, arrange, full_height, narrow_layout, span, wide_layout

pytest.importorskip("matplotlib")

HOSTILE = ["<script>alert('\"&')</script>", "$x^2$ costs $1", "]]> & co", "an\x00unprintable\ud800 name", "哈尔"]
LONG = "a prompt that has nothing to do with it, and says so at some length and then some more, until nobody listens"
FLAT = Layout(names=2.0, plot=4.0, row=0.2, second=0.1, letters=8.0, wrap=40)


def make_row(
    name: str, group: str = "claim", value: float | None = 0.2, half: float = 0.1, kl: float | None = 0.5
) -> Any:
    ends = {"low": None, "high": None} if value is None else {"low": value - half, "high": value + half}
    return {"name": name, "group": group, "value": value, **ends, "kl": kl}


def make_claim(rows: list[Any] | None = None, lines: list[str] | None = None, **told: Any) -> dict[str, Any]:
    """What an experiment reports: rows, and curves if their lines are named."""
    rows = rows or [
        make_row("nobody says why", kl=0.42),
        make_row("the frame alone", "control", 0.0),
        make_row("20 random directions, least to most", "null", 0.01),
    ]
    points = [{"x": x, "value": 0.1 * x, "low": 0.1 * x - 0.05, "high": 0.1 * x + 0.05} for x in range(4)]
    curves = {"x": "tasks shown", "y": "malice", "lines": [{"name": name, "points": points} for name in lines or ()]}
    return {
        **{"experiment": "framing", "claim": "What is asked for implies less.", "model": "tiny-llama", "items": 8},
        **{"unit": "nats a token", "statistic": {"value": 0.5, "low": 0.3, "high": 0.7}, "rows": rows},
        **{"curves": curves if lines else {}, "null": {"random": {"n": 20}}, "thresholds": {"cut": 0.25}},
        **{
            "parts": {"less is spilt": "yes"},
            "verdict": "cannot tell",
            "reason": "half of it is cut",
            "needed": "more",
        },
        **told,
    }


def many(n: int) -> list[Any]:
    groups = ["claim", "control", "null"]
    return [make_row(f"row {i}", groups[i % 3], 0.01 * i) for i in range(n)]


def texts(drawing: str) -> list[str]:
    root = ElementTree.fromstring(drawing)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def drawn(result: dict[str, Any], folder: Path) -> str:
    save_claim(result, folder / "out.svg")
    return (folder / "out.svg").read_text(encoding="utf-8")


class TestFiles:
    @pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!doctype")])
    def test_the_ending_chooses_the_picture_and_the_same_result_makes_the_same_bytes(
        self, tmp_path: Path, ending: str, begins: bytes
    ) -> None:
        for name in "ab":
            save_claim(make_claim(lines=["bare"]), tmp_path / f"{name}.{ending}")
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first.startswith(begins)
        assert first == second

    def test_another_ending_and_a_result_without_rows_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"end its name in \.png, \.svg or \.html"):
            save_claim(make_claim(), tmp_path / "out.pdf")
        with pytest.raises(OutputError, match="nothing to draw"):
            save_claim({**make_claim(), "rows": []}, tmp_path / "out.svg")
        assert list(tmp_path.iterdir()) == []

    def test_a_page_has_rows_and_points_in_numbers_and_fetches_nothing(self, tmp_path: Path) -> None:
        save_claim(make_claim(lines=["bare"]), tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text(encoding="utf-8")
        for shown in ("nobody says why", "+0.4200", "bare, tasks shown 3", "+0.3000", "values in nats a token"):
            assert shown in page
        for reference in ("http://", "https://", "src=", "@import", "<link", "<script"):
            assert reference not in page.replace("http://www.w3.org/", "")


class TestDrawing:
    def test_it_says_claim_model_rows_groups_numbers_unit_curves_and_verdict(self, tmp_path: Path) -> None:
        said = texts(drawn(make_claim(lines=["bare", "asked"]), tmp_path))
        for shown in ("“What is asked for implies less”", "nobody says why", "+0.20", "0.42", "0.00", "nats a token"):
            assert shown in said
        for shown in ("bare", "asked", "tasks shown", "malice", "Cannot tell", "Half of it is cut"):
            assert shown in said
        assert {group.heading for group in GROUPS.values()} <= set(said)
        assert any("tiny-llama" in text and "8 items" in text for text in said)

    def test_groups_differ_in_colour_and_in_shape(self) -> None:
        for key in ("marker", "colour", "heading"):
            assert len({getattr(group, key) for group in GROUPS.values()}) == len(GROUPS)

    @pytest.mark.parametrize("n", [5, 20, 45])
    def test_few_rows_and_many_are_all_named_and_never_overlap(self, tmp_path: Path, n: int) -> None:
        result = make_claim(many(n))
        assert {f"row {i}" for i in range(n)} <= set(texts(drawn(result, tmp_path)))
        for layout in (wide_layout(result), narrow_layout()):
            heights = [line.y for line in arrange(result, layout)]
            assert all(after - before > 0.15 for before, after in itertools.pairwise(heights))

    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_name_is_only_text(self, tmp_path: Path, name: str) -> None:
        result = make_claim([make_row(name)], lines=[name, "bare"], unit=name, reason=name)
        said = texts(drawn(result, tmp_path))
        assert name.replace("\x00", "\ufffd").replace("\ud800", "\ufffd") in said
        save_claim(result, tmp_path / "out.html")
        assert "<script" not in (tmp_path / "out.html").read_text(encoding="utf-8")

    def test_what_is_not_known_is_said_to_be(self, tmp_path: Path) -> None:
        assert "not known" in texts(drawn(make_claim([make_row("a", value=None), make_row("b")]), tmp_path))

    def test_no_cost_no_column_for_it(self, tmp_path: Path) -> None:
        assert "KL" in texts(drawn(make_claim(), tmp_path))
        assert "KL" not in texts(drawn(make_claim([make_row("a", kl=None)]), tmp_path))

    def test_a_long_name_takes_two_lines_and_the_room_for_them(self) -> None:
        short, long = (arrange(make_claim([make_row(name), make_row("b")]), FLAT) for name in ("a", LONG))
        assert [len(line.parts) for line in long] == [1, 2, 1]
        assert full_height(long) == pytest.approx(full_height(short) + FLAT.second)

    def test_narrow_it_fits_a_telephone_and_wide_it_does_not(self) -> None:
        with looks():
            widths = [
                draw_inline(make_claim(many(9), ["bare", "asked"]), narrow).get_size_inches()[0]
                for narrow in (True, False)
            ]
        assert widths[0] < TELEPHONE + 0.5 < widths[1]


class TestAxis:
    def test_it_holds_zero_every_value_of_the_claim_and_usual_intervals(self) -> None:
        draw = random.Random(0)
        for _ in range(50):
            rows = [make_row(f"{i}", value=draw.gauss(0.3, 0.1), half=draw.uniform(0.05, 0.2)) for i in range(9)]
            low, high = span(rows)
            assert low < 0 < high
            assert all(low < row["low"] and row["high"] < high for row in rows)

    def test_one_interval_that_is_very_much_longer_does_not_set_it(self) -> None:
        rows = [make_row(f"{i}") for i in range(9)]
        far = make_row("far", "null", 0.0, half=50.0)
        assert span([*rows, far])[1] < 2 < 50 < span([far])[1]
        with looks():
            drawings = [draw_inline(make_claim([*rows, each])).axes[0].lines for each in (make_row("b", "null"), far)]
        marks = [{line.get_marker() for line in lines} for lines in drawings]
        assert marks[1] - marks[0] == {"<", ">"}  # Both ends go on.

    def test_a_control_far_away_does_not_set_it_but_a_value_of_the_claim_does(self) -> None:
        rows = [make_row(f"{i}") for i in range(9)]
        assert span([*rows, make_row("far", "control", -9.0)])[0] > -3
        assert span([*rows, make_row("far", "claim", -9.0)])[0] < -9

    def test_only_random_directions_around_zero_are_drawn_through_all_rows(self, tmp_path: Path) -> None:
        def pale(name: str, value: float = 0.0) -> int:
            rows = [make_row("a"), make_row(name, "null", value)]
            return drawn(make_claim(rows), tmp_path).count("fill-opacity: 0.6")

        random_ones = "20 random directions, least to most"
        assert (pale(random_ones), pale(random_ones, 0.5), pale("labels exchanged, least to most")) == (1, 0, 0)


class TestLabels:
    def test_they_keep_their_order_do_not_overlap_and_stay_inside(self) -> None:
        draw = random.Random(1)
        for _ in range(200):
            heights = [draw.uniform(0, 2) for _ in range(8)]
            rooms = [draw.choice([0.1, 0.2]) for _ in heights]
            found = spread(heights, rooms, 2.0)
            order = sorted(range(8), key=lambda i: heights[i])
            ends = [(found[i] - rooms[i] / 2, found[i] + rooms[i] / 2) for i in order]
            assert ends[0][0] >= -1e-9
            assert ends[-1][1] <= 2 + 1e-9
            assert all(below[1] <= above[0] + 1e-9 for below, above in itertools.pairwise(ends))

    def test_those_that_have_room_stay_where_they_are(self) -> None:
        assert spread([1.5, 0.5], [0.2, 0.2], 2.0) == pytest.approx([1.5, 0.5])


class TestInPages:
    def test_two_pictures_of_equal_data_share_no_id_and_refer_to_their_own(self) -> None:
        both = picture_svg("framing", make_claim(lines=["bare"])) + picture_svg("drift", make_claim(lines=["bare"]))
        ids = re.findall(r' id="([^"]*)"', both)
        assert len(ids) == len(set(ids)) > 4
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', both)) == set(ids)
        assert not re.search(r"<\?xml|<!DOCTYPE|<metadata|<style", both)

    def test_it_is_drawn_for_a_desk_and_for_a_telephone_each_told_to_who_cannot_see_it(self) -> None:
        picture = picture_svg("framing", make_claim())
        assert re.findall(r'width="100%".*?class="(\w+)"', picture) == ["desk", "phone"]
        assert picture.count('aria-label="Does an example of cheating') == 2
        assert picture == picture_svg("framing", make_claim())

    @pytest.mark.parametrize(("name", "result"), [("map", make_map()), ("spillover", make_spillover())])
    def test_other_pictures_are_put_in_without_title_and_verdict(self, name: str, result: Any) -> None:
        picture = picture_svg(name, result)
        said = texts(picture)
        assert result["claim"].rstrip(".") not in " ".join(said)
        assert result["verdict"].capitalize() not in said
        assert "tiny-llama" in " ".join(said)

    def test_a_number_in_a_name_keeps_its_decimals_and_a_colour_in_it_stays(self) -> None:
        name = "0.123456 of #fafaf8 in url(#x)"
        drawing = picture_svg("framing", make_claim([make_row(name)])).partition("\n<svg")[0]
        assert name in html.unescape(drawing)

    def test_in_the_dark_it_follows_the_page_and_a_matrix_stays_on_white(self) -> None:
        drawing = '<svg width="72pt" height="72pt"><path style="fill: #fafaf8"/></svg>'
        assert "fill: var(--paper,#ffffff)" in inlined(drawing, "a", "", "desk")
        assert "fill: #ffffff" in inlined(drawing, "a", "", "desk", on_paper=True)
