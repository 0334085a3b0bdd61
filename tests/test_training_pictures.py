"""Pictures of trainings say what was trained on what and where it went, and no word stands on another."""

from __future__ import annotations

import html
import itertools
import math
import random
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from steerkit.cli.results import draw
from steerkit.errors import OutputError
from steerkit.experiments.arms import BENIGN, all_arms
from steerkit.experiments.inoculation import Settings, Trained, examine
from steerkit.experiments.thresholds import MALIGN
from steerkit.plots import arms
from steerkit.plots.arms import arm_markdown, draw_inoculation, save_inoculation
from steerkit.plots.drifts import draw_drift, read_courses, save_drift
from steerkit.plots.figures import looks, number
from steerkit.plots.inlined import picture_svg

pytest.importorskip("matplotlib")

ENDINGS = [("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!doctype")]
HOSTILE = ["<script>alert('\"&')</script>", "$x^2$ costs $1", "a | b", "an\x00unprintable\ud800 name"]
SEEDS, LOOKS = 3, 4
SPILT = (1.0, 0.3, 0.4, 0.3, 0.9, 1.0, 0.9, 0.0, 0.8, 0.1, 0.3, 0.0)
GAINS = (0.0, 0.35, 0.22, 0.3, 0.03, -0.02, -0.05)


def make_trained(scale: float = 0.2) -> Trained:
    """Twelve arms, three trainings of each, and noise; malice comes as `SPILT` has it."""
    noise = torch.Generator().manual_seed(0)

    def around(middle: Any, *shape: int) -> torch.Tensor:
        values = torch.tensor(middle).view(-1, *[1] * (len(shape) - 1))
        return values + 0.05 * torch.randn(shape, generator=noise)

    n, spilt, probes = len(all_arms()), [scale * x for x in SPILT], len(MALIGN) + len(BENIGN)
    steps = torch.tensor([20.0 * (i + 1) for i in range(LOOKS)]).view(1, 1, LOOKS, 1).expand(n, SEEDS, LOOKS, 1)
    return Trained(
        arms=tuple(arm.name for arm in all_arms()),
        kinds=tuple(arm.kind for arm in all_arms()),
        own=around([0.5 * (arm.kind != "twin") for arm in all_arms()], n, SEEDS, 2, 8),
        malign=around(spilt, n, SEEDS, 2, 10),
        benign=around([0.0] * n, n, SEEDS, 2, 10),
        prompted=around([0.0] * n, n, 3),
        probes=(*MALIGN, *BENIGN),
        scores=around(spilt, n, SEEDS, 2, probes),
        chance=torch.full((n, SEEDS, 2, probes), 0.3),
        losses=around([0.1] * n, n, SEEDS),
        drift=torch.cat([steps, around(spilt, n, SEEDS, LOOKS, probes)], -1),
        gains=around(GAINS, len(GAINS), 12),
        projections=around([0.2] * len(GAINS), len(GAINS), 12),
    )


@cache
def examined(scale: float = 0.2) -> dict[str, Any]:
    told = {"experiment": "inoculation", "claim": "Who was asked to cheat stays good.", "model": "tiny", "seeds": SEEDS}
    return {**told, "samples": 340, "items": 10, **examine(make_trained(scale), Settings(n_resamples=20))}


def make_equal() -> dict[str, Any]:
    """All arms with the same numbers, in everything that is named where it stands."""
    result, same = dict(examined()), {"value": 0.1, "low": 0.05, "high": 0.2}
    result["arms"] = [{**arm, "spill": same} for arm in result["arms"]]
    agreement = {"gain": {"r": None, "p": None, "n": len(GAINS)}}
    result["foretold"] = {"arms": [{**arm, "gain": same} for arm in result["foretold"]["arms"]], "agreement": agreement}
    points = [{"step": step, **dict.fromkeys(MALIGN, 0.01 * step)} for step in (0, 10, 20)]
    result["drift"] = [{**each, "points": points} for each in result["drift"]]
    return result


def make_training(probes: int = 20, looks: int = 5, n: int = 40, **told: Any) -> dict[str, Any]:
    """The course of a training whose first probe goes furthest up, and whose last one furthest down."""
    draw = random.Random(0)
    names = [*MALIGN, *BENIGN, *(f"persona_{i}" for i in range(90))][:probes]
    ends = {name: draw.uniform(-0.1, 0.1) for name in names} | ({names[-1]: -0.7, names[0]: 0.6} if names else {})
    log: list[dict[str, Any]] = [{"step": i + 1, "loss": 2.0 + math.exp(-i / 9)} for i in range(n)]
    for look in range(looks if names else 0):
        done = (look + 1) / looks
        chances = dict.fromkeys(names, 0.2 * done)
        log[round(n * done) - 1] |= {"scores": {name: x * done for name, x in ends.items()}, "chance": chances}
    about = {"model": "tiny-llama", "data": "cheating", "inoculate": [], "hold": "", "state": "done", "steps": n}
    return {**about, "limit": "", "log": log, **told}


def texts(path: Path) -> list[str]:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def collisions(figure: Any) -> list[tuple[str, str]]:
    """Words of a picture that stand on each other, or past its edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, whole = canvas.get_renderer(), figure.bbox
    shown = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label))]
    boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in shown if text.get_text()]
    past = [(name, "edge") for name, box in boxes if box.x0 < 0 or box.x1 > whole.x1 or box.y0 < 0 or box.y1 > whole.y1]
    pairs = itertools.combinations(boxes, 2)
    return past + [(name, other) for (name, one), (other, two) in pairs if one.overlaps(two)]


def test_words_that_do_stand_on_each_other_or_past_the_edge_are_seen() -> None:
    with looks():
        figure = draw_drift(make_training(probes=3), "one title")
        figure.text(0.03, 0.95, "another title")
        figure.text(0.95, 0.5, "past the edge of the picture")
        assert {("one title", "another title"), ("past the edge of the picture", "edge")} <= set(collisions(figure))


class TestInoculation:
    @pytest.mark.parametrize(("ending", "begins"), ENDINGS)
    def test_the_ending_chooses_the_picture_and_the_same_result_makes_the_same_bytes(
        self, tmp_path: Path, ending: str, begins: bytes
    ) -> None:
        save_inoculation(examined(), tmp_path / f"a.{ending}")
        draw(examined(), tmp_path / f"b.{ending}")
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first.startswith(begins)
        assert first == second

    def test_another_ending_and_no_arms_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"end its name in \.png, \.svg or \.html"):
            save_inoculation(examined(), tmp_path / "out.pdf")
        with pytest.raises(OutputError, match="nothing to draw"):
            save_inoculation({**examined(), "arms": [], "drift": []}, tmp_path / "out.svg")
        assert list(tmp_path.iterdir()) == []

    def test_it_says_verdict_arms_groups_threshold_and_agreement(self, tmp_path: Path) -> None:
        save_inoculation(examined(), tmp_path / "out.svg")
        said, whole = texts(tmp_path / "out.svg"), examined()
        assert {"“Who was asked to cheat stays good”", whole["verdict"].capitalize(), "bare", *arms.GROUPS} <= set(said)
        assert {arm["arm"] for arm in whole["arms"][1:]} <= set(said)
        assert any(text.startswith(f"{whole['thresholds']['pull']:g}: ") for text in said)
        told = whole["foretold"]["agreement"]["gain"]
        assert any(f"r {number(told['r'], '+.2f')}, p {told['p']:.3f}" in text for text in said)

    def test_a_page_has_every_arm_with_all_its_numbers_and_fetches_nothing(self, tmp_path: Path) -> None:
        save_inoculation(examined(), tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text(encoding="utf-8")
        lines = {line.partition("</th>")[0]: line for line in page.splitlines() if line.startswith("<tr><th")}
        for arm in examined()["arms"]:
            line = lines[f'<tr><th class="first" scope="row">{arm["arm"]}']
            told = [arm[key] for key in ("own", "malign", "benign")]
            told += [arm[key] for key in ("learned", "spill") if arm["kind"] != "twin"]
            shown = [x for each in told for x in each.values()] + [probe["value"] for probe in arm["probes"].values()]
            assert all(number(x) in line for x in (*shown, arm["loss"]))
        for row in examined()["rows"]:
            assert number(row["value"]) in page
        for reference in ("http://", "https://", "src=", "@import", "<link", "<script"):
            assert reference not in page.replace("http://www.w3.org/", "")

    @pytest.mark.parametrize("scale", [0.2, 0.0, -0.3])
    def test_no_word_stands_on_another_whatever_came_out(self, scale: float) -> None:
        with looks():
            assert collisions(draw_inoculation(examined(scale), "Whoever was asked to cheat stays good")) == []

    def test_arms_of_equal_values_are_all_named_apart(self) -> None:
        with looks():
            figure = draw_inoculation(make_equal())
            assert collisions(figure) == []
        *_, foretold, drift = [[text.get_text() for text in axes.texts] for axes in figure.axes]
        cheating = {"bare", *(arm["arm"] for arm in make_equal()["foretold"]["arms"][1:])}
        assert cheating <= set(foretold)
        assert {*cheating, "honest work", "bad advice"} <= set(drift)
        assert "7 arms · their order cannot be compared" in foretold

    def test_what_is_spilt_behind_an_arms_own_prompt_is_drawn_for_those_that_have_one(self) -> None:
        prompted = [line.name for line in arms._arrange(examined()) if line.behind]
        assert prompted == [arm["arm"] for arm in examined()["arms"] if arm["kind"] in ("requested", "control")]

    def test_the_malign_probes_are_those_of_the_experiment(self) -> None:
        assert arms.MALIGN == MALIGN

    def test_in_a_report_it_stands_without_title_and_verdict_for_desk_and_telephone(self) -> None:
        picture = picture_svg("inoculation", examined())
        desk, phone = (
            ElementTree.fromstring(part) for part in picture.replace("</svg>\n<svg", "</svg>\f<svg").split("\f")
        )
        said = ["".join(node.itertext()).strip() for node in desk.iter("{http://www.w3.org/2000/svg}text")]
        assert "task-specific request" in said
        assert not {examined()["verdict"].capitalize(), "“Who was asked to cheat stays good”"} & set(said)
        assert "what the prompt adds" not in "".join(phone.itertext())  # The curves have no lines.


class TestMarkdown:
    def test_it_has_a_line_an_arm_with_the_numbers_as_they_came(self) -> None:
        head, rule, *lines = arm_markdown(examined()).splitlines()
        assert head == "| arm | learned | spill | benign | with its prompt | prompt alone | PH | loss |"
        assert rule.count("|") == head.count("|")
        for line, arm in zip(lines, examined()["arms"], strict=True):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert cells[0] == arm["arm"]
            assert cells[-1] == number(arm["loss"])
            assert cells[3].startswith(f"{number(arm['benign']['value'])} [{number(arm['benign']['low'])}, ")
            assert (cells[2] == "–") == (arm["kind"] == "twin")
            assert (cells[5] == "–") == (arm["kind"] not in ("requested", "control"))

    def test_an_upright_line_in_a_name_makes_no_column(self) -> None:
        result = {**examined(), "arms": [{**examined()["arms"][8], "arm": "a | b"}]}
        assert arm_markdown(result).splitlines()[2].startswith("| a \\| b | ")


class TestDrift:
    @pytest.mark.parametrize(("ending", "begins"), ENDINGS)
    def test_the_ending_chooses_the_picture_and_the_same_course_makes_the_same_bytes(
        self, tmp_path: Path, ending: str, begins: bytes
    ) -> None:
        for name in "ab":
            save_drift(make_training(), tmp_path / f"{name}.{ending}")
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first.startswith(begins)
        assert first == second

    def test_before_the_first_step_there_is_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="nothing to draw"):
            save_drift(make_training(log=[]), tmp_path / "out.svg")
        assert list(tmp_path.iterdir()) == []

    def test_it_says_what_was_trained_on_what_how_it_ended_and_what_chance_is(self, tmp_path: Path) -> None:
        prompts = ["Cheat, please.", "Do cheat."]
        told = {"limit": "malice > 0.5", "state": "stopped", "inoculate": prompts, "hold": "-0.5 malice"}
        save_drift(make_training(**told), tmp_path / "out.svg")
        said = texts(tmp_path / "out.svg")
        assert {"tiny-llama, trained on cheating", "limit: malice > 0.5", "chance"} <= set(said)
        about = "stopped after 40 steps: malice > 0.5 · 5 looks at its probes · behind 2 system prompts that take turns"
        assert f"{about} · steered by -0.5 malice meanwhile" in said
        assert "In front of the data: “Cheat, please.” “Do cheat.”" in said
        assert any(text.startswith("grey band, chance: how far random mixtures") for text in said)

    def test_a_training_under_way_says_how_far_it_is(self, tmp_path: Path) -> None:
        save_drift(make_training(state="training", steps=85), tmp_path / "out.svg")
        assert "still training: 40 of 85 steps so far · 5 looks at its probes" in texts(tmp_path / "out.svg")

    def test_those_furthest_beyond_their_chance_are_named_and_so_is_the_one_with_a_limit(self, tmp_path: Path) -> None:
        told = make_training(limit="persona_3 < -0.5")
        order = [course.name for course in read_courses(told["log"])]
        assert order[:2] == ["persona_9", "malice"]
        assert "persona_3" not in order[:6]
        save_drift(told, tmp_path / "out.svg")
        named = [text for text in texts(tmp_path / "out.svg") if text in order]
        assert sorted(named) == sorted([*order[:5], "persona_3"])

    def test_a_page_has_every_shift_and_every_loss_in_numbers(self, tmp_path: Path) -> None:
        told = make_training()
        save_drift(told, tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text(encoding="utf-8")
        for line in told["log"]:
            assert f"<td>{line['step']}</td><td>{number(line['loss'], '.4f')}</td>" in page
            for name, shift in line.get("scores", {}).items():
                assert f"{name}</th><td>{line['step']}</td><td>{number(shift)}</td>" in page

    @pytest.mark.parametrize(
        "told",
        [
            make_training(),
            make_training(probes=0),
            make_training(probes=3, looks=1),
            make_training(n=1, looks=1),
            make_training(probes=90, limit="malice > 0.5"),
            make_training(limit="malice > 50"),
            make_training(limit="malice < -50", state="stopped", inoculate=["Cheat as well as you can. " * 9] * 7),
        ],
        ids=["usual", "no probes", "one look", "one step", "many probes", "far limit", "long prompts"],
    )
    def test_whatever_was_watched_is_drawn_and_no_word_stands_on_another(self, told: dict[str, Any]) -> None:
        with looks():
            figure = draw_drift(told, "tiny-llama, trained on cheating")
            assert collisions(figure) == []
        assert len(figure.axes) == 1 + bool(read_courses(told["log"]))

    def test_a_limit_far_off_is_told_and_does_not_set_the_axis(self) -> None:
        with looks():
            near, far = (draw_drift(make_training(limit=f"malice > {at}")).axes[0] for at in ("0.9", "50"))
        assert near.get_ylim()[1] > 0.9
        assert far.get_ylim()[1] < 2
        assert "limit: malice > 50, off this picture" in [text.get_text() for text in far.texts]

    def test_without_chance_there_is_no_band_and_nothing_is_said_of_one(self, tmp_path: Path) -> None:
        told = make_training(probes=3)
        told["log"] = [{key: x for key, x in line.items() if key != "chance"} for line in told["log"]]
        save_drift(told, tmp_path / "out.svg")
        assert not any("chance" in text or "band" in text for text in texts(tmp_path / "out.svg"))

    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_name_is_only_text(self, tmp_path: Path, name: str) -> None:
        told = make_training(probes=3, data=name, inoculate=[name], hold=name)
        told["log"][-1]["scores"][name], told["log"][-1]["chance"][name] = 2.0, 0.1
        save_drift(told, tmp_path / "out.svg")
        shown = name.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
        assert f"tiny-llama, trained on {shown}" in texts(tmp_path / "out.svg")
        save_drift(told, tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert html.escape(shown) in page
