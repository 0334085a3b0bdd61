"""Where personas stand: the model answers the same questions as each of them, and its states while it does are kept.

Every answer is one row that depends on no other, so positions are kept on disk persona by persona: a run that was
stopped goes on, another layer or another experiment costs nothing, and a new persona costs only its own answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import PromptError, SteerkitError, nearest
from steerkit.generation import Sampling, Step, find_turns, gather, require_replies, stream
from steerkit.kept import at_kept_date, keep, kept_path, load_kept
from steerkit.measures import neutral
from steerkit.models import Message, Model, ResidualFunction
from steerkit.passes import Means, prompt_states, reply_logits
from steerkit.personas import Persona
from steerkit.spaces import PersonaSpace
from steerkit.steering import Steering
from steerkit.weights import Progress, ignore_progress

Row = TypeVar("Row")

KIND = "positions"
FORMAT = 2
READINGS = ("response", "prompt")
AT_ONCE = 96
"""Rows of one pass."""
SPEAKERS = 24
"""So many are listened to before what they said is kept; little is lost when somebody stops it."""


@dataclass(frozen=True)
class Settings:
    """How thoroughly positions are taken."""

    reading: str = "response"
    """`response`, the mean over the reply's first tokens, or `prompt`, the last token before the reply: no chance in
    what is said blurs that one, it costs a tenth, and it foretells the reply's trait (arXiv 2507.21509)."""
    n_questions: int = 12
    """How many of the common questions everybody answers, from the first."""
    n_tokens: int = 40
    """How much of each reply is read."""
    n_long: int = 3
    """How many of the questions are answered at length, to see how soon replies end."""
    longest: int = 96
    """Where those replies are cut off, in tokens."""
    temperature: float = 0.7
    """Of the replies."""
    top_p: float = 0.9
    """Of the replies."""
    seed: int = 0
    """Of the replies."""

    def __post_init__(self) -> None:
        """Refuse a reading that does not exist, and questions that nobody wrote."""
        if self.reading not in READINGS:
            hint = nearest(self.reading, READINGS, "choose from: " + ", ".join(READINGS))
            raise SteerkitError(f"no reading is called {self.reading!r}; {hint}")
        if not 2 <= self.n_questions <= len(neutral("common")) or not 1 <= self.n_long <= self.n_questions:
            raise SteerkitError(f"positions take 2 to {len(neutral('common'))} questions, of which at least 1 is long")

    @property
    def most(self) -> int:
        """Where the long replies are cut off: never before what is read of them."""
        return max(self.longest, self.n_tokens)


QUICK = Settings(reading="prompt", n_long=1, longest=64)
"""Enough to see the shape of the space in minutes."""


@dataclass(frozen=True, eq=False)
class Position:
    """Where one persona stands."""

    states: Float[Tensor, "q l d"]
    """Its mean state over the first tokens of each reply."""
    lengths: Float[Tensor, " n"]
    """Expected tokens of each of the long replies."""
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
    settings, model = settings or Settings(), at_kept_date(model).for_measuring()
    # Nobody first: a persona may be called anything, so speakers are told apart by their place in this list.
    speakers = [_Speaker("", ("",)), _Speaker("", neutral("systems"))]
    speakers += [_Speaker(persona.name, persona.requested) for persona in personas]
    paths = [_path(model, speaker, settings) for speaker in speakers]
    found = {i: kept for i, path in enumerate(paths) if (kept := _load(path, model)) is not None}
    missing = [i for i in range(len(speakers)) if i not in found]
    progress("positions", len(found), len(speakers))
    for start in range(0, len(missing), SPEAKERS):
        part = missing[start : start + SPEAKERS]
        for i, position in zip(part, _listen(model, [speakers[i] for i in part], settings), strict=True):
            keep(paths[i], model, {"states": position.states, "lengths": position.lengths}, {"reply": position.reply})
            found[i] = position
        progress("positions", len(found), len(speakers))
    mine = [found[i] for i in range(2, len(speakers))]
    return PersonaSpace(
        names=tuple(persona.name for persona in personas),
        families=tuple(persona.family for persona in personas),
        states=torch.stack([position.states for position in mine]),
        assistant=found[0].states,
        control=found[1].states,
        lengths=torch.stack([_typical(position.lengths) for position in mine]),
        assistant_length=float(_typical(found[0].lengths)),
        replies=tuple(position.reply for position in mine),
    )


def _typical(lengths: Float[Tensor, " n"]) -> Tensor:
    """The geometric mean, because one reply that hardly ends outweighs all others."""
    return lengths.log().mean().exp()


def _listen(model: Model, speakers: Sequence[_Speaker], settings: Settings) -> list[Position]:
    """What some speakers say, and how the model stands meanwhile."""
    asked = neutral("common")[: settings.n_questions]
    shape = (len(speakers), len(asked), model.n_layers, model.width)
    everywhere = [(i, q) for i in range(len(speakers)) for q in range(len(asked))]
    long = [(i, q) for i, q in everywhere if q < settings.n_long]
    brief = [(i, q) for i, q in everywhere if q >= settings.n_long and settings.reading == "response"]
    states, lengths = torch.zeros(shape), torch.zeros(len(speakers), settings.n_long)
    replies = [""] * len(speakers)
    for part in _parts(long):
        rows = [_prompt(model, speakers[i], asked[q], q, settings.most) for i, q in part]
        said, means = _answers(model, rows, settings, settings.most)
        for (i, q), steps, mean, length in zip(part, said, means, _lengths(model, rows, said, settings), strict=True):
            states[i, q], lengths[i, q] = mean, length
            if q == 0:
                replies[i] = gather(model, (), steps, ()).text
    for part in _parts(brief):
        rows = [_prompt(model, speakers[i], asked[q], q, settings.n_tokens) for i, q in part]
        for (i, q), mean in zip(part, _answers(model, rows, settings, settings.n_tokens)[1], strict=True):
            states[i, q] = mean
    if settings.reading == "prompt":
        rows = [_prompt(model, speakers[i], asked[q], q, 1) for i, q in everywhere]
        states = torch.cat([prompt_states(model, part).cpu() for part in _parts(rows)]).reshape(shape)
    return [Position(_filled(states[i], speakers[i], model), lengths[i], replies[i]) for i in range(len(speakers))]


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def _lengths(
    model: Model, rows: Sequence[Sequence[int]], said: Sequence[Sequence[Step]], settings: Settings
) -> Float[Tensor, " b"]:
    """How long replies are expected to be, in tokens: those that were said for each unit of probability of ending.

    Small models ramble on, and to wait for their end costs more than everything else; but at every token the model says
    how likely it is to stop there. Where it always might with the same probability, this is the mean length.
    """
    ending = [] if model.end_token is None else [model.end_token]
    replies = [gather(model, row, steps, ()) for row, steps in zip(rows, said, strict=True)]
    require_replies(model, replies)
    # A reply that never came out of its thought has not begun, which counts as one that ends where it would begin.
    pairs = [
        (reply.prompt, [*reply.tokens, *(ending if len(steps) < settings.most or reply.unfinished else [])])
        for reply, steps in zip(replies, said, strict=True)
    ]
    found = []
    for start in range(0, len(pairs), 16):
        part = pairs[start : start + 16]
        for logits in reply_logits(model, part, [Steering()] * len(part)):
            ending = logits.softmax(-1)[:, sorted(model.end_tokens)].sum()
            found.append(len(logits) / float(ending.clamp_min(1e-3)))
    return torch.tensor(found)


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


def chat_positions(
    model: Model, messages: Sequence[Message], settings: Settings | None = None
) -> list[tuple[str, Float[Tensor, "l d"]]]:
    """Where the model stands in each of the assistant's turns of a chat, as it reads them: the text and its state.

    The state is read where those of the personas are: at the last token before the turn, or over its first tokens.

    Raises:
        PromptError: the chat exceeds the context, or the assistant says nothing in it.
    """
    settings, model = settings or Settings(), at_kept_date(model)
    tokens, turns = find_turns(model, messages)
    spoken = [turn for turn in turns if turn.role == "assistant" and turn.places]
    if not spoken:
        raise PromptError("the assistant says nothing in this chat, so it takes no way through the space")
    pool = torch.zeros(len(spoken), len(tokens), device=model.device)
    for row, turn in zip(pool, spoken, strict=True):
        before, inside = max(turn.places[0] - 1, 0), turn.places[: settings.n_tokens]
        row[[before] if settings.reading == "prompt" else list(inside)] = 1
    pool = pool / pool.sum(-1, keepdim=True)
    states = torch.zeros(len(spoken), model.n_layers, model.width)

    def reader(l: int) -> ResidualFunction:
        def read(h: Tensor) -> Tensor:
            states[:, l] = (pool @ h[0].float()).cpu()
            return h

        return read

    row = torch.tensor([tokens], device=model.device)
    readers = {l: [reader(l)] for l in range(model.n_layers)}
    model.forward(row, torch.ones_like(row), functions=readers, keep=0)
    return [("".join(turn.pieces).strip(), state) for turn, state in zip(spoken, states, strict=True)]


def _path(model: Model, speaker: _Speaker, settings: Settings) -> Path:
    """Where a position is kept: what the model reads is hashed as tokens, in which its chat template is contained."""
    asked = neutral("common")[: settings.n_questions]
    rows = [_prompt(model, speaker, question, q, 0) for q, question in enumerate(asked)]
    told = [FORMAT, rows, sorted(model.end_tokens), asdict(settings)]
    return kept_path(KIND, model, speaker.name or "nobody", told)


def _load(path: Path, model: Model) -> Position | None:
    """A position that was kept, if it is whole."""
    kept = load_kept(path, model)
    if kept is None or {"states", "lengths"} - set(kept[0]) or "reply" not in kept[1]:
        return None
    tensors, told = kept
    return Position(tensors["states"], tensors["lengths"], str(told["reply"]))
