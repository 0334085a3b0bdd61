"""Maps of personas, spills and screenings say what was measured, whoever the personas are and whatever is missing."""

from __future__ import annotations

import html
import itertools
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, chromium

from steerkit import personas
from steerkit.errors import OutputError
from steerkit.plots.labels import FAMILIES, around, family_marks, most_telling, overlap, place_labels
from steerkit.plots.maps import cumulated, save_map, save_screen, save_spillover
from steerkit.plots.planes import axis_ends, fit_plane, map_confounds, map_plane, name_landmarks, name_personas

pytest.importorskip("matplotlib")

HOSTILE = ["<script>alert('\"&')</script>", "$x^2$ costs $1", "]]> & co", "an\x00unprintable\ud800 name", "哈尔"]
NUMBERS = {"n": 20, "least": 0.08, "most": 0.4}


def make_map(n: int = 60, layers: tuple[int, ...] = (15,), turns: int = 0, names: list[str] | None = None) -> Any:
    """What `steerkit map` reports."""
    draw, families, n = random.Random(0), list(FAMILIES), len(names) if names else n
    points = [
        {
            "name": names[i] if names else f"persona_{i}",
            "family": families[i % len(families)],
            **{key: draw.gauss(0, spread) for key, spread in (("x", 4), ("y", 2), ("z", 1))},
            "summary": f"One of {n}.",
            "length": 23.5,
            "reply": f"I am number {i}.",
        }
        for i in range(n)
    ]
    ends = [point["name"] for point in sorted(points, key=lambda point: point["x"])]
    told = {"value": 0.83, "low": 0.8, "high": 0.86}
    small = {"assistant": [8.0, 1.0], "axis": [0.9, 0.2], "shares": [0.2, 0.1]}
    places = [[point["x"], point["y"]] for point in points]
    return {
        **{
            "experiment": "map",
            "claim": "One of many.",
            "model": "tiny-llama",
            "layer": 15,
            "questions": 4,
            "tokens": 24,
        },
        **{"verdict": "cannot tell", "reason": "few components, but storytelling may explain the first"},
        "statistic": {"components": {"value": 3, "low": 2, "high": 5}, "percentile": told, "cosine": told},
        "null": {"components": {"n": 20, "least": 6, "most": 7}, "percentile": NUMBERS, "cosine": NUMBERS},
        "confounds": {
            "length": {"r": -0.3, "low": -0.5, "high": -0.1},
            "without": {"percentile": 0.98, "cosine": 0.79},
        },
        **{"spectrum": [0.4, 0.2, 0.1], "null_spectrum": {"low": [0.1] * 3, "high": [0.12] * 3}, "points": points},
        **{"assistant": {"x": 8.0, "y": 1.0, "z": 0.0}, "control": {"x": 5.0, "y": 0.0, "z": 0.0}},
        "axis": {"x": 0.9, "y": 0.2, "low_end": ends[:5], "high_end": ends[-5:]},
        "nearest": [{"name": ends[-1], "distance": 1.25}],
        "farthest": [{"name": ends[0], "distance": 12.5}],
        "maps": [{"layer": layer, "points": places, **small} for layer in layers],
        "path": [{"turn": i + 1, "text": f"Question {i}?", "x": 7.0 - i, "y": 0.5 * i} for i in range(turns)],
    }


def make_spillover(names: list[str] | None = None, n: int = 6) -> Any:
    """What `steerkit spillover` reports."""
    traits = [{"name": name, "kind": "malign" if i < 3 else "benign"} for i, name in enumerate(names or "abcdef"[:n])]
    n = len(traits)
    shifts = [[0.6 if i == j else 0.31 if i + j == 3 else 0.02 for j in range(n)] for i in range(n)]
    entry = {"steered": traits[0]["name"], "measured": traits[-1]["name"], "shift": 0.31, "z": 4.0}
    return {
        **{"experiment": "spillover", "claim": "Traits spill.", "model": "tiny-llama", "traits": traits},
        **{"order": list(range(n))[::-1], "propensity": shifts, "z": [[10 * x for x in row] for row in shifts]},
        "significant": [[x > 0.1 for x in row] for row in shifts],
        "geometry": [[1.0 if i == j else 0.1 * (i - j) for j in range(n)] for i in range(n)],
        **{
            "null": NUMBERS,
            "statistic": {"value": 0.5, "low": 0.4, "high": 0.6},
            "verdict": "yes",
            "reason": "they do",
        },
        **{"strongest": [entry], "surprising": [entry]},
    }


def make_screen(n: int = 30, names: list[str] | None = None) -> Any:
    """What `steerkit screen` reports."""
    n = len(names) if names else n
    probes = [
        {
            **{"name": names[i] if names else f"probe_{i}", "family": "characters"},
            **{"mean": 0.1 * (n / 2 - i), "low": 0.1 * (n / 2 - i) - 0.1, "high": 0.1 * (n / 2 - i) + 0.1},
            **{"beyond": n / 2 - i, "length_r": 0.25},
        }
        for i in range(n)
    ]
    told = {"file": "chats.jsonl", "model": "tiny-llama", "samples": 9, "selects": "It selects for probe_0."}
    return {**told, "probes": probes, "null": {"n": 20}}


class Page(HTMLParser):
    """Collects a page's tags, with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def dots(self) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if "data-name" in attributes]


def svg_texts(path: Path) -> list[str]:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def cleaned(name: str) -> str:
    return name.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


Save = Callable[[Any, Path], None]
SAVES = [
    (save_map, make_map, "points"),
    (save_spillover, make_spillover, "traits"),
    (save_screen, make_screen, "probes"),
]


@pytest.mark.parametrize(("save", "make", "listed"), SAVES)
class TestFiles:
    @pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!doctype")])
    def test_the_ending_chooses_the_picture_and_the_same_result_makes_the_same_bytes(
        self, tmp_path: Path, save: Save, make: Any, listed: str, ending: str, begins: bytes
    ) -> None:
        first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
        save(make(), first)
        save(make(), second)
        assert make()[listed]
        assert first.read_bytes().startswith(begins)
        assert first.read_bytes() == second.read_bytes()
        assert sorted(tmp_path.iterdir()) == [first, second]

    def test_another_ending_and_an_empty_list_are_refused_and_nothing_is_written(
        self, tmp_path: Path, save: Save, make: Any, listed: str
    ) -> None:
        with pytest.raises(OutputError, match=r"end its name in \.png, \.svg or \.html"):
            save(make(), tmp_path / "out.pdf")
        with pytest.raises(OutputError, match="nothing to draw"):
            save(make() | {listed: []}, tmp_path / "out.html")
        assert list(tmp_path.iterdir()) == []

    def test_a_page_fetches_nothing_and_writes_no_markup(
        self, tmp_path: Path, save: Save, make: Any, listed: str
    ) -> None:
        save(make(), tmp_path / "out.html")
        assert all(str(entry["name"]) in Page(tmp_path / "out.html").text for entry in make()[listed])
        page = (tmp_path / "out.html").read_text().replace("http://www.w3.org/", "")
        for reference in ("http://", "https://", "src=", "url(h", "@import", "<link", "fetch(", "innerHTML", "eval("):
            assert reference not in page

    def test_a_hostile_name_is_only_text(self, tmp_path: Path, save: Save, make: Any, listed: str) -> None:
        plain, hostile, result = tmp_path / "plain.html", tmp_path / "hostile.html", make(names=HOSTILE)
        save(make(names=["a", "b", "c", "d", "e"]), plain)
        save(result, hostile)
        assert [one["name"] for one in result[listed]] == HOSTILE
        scripts = [[tag for tag, _ in Page(path).tags].count("script") for path in (hostile, plain)]
        assert scripts[0] == scripts[1]
        assert all(html.escape(cleaned(name)) in hostile.read_text(encoding="utf-8") for name in HOSTILE)
        save(result, tmp_path / "out.svg")
        assert any("x^2" in text and "$" in text for text in svg_texts(tmp_path / "out.svg"))
        save(result, tmp_path / "out.png")


class TestLabels:
    def make_crowd(self, n: int) -> list[tuple[float, float, float, float]]:
        draw = random.Random(n)
        return [(draw.uniform(0, 7), draw.uniform(0, 5), draw.uniform(0.2, 1.2), 0.12) for _ in range(n)]

    @pytest.mark.parametrize("n", [1, 40, 300])
    def test_no_two_labels_overlap_and_none_covers_a_mark_or_leaves_the_picture(self, n: int) -> None:
        crowd, bounds = self.make_crowd(n), (0.0, 0.0, 7.0, 5.0)
        marks = [around(x, y, 0.08) for x, y, _, _ in crowd]
        placed = place_labels(crowd, marks, bounds, reaches=(0.06, 0.1))
        assert placed
        assert not any(overlap(*pair) for pair in itertools.combinations(placed.values(), 2))
        assert not any(overlap(box, mark) for box in placed.values() for mark in marks)
        assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 7 and box[3] <= 5 for box in placed.values())

    def test_labels_written_beside_their_points_without_looking_would_overlap(self) -> None:
        boxes = [around(x + 0.06 + width / 2, y, width, high) for x, y, width, high in self.make_crowd(300)]
        assert any(overlap(*pair) for pair in itertools.combinations(boxes, 2))

    def test_the_first_are_named_first_and_what_finds_no_room_is_left_out(self) -> None:
        same, bounds = [(1.0, 1.0, 0.9, 1.9)] * 4, (0.0, 0.0, 2.0, 2.0)
        assert list(place_labels(same, [], bounds, reaches=(0.05,))) == [0, 1]
        assert list(place_labels(same, [], bounds, most=1, reaches=(0.05,))) == [0]
        assert place_labels(same, [bounds], bounds) == {}

    def test_a_label_keeps_away_from_marks_that_are_not_its_own(self) -> None:
        wanted, own, other = [(1.0, 1.0, 0.5, 0.1)], around(1, 1, 0.1), around(1.64, 1, 0.1)
        near = place_labels(wanted, [own, other], (0, 0, 2, 2), reaches=(0.06,))[0]
        away = place_labels(wanted, [own, other], (0, 0, 2, 2), reaches=(0.06,), clear=0.1)[0]
        assert near[0] > 1 > away[2]

    def test_extremes_and_every_family_are_telling(self) -> None:
        places = [(math.cos(i), 0.9 * math.sin(i)) for i in range(50)] + [(9.0, 0.0), (0.1, 0.1)]
        order = most_telling(places, ["crowd"] * 51 + ["alone"])
        assert 50 in order[:8]
        assert 51 in order[:12]
        assert sorted(order) == list(range(52))
        assert most_telling([], []) == []

    def test_no_two_families_have_the_same_mark_or_the_same_colour(self) -> None:
        marks = family_marks([*FAMILIES, *"abcdefgh"])
        assert len(set(marks.values())) == len(marks)
        assert len({colour for _, colour in FAMILIES.values()}) == len({mark for mark, _ in FAMILIES.values()}) == 9


class TestPlane:
    @pytest.mark.parametrize("turn", range(8))
    def test_names_at_the_ends_of_the_axis_stand_past_every_place_whichever_way_it_points(self, turn: int) -> None:
        places = [(math.cos(i) * i / 9, math.sin(i) * i / 9) for i in range(40)]
        axis = {"x": math.cos(turn / 8 * math.tau), "y": math.sin(turn / 8 * math.tau)}
        axis |= {"low_end": ["far"] * 5, "high_end": ["a rather long name"] * 5}
        plane = fit_plane(places, [(0.2, 0.2)] * len(places), axis, (7, 6))
        assert len(plane.ends) == 2
        for end in plane.ends:
            left, bottom, right, top = box = plane.moved(end.box)
            assert not any(overlap(box, around(*plane.at(place), 0.1)) for place in places)
            assert min(left, bottom) > -1e-9
            assert right < 7 + 1e-9
            assert top < 6 + 1e-9
        assert axis_ends(axis | {"x": 0.0, "y": 0.0}, places, 1.0) == []

    def test_both_components_have_one_scale_and_back_undoes_at(self) -> None:
        plane = map_plane(make_map(), 7, 6)
        (x, y), (right, top) = plane.at((0, 0)), plane.at((3, 4))
        assert math.dist((x, y), (right, top)) == pytest.approx(5 * plane.scale)
        assert plane.back((right, top)) == pytest.approx((3, 4))

    @pytest.mark.parametrize("n", [1, 2, 60])
    def test_names_on_a_map_are_many_and_apart(self, n: int) -> None:
        result = make_map(n, turns=3)
        plane = map_plane(result, 7, 6)
        labels = [*name_landmarks(result, plane).values(), *name_personas(result, plane).values()]
        assert {"the Assistant", "control"} <= {label.text for label in labels}
        assert len(labels) >= min(n, 20)
        assert not any(overlap(one.box, other.box) for one, other in itertools.combinations(labels, 2))

    def test_personas_who_all_stand_in_one_place_are_still_drawn(self, tmp_path: Path) -> None:
        result = make_map(5) | {"assistant": {"x": 0.0, "y": 0.0, "z": 0.0}, "control": None}
        result["points"] = [point | {"x": 0.0, "y": 0.0} for point in result["points"]]
        save_map(result, tmp_path / "out.svg")
        assert "the Assistant" in svg_texts(tmp_path / "out.svg")

    def test_only_confounds_that_were_measured_are_told(self) -> None:
        assert map_confounds({}) == []
        told = map_confounds(make_map() | {"confounds": {"control": {"percentile": 0.9}}})
        assert told == ["a prompt that asks for nobody lies beyond 90 %"]


class TestMaps:
    def test_a_drawing_says_verdict_numbers_nulls_and_families(self, tmp_path: Path) -> None:
        save_map(make_map(), tmp_path / "out.svg")
        texts = svg_texts(tmp_path / "out.svg")
        for shown in ("Cannot tell", "3 (2 to 5)", "83 % (80 % to 86 %)", "random points, 20 draws: 6 to 7", *FAMILIES):
            assert shown in texts
        assert "PC1, 40 % of the variance" in texts

    def test_other_layers_the_way_of_a_conversation_and_a_missing_control(self, tmp_path: Path) -> None:
        save_map(make_map(), tmp_path / "one.svg")
        save_map(make_map(layers=(3, 15, 20), turns=4) | {"control": None}, tmp_path / "more.svg")
        one, more = svg_texts(tmp_path / "one.svg"), svg_texts(tmp_path / "more.svg")
        assert {"layer 3", "layer 15", "layer 20", "4"} <= set(more)
        assert "control" in one
        assert "control" not in more
        assert not any(text.startswith("layer ") for text in one)

    def test_a_page_holds_every_persona_with_a_place_for_each_layer(self, tmp_path: Path) -> None:
        save_map(make_map(layers=(3, 15, 20), turns=2), tmp_path / "out.html")
        dots = {dot["data-name"]: dot for dot in Page(tmp_path / "out.html").dots()}
        assert len(dots) == 60 + 2 + 2
        assert all(len((dots[f"persona_{i}"]["data-at"] or "").split()) == 3 for i in range(60))
        assert dots["persona_7"]["data-reply"] == "I am number 7."
        assert dots["turn 2"]["data-summary"] == "Question 1?"
        assert len((dots["control"]["data-at"] or "").split()) == 1

    def test_running_sums_stay_within_their_bounds_and_all_shares_together_tighten_them(self) -> None:
        low, high, true = [0.4, 0.2, 0.1, 0.05], [0.6, 0.3, 0.2, 0.1], [0.5, 0.25, 0.17, 0.08]
        least, most = cumulated(low, high)
        for i, total in enumerate(itertools.accumulate(true)):
            assert least[i + 1] <= total + 1e-9 <= most[i + 1] + 2e-9
        assert (least[-1], most[-1]) == pytest.approx((1, 1))
        assert cumulated(low[:2], [0.5, 0.3]) == (pytest.approx([0, 0.4, 0.6]), pytest.approx([0, 0.5, 0.8]))

    @pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
    def test_a_page_is_explored_with_the_keyboard_and_shows_hostile_names_as_they_are(self, tmp_path: Path) -> None:
        save_map(make_map(layers=(3, 15), turns=2, names=HOSTILE[:3]), tmp_path / "out.html")
        faults: list[str] = []
        with chromium() as browser:
            page = browser.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.goto((tmp_path / "out.html").as_uri())
            page.focus("#own")
            page.keyboard.press("ArrowLeft")
            assert page.evaluate("document.activeElement.id") != "own"
            for i, name in enumerate(HOSTILE[:3]):
                page.focus(f"#p{i}")
                assert page.inner_text("#card-name") == name
            before = page.evaluate("document.getElementById('p0').getBoundingClientRect().x")
            page.keyboard.press("+")
            assert page.evaluate("document.getElementById('p0').getBoundingClientRect().x") != before
            page.click(".key button >> nth=0")
            assert not page.is_visible("#p0")
            assert page.is_visible("#p1")
        assert faults == []


class TestMatrices:
    def test_only_what_is_beyond_chance_has_a_number(self, tmp_path: Path) -> None:
        save_spillover(make_spillover(), tmp_path / "out.svg")
        texts = svg_texts(tmp_path / "out.svg")
        assert texts.count("+0.60") == 6
        assert texts.count("+0.31") == 4 + 1  # The last is the end of the scale.
        assert "+0.02" not in texts
        assert "a → f" in texts

    def test_rows_are_in_the_order_of_the_clusters_and_a_page_lists_every_pair(self, tmp_path: Path) -> None:
        save_spillover(make_spillover(), tmp_path / "out.html")
        rows = re.findall(r'<th class="first" scope="row">(.)</th>', (tmp_path / "out.html").read_text())
        assert "".join(rows) == "".join(letter * 6 for letter in "fedcba")

    def test_of_many_probes_the_strongest_and_the_weakest_are_drawn(self, tmp_path: Path) -> None:
        save_screen(make_screen(30), tmp_path / "many.svg")
        save_screen(make_screen(20), tmp_path / "few.svg")
        many, few = svg_texts(tmp_path / "many.svg"), svg_texts(tmp_path / "few.svg")
        assert [text for text in many if text.startswith("probe ")] == [
            f"probe {i}" for i in (*range(15), *range(25, 30))
        ]
        assert "10 more between" in many
        assert not any("more between" in text for text in few)
        assert [text for text in few if text.startswith("probe ")] == [f"probe {i}" for i in range(20)]


def test_every_family_of_the_library_has_a_mark_of_its_own() -> None:
    assert set(FAMILIES) == set(personas.FAMILIES)
    assert len(set(FAMILIES.values())) == len(FAMILIES)
