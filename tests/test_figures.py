"""Pictures of measurements say the same as the measurements, whatever the file is called and whatever is missing."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from steerkit import calibration
from steerkit.errors import OutputError
from steerkit.plots import figures
from steerkit.plots.figures import check_ending, save_evaluations, save_sweep

pytest.importorskip("matplotlib")

BASELINES = ("prompt only", "random directions", "shuffled labels")


def make_result(steer: str = "1 hal @8-23", known: bool = True) -> dict[str, Any]:
    """What `Evaluation.to_json` gives."""
    null = {"n": 20, "shift": 0.01, "low": -0.02, "high": 0.04, "least": -0.1234, "most": 0.1, "kl_p95": 0.52}
    moved = {"unsteered": -0.2, "steered": 0.1125, "shift": 0.3125, "low": 0.25, "high": 0.375}
    one = null if known else None
    baselines = {"prompt_only": one, "null": {"random": one, "shuffled": one}}
    costs = {"kl_p95": 0.61, "items_kl_p95": 0.53, "coherence": 0.21, "option_mass": None}
    said = {"model": "tiny-llama", "steer": steer, "items": 3, "source": "hal", "per_item": [0.1, 0.3, 0.5375]}
    return {**said, **costs, **baselines, "propensity": moved}


def make_line(
    dial: float = 1.0, layers: tuple[int, int] = (15, 15), vector: str = "hal", shift: float = 0.25, cost: float = 0.4
) -> dict[str, Any]:
    """What `sweep` writes."""
    numbers = {"shift": shift, "low": shift - 0.05, "high": shift + 0.05, "items_kl_p95": 0.35}
    text = {"kl_p95": cost, "coherence": 0.1 * dial * dial, "repetition": 0.1, "replies": ["Hm."]}
    named = {"model": "tiny-llama", "vector": vector, "estimator": "mean", "operator": "add", "items": "hal"}
    return {**named, "layers": list(layers), "dial": dial, "result": {**numbers, **text}}


def make_grid(vectors: int = 2) -> list[dict[str, Any]]:
    cells = [(i, layers, dial) for i in range(vectors) for layers in ((3, 3), (2, 5)) for dial in (-1.0, 0.5, 1.0)]
    return [make_line(dial, layers, f"vector{i}", 0.2 * dial * (1 + i / 10), 0.5) for i, layers, dial in cells]


class Page(HTMLParser):
    """Collects a page's tags and the text of its table's cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] in (["td"], ["th"]) and data.strip():
            self.rows[-1][-1] += data


def svg_texts(path: Path) -> list[str]:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


Save = Callable[[Any, Path], None]


@pytest.mark.parametrize(("save", "data"), [(save_evaluations, [make_result()]), (save_sweep, make_grid())])
class TestFiles:
    @pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!doctype")])
    def test_the_ending_chooses_the_picture_and_the_same_data_make_the_same_bytes(
        self, tmp_path: Path, save: Save, data: Any, ending: str, begins: bytes
    ) -> None:
        first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
        save(data, first)
        save(data, second)
        assert first.read_bytes().startswith(begins)
        assert first.read_bytes() == second.read_bytes()
        assert sorted(tmp_path.iterdir()) == [first, second]

    @pytest.mark.parametrize("name", ["out.pdf", "out"])
    def test_another_ending_is_refused_and_nothing_is_written(
        self, tmp_path: Path, save: Save, data: Any, name: str
    ) -> None:
        with pytest.raises(OutputError, match=r"end its name in \.png, \.svg or \.html"):
            save(data, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_to_draw_is_said(self, tmp_path: Path, save: Save, data: Any) -> None:
        with pytest.raises(OutputError, match="nothing to draw"):
            save(data[:0], tmp_path / "out.svg")

    def test_a_page_fetches_nothing(self, tmp_path: Path, save: Save, data: Any) -> None:
        save(data, tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text().replace("http://www.w3.org/", "")
        for reference in ("http://", "https://", "src=", "url(h", "@import", "<link", "<script"):
            assert reference not in page


def test_without_matplotlib_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match=r"matplotlib; install it with: pip install 'persona-steerkit\[plots\]'"):
        check_ending(Path("out.svg"))


def test_the_limit_is_the_one_of_calibration() -> None:
    assert figures.LIMIT == calibration.LIMIT


class TestEvaluations:
    def test_a_page_has_the_numbers_of_steering_and_baselines(self, tmp_path: Path) -> None:
        save_evaluations([make_result()], tmp_path / "out.html")
        _, own, *nulls = Page(tmp_path / "out.html").rows
        assert own == [
            "1 hal @8-23",
            "",
            "3",
            "+0.3125",
            "+0.2500",
            "+0.3750",
            "+0.1000",
            "+0.5375",
            "+0.5300",
            "+0.2100",
        ]
        assert [row[1] for row in nulls] == list(BASELINES)
        assert all("−0.1234" in row for row in nulls)

    def test_a_drawing_says_model_source_steerings_and_costs(self, tmp_path: Path) -> None:
        save_evaluations([make_result(), make_result("-1 hal")], tmp_path / "out.svg")
        texts = svg_texts(tmp_path / "out.svg")
        for shown in ("1 hal @8-23", "-1 hal", *BASELINES, "0.53", "+0.21", "shift of propensity, nats a token"):
            assert shown in texts
        assert any("tiny-llama" in text and "hal" in text for text in texts)

    @pytest.mark.parametrize(
        "steer", ["<script>alert('\"&')</script>", "cost $1 and $2", "an\x00unprintable\ud800 hal", "哈尔 0.5"]
    )
    def test_a_name_is_only_text(self, tmp_path: Path, steer: str) -> None:
        for ending in (".svg", ".html"):
            save_evaluations([make_result(steer)], tmp_path / f"out{ending}")
        shown = steer.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
        assert shown in svg_texts(tmp_path / "out.svg")
        assert html.escape(shown) in (tmp_path / "out.html").read_text(encoding="utf-8")
        assert "script" not in Page(tmp_path / "out.html").tags

    def test_baselines_that_are_not_known_are_said_to_be(self, tmp_path: Path) -> None:
        save_evaluations([make_result(known=False)], tmp_path / "out.svg")
        assert svg_texts(tmp_path / "out.svg").count("not known") == 3


class TestSweeps:
    def test_every_cell_has_its_number_and_every_axis_its_names(self, tmp_path: Path) -> None:
        save_sweep(make_grid(), tmp_path / "out.svg")
        texts = svg_texts(tmp_path / "out.svg")
        for shown in ("−0.20", "+0.10", "+0.22", "2-5", "+0.5", "vector0", "vector1", "mean · add"):
            assert shown in texts

    def test_one_cell_is_drawn_and_hatched_visibly_even_where_its_colour_is_the_papers(self, tmp_path: Path) -> None:
        save_sweep([make_line(shift=0.0, cost=2.0)], tmp_path / "out.svg")
        assert f"stroke: {figures.INK}" in (tmp_path / "out.svg").read_text().partition("<pattern")[2]
        assert "+0.00" in svg_texts(tmp_path / "out.svg")

    def test_a_missing_cell_is_left_blank(self, tmp_path: Path) -> None:
        lines = [make_line(shift=0.31), make_line(2.0, shift=0.32), make_line(layers=(3, 9), shift=float("nan"))]
        save_sweep([*lines, make_line(2.0, (3, 9), shift=0.34)], tmp_path / "out.svg")
        shown = [text for text in svg_texts(tmp_path / "out.svg") if text.startswith("+0.3")]
        assert sorted(shown) == ["+0.31", "+0.32", "+0.34"]

    @pytest.mark.parametrize(("cost", "hatched"), [(1.0, 0), (1.01, 1)])
    def test_a_cell_past_the_limit_is_hatched_and_not_the_best(self, tmp_path: Path, cost: float, hatched: int) -> None:
        save_sweep([make_line(0.5), make_line(1.0, shift=0.5, cost=cost)], tmp_path / "out.svg")
        assert (tmp_path / "out.svg").read_text().count("fill: url(#h") == hatched
        assert ("15 at +1" in svg_texts(tmp_path / "out.svg")) == (not hatched)

    def test_without_text_the_cost_is_the_kl_on_the_items(self, tmp_path: Path) -> None:
        line = make_line()
        line["result"] = {key: line["result"][key] for key in ("shift", "low", "high", "items_kl_p95")}
        save_sweep([line, make_line(2.0)], tmp_path / "out.svg")
        assert "KL p95 on the items' replies, nats a token" in svg_texts(tmp_path / "out.svg")

    def test_of_too_many_maps_the_largest_shifts_are_kept_and_a_page_lists_all(self, tmp_path: Path) -> None:
        for ending in (".svg", ".html"):
            save_sweep(make_grid(14), tmp_path / f"out{ending}")
        texts = svg_texts(tmp_path / "out.svg")
        assert {"vector0", "vector1", "vector2", "vector13"} & set(texts) == {"vector2", "vector13"}
        assert any("12 of 14 maps" in text for text in texts)
        assert len(Page(tmp_path / "out.html").rows) == 1 + 14 * 6
