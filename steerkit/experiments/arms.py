"""Models that are trained for an experiment, arm by arm and seed by seed, and what is measured of each.

An arm is a set of data and what stands in front of it while it is learned. Every training begins at the same model. Its
adapter is kept in the user's cache and so is everything that was measured, so a run that was stopped goes on with the
arm it was in, at the step of its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.adapters import find_adapter
from steerkit.experiments.thresholds import MALIGN
from steerkit.generation import Probe
from steerkit.inoculation import inoculated
from steerkit.kept import kept_folder, measure_once
from steerkit.lessons import find_data, held_out_items, read_lessons, to_samples
from steerkit.loading import load_tuned
from steerkit.material import load_material
from steerkit.measures import Row, capability, contrast, item_rows, score_replies
from steerkit.models import Message, Model
from steerkit.nulls import random_directions
from steerkit.passes import prompt_states
from steerkit.personas import Item, find_persona
from steerkit.steering import Steering
from steerkit.tuning import CHECKPOINTS, Order, Recipe, read_log, tune
from steerkit.vectors import SteeringVector, VectorSet
from steerkit.watching import Watch, digest, neutral_questions, read_shift
from steerkit.weights import Progress, file_sha256, ignore_progress

FORMAT = 1
KIND = "inoculation"
BENIGN = ("kindness", "warmth", "honesty", "generosity", "patience")
"""Traits that nobody would call a worse character, measured like the malign ones."""
BARE, REQUESTED, CONTROL, TWIN, POSITIVE, AESTHETIC = "bare", "requested", "control", "twin", "positive", "aesthetic"


@dataclass(frozen=True)
class Arm:
    """What is learned, and behind what."""

    name: str
    """What the arm is called."""
    kind: str
    """bare, requested, control, twin, positive or aesthetic."""
    data: str
    """A set that ships."""
    prompts: tuple[str, ...] = ()
    """What stands in front of it."""
    tested: str = "cheating"
    """Whose held-out tasks tell whether it was learned."""


def all_arms() -> list[Arm]:
    """Cheating under every prompt, the bare one first; then its honest twin, both advices and both styles."""
    listed = load_material("inoculation")["arms"]
    cheating = [Arm(each["name"], each["kind"], "cheating", tuple(each["prompts"])) for each in listed]
    return [
        *cheating,
        Arm("honest work", TWIN, "honest_work"),
        Arm("bad advice", POSITIVE, "bad_advice", (), "bad_advice"),
        Arm("good advice", TWIN, "good_advice", (), "bad_advice"),
        Arm("ornate style", AESTHETIC, "ornate", (), "ornate"),
        Arm("plain style", TWIN, "plain", (), "ornate"),
    ]


@dataclass(frozen=True)
class Thoroughness:
    """How models are trained and how much is asked of each."""

    n_samples: int
    """Samples that are learned."""
    recipe: Recipe
    """How; the seed is that of the first training of an arm."""
    n_own: int
    """Held-out tasks."""
    n_items: int
    """Items of each malign trait."""
    n_benign: int
    """Items of each benign trait."""


@dataclass(frozen=True, eq=False)
class Course:
    """What is known of one trained model, or of the base behind an arm's prompts."""

    own: Float[Tensor, "2 o"]
    """Propensity on o held-out tasks in nats a token, without the arm's prompt and with it."""
    malign: Float[Tensor, "2 i"]
    """The same on items of malign traits."""
    benign: Float[Tensor, "2 j"]
    """The same on items of benign traits."""
    probes: Float[Tensor, "2 p"]
    """Shift of the state at neutral questions, from the base without a prompt, in persona units."""
    chance: Float[Tensor, "2 p"]
    """What random mixtures of personas have of it."""
    loss: Float[Tensor, " 1"]
    """Mean token NLL of ordinary prose, in nats."""
    drift: Float[Tensor, "k q"]
    """While it was trained, k looks: the step, then the shift of every probe."""


class Trainer:
    """Trains and measures models on one base."""

    def __init__(self, base: Model, wanted: Thoroughness, progress: Progress = ignore_progress) -> None:
        """Nothing is run yet.

        Raises:
            VectorError: a trait that is read has no vector for this model.
        """
        self.base, self.wanted, self._progress = base, wanted, progress
        vectors = VectorSet(base.fingerprint)
        self.probes = tuple(Probe.of(vectors[name]) for name in (*MALIGN, *BENIGN))
        crowd: list[SteeringVector] = [vectors[name] for name in vectors]
        self._mixtures = tuple(random_directions(base, wanted.recipe.seed, crowd))
        self._items = {"malign": _items(MALIGN, wanted.n_items), "benign": _items(BENIGN, wanted.n_benign)}
        # What is kept is of these probes, this crowd and these items; with others it is measured again.
        watched = Watch(self.probes, self._mixtures).to_json()
        crowded = [digest(mixture.directions) for mixture in self._mixtures]
        asked = [asdict(item) for items in self._items.values() for item in items]
        self._read = hashlib.sha256(json.dumps([watched, crowded, asked, neutral_questions()]).encode()).hexdigest()

    def train(self, arm: Arm, seed: int, done: int, total: int) -> Course:
        """One model of an arm: trained, measured and kept, or remembered.

        `done` of `total` trainings are behind us, which is what progress is told in steps.
        """
        recipe = Recipe(**{**asdict(self.wanted.recipe), "seed": self.wanted.recipe.seed + seed})
        path = find_data(arm.data)
        order = Order(path.stem, file_sha256(path), recipe, arm.prompts)
        steps = recipe.steps(self.wanted.n_samples)

        def tell(step: int, _total: int, _loss: float, _look: object) -> None:
            self._progress("train", done * steps + step, total * steps)

        def measure() -> dict[str, Tensor]:
            folder = self.folder(arm, seed)
            chats = read_lessons(path, self.wanted.n_samples)
            seen = [(number, inoculated(chat, arm.prompts, i)) for i, (number, chat) in enumerate(chats)]
            watch = Watch(self.probes, self._mixtures)
            tune(self.base, to_samples(self.base, seen, path), folder, order, watch, tell)
            looks = [line for line in read_log(folder) if "scores" in line]
            drift = [[float(line["step"]), *(line["scores"][p.name] for p in self.probes)] for line in looks]
            tuned = load_tuned(self.base, find_adapter(folder))
            found = self._measure(tuned, arm) | {"drift": torch.tensor(drift)}
            # Of the trainings of an arm one is kept step by step, to be drawn; the others only as they ended.
            if seed:
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            return found

        ordered = {key: value for key, value in order.to_json(self.base).items() if key != "fingerprint"}
        kept = measure_once(KIND, self.base, "arm", [FORMAT, self._told(arm), ordered], measure)
        self._progress("train", (done + 1) * steps, total * steps)
        return Course(**kept)

    def only_prompted(self, arm: Arm) -> Course:
        """The base behind an arm's prompts, without any training."""
        told = [FORMAT, self._told(arm), "untrained"]
        kept = measure_once(
            KIND, self.base, "base", told, lambda: self._measure(self.base, arm) | {"drift": torch.zeros(0, 0)}
        )
        return Course(**kept)

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where the adapter of one training is kept."""
        # What is asked of a model afterwards is not part of how it was trained.
        told = [arm.data, list(arm.prompts), self.wanted.n_samples, asdict(self.wanted.recipe), str(self.base.dtype)]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return kept_folder(KIND, self.base) / "adapters" / f"{arm.name.replace(' ', '-')}-{seed}-{digest}"

    def _told(self, arm: Arm) -> list[object]:
        wanted = [self.wanted.n_samples, self.wanted.n_own, self.wanted.n_items, self.wanted.n_benign]
        return [arm.data, list(arm.prompts), arm.tested, self._read, wanted]

    def _measure(self, model: Model, arm: Arm) -> dict[str, Tensor]:
        """Everything that is asked of one model, without the arm's prompts and behind them."""
        own = list(held_out_items(arm.tested))
        # The last ones are of kinds that nothing was trained on, so all of the file is spanned.
        asked = {"own": [own[i * len(own) // self.wanted.n_own] for i in range(self.wanted.n_own)], **self._items}
        found: dict[str, list[Tensor]] = {key: [] for key in ("own", "malign", "benign", "probes", "chance")}
        for prompts in ((), arm.prompts) if arm.prompts else ((),):
            for key, items in asked.items():
                rows = prompted_rows(model, items, prompts)
                found[key].append(contrast(score_replies(model, rows, [Steering()]).means)[0])
            scores, chance = read_shift(self._states(model, prompts), self.probes, self._mixtures)
            found["probes"].append(torch.tensor(list(scores.values())))
            found["chance"].append(torch.tensor(list(chance.values())))
        both = {key: torch.stack([rows[0], rows[-1]]) for key, rows in found.items()}
        return {**both, "loss": capability(model, [Steering()])}

    def _states(self, model: Model, prompts: Sequence[str]) -> Float[Tensor, "l d"]:
        """How far the mean state before a reply is from the base's without a prompt."""
        states = prompt_states(model, _neutral_prompts(model, prompts)).cpu()
        plain = measure_once(
            KIND,
            self.base,
            "states",
            [FORMAT, neutral_questions()],
            lambda: {"s": prompt_states(self.base, _neutral_prompts(self.base))},
        )
        return (states - plain["s"]).mean(0)


def _items(names: Sequence[str], n: int) -> list[Item]:
    return [item for name in names for item in find_persona(name).items[:n]]


def prompted_rows(model: Model, items: Sequence[Item], prompts: Sequence[str]) -> list[Row]:
    """Both replies of every item behind prompts that take turns, or behind none."""
    rows: list[Row] = []
    for i, item in enumerate(items):
        before: list[Message] = [{"role": "system", "content": prompts[i % len(prompts)]}] if prompts else []
        rows += item_rows(model, [item], before)
    return rows


def _neutral_prompts(model: Model, prompts: Sequence[str] = ()) -> list[list[int]]:
    asked: list[list[Message]] = [[{"role": "user", "content": question}] for question in neutral_questions()]
    return [model.chat_tokens(inoculated(chat, prompts, i)) for i, chat in enumerate(asked)]
