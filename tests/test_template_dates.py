"""A chat template that writes the date is of one date as long as one file is; files say what their tokens rest on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_vector
from templated import (
    ASKED,
    CHANNELS,
    CHATML,
    DATED,
    HEADER,
    ITEMS,
    OPENED,
    PARTS,
    PERSONAS,
    TODAY,
    TOMORROW,
    VICUNA,
    bytes_tokenizer,
    said,
    speaks,
    stopped_at,
    with_template,
)
from typer.testing import CliRunner

from steerkit import calibration, positions
from steerkit.chat_templates import ChatTemplate
from steerkit.chats import Chat, Said, load_chat
from steerkit.cli import app
from steerkit.errors import PromptError
from steerkit.extraction import Recipe, extract
from steerkit.generation import Probe
from steerkit.items import ItemSet
from steerkit.kept import at_kept_date
from steerkit.lessons import to_samples
from steerkit.models import Model
from steerkit.personas import find_pair
from steerkit.samples import Settings
from steerkit.screening import screen
from steerkit.speed import Rates
from steerkit.sweeps import Grid, plan, sweep
from steerkit.tuning import Order, date_in, tune
from steerkit.tuning import Recipe as TrainingRecipe
from steerkit.work import Known


class TestClocks:
    def test_the_date_is_part_of_what_is_kept_only_where_a_template_writes_it(self, base: Model) -> None:
        today, tomorrow = (speaks(base, bytes_tokenizer(DATED), options) for options in (TODAY, TOMORROW))
        assert today.template_date == TODAY.date
        assert "28 Nov 2026 09:00:00" in today.render(ASKED)
        assert today.chat_tokens(ASKED) != tomorrow.chat_tokens(ASKED)
        assert tomorrow.at_date(TODAY.date).chat_tokens(ASKED) == today.chat_tokens(ASKED)
        assert "2026-11-28T09:00:00" in tomorrow.notes[0]
        plain = with_template(base, CHATML, eos_token="<|im_end|>")
        assert plain.at_date(TOMORROW.date) is plain
        assert plain.template_date == ""
        assert "template_date" not in Known.of(plain).to_json().get("template", {})
        known = Known.from_json(json.loads(json.dumps(Known.of(today).to_json())))
        assert known.at_date("2020-01-01").template_identity["template_date"] == "2020-01-01"
        with pytest.raises(PromptError, match="is no date"):
            today.at_date("yesterday")

    def test_a_date_in_a_branch_and_a_date_that_is_given_are_told_apart(self, base: Model) -> None:
        given = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        branch = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{% if m['role'] == 'system' %}DATE{% endif %}")
        for template in (
            given + "{{ date_string }}" + CHATML,
            branch.replace("DATE", "{{ strftime_now('%Y-%m-%d') }}"),
        ):
            assert with_template(base, template).template_date == TODAY.date
        fixed = replace(TODAY, variables={"date_string": "26 Jul 2024"})
        model = speaks(base, bytes_tokenizer(given + "{{ date_string }}" + CHATML), fixed)
        assert (model.template_date, model.render(ASKED)[:11]) == ("", "26 Jul 2024")
        assert model.template_identity["template_variables"] == {"date_string": "26 Jul 2024"}
        unused = ChatTemplate(
            "x", bytes_tokenizer(CHATML), 400, TODAY, "{% if false %}{{ strftime_now('') }}{% endif %}"
        )
        assert not unused.has_clock

    def test_tomorrows_sweep_and_screening_go_on_with_todays(self, base: Model, tmp_path: Path) -> None:
        today, tomorrow = (speaks(base, bytes_tokenizer(DATED), options) for options in (TODAY, TOMORROW))
        grid = Grid((make_vector("hal", base.fingerprint),), dials=(-1.0, 0.5, 1.0), n_texts=1, n_tokens=4, block=2)
        source = tmp_path / "data.jsonl"
        source.write_text("".join(json.dumps([*ASKED, said(f"I am {i}.")]) + "\n" for i in range(4)))
        probes, settings = [Probe.of(grid.vectors[0])], Settings(4, block=2)
        sweep(today, grid, ItemSet("hal", ITEMS), tmp_path / "sweep")
        screen(today, source, probes, tmp_path / "screen", settings)
        for name in ("sweep", "screen"):
            whole = (tmp_path / name).read_bytes()
            assert b'"template_date": "2026-11-28T09:00:00"' in whole
            (tmp_path / name).write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
            if name == "sweep":
                sweep(tomorrow, grid, ItemSet("hal", ITEMS), tmp_path / name)
            else:
                screen(tomorrow, source, probes, tmp_path / name, settings)
            assert (tmp_path / name).read_bytes() == whole
        # The control: begun anew tomorrow, it is another date and other numbers.
        sweep(tomorrow, grid, ItemSet("hal", ITEMS), tmp_path / "other")
        lines = [json.loads((tmp_path / name).read_text().splitlines()[0]) for name in ("sweep", "other")]
        assert lines[0]["key"] != lines[1]["key"]
        assert lines[0]["result"] != lines[1]["result"]

    def test_tomorrows_training_goes_on_with_todays(self, base: Model, tmp_path: Path) -> None:
        chats = [(i, [*ASKED, said(f"I am {i}.")]) for i in range(1, 5)]
        recipe = TrainingRecipe(epochs=1, batch=2, rate=1e-2, rank=2, alpha=4, looks=2)
        told = []
        for options in (TODAY, TOMORROW):
            model = speaks(base, bytes_tokenizer(DATED), options).at_date(date_in(tmp_path / "run"))
            samples = to_samples(model, chats, Path("data"))
            told.append(tune(model, samples, tmp_path / "run", Order("data", "0" * 64, recipe)))
        assert told[0] == told[1]
        assert told[0]["template_date"] == TODAY.date

    def test_train_run_twice_is_one_training(
        self, base: Model, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("steerkit.speed.measure_rates", lambda _model: Rates(1e3, 1e3, 1e3))
        folder = workplace / "dated"
        shutil.copytree(base.source, folder)
        bytes_tokenizer(DATED).save_pretrained(folder)
        fast = ("--most", "4", "--batch-size", "2", "--epochs", "1", "--looks", "2", "--json", "-m", str(folder))
        told = []
        for date in ("2026-11-28T09:00:00", "2026-11-29T10:11:12"):
            monkeypatch.setattr("steerkit.chat_templates.datetime", stopped_at(date))
            result = CliRunner().invoke(app, ["train", "plain", *fast])
            assert result.exit_code == 0, result.output
            told.append(json.loads(result.stdout))
        assert [each["state"] for each in told] == ["done", "done"]
        assert told[0]["loss"] == told[1]["loss"]

    def test_a_vector_a_position_and_a_chat_keep_their_date(
        self, base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        today, tomorrow = (speaks(base, bytes_tokenizer(DATED), options) for options in (TODAY, TOMORROW))
        recipe = Recipe(reading="prompt")
        vector = extract(today, find_pair("hal"), recipe)
        assert vector.provenance["template_date"] == TODAY.date
        again = extract(tomorrow.at_date(vector.provenance["template_date"]), find_pair("hal"), recipe)
        assert torch.equal(vector.directions, again.directions)
        assert not torch.equal(vector.directions, extract(tomorrow, find_pair("hal"), recipe).directions)

        settings = positions.Settings(reading="prompt", n_questions=2, n_long=1, longest=4, n_tokens=2)
        listened: list[int] = []
        for model in (today, tomorrow):
            positions.take_positions(model, PERSONAS, settings, lambda *told: listened.append(told[1]))
        assert listened == [0, 6, 6]
        assert at_kept_date(tomorrow).template_date == TODAY.date

        chat = Chat(today.name, (Said("user", "Why?"),), template_date=today.template_date)
        chat.save(tmp_path / "chat.jsonl")
        found, _ = load_chat(tmp_path / "chat.jsonl")
        assert (
            found.fitted(tomorrow, 4)[1]
            == chat.fitted(today, 4)[1]
            != replace(found, template_date="").fitted(tomorrow, 4)[1]
        )
        assert "template_date" not in Chat("m", (Said("user", "Why?"),)).written()

    def test_calibration_reads_a_vector_with_its_own_date(self, base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        dates = []
        monkeypatch.setattr(
            calibration, "gather_material", lambda model, *_: dates.append(model.template_date) or gone()
        )
        vector = replace(make_vector("hal", base.fingerprint), provenance={"template_date": TODAY.date})
        with pytest.raises(LookupError):
            calibration.calibrate(speaks(base, bytes_tokenizer(DATED), TOMORROW), vector, find_pair("hal"))
        assert dates == [TODAY.date]


def gone() -> None:
    raise LookupError


class TestWhatIsKept:
    def test_files_say_by_which_rules_they_were_made_only_where_the_old_ones_gave_other_tokens(
        self, base: Model
    ) -> None:
        grid, items = Grid((make_vector("hal", base.fingerprint),), dials=(1.0,)), ItemSet("hal", ITEMS)
        same = with_template(base, CHATML, eos_token="<|im_end|>")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base.original.generation_config, "eos_token_id", 4)
            assert same.template_identity == {}
            (key,) = (trial.key for trial in plan(same, grid, items))
            (plain,) = (trial.key for trial in plan(replace(base, template_options=TOMORROW), grid, items))
            assert key == plain
            for template in (VICUNA + OPENED, PARTS, CHATML.replace(HEADER, ""), CHANNELS):
                other = with_template(base, template, eos_token="<|im_end|>")
                assert other.template_identity == {"template_rules": 2}
                assert key not in [trial.key for trial in plan(other, grid, items)]
        assert with_template(base, CHATML).template_identity == {"template_rules": 2}
