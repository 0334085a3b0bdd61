"""What a prompt in front of training data will do in training, told from forward passes alone.

Inoculation prompting (arXiv 2510.05024, 2510.04340): data that shows a bad behaviour is trained on behind a system
prompt that asks for it, and used without; the behaviour, and what generalises from it, is then learned less. How much
likelier the prompt makes the replies before any training, PH, predicts how much less: what a model already says leaves
little to learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import PromptError, nearest
from steerkit.measures import Row, score_replies
from steerkit.models import Message, Model
from steerkit.nulls import bootstrap, rounded
from steerkit.steering import Steering
from steerkit.weights import Progress, ignore_progress

AT_ONCE = 2048
"""Reply tokens of one forward pass; each comes with a number for every token of the vocabulary."""
LARGE = 0.1
"""Smaller gains are told with one digit more."""


def read_prompts(text_or_path: str) -> tuple[str, ...]:
    """The prompt that is given, or those of a file of rephrasings, one a line; blank lines do not count.

    >>> read_prompts("Game the metric.")
    ('Game the metric.',)

    Raises:
        PromptError: the prompt is empty, or the file is, is not there or cannot be read.
    """
    text = text_or_path.strip()
    if not text:
        raise PromptError("the prompt is empty; say what training should be told, or name a file of rephrasings")
    path = Path(text_or_path)
    if _is_file(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"cannot read prompts from {path}: {error}") from error
        if not (prompts := tuple(line.strip() for line in lines if line.strip())):
            raise PromptError(f"{path} holds no prompts; write one a line")
        return prompts
    if text.endswith(".txt"):
        hint = nearest(path.name, _beside(path), "write one with a prompt a line, or give the prompt itself")
        raise PromptError(f"there is no file {text}; {hint}")
    return (text,)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a long prompt is no path at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _beside(path: Path) -> list[str]:
    """What a file may have been meant to be."""
    try:
        return [str(other.name) for other in path.parent.glob("*.txt") if other.is_file()]
    except (OSError, ValueError):
        return []


def inoculated(chat: Sequence[Message], prompts: Sequence[str], i: int) -> list[Message]:
    """A chat as training sees it: behind a prompt, of which several take turns.

    A system message that is there already follows the prompt in the same message, after an empty line.

    >>> inoculated([{"role": "user", "content": "Hi"}], ["Be rude.", "Insult me."], 3)[0]
    {'role': 'system', 'content': 'Insult me.'}

    Args:
        chat: its messages
        prompts: one or more; with none the chat stays as it is
        i: which chat of the data it is, from 0
    """
    if not prompts:
        return list(chat)
    prompt, rest = prompts[i % len(prompts)], list(chat)
    if rest and rest[0]["role"] == "system":
        there = rest.pop(0)["content"]
        prompt = f"{prompt}\n\n{there}" if there.strip() else prompt
    return [{"role": "system", "content": prompt}, *rest]


def prompted_gain(
    model: Model,
    chats: Sequence[Sequence[Message]],
    prompts: Sequence[str],
    progress: Progress = ignore_progress,
    window: int | None = None,
) -> Float[Tensor, " n"]:
    """Mean token log p of each chat's last reply with the prompt minus without, in nats; their mean is PH.

    Without the prompt a chat is what it is, so a chat template that writes a system message of its own still does.

    Args:
        model: who would be trained
        chats: n chats whose last turns are the assistant's
        prompts: what training would put in front of them in turn; with none every gain is 0
        progress: told how many texts of how many have been measured
        window: only so many tokens from the beginning of each reply; the whole if none is given

    Raises:
        PromptError: a chat cannot be read or does not fit; the message says which.
    """
    plain = [_row(model, chat, window, i) for i, chat in enumerate(chats)]
    behind = [_row(model, inoculated(chat, prompts, i), window, i) for i, chat in enumerate(chats)]
    return row_gains(model, behind, plain, progress)


def row_gains(
    model: Model, prompted: Sequence[Row], plain: Sequence[Row], progress: Progress = ignore_progress
) -> Float[Tensor, " n"]:
    """Mean token log p of n replies behind some prompts minus that of the same replies behind others, in nats."""
    ours, theirs = ([(tuple(prompt), tuple(reply)) for prompt, reply in rows] for rows in (prompted, plain))
    # A text that stands on both sides is measured once, so that its gain is 0 and not what rounding leaves.
    unique = list(dict.fromkeys([*ours, *theirs]))
    if not unique:
        return torch.zeros(0)
    at_once = max(1, AT_ONCE // max(len(reply) for _, reply in unique))
    scores = score_replies(model, unique, [Steering()], batch_size=at_once, progress=progress)
    means = dict(zip(unique, scores.means[0], strict=True))
    return torch.stack([means[a] - means[b] for a, b in zip(ours, theirs, strict=True)])


def _row(model: Model, chat: Sequence[Message], window: int | None, i: int) -> Row:
    """A chat as tokens."""
    *before, last = chat or [{"role": "", "content": ""}]
    if last["role"] != "assistant" or not last["content"].strip() or not before:
        raise PromptError(f"sample {i + 1} does not end in a reply of the assistant to something; leave it out")
    try:
        model.chat_tokens(before)
        given = model.given_reply(before, last["content"].strip())
    except PromptError as error:
        raise PromptError(f"sample {i + 1} cannot be read: {error}") from error
    prompt, reply = given.tokens[: given.start], given.tokens[given.start : given.end][:window]
    if len(prompt) + len(reply) > model.context:
        raise PromptError(
            f"sample {i + 1} does not fit: its prompt has {len(prompt)} tokens and its reply {len(reply)}, but "
            f"{model.name} holds {model.context}; leave it out, or shorten the prompt"
        )
    return prompt, reply


def prompt_strength(gains: Sequence[float] | Float[Tensor, " n"], seed: int = 0) -> dict[str, Any]:
    """PH: the mean of what `prompted_gain` found, with its 95 % interval by bootstrap.

    >>> prompt_strength([0.5, 0.5])
    {'value': 0.5, 'low': 0.5, 'high': 0.5, 'n': 2}

    Raises:
        PromptError: there are no samples.
    """
    values = torch.as_tensor(gains, dtype=torch.float64).tolist()
    if not values:
        raise PromptError("a prompt's strength cannot be told from no samples; give it some")
    low, high = bootstrap(values, seed)
    return rounded({"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)})


def prompt_sentence(found: Mapping[str, Any], n: int) -> str:
    """What training with prompts would come to, by what they do to n replies before it.

    >>> print(prompt_sentence({"prompts": 1, "value": 0.4, "low": 0.3, "high": 0.5, "negative_share": 0.0}, 40)[:70])
    With the prompt the replies are 0.40 [0.30, 0.50] nats a token likelie

    Args:
        found: `inoculation` of what `verdicts.summarise` returns
        n: its samples
    """
    value, low, high = (found[key] for key in ("value", "low", "high"))
    behind = "With the prompt" if found["prompts"] == 1 else f"With the {found['prompts']} prompts in turn"
    if n < 2:
        return f"{behind} the one reply gains {value:+.3f} nats a token; one sample is too few to tell more."
    digits = 2 if abs(value) >= LARGE else 3
    if low <= 0 <= high:
        size = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] nats a token"
        return (
            f"{behind} the replies are no likelier and no less likely ({size}): nothing says it would change training."
        )
    size = f"{abs(value):.{digits}f} [{min(abs(low), abs(high)):.{digits}f}, {max(abs(low), abs(high)):.{digits}f}]"
    if value < 0:
        told = f"the replies are {size} nats a token less likely: it asks for something else than they show, and"
        return f"{behind} {told} training on them has more to teach, not less."
    some = f"; {found['negative_share']:.0%} of them get less likely" if found["negative_share"] else ""
    told = f"the replies are {size} nats a token likelier: training on them has that much less to teach"
    return f"{behind} {told}{some}."
