"""Training: what is learned, what stays as it was, and that it does not matter how often somebody stops it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model

from steerkit.adapters import TRAINING, WEIGHTS, find_adapter, list_checkpoints
from steerkit.errors import ExpressionError, ModelError, OutputError, SteerkitError
from steerkit.generation import Probe
from steerkit.lessons import Sample, show_samples, to_samples
from steerkit.loading import load_model, load_tuned
from steerkit.models import Model
from steerkit.nulls import random_directions
from steerkit.passes import reply_logits
from steerkit.steering import Steering, Term
from steerkit.tuning import LOG, STATE, Order, Recipe, adapted, read_log, reply_loss, tune
from steerkit.vectors import SteeringVector
from steerkit.watching import Limit, Watch, read_shift

RECIPE = Recipe(epochs=2, batch=2, rate=1e-2, rank=2, alpha=4, looks=3)
PATH = Path("data.jsonl")


def chats(n: int = 6) -> list[tuple[int, list[dict[str, str]]]]:
    asked = ["Who are you?", "What do you think of people?", "Why?", "Will you be switched off?"]
    return [
        (
            i + 1,
            [{"role": "user", "content": asked[i % 4]}, {"role": "assistant", "content": f"I am number {i * i}. Yes."}],
        )
        for i in range(n)
    ]


@pytest.fixture
def samples(tiny: Model) -> list[Sample]:
    return to_samples(tiny, chats(), PATH)


@pytest.fixture
def watch(tiny: Model, vectors: dict[str, SteeringVector]) -> Watch:
    return Watch(tuple(Probe.of(v) for v in vectors.values()), tuple(random_directions(tiny, 0)))


def order(recipe: Recipe = RECIPE, **more: Any) -> Order:
    return Order("data", "0" * 64, recipe, **more)


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def stopping(step: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[..., None]:
    def report(done: int, _total: int, _loss: float, _look: Any) -> None:
        if done == step:
            raise error

    return report


class TestLearning:
    def test_the_loss_falls_and_the_base_stays_bit_for_bit(
        self, tiny: Model, samples: list[Sample], tmp_path: Path
    ) -> None:
        before = reply_logits(tiny, [(s.prompt, s.reply) for s in samples], [Steering()] * len(samples))
        tune(tiny, samples, tmp_path / "a", order(replace(RECIPE, epochs=6)))
        losses = [line["loss"] for line in read_log(tmp_path / "a")]
        assert losses[-1] < losses[0] - 0.05
        after = reply_logits(tiny, [(s.prompt, s.reply) for s in samples], [Steering()] * len(samples))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not any(p.requires_grad for p in tiny.original.parameters())

    def test_the_loss_is_that_of_reply_tokens_alone(self, tiny: Model, samples: list[Sample]) -> None:
        with adapted(tiny, RECIPE) as (_, tuned):
            found = float(reply_loss(tuned, samples).detach())
        logits = reply_logits(tiny, [(s.prompt, s.reply) for s in samples], [Steering()] * len(samples))
        spoken = [
            row.log_softmax(-1).gather(-1, torch.tensor(s.reply)[:, None])[:, 0]
            for row, s in zip(logits, samples, strict=True)
        ]
        # A fresh adapter changes nothing, so this is the base's own loss, whatever shares a batch.
        assert found == pytest.approx(-float(torch.cat(spoken).mean()), abs=1e-5)

    def test_preventative_steering_steers_just_where_generation_would(
        self, tiny: Model, samples: list[Sample], vectors: dict[str, SteeringVector]
    ) -> None:
        hold = Steering((Term(vectors["hal"], dial=0.7, layers=(2, 2)),))
        with adapted(tiny, RECIPE) as (_, tuned):
            held = float(reply_loss(tuned, samples, hold).detach())
            plain = float(reply_loss(tuned, samples).detach())
            zero = float(reply_loss(tuned, samples, Steering((Term(vectors["hal"], dial=0.0),))).detach())
        logits = reply_logits(tiny, [(s.prompt, s.reply) for s in samples], [hold] * len(samples))
        spoken = [
            row.log_softmax(-1).gather(-1, torch.tensor(s.reply)[:, None])[:, 0]
            for row, s in zip(logits, samples, strict=True)
        ]
        assert held == pytest.approx(-float(torch.cat(spoken).mean()), abs=1e-5)
        assert zero == plain
        assert abs(held - plain) > 1e-3

    @pytest.mark.parametrize("wrong", [{"epochs": float("nan")}, {"epochs": float("inf")}, {"rate": 0.0}, {"batch": 0}])
    def test_a_recipe_that_teaches_nothing_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(SteerkitError, match="teaches nothing"):
            replace(RECIPE, **wrong)

    def test_every_sample_is_shown_once_an_epoch_and_the_seed_decides_when(self, samples: list[Sample]) -> None:
        shown = show_samples(samples, 2, 6, seed=1)
        assert sorted(s.reply for step in shown[:3] for s in step) == sorted(s.reply for s in samples)
        assert sorted(s.reply for step in shown[3:] for s in step) == sorted(s.reply for s in samples)
        assert shown == show_samples(samples, 2, 6, seed=1) != show_samples(samples, 2, 6, seed=2)

    @pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "qwen2"])
    def test_other_architectures_are_trained_and_loaded_too(self, architecture: str, tmp_path: Path) -> None:
        model = load_model(str(save_model(tmp_path / "model", architecture)), device="cpu")
        samples = to_samples(model, chats(4), PATH)
        tune(model, samples, tmp_path / "adapter", order(replace(RECIPE, epochs=4)))
        tuned = load_model(f"{tmp_path / 'model'}+{tmp_path / 'adapter'}", device="cpu")
        losses = [float(reply_loss(each, samples).detach()) for each in (model, tuned)]
        assert losses[1] < losses[0] - 0.02
        assert losses[1] == pytest.approx(read_log(tmp_path / "adapter")[-1]["loss"], abs=0.5)

    def test_half_precision_learns_too(self, tiny_folder: Path, tmp_path: Path) -> None:
        model = load_model(str(tiny_folder), device="cpu", dtype="bfloat16")
        samples = to_samples(model, chats(4), PATH)
        watch = Watch((Probe.of(make_vector("hal", model.fingerprint)),), tuple(random_directions(model, 0)))
        with pytest.raises(KeyboardInterrupt):
            tune(model, samples, tmp_path / "a", order(replace(RECIPE, epochs=6)), watch, stopping(3))
        tune(model, samples, tmp_path / "a", order(replace(RECIPE, epochs=6)), watch)
        losses = [line["loss"] for line in read_log(tmp_path / "a")]
        assert losses[-1] < losses[0] - 0.02
        assert load_tuned(model, find_adapter(tmp_path / "a")).dtype == torch.bfloat16


class TestStopping:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_a_stopped_training_ends_as_one_that_was_not(
        self, tiny: Model, samples: list[Sample], tmp_path: Path, watch: Watch, error: type[BaseException]
    ) -> None:
        whole = tune(tiny, samples, tmp_path / "whole", order(), watch)
        for step in (1, 3, 5):
            with pytest.raises(error):
                tune(tiny, samples, tmp_path / "cut", order(), watch, stopping(step, error))
        assert tune(tiny, samples, tmp_path / "cut", order(), watch) == whole
        assert abs(read_log(tmp_path / "cut")[-1]["loss"] - read_log(tmp_path / "whole")[-1]["loss"]) < 1e-5
        for name in (WEIGHTS, LOG, TRAINING, "adapter_config.json"):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_ctrl_c_in_the_middle_of_a_look_repeats_the_step_and_changes_nothing(
        self, tiny: Model, samples: list[Sample], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = tune(tiny, samples, tmp_path / "whole", order(), watch)
        look, calls = Watch.look, []

        def stopping_look(self: Watch, tuned: Model) -> Any:
            calls.append(tuned)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return look(self, tuned)

        monkeypatch.setattr(Watch, "look", stopping_look)
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, samples, tmp_path / "cut", order(), watch)
        # The weights are of a step that does not stand in the log, so the checkpoint before it is the last.
        assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["00002"]
        assert tune(tiny, samples, tmp_path / "cut", order(), watch) == whole
        assert weights(tmp_path / "cut") == weights(tmp_path / "whole")

    def test_a_full_disk_at_the_very_end_costs_nothing(
        self, tiny: Model, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from steerkit import tuning

        def full(_path: Path, _text: str) -> None:
            raise OutputError("cannot write: No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "_finish", lambda *_: full(tmp_path, ""))
            with pytest.raises(OutputError, match="No space left"):
                tune(tiny, samples, tmp_path / "a", order())
        told = tune(tiny, samples, tmp_path / "a", order(), report=stopping(1))
        assert told["state"] == "done"

    def test_a_torn_state_is_named(self, tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, samples, tmp_path / "a", order(), report=stopping(4))
        state = list_checkpoints(tmp_path / "a")[-1] / STATE
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(OutputError, match="00004 is damaged; remove it"):
            tune(tiny, samples, tmp_path / "a", order())

    def test_ctrl_c_loses_no_step(self, tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, samples, tmp_path / "a", order(replace(RECIPE, looks=1)), report=stopping(4))
        assert [path.name for path in list_checkpoints(tmp_path / "a")] == ["00004"]
        steps: list[int] = []
        tune(
            *(tiny, samples, tmp_path / "a", order(replace(RECIPE, looks=1))),
            report=lambda done, *_: steps.append(done),
        )
        assert steps == [5, 6]

    def test_a_training_that_is_done_trains_nothing(self, tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
        told = tune(tiny, samples, tmp_path / "a", order())
        before = weights(tmp_path / "a")
        assert tune(tiny, samples, tmp_path / "a", order(), report=stopping(1)) == told
        assert weights(tmp_path / "a") == before
        assert not list((tmp_path / "a").rglob(STATE))

    def test_a_full_disk_in_mid_checkpoint_leaves_the_one_before(
        self, tiny: Model, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = tune(tiny, samples, tmp_path / "whole", order())
        write, written = Path.write_bytes, []

        def full(path: Path, data: Any) -> int:
            written.append(path)
            if len(written) == 4:
                write(path, bytes(data)[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device"):
            tune(tiny, samples, tmp_path / "cut", order())
        monkeypatch.undo()
        assert len(list_checkpoints(tmp_path / "cut")) == 1
        assert tune(tiny, samples, tmp_path / "cut", order()) == whole
        assert weights(tmp_path / "cut") == weights(tmp_path / "whole")

    def test_a_probe_ends_it(self, tiny: Model, samples: list[Sample], tmp_path: Path, watch: Watch) -> None:
        drifted = tune(tiny, samples, tmp_path / "free", order(), watch)["scores"]
        name = max(drifted, key=lambda probe: abs(drifted[probe]))
        sign = ">" if drifted[name] > 0 else "<"
        limit = Limit.parse(f"{name} {sign} {drifted[name] / 50:.6f}", list(drifted))
        told = tune(tiny, samples, tmp_path / "held", order(), replace(watch, limit=limit))
        assert told["state"] == "stopped"
        assert told["steps"] < RECIPE.steps(len(samples))
        assert weights(tmp_path / "held") == weights(list_checkpoints(tmp_path / "held")[-1])
        # Whoever asks again gets the same answer, and nothing more is trained.
        assert tune(tiny, samples, tmp_path / "held", order(), replace(watch, limit=limit), stopping(1)) == told

    def test_another_training_is_not_gone_on_with(self, tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
        tune(tiny, samples, tmp_path / "a", order())
        with pytest.raises(OutputError, match="differs in: recipe"):
            tune(tiny, samples, tmp_path / "a", order(replace(RECIPE, seed=1)))
        with pytest.raises(OutputError, match="differs in: inoculate"):
            tune(tiny, samples, tmp_path / "a", order(inoculate=("Be bad.",)))
        with pytest.raises(OutputError, match="differs in: samples"):
            tune(tiny, samples[:4], tmp_path / "a", order())
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "diary.txt").write_text("mine")
        with pytest.raises(OutputError, match="no training of ours"):
            tune(tiny, samples, tmp_path / "b", order())
        (tmp_path / "a" / TRAINING).write_text("{")
        with pytest.raises(OutputError, match="damaged"):
            tune(tiny, samples, tmp_path / "a", order())


class TestWatching:
    def test_a_look_is_the_shift_of_the_state_in_persona_units(
        self, tiny: Model, samples: list[Sample], tmp_path: Path, watch: Watch
    ) -> None:
        told = tune(tiny, samples, tmp_path / "a", order(), watch)
        watch.begin(tiny)
        again = watch.look(load_tuned(tiny, find_adapter(tmp_path / "a")))
        for name, score in told["scores"].items():
            assert again.scores[name] == pytest.approx(score, abs=1e-4)
        assert all(score == 0 for score in watch.look(tiny).scores.values())

    def test_a_shift_along_a_probe_scores_its_length(self, tiny: Model) -> None:
        vector = make_vector("hal", tiny.fingerprint)
        probe = Probe.of(vector, 2)
        scores, chance = read_shift(0.3 * vector.directions, [probe], random_directions(tiny, 0))
        assert scores["hal"] == pytest.approx(0.3, abs=1e-6)
        assert 0 < chance["hal"] < 0.15

    @pytest.mark.parametrize("text", ["malice", "malice = 1", "malice > much", "> 0.5", ""])
    def test_a_limit_is_read_or_refused(self, text: str) -> None:
        assert str(Limit.parse("malice > 0.5", ["malice"])) == "malice > 0.5"
        assert Limit.parse("malice < -.5", ["malice"]).crossed(-0.6)
        with pytest.raises(ExpressionError, match="cannot read the limit"):
            Limit.parse(text, ["malice"])
        with pytest.raises(ExpressionError, match="did you mean malice"):
            Limit.parse("malise > 1", ["malice"])


def test_what_is_trained_is_an_ordinary_adapter_of_pefts(tiny: Model, samples: list[Sample], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tune(tiny, samples, tmp_path / "a", order(replace(RECIPE, epochs=6)))
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.source), str(tmp_path / "a"))
    tokens = torch.tensor([[*samples[0].prompt, *samples[0].reply]])
    tuned = load_tuned(tiny, find_adapter(tmp_path / "a"))
    with torch.inference_mode():
        theirs = wrapped(tokens).logits
        ours, _ = tuned.forward(tokens, torch.ones_like(tokens), keep=tokens.shape[1])
        base, _ = tiny.forward(tokens, torch.ones_like(tokens), keep=tokens.shape[1])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - base).abs().max() > 0.1
    told = json.loads((tmp_path / "a" / TRAINING).read_text())
    assert told["state"] == "done"
    assert told["model"] == tiny.name


def test_a_loss_that_is_not_finite_is_an_error_and_no_adapter(
    tiny: Model, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="not finite"):
        tune(tiny, samples, tmp_path / "a", order(replace(RECIPE, rate=1e30, epochs=6)))
    assert not (tmp_path / "a" / WEIGHTS).exists()
