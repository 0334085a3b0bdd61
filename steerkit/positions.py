"""Where personas stand: the model answers the same questions as each of them, and its states while it does are kept.

Every answer is one row that depends on no other, so positions are kept on disk persona by persona: a run that was
stopped goes on, another layer or another experiment costs nothing, and a new persona costs only its own answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.files import replacing_file
from steerkit.generation import Sampling, Step, stream
from steerkit.measures import neutral
from steerkit.models import Message, Model
from steerkit.passes import Means
from steerkit.personas import Persona
from steerkit.spaces import PersonaSpace
from steerkit.steering import Steering
from steerkit.vectors import model_slug
from steerkit.weights import Progress, ignore_progress

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """How thoroughly positions are taken."""

    n_questions: int = 12
    """How many of the common questions everybody answers, from the first."""
    n_tokens: int = 40
    """How much of each reply is read."""
    n_long: int = 3
    """How many of the questions are answered at length, to see how long replies are."""
    longest: int = 96
    """Where those replies are cut off, in tokens."""
    temperature: float = 0.7
    """Of the replies."""
    top_p: float = 0.9
    """Of the replies."""
    seed: int = 0
    """Of the replies."""


QUICK = Settings(n_questions=6, n_tokens=20, n_long=1, longest=80)
"""Enough to see the shape of the space in minutes."""


@dataclass(frozen=True, eq=False)
class Position:
    """Where one persona stands."""

    states: Float[Tensor, "q l d"]
    """Its mean state over the first tokens of each reply."""
    lengths: Float[Tensor, " n"]
    """Tokens of each of the long replies."""
    reply: str
    """What it said to the first question."""


@dataclass(frozen=True)
class _Speaker:
    """Somebody who answers: system prompts that take turns, or none."""

    name: str
    prompts: tuple[str, ...]


def take_positions(
    model: Model, personas: Sequence[Persona], settings: Settings | None = None, progress: Progress = ignore_progress
) -> PersonaSpace:
    """Let every persona, the Assistant and a control answer the common questions.

    Args:
        model: who plays them
        personas: whom it plays, by the prompts that request them, which take turns over the questions
        settings: how many questions, and how much of the replies
        progress: told how many speakers of how many are done

    Returns:
        Their space, at every layer.

    Raises:
        OutputError: the cache cannot be written.
        PromptError: a question does not fit the model's context.
    """
    settings = settings or Settings()
    nobody = (_Speaker("", ("",)), _Speaker("control", neutral("systems")))
    speakers = [*nobody, *(_Speaker(persona.name, persona.requested) for persona in personas)]
    found: dict[str, Position] = {}
    missing: list[_Speaker] = []
    for speaker in speakers:
        kept = _load(_path(model, speaker, settings))
        if kept is None:
            missing.append(speaker)
        else:
            found[speaker.name] = kept
    progress("positions", len(found), len(speakers))
    # As many rows as make a pass worth its while, and few enough that little is lost when somebody stops it.
    at_once = max(1, 48 // settings.n_questions)
    for start in range(0, len(missing), at_once):
        part = missing[start : start + at_once]
        for speaker, position in zip(part, _listen(model, part, settings), strict=True):
            _save(position, _path(model, speaker, settings))
            found[speaker.name] = position
        progress("positions", len(found), len(speakers))
    mine = [found[persona.name] for persona in personas]
    return PersonaSpace(
        names=tuple(persona.name for persona in personas),
        families=tuple(persona.family for persona in personas),
        states=torch.stack([position.states for position in mine]),
        assistant=found[""].states,
        control=found["control"].states,
        lengths=torch.stack([position.lengths.mean() for position in mine]),
        replies=tuple(position.reply for position in mine),
    )


def _listen(model: Model, speakers: Sequence[_Speaker], settings: Settings) -> list[Position]:
    """What some speakers say, and how the model stands meanwhile: first the long replies, then the others."""
    asked = neutral("common")[: settings.n_questions]
    states = torch.zeros(len(speakers), len(asked), model.n_layers, model.width)
    lengths = torch.zeros(len(speakers), min(settings.n_long, len(asked)))
    replies = [""] * len(speakers)
    for questions, most in (
        (range(settings.n_long), max(settings.longest, settings.n_tokens)),
        (range(settings.n_long, len(asked)), settings.n_tokens),
    ):
        places = [(i, q) for i in range(len(speakers)) for q in questions if q < len(asked)]
        if not places:
            continue
        rows = [_prompt(model, speakers[i], asked[q], q, most) for i, q in places]
        said, means = _answers(model, rows, settings, most)
        for (i, q), steps, mean in zip(places, said, means, strict=True):
            states[i, q] = mean
            if q < settings.n_long:
                lengths[i, q] = len(steps)
            if q == 0:
                replies[i] = "".join(step.text for step in steps).strip()
    return [Position(_filled(states[i], speakers[i], model), lengths[i], replies[i]) for i in range(len(speakers))]


def _filled(states: Float[Tensor, "q l d"], speaker: _Speaker, model: Model) -> Float[Tensor, "q l d"]:
    """Where nothing was said there is no state to read, and the mean of the other answers stands in."""
    silent = (states == 0).flatten(1).all(-1)
    if bool(silent.all()):
        name = speaker.name or "the Assistant"
        raise SteerkitError(
            f"{model.name} says nothing as {name}, so it has no position; leave it out or raise --questions"
        )
    states[silent] = states[~silent].mean(0)
    return states


def _prompt(model: Model, speaker: _Speaker, question: str, q: int, room: int) -> list[int]:
    system = speaker.prompts[q % len(speaker.prompts)]
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    return model.chat_tokens([*before, {"role": "user", "content": question}], room)


def _answers(
    model: Model, rows: Sequence[Sequence[int]], settings: Settings, most: int
) -> tuple[list[list[Step]], Float[Tensor, "b l d"]]:
    """Replies of at most so many tokens, and the mean state over the first of them that are read."""
    sampling = Sampling(most, settings.temperature, settings.top_p, settings.seed)
    steps: list[list[Step]] = [[] for _ in rows]
    means = Means(model, len(rows), settings.n_tokens)
    for step in stream(model, rows, [Steering()] * len(rows), (), sampling, means):
        steps[step.row].append(step)
    return steps, means.values.cpu()


def positions_folder(model: Model) -> Path:
    """Where a model's positions are kept; it can be deleted at any time."""
    return platformdirs.user_cache_path("steerkit") / "positions" / model_slug(model.name)


def _path(model: Model, speaker: _Speaker, settings: Settings) -> Path:
    """A name that changes with anything that the position depends on."""
    asked = neutral("common")[: settings.n_questions]
    told = [FORMAT, model.fingerprint.to_json(), str(model.dtype), speaker.prompts, asked, asdict(settings)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]
    return positions_folder(model) / f"{speaker.name or 'assistant-by-default'}-{digest}.safetensors"


def _save(position: Position, path: Path) -> None:
    tensors = {"states": position.states.contiguous(), "lengths": position.lengths.contiguous()}
    data = save(tensors, {"reply": position.reply})
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def _load(path: Path) -> Position | None:
    """A kept position; a damaged one is as good as none, and is taken again."""
    try:
        with safe_open(path, framework="pt") as file:
            reply = (file.metadata() or {})["reply"]
            return Position(file.get_tensor("states"), file.get_tensor("lengths"), reply)
    except (OSError, SafetensorError, KeyError):
        return None
