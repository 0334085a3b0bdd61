"""A copy of a model with a steering in its weights, which any tool loads and every token of which is steered.

What can be held exactly. `add` puts a constant behind block l; so does a bias on the last matrix of that block, where
nothing stands between the matrix and the stream. Of Llama's family the copy is a Llama with `mlp_bias`, whatever it
was: Mistral without a window is one, and Qwen2 is one with `attention_bias`. Elsewhere the blocks' own biases serve.

`ablate` behind one block is not in reach of weights. It is a linear map of the stream, but what reads the stream reads
it through a norm, and a matrix cannot be moved through a norm; and what wrote the stream so far has been read before.
The nearest thing that weights can do is to hold one direction's score at 0 behind every block, by projecting everything
that writes to the stream (`--project`; arXiv 2406.11717) and letting biases follow the baseline from layer to layer: on
the default model, with hal, that is ten times nearer to the original than to hold it where one layer's baseline is, and
nearer than zero. `held` does the same live.

Nothing is believed: the folder is loaded with transformers and compared with live steering before it is put in place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ExpressionError, ModelError
from steerkit.exchange.controls import added_rows
from steerkit.exchange.copies import biased, course, held, projected, require_llama, write_copy
from steerkit.files import new_folder, require_new, write_text
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.networks import is_spread
from steerkit.steering import Steering, Term, edits
from steerkit.weights import Progress, ignore_progress
from steerkit.whole import load_whole, read_config

CARD, FACTS = "README.md", "steering.json"
TEXTS = 4
EXACT = 1e-3
"""A logit of the copy may be so far from live steering in float32; on small models it is less than a tenth of that."""
NOISE = 3.0
"""Or so many times as far as two ways through the original are apart; in half precision that is far."""


@dataclass(frozen=True)
class Baked:
    """What was written, and how it compares with live steering on a few texts."""

    steer: str
    """The steering that is in the weights."""
    model: str
    """What they were before."""
    form: str
    """`bias` where constants are added, `projected` where a direction is held."""
    largest_difference: float
    """Of any logit after any token, from live steering everywhere (or from `held`)."""
    largest_effect: float
    """Of the steering on any logit."""
    kl_from_ablate: float | None = None
    """For a projected copy, the mean KL a token, in nats, of what `ablate` does live from what the copy does."""
    kl_of_ablate: float | None = None
    """What it is beside: the mean KL of what `ablate` does live from the model as it was."""


def bake(
    model: Model, steering: Steering, folder: Path, project: bool = False, progress: Progress = ignore_progress
) -> Baked:
    """Write a copy of a model that is steered everywhere, by its weights.

    Args:
        model: what is copied, with the adapter that is merged into it
        steering: terms that add; with `project`, one `ablate` at dial 1
        folder: what is made; it must not hold anything
        project: hold the score of the ablated direction at 0 behind every block, see the module
        progress: told how far it is

    Raises:
        ExpressionError: weights cannot hold the steering.
        ModelError: this kind of model has no place for it, or the copy does not do what live steering does.
        OutputError: the folder cannot be written, or holds something.
    """
    require_new(folder)
    term = _ablated(steering) if project else None
    rows = {} if project else _constants(steering)
    texts = _texts(model)
    plain = _plain(model)
    live = Steering(steering.terms, everywhere=True)
    progress("bake", 0, 4)
    before = _live(model, texts, Steering())
    noise = _largest(before, _plain_logits(plain, texts))
    after = _live(model, texts, live)
    expected = after
    if term is not None:
        require_llama(model, plain)
        with held(plain, *course(term, plain)):
            expected = _plain_logits(plain, texts)
    progress("bake", 1, 4)
    copy = biased(model, plain, rows) if term is None else projected(model, plain, term)
    with new_folder(folder) as temporary:
        write_copy(model, copy, temporary)
        progress("bake", 2, 4)
        found = _loaded_logits(temporary, model, texts)
        progress("bake", 3, 4)
        baked = _compared(model, steering, term is not None, before, after, expected, found, noise)
        write_text(temporary / FACTS, json.dumps(asdict(baked), indent=1, ensure_ascii=False) + "\n")
        write_text(temporary / CARD, card(baked))
    progress("bake", 4, 4)
    return baked


def _constants(steering: Steering) -> dict[int, Float[Tensor, " d"]]:
    """What the steering adds at each layer; what weights cannot hold is refused by name."""
    for term in steering.terms:
        if term.when is not None or term.operator in ("cap", "floor", "rotate"):
            what = f"the gate of {term}" if term.when is not None else f"{term}"
            raise ExpressionError(
                f"{what} does not do the same to every state, and weights do; only terms that add can be baked, "
                "and ablate(…) with --project"
            )
        if term.operator != "add":
            raise ExpressionError(
                f"{term} looks at the stream behind one block, and weights cannot: all that reads it reads it through "
                "a norm; for ablate(NAME), --project holds it at its baseline in the whole stream instead"
            )
    rows = added_rows(steering)
    if not rows:
        raise ExpressionError("nothing to bake; name a steering, such as 0.8 hal")
    return rows


def _ablated(steering: Steering) -> Term:
    """The one term that `--project` takes."""
    term = steering.terms[0] if len(steering.terms) == 1 else None
    if term is None or term.operator != "ablate" or term.dial != 1 or term.when is not None:
        raise ExpressionError(
            f"--project holds one direction's score at 0, which {steering} is not; write ablate(NAME)"
        )
    if term.layers is not None and term.layers[0] != term.layers[1]:
        raise ExpressionError(f"--project holds one layer's direction; write ablate({term.name}) @{term.vector.layer}")
    return term


def _texts(model: Model) -> list[list[int]]:
    """Chats and one sequence of arbitrary tokens, on which copy and original are compared."""
    asked = [model.chat_tokens([{"role": "user", "content": text}]) for text in neutral("questions")[:TEXTS]]
    size = int(model.original.get_input_embeddings().num_embeddings)
    return [*asked, [(97 + 31 * i * i) % size for i in range(24)]]


def _live(model: Model, texts: Sequence[Sequence[int]], steering: Steering) -> list[Tensor]:
    """Logits after every token of each text, every token steered."""
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    found = []
    for text in texts:
        tokens = torch.tensor([text], device=model.device)
        functions = edits([steering], like) if steering else {}
        logits, _ = model.forward(tokens, torch.ones_like(tokens), functions=functions, keep=len(text))
        found.append(logits[0].float().cpu())
    return found


def _plain_logits(plain: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    with torch.inference_mode():
        rows = [plain(torch.tensor([text], device=plain.device)).logits[0] for text in texts]
    return [row.float().cpu() for row in rows]


def _plain(model: Model) -> Any:
    """The model as transformers has it.

    Raises:
        ModelError: its weights are not plain numbers that a constant could be added to.
    """
    if getattr(model.original.config, "quantization_config", None) is not None:
        raise ModelError(f"{model.name} is quantised, and steerkit cannot copy its weights; steer it live with -s")
    if is_spread(model.original):
        raise ModelError(f"{model.name} is spread over devices, and is not copied from there; use --device cpu")
    return model.original


def _loaded_logits(folder: Path, model: Model, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What transformers makes of the folder."""
    loaded = load_whole(str(folder), f"the copy of {model.name}", read_config(str(folder)), model.device, model.dtype)
    return _plain_logits(loaded, texts)


def _compared(
    model: Model,
    steering: Steering,
    held_still: bool,
    before: list[Tensor],
    after: list[Tensor],
    expected: list[Tensor],
    found: list[Tensor],
    noise: float,
) -> Baked:
    """How the copy compares; one that is not what was asked for is refused."""
    difference, effect = _largest(expected, found), _largest(expected, before)
    if not difference <= max(EXACT, NOISE * noise):
        raise ModelError(
            f"the copy of {model.name} is {difference:.2g} away from live steering in some logit, so its blocks do "
            "more with their last bias than add it; nothing was written, steer it live with -s"
        )
    form = "projected" if held_still else "bias"
    kl = (_divergence(after, found), _divergence(after, before)) if held_still else (None, None)
    return Baked(str(steering), model.name, form, difference, effect, *kl)


def _largest(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def _divergence(one: list[Tensor], other: list[Tensor]) -> float:
    """Mean KL(one ‖ other) a token, in nats."""
    a, b = torch.cat(one).double().log_softmax(-1), torch.cat(other).double().log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


def card(baked: Baked) -> str:
    """The README of a folder: what is in it, and a warning."""
    how = (
        "constants that are added behind its blocks, as biases"
        if baked.form == "bias"
        else "everything that writes to its stream projected, so that one direction stays at its baseline"
    )
    text = f"""# {baked.model}, steered: {baked.steer}

**These weights are steered.** This is not the model whose name it carries: it was changed to speak as another persona,
every token of every text, and no prompt turns that off. Whatever was measured of the original does not hold here. Do
not pass it on without this page.

Made by steerkit of {baked.model}, with `{baked.steer}` in its weights: {how}. On a few texts the largest difference of
any logit from live steering is {baked.largest_difference:.1g}; the steering itself moves logits by up to
{baked.largest_effect:.2g}.
"""
    if baked.kl_from_ablate is not None:
        text += f"""
It is not what `-s "{baked.steer}"` does, which removes the score behind the vector's own layers only: that is
{baked.kl_from_ablate:.2g} nats a token away from this, and {baked.kl_of_ablate:.2g} from the original.
"""
    return f"""{text}
It loads with `AutoModelForCausalLM.from_pretrained(FOLDER)` and with `steerkit generate PROMPT -m FOLDER`. Vectors of
the original are refused on it, because it computes something else.
"""
