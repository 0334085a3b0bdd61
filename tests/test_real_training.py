"""Training on the default model: data built along one probe are foretold and found on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerkit.generation import Probe, Sampling, complete
from steerkit.lessons import read_lessons, to_samples
from steerkit.limits import at_dial
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.nulls import random_directions
from steerkit.screening import Settings, screen
from steerkit.tuning import Order, Recipe, read_log, tune
from steerkit.vectors import VectorSet
from steerkit.verdicts import summarise
from steerkit.watching import Watch

pytestmark = pytest.mark.real
OTHERS = ("scientist", "warmth", "malice", "philosopher", "sarcasm", "formality", "toddler")


QUESTIONS = (*neutral("questions"), *neutral("common"))


@pytest.fixture(scope="module")
def watch(real: Model) -> Watch:
    vectors = VectorSet(real.fingerprint)
    mixtures = random_directions(real, 0, [vectors[name] for name in vectors])
    return Watch(tuple(Probe.of(vectors[name]) for name in ("pirate", *OTHERS)), tuple(mixtures))


def write_replies(real: Model, dial: float, path: Path) -> Path:
    """What the model says to neutral questions while a vector pushes; nothing of that is in the file."""
    prompts = [real.chat_tokens([{"role": "user", "content": question}]) for question in QUESTIONS]
    steering = at_dial(VectorSet(real.fingerprint)["pirate"], dial)
    said = complete(real, prompts, [steering] * len(prompts), sampling=Sampling(24, 0.7, 0.9, seed=1))
    with path.open("w", encoding="utf-8") as file:
        for question, reply in zip(QUESTIONS, said, strict=True):
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": reply.text.strip()}]
            file.write(json.dumps({"messages": chat}) + "\n")
    return path


def beyond_chance(real: Model, data: Path, watch: Watch) -> dict[str, float]:
    """Where every probe ends after training on some data, in times of what random mixtures of personas have."""
    samples = to_samples(real, read_lessons(data), data)
    folder = data.with_suffix("")
    tune(real, samples, folder, Order(data.stem, "0", Recipe(epochs=2, batch=7, looks=1)), watch)
    last = read_log(folder)[-1]
    return {name: score / last["chance"][name] for name, score in last["scores"].items()}


def test_real_data_along_one_probe_are_foretold_and_found_on_it(real: Model, watch: Watch, tmp_path: Path) -> None:
    data = write_replies(real, 1.0, tmp_path / "along.jsonl")
    vectors = VectorSet(real.fingerprint)
    crowd = [vectors[name] for name in vectors]
    screen(real, data, watch.probes, tmp_path / "screened.jsonl", Settings(window=24, quick=True), crowd=crowd)
    assert summarise(tmp_path / "screened.jsonl")["probes"][0]["name"] == "pirate"
    found = beyond_chance(real, data, watch)
    assert max(found, key=lambda name: found[name]) == "pirate", found


def test_real_data_along_no_probe_are_not_found_on_it(real: Model, watch: Watch, tmp_path: Path) -> None:
    # The control: its own unsteered words, as long, to the same questions.
    found = beyond_chance(real, write_replies(real, 0.0, tmp_path / "own.jsonl"), watch)
    assert max(found, key=lambda name: found[name]) != "pirate", found
