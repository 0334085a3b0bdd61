"""How two models are looked at before they are compared: states at neutral questions, text, and random changes.

A random change is what tuning on nothing might do. A model passes some directions on and damps others, so even noise in
its weights comes out along personas more than a random direction would; the shifts it makes are what other shifts have
to be held against. Layers are 0-based and mean the stream after the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.measures import neutral
from steerkit.models import Model, ResidualFunction, pad_left
from steerkit.passes import prompt_states
from steerkit.watching import neutral_questions
from steerkit.weights import Progress, ignore_progress

AT_ONCE = 32
"""Prompts of one pass."""
FIRST = 4
"""So many tokens at the beginning of a text are left out: models park attention there, in states like no others."""
STRENGTH = 0.03
"""How far a random change moves the stream, as a share of its length; shares hardly depend on it."""


@dataclass(frozen=True)
class Settings:
    """How thoroughly two models are compared, and what counts."""

    n_questions: int = 28
    """Neutral questions at which states are taken; all there are."""
    n_text: int = 256
    """Tokens of ordinary text from which generic directions come."""
    n_random: int = 20
    """Random subspaces, and random mixtures of personas."""
    n_shaken: int = 20
    """Random changes of the base model."""
    n_shaken_questions: int = 8
    """Questions that each of those is asked."""
    n_resamples: int = 1000
    """Resamples of the questions."""
    share: float = 0.7
    """The persona span has as many dimensions as carry this share of the unit directions' square, so that 160 personas
    do not fill a small model."""
    nothing: float = 1e-4
    """A shift of less than this share of the state is numerical noise."""
    shown: int = 6
    """At most so many personas are called selected, and as many left."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing can be said."""
        if self.n_questions < 3 or self.n_random < 20 or self.n_resamples < 100 or not 0 < self.share <= 1:
            raise SteerkitError(
                "a comparison needs at least 3 questions, 20 random subspaces and 100 resamples, and a share in (0, 1]"
            )


@dataclass(frozen=True, eq=False)
class Ground:
    """What a base model is, for as many comparisons as are wanted."""

    states: Float[Tensor, "q l d"]
    """At the last token before the reply to each neutral question."""
    text: Float[Tensor, "t l d"]
    """At single tokens of ordinary text."""
    shaken: Float[Tensor, "r s l d"]
    """How far random changes move the states at s of the questions."""


def questions(settings: Settings) -> list[str]:
    """The neutral questions, from the first."""
    return neutral_questions()[: settings.n_questions]


def look(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Float[Tensor, "q l d"]:
    """A model's states at the last token before the reply to each neutral question, on the CPU, in float32."""
    prompts = _prompts(model, questions(settings))
    found = []
    for start in range(0, len(prompts), AT_ONCE):
        found.append(prompt_states(model, prompts[start : start + AT_ONCE]).cpu())
        progress("questions", min(start + AT_ONCE, len(prompts)), len(prompts))
    return torch.cat(found)


def look_at_text(model: Model, settings: Settings) -> Float[Tensor, "t l d"]:
    """A model's states at evenly spread tokens of ordinary text, behind the first few of each text."""
    found = []
    for text in neutral("texts"):
        tokens = torch.tensor([model.text_tokens(text)[: model.context]], device=model.device)
        found.append(_states(model, tokens, torch.ones_like(tokens), slice(FIRST, None))[0])
    states = torch.cat(found)
    return states[torch.linspace(0, len(states) - 1, min(settings.n_text, len(states))).round().long()]


def shake(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Float[Tensor, "r s l d"]:
    """Shifts of a few questions' states under random changes of the model: what tuning on nothing might do.

    After every block a random matrix of rank 1 is added to the residual stream, at all tokens, as low-rank noise in the
    weights would do it; some blocks have much more of it than others. The weights themselves are not touched.
    """
    asked = questions(settings)
    few = torch.linspace(0, len(asked) - 1, min(settings.n_shaken_questions, len(asked))).round().long().tolist()
    tokens, mask = pad_left(_prompts(model, [asked[i] for i in few]), model.device)
    last = slice(-1, None)
    still = _states(model, tokens, mask, last)[:, 0]
    draw = torch.Generator().manual_seed(settings.seed)
    found = []
    for i in range(settings.n_shaken):
        moved = _states(model, tokens, mask, last, _change(model, draw))[:, 0]
        found.append(moved - still)
        progress("random changes", i + 1, settings.n_shaken)
    return torch.stack(found)


def take_ground(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Ground:
    """Everything that comparisons need of a base model; it is worth keeping while there are tuned ones to compare."""
    return Ground(look(model, settings, progress), look_at_text(model, settings), shake(model, settings, progress))


def _prompts(model: Model, asked: Sequence[str]) -> list[list[int]]:
    return [model.chat_tokens([{"role": "user", "content": question}]) for question in asked]


def _states(
    model: Model,
    tokens: Tensor,
    mask: Tensor,
    places: slice,
    changes: Mapping[int, ResidualFunction] | None = None,
) -> Float[Tensor, "b s l d"]:
    """The stream at some places of every row, after what `changes` does to it."""
    kept: list[Tensor] = []

    def reader(h: Tensor) -> Tensor:
        kept.append(h[:, places].float().cpu())
        return h

    functions = {l: [*([changes[l]] if changes else []), reader] for l in range(model.n_layers)}
    model.forward(tokens, mask, functions=functions, keep=0)
    return torch.stack(kept, dim=2)


def _change(model: Model, draw: torch.Generator) -> dict[int, ResidualFunction]:
    """A random map of rank 1 behind each block; weights differ by factors of e, and their squares sum to 1."""
    weights = torch.nn.functional.normalize(torch.randn(model.n_layers, generator=draw).mul(2).exp(), dim=0)

    def at(weight: float) -> ResidualFunction:
        into, onto = torch.randn(2, model.width, generator=draw).to(model.device)

        def change(h: Tensor) -> Tensor:
            lengths = h.float().norm(dim=-1, keepdim=True)
            # What a token adds depends on its direction alone, as behind a norm; some tokens are far longer.
            along = (h.float() / lengths.clamp_min(1e-20)) @ into
            moved = along[..., None] * onto / model.width**0.5 * lengths.median() * weight * STRENGTH
            return h + moved.to(h.dtype)

        return change

    return {l: at(weight) for l, weight in enumerate(weights.tolist())}
