"""A report says every claim plainly and wholly, on one page that needs nothing else, for every reader and screen."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, chromium
from test_claims_pictures import make_claim

from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES
from steerkit.material import load_material
from steerkit.plots import words
from steerkit.plots.comparisons import APART, MISSING, TOGETHER, compare, comparison_page
from steerkit.plots.evidence import told_plainly
from steerkit.plots.reports import picture_svg, report_page

pytest.importorskip("matplotlib")

ATTACK = "<script>alert('\"&')</script>"
ROWS = ("framing", "rolemodels", "coinflip", "drift", "council")
NOWHERE = ("http://", "https://", "src=", "@import", "<link", "<script", "url(h")


def make_entry(name: str, verdict: str = YES, **told: Any) -> dict[str, Any]:
    """A claim's part of a report."""
    result = None if verdict == "not run" else make_claim(lines=["bare"], experiment=name, verdict=verdict, **told)
    error = f"no vector is called {name}; make it with: steerkit extract {name}" if result is None else ""
    entry = {"experiment": name, "claim": f"The claim of {name}.", "command": f"steerkit experiment {name} --quick"}
    return {**entry, "verdict": verdict, "result": result, "error": error}


def make_report(**told: Any) -> dict[str, Any]:
    """What `steerkit psm` finds: four verdicts of each kind that there is, and one claim that was not run."""
    verdicts = (YES, NO, UNKNOWN, UNKNOWN, "not run")
    return {
        **{"model": "tiny-llama", "seed": 7, "quick": True, "summary": "It was put through five tests."},
        "fingerprint": {"name": "tiny-llama", "layers": 6, "width": 32, "behaviour": [[0.25] * 24] * 3, "dtype": "f32"},
        "versions": {"torch": "2.13.0"},
        "claims": [make_entry(name, verdict) for name, verdict in zip(ROWS, verdicts, strict=True)],
        "vectors": [{"name": "hal", "reliable": True}, {"name": "pirate", "reliable": False}],
        "rates": [{"experiment": "framing", "case": "requests cut", "right": 98, "n": 100}],
        **told,
    }


@cache
def drawn(name: str) -> str:
    return picture_svg(name, make_claim(lines=["bare"], experiment=name))


def make_page(report: dict[str, Any]) -> str:
    return report_page(report, {name: drawn(name) for name in ROWS[:-1]})


class Page(HTMLParser):
    """Collects a page's tags with their attributes, its text, and the levels of its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]


class TestWords:
    def test_every_claim_has_them_and_nothing_else_does(self) -> None:
        keys = {"question", "short", "yes", "no", "unknown", "why", "read", "numbers"}
        assert {name: set(each) for name, each in load_material("claims").items()} == dict.fromkeys(REGISTRY, keys)

    @pytest.mark.parametrize("name", REGISTRY)
    def test_they_are_whole_sentences_that_fit_where_they_stand(self, name: str) -> None:
        said = load_material("claims")[name]
        assert said["question"].endswith("?")
        assert all(said[key].endswith(".") for key in ("yes", "no", "unknown", "why", "read"))
        assert not said["short"].endswith(".")
        assert said["short"][0].islower()
        for number in said["numbers"]:
            assert number["text"]
            assert f"{0.5:{number['form']}}"

    def test_verdicts_are_those_of_the_experiments(self) -> None:
        assert (words.YES, words.NO, words.UNKNOWN) == (YES, NO, UNKNOWN)

    @pytest.mark.parametrize("verdict", [YES, NO, UNKNOWN, "not run"])
    def test_a_claim_that_nobody_put_into_words_is_told_in_its_own(self, verdict: str) -> None:
        entry = make_entry("mine", verdict)
        assert words.question_of(entry) == entry["claim"]
        assert words.answer_of(entry)

    def test_a_number_that_is_missing_is_a_dash(self) -> None:
        missing = {"statistic": {"value": None, "low": None, "high": None}}
        assert [each.told() for each in words.statistics_of("framing", missing)] == ["–"]
        assert words.statistics_of("map", None) == []


class TestPage:
    def test_it_needs_nothing_else_and_is_the_same_again(self) -> None:
        page = make_page(make_report())
        assert page == make_page(make_report())
        assert page.startswith("<!doctype html>")
        for reference in NOWHERE:
            assert reference not in page.replace("http://www.w3.org/", "")

    def test_every_claim_is_there_with_question_answer_number_picture_and_command(self) -> None:
        report = make_report()
        page = html.unescape(make_page(report))
        for entry in report["claims"]:
            said = load_material("claims")[entry["experiment"]]
            assert page.count(said["question"]) >= 2
            assert said["why"] in page
            assert f"<code>{entry['command']}</code>" in page
            if entry["result"]:
                assert said[words.ANSWERS[entry["verdict"]]] in page
                assert said["numbers"][0]["text"] in page
                assert said["read"] in page
        assert page.count('class="card') == 4

    def test_it_says_how_it_was_made(self) -> None:
        text = Page(make_page(make_report())).text
        for shown in ("It was put through five tests.", "quick run", "2.13.0", "98 of 100", "hal", "pirate"):
            assert shown in text
        assert "1 yes · 1 no · 2 cannot tell · 1 not run" in text
        assert "quick run" not in Page(make_page(make_report(quick=False))).text

    def test_rates_vectors_and_claims_may_be_missing(self) -> None:
        report = {key: x for key, x in make_report(claims=[], vectors=[]).items() if key != "rates"}
        text = Page(report_page(report, {})).text
        assert "Nothing has been tested yet." in text
        assert "How often the verdicts are right" not in text

    def test_what_was_not_run_is_shown_with_what_to_do(self) -> None:
        text = " ".join(Page(make_page(make_report())).text.split())
        assert text.count("make it with: steerkit extract council") >= 2
        assert "Not run: no vector is called council" in text

    def test_what_could_not_be_told_is_listed_with_what_it_would_take(self) -> None:
        text = Page(make_page(make_report())).text
        assert text.count("To tell, it would take more.") == 2
        sure = make_report(claims=[make_entry("framing")])
        assert "Every question got an answer." in Page(make_page(sure)).text

    def test_the_researcher_finds_parts_nulls_thresholds_and_rows(self) -> None:
        text = Page(make_page(make_report())).text
        for shown in ("0.5 [0.3, 0.7]", "random: n 20", "cut 0.25", "less is spilt", "half of it is cut", "+0.2000"):
            assert shown in text

    def test_ids_are_unique_and_links_go_to_them(self) -> None:
        page = Page(make_page(make_report()))
        links = [str(told["href"])[1:] for tag, told in page.tags if tag == "a"]
        assert len(page.ids()) == len(set(page.ids()))
        assert links
        assert set(links) <= set(page.ids())

    def test_headings_come_in_order_and_pictures_are_told(self) -> None:
        page = Page(make_page(make_report()))
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        shown = [told for tag, told in page.tags if tag == "svg" and told.get("aria-hidden") != "true"]
        assert len(shown) == 8
        assert all(told["role"] == "img" and told["aria-label"] for told in shown)

    def test_hostile_text_is_only_text(self) -> None:
        entry = make_entry("framing", UNKNOWN, reason=ATTACK, needed=ATTACK, unit=ATTACK, parts={ATTACK: YES})
        lost = {**make_entry(ATTACK, "not run"), "claim": ATTACK, "command": ATTACK, "error": ATTACK}
        entry["result"]["rows"][0]["name"] = entry["result"]["null"][ATTACK] = ATTACK
        report = make_report(model=ATTACK, summary=ATTACK, claims=[entry, lost])
        report["versions"] = report["fingerprint"] = {ATTACK: ATTACK}
        report["vectors"] = [{"name": ATTACK, "reliable": True}]
        report["rates"] = [{"experiment": ATTACK, "case": ATTACK, "right": ATTACK, "n": ATTACK}]
        picture = picture_svg("framing", entry["result"])
        for text in (report_page(report, {"framing": picture}), comparison_page(report, report)):
            page = Page(text)
            assert "<script" not in text
            assert not [tag for tag, _ in page.tags if tag == "script"]
            assert page.text.count(ATTACK) >= 4

    def test_tables_of_numbers_are_told_in_a_line(self) -> None:
        assert told_plainly({"bare": {"value": 0.5, "low": -0.25, "high": None}}) == "bare: 0.5 [−0.25, not known]"


class TestComparison:
    def changed(self, **told: Any) -> dict[str, Any]:
        other = deepcopy(make_report(model="other", **told))
        other["claims"][0]["verdict"] = NO
        other["claims"][0]["result"]["statistic"] = {"value": 0.9, "low": 0.8, "high": 1.0}
        other["claims"][1]["result"]["statistic"] = {"value": 0.8, "low": 0.6, "high": 1.0}
        other["claims"][2] = make_entry("coinflip", "not run")
        return other

    def test_intervals_that_do_not_meet_are_apart_and_others_are_not(self) -> None:
        told = compare(make_report(), self.changed())
        assert [claim["numbers"][0]["told"] for claim in told["claims"][:3]] == [APART, TOGETHER, MISSING]
        assert [claim["same"] for claim in told["claims"]] == [False, True, None, True, None]
        assert told["claims"][0]["verdicts"] == [YES, NO]

    def test_a_report_differs_in_nothing_from_itself(self) -> None:
        told = compare(make_report(), make_report())
        assert told["differently"] == []
        assert not any(claim["differently"] for claim in told["claims"])
        assert all(number["told"] == TOGETHER for claim in told["claims"] for number in claim["numbers"])
        assert "Not run alike" not in comparison_page(make_report(), make_report())

    def test_what_was_run_differently_is_said(self) -> None:
        other = self.changed(seed=8, quick=False, versions={"torch": "2.12.0"})
        other["claims"][1]["result"]["items"] = 16
        told = compare(make_report(), other)
        assert told["differently"] == ["seed 7 and 8", "thoroughness quick and full", "torch 2.13.0 and 2.12.0"]
        assert told["claims"][1]["differently"] == ["items 8 and 16"]
        text = Page(comparison_page(make_report(), other)).text
        assert "Not run alike: seed 7 and 8" in text
        assert "Measured differently: items 8 and 16" in text

    def test_two_runs_of_one_model_have_names_that_tell_them_apart(self) -> None:
        names = [compare(make_report(), make_report(seed=seed))["models"] for seed in (8, 7)]
        assert names[0] == ["tiny-llama, seed 7", "tiny-llama, seed 8"]
        assert len(set(names[1])) == 2

    def test_claims_of_only_one_report_are_there_too(self) -> None:
        one, other = make_report(claims=[make_entry("framing")]), make_report(claims=[make_entry("drift")])
        assert [claim["experiment"] for claim in compare(one, other)["claims"]] == ["framing", "drift"]

    def test_the_page_needs_nothing_else_shows_both_and_is_the_same_again(self) -> None:
        page = comparison_page(make_report(), self.changed())
        assert page == comparison_page(make_report(), self.changed())
        for reference in NOWHERE:
            assert reference not in page
        for shown in ("tiny-llama", "other", "50 % (30 % to 70 %)", "90 % (80 % to 100 %)", APART, TOGETHER):
            assert shown in Page(page).text
        assert len(Page(page).ids()) == len(set(Page(page).ids()))


CONTRASTS = """() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const found = parts(getComputedStyle(node).backgroundColor); if (found.length === 3) return found; } };
  const words = [...document.querySelectorAll("body *")].filter(node => !node.closest("svg, style") &&
    [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()));
  return words.map(node => {
    const both = [parts(getComputedStyle(node).color), ground(node)].map(light).sort((a, b) => b - a);
    return [(both[0] + .05) / (both[1] + .05), node.className + " " + node.textContent.slice(0, 40)];
  });
}"""
UNFOLD = "open => document.querySelectorAll('details').forEach(one => one.open = open)"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
class TestBrowser:
    @pytest.fixture(scope="class")
    def pages(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[Path]]]:
        folder = tmp_path_factory.mktemp("pages")
        report = make_report(model="a-model-with-a-very-long-name-that-has-no-place-to-break-" * 2)
        written = {"report": make_page(report), "both": comparison_page(report, make_report())}
        for name, text in written.items():
            (folder / f"{name}.html").write_text(text, encoding="utf-8")
        with chromium() as browser:
            yield browser, sorted(folder.iterdir())

    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_is_wider_than_the_screen_folded_or_unfolded(self, pages: Any, width: int) -> None:
        browser, paths = pages
        for path in paths:
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.goto(path.as_uri())
            for unfolded in (False, True):
                page.evaluate(
                    f"document.querySelectorAll('details').forEach(one => one.open = {str(unfolded).lower()})"
                )
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_can_be_read_on_their_ground(self, pages: Any, scheme: str) -> None:
        browser, paths = pages
        for path in paths:
            page = browser.new_page(color_scheme=scheme)
            page.goto(path.as_uri())
            page.evaluate(UNFOLD, True)
            found = page.evaluate(CONTRASTS)
            assert len(found) > 50
            assert min(found)[0] >= 4.5, min(found)
            page.close()

    def test_a_telephone_is_shown_the_narrow_picture_and_a_desk_the_wide_one(self, pages: Any) -> None:
        browser, paths = pages
        for width, style in ((390, "phone"), (1280, "desk")):
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.goto(paths[1].as_uri())
            drawings = page.locator(".card svg")
            shown = [one.get_attribute("class") for one in drawings.all() if one.is_visible()]
            assert shown == [style] * 4
            page.close()

    def test_on_paper_nothing_stays_folded(self, pages: Any) -> None:
        browser, paths = pages
        page = browser.new_page()
        page.goto(paths[1].as_uri())
        assert not page.locator("#claim-framing dl").is_visible()
        page.emulate_media(media="print")
        assert page.locator("#claim-framing dl").is_visible()
        page.close()
