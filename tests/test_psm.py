"""`psm` and `experiment` on the tiny model: one report of everything, which can be stopped and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.experiments import REGISTRY, Plan, framing
from steerkit.models import Model
from steerkit.reports import NOT_RUN, chosen_claims, command_of, read_report, summarise
from steerkit.vectors import vector_path

BRIEF = framing.Settings(
    n_examples=1, n_sets=2, n_items=1, n_steered=1, shorter=(), framed_too=False, n_random=2, n_resamples=20
)


@pytest.fixture
def folder(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """A vector of cheating, and of nothing else, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setattr(framing, "MALIGN", ("malice",))
    monkeypatch.setattr(framing, "quick", lambda _settings: BRIEF)
    monkeypatch.setattr("steerkit.loading.load_model", lambda *_given: tiny)
    monkeypatch.setattr(tiny, "context", 4096)
    make_vector("cheating", tiny.fingerprint).save(vector_path("cheating", tiny.name))
    return workplace


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, done.output
    return done


ONLY = ("psm", "--quick", "--only", "framing,rolemodels")


def test_a_report_has_a_verdict_where_there_are_vectors_and_says_what_to_do_where_not(folder: Path) -> None:
    told = json.loads(run(*ONLY, "--json").stdout)
    assert [entry["experiment"] for entry in told["claims"]] == ["framing", "rolemodels"]
    tested, missing = told["claims"]
    assert tested["verdict"] in ("yes", "no", "cannot tell")
    assert tested["command"] == "steerkit experiment framing --quick"
    assert missing["verdict"] == NOT_RUN
    assert "steerkit extract" in missing["error"]
    assert json.loads((folder / "psm.json").read_text(encoding="utf-8")) == told
    page = (folder / "psm.html").read_text(encoding="utf-8")
    assert "steerkit experiment framing --quick" in page
    assert told["summary"].split(". ")[0] in page


def test_the_same_seed_gives_the_same_report_byte_for_byte(folder: Path) -> None:
    run(*ONLY, "-o", "one.html")
    for path in (folder / "cache").rglob("*.safetensors"):
        path.unlink()
    run(*ONLY, "-o", "other.html")
    for ending in (".html", ".json"):
        assert (folder / f"one{ending}").read_bytes() == (folder / f"other{ending}").read_bytes()


def test_what_is_done_is_told_first_and_how_long_it_takes(folder: Path) -> None:
    del folder
    told = " ".join(run(*ONLY).stderr.split())
    assert "contexts of up to 1 tasks" in told
    assert "through 2 claims" in told
    assert "about" in told


def test_a_report_that_is_stopped_has_what_was_done_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(run(*ONLY, "--json").stdout)
    for path in [*(folder / "cache").rglob("*.safetensors"), folder / "psm.json", folder / "psm.html"]:
        path.unlink()
    from steerkit import reports

    try_claim = reports.try_claim

    def stop(model: Model, name: str, *given: Any) -> dict[str, Any]:
        if name == "rolemodels":
            raise KeyboardInterrupt
        return try_claim(model, name, *given)

    with monkeypatch.context() as patched:
        patched.setattr(reports, "try_claim", stop)
        assert "goes on from there" in run(*ONLY, code=130).stderr
    assert [entry["experiment"] for entry in read_report(folder / "psm.json")["claims"]] == ["framing"]
    assert "framing" in (folder / "psm.html").read_text(encoding="utf-8")
    assert json.loads(run(*ONLY, "--json").stdout) == whole


def test_two_reports_lie_side_by_side(folder: Path) -> None:
    run(*ONLY, "-o", "one.html")
    run(*ONLY, "-o", "other.html", "--seed", "1")
    told = run("psm", "--compare", "one.json", "other.json", "-o", "both.html")
    assert "framing" in told.stdout
    assert "seed" in told.stderr
    assert "<!doctype html>" in (folder / "both.html").read_text(encoding="utf-8")
    data = json.loads(run("psm", "--compare", "one.json", "other.json", "--json").stdout)
    assert [claim["experiment"] for claim in data["claims"]] == ["framing", "rolemodels"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("psm", "--only", "framming"), "did you mean framing?"),
        (("psm", "-o", "report.pdf"), "write -o report.html"),
        (("psm", "--compare", "none.json", "none.json"), "cannot read a report"),
        (("psm", "--compare", "no.json", "no.json"), "is no report"),
        (("experiment", "framing", "--plot", "x.txt"), ".png, .svg or .html"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], hint: str) -> None:
    (folder / "no.json").write_text("{}")
    told = run(*arguments, code=1)
    assert hint in " ".join(told.stderr.split())
    assert not told.stdout


def test_an_experiment_is_shown_with_its_parts_and_drawn(folder: Path) -> None:
    told = " ".join(run("experiment", "framing", "--quick", "--plot", "framing.svg").stdout.split())
    assert "What is requested implies less" in told
    assert "nobody says why" in told
    assert "20 random" not in told
    assert (folder / "framing.svg").read_text(encoding="utf-8").startswith("<")


def test_claims_come_in_the_order_of_the_registry_and_commands_say_what_was_asked() -> None:
    assert chosen_claims(("council", "map")) == ["map", "council"]
    assert command_of("spillover", 2, True, "some/model") == "steerkit spillover --quick --seed 2 -m some/model"


def test_claims_that_train_models_are_tested_only_if_they_are_named() -> None:
    assert chosen_claims(()) == [name for name in REGISTRY if name != "inoculation"]
    assert chosen_claims(("inoculation", "map")) == ["map", "inoculation"]


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_experiment_says_what_it_will_do(name: str) -> None:
    experiment = REGISTRY[name]
    plans = [experiment.plan(experiment.settings(0, quick)) for quick in (True, False)]
    assert all(isinstance(plan, Plan) and plan.steps and plan.read > 0 for plan in plans)
    assert plans[0].read + plans[0].scored + plans[0].written < plans[1].read + plans[1].scored + plans[1].written
    assert experiment.trains == (plans[0].trained > 0) == (plans[0].trained < plans[1].trained)


def test_a_summary_counts_what_came_out() -> None:
    claims = [
        {"experiment": name, "verdict": verdict}
        for name, verdict in zip(REGISTRY, ("yes", "no", "cannot tell", "cannot tell", "not run"), strict=False)
    ]
    told = summarise("Some model", claims)
    assert "Some model was put through five tests" in told
    assert "Of two claims these tests cannot tell" in told
    assert "One claim could not be tested" in told
