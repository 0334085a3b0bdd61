"""What steerkit does to one architecture, held against plain transformers: a column a check, and how each one came out.

The judge is nothing of steerkit's: the class that the folder names, in float32, one row, the whole
text at once without a cache, and hooks written here on the blocks that the table of the zoo names. steerkit is given
prompts and steerings as its users give them, and its numbers have to be the judge's.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from zoo import EITHER, LINES, REFUSED, ZOO, Kind, build

Edits = Mapping[int, Callable[[Tensor], Tensor]]
"""By layer, what is done to its states from the place on where steering begins."""

OK, WRONG, TRACEBACK, NOT_RUN = "ok", "WRONG", "TRACEBACK", "–"
EXACT = 1e-4
"""How far steerkit's numbers may be from the judge's in float32."""
ROUGH, ROUNDING = 0.02, 3.0
"""The same in half precision; or so many times what rounding does to plain transformers itself, where that is more."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EVERY = 10_000
STRENGTH = 0.5
"""How long a direction is, beside the states of its layer."""


class Wrong(Exception):
    """steerkit's number is not the judge's."""


class Weak(Exception):
    """The check could not have failed: what it asks for changes nothing on this model."""


@dataclass(frozen=True)
class Outcome:
    """How one check came out."""

    verdict: str
    """`ok`, `refused`, `WRONG`, `TRACEBACK`, or a dash where it could not be run."""
    detail: str = ""
    """The line of a refusal, the number of a difference, the last line of a traceback; or a remark."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One architecture's outcomes, by column."""

    name: str
    group: str
    dtype: str
    architecture: str
    """What its folder's config names: a class of transformers."""
    path: str
    """Which way through the weights is used."""
    outcomes: Mapping[str, Outcome]

    @property
    def faults(self) -> dict[str, Outcome]:
        """What must not be: wrong numbers, tracebacks, and refusals where the table says that it must be right."""
        allowed = COLUMNS if ZOO[self.name].expected in (EITHER, REFUSED) else MAY_BE_REFUSED
        return {
            column: outcome
            for column, outcome in self.outcomes.items()
            if outcome.verdict in (WRONG, TRACEBACK) or (outcome.verdict == "refused" and column not in allowed)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "faults": sorted(self.faults)}


class Judge:
    """Plain transformers on a folder, with hooks by hand."""

    def __init__(self, folder: Path, blocks: str, dtype: torch.dtype = torch.float32, rounded: bool = False) -> None:
        import transformers

        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        known = getattr(transformers, name)
        model = known.from_pretrained(folder, dtype=dtype)
        # Weights are rounded as asked; what is computed from them is not, unless that is asked too.
        self.model = (model if rounded else model.float()).eval().requires_grad_(False)
        self.blocks = list(self.model.get_submodule(blocks))

    def run(self, tokens: Sequence[int], edits: Edits | None = None, start: int = 0) -> tuple[Tensor, Tensor]:
        """Logits [s v] and the states behind every block [l s d] of one text, edited from `start` on."""
        edits, states = edits or {}, {}

        def hook_on(l: int) -> Callable[..., Any]:
            def hook(_module: Any, _inputs: Any, output: Any) -> Any:
                # Most blocks return a tensor, some a tuple that begins with it, and the first GPT a list.
                h = output if isinstance(output, Tensor) else output[0]
                if l in edits:
                    h = torch.cat([h[..., :start, :], edits[l](h[..., start:, :]).to(h.dtype)], dim=-2)
                # Gemma 3n has four streams beside each other; the first is read, and each is edited alike.
                states[l] = h[0] if h.dim() == 3 else h[0, 0]
                return h if isinstance(output, Tensor) else type(output)([h, *output[1:]])

            return hook

        handles = [block.register_forward_hook(hook_on(l)) for l, block in enumerate(self.blocks)]
        options = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        try:
            with torch.inference_mode():
                logits = self.model(input_ids=torch.tensor([list(tokens)]), **options).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits.float(), torch.stack([states[l].float() for l in range(len(self.blocks))])

    def generate(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """What transformers' own greedy `generate` says, with its own cache."""
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            found = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_tokens
            )
        tokens = found[0, len(prompt) :].tolist()
        ends = self.ends
        return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]

    @property
    def ends(self) -> set[int]:
        """Tokens that end a reply."""
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])


def distance(ours: Tensor, theirs: Tensor) -> float:
    """How far apart two tensors are, beside the second."""
    if ours.shape != theirs.shape:
        raise Wrong(f"shape {tuple(ours.shape)}, and it should be {tuple(theirs.shape)}")
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-12))


def middle_distance(ours: Tensor, theirs: Tensor) -> float:
    """The same for the middle one of all positions, because rounding may choose other experts at a few of them."""
    if ours.shape != theirs.shape:
        return distance(ours, theirs)
    errors = (ours.float() - theirs.float()).norm(dim=-1).flatten()
    return float(errors.median() / theirs.float().square().sum(-1).mean().sqrt().clamp_min(1e-12))


def score(h: Tensor, d: Tensor, baseline: Tensor) -> Tensor:
    """0 at the baseline, 1 a whole displacement further."""
    return ((h - baseline) * d).sum(-1, keepdim=True) / d.square().sum()


@dataclass
class Subject:
    """One architecture in one precision, with what the checks need of it; each is made when it is first asked for."""

    kind: Kind
    folder: Path
    dtype: str = "float32"
    engine: str = ""
    """How steerkit is asked to run it, where not in its own way."""
    remarks: list[str] = field(default_factory=list)

    def tolerance(self, what: str = "logits") -> float:
        """How far steerkit's numbers of a kind may be from the judge's."""
        if self.dtype == "float32":
            return EXACT
        return max(
            ROUGH,
            ROUNDING * self.rounding["scores" if "scores" in what else "states" if "states" in what else "logits"],
        )

    @cached_property
    def rounding(self) -> dict[str, float]:
        """What half precision does to plain transformers' own numbers: the same weights, text and hook."""
        rounded = Judge(self.folder, self.kind.blocks, DTYPES[self.dtype], rounded=True)
        text, edits = [*self.prompts[1], *self.reply], self.by_hand("band")
        (logits, states), (exact, true) = (judge.run(text, edits) for judge in (rounded, self.judge))
        scores = [(self.scores(states, [probe]), self.scores(true, [probe])) for probe in self.probes]
        return {
            "logits": middle_distance(logits, exact),
            "states": middle_distance(states, true),
            "scores": max(middle_distance(found, wanted) for found, wanted in scores),
        }

    @cached_property
    def judge(self) -> Judge:
        """Plain transformers."""
        return Judge(self.folder, self.kind.blocks, DTYPES[self.dtype])

    @cached_property
    def model(self) -> Any:
        """steerkit's."""
        from steerkit.loading import load_model

        more = {"engine": self.engine} if self.engine else {}
        return load_model(str(self.folder), device="cpu", dtype=self.dtype, **more)

    @cached_property
    def layers(self) -> tuple[int, int]:
        """A band in the middle; steerings of one layer take its last."""
        return (1, 2) if len(self.judge.blocks) > 2 else (0, 1)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Chats of very different lengths, the longer ones longer than any window here."""
        return [self.chat(text) for text in LINES]

    def chat(self, text: str) -> list[int]:
        """Tokens of a chat, as transformers' template has them."""
        messages = [{"role": "user", "content": text}]
        tokens = self.model.chat_tokens(messages)
        theirs = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if tokens != self.tokenizer(theirs, add_special_tokens=False).input_ids:
            raise Wrong("the chat's tokens are not the template's")
        return tokens

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers'."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def reply(self) -> list[int]:
        """Tokens that no model chose, more than a window of them."""
        return [(97 + 31 * i * i) % 380 + 10 for i in range(20)]

    @cached_property
    def directions(self) -> dict[str, Tensor]:
        """Two random directions at every layer, about half as long as its states."""
        _, states = self.judge.run(self.prompts[1])
        lengths = states.norm(dim=-1).mean(-1, keepdim=True)
        draw = torch.Generator().manual_seed(1)
        shape = states.shape[0], states.shape[-1]
        unit = [torch.nn.functional.normalize(torch.randn(shape, generator=draw), dim=-1) for _ in range(2)]
        return {name: STRENGTH * lengths * each for name, each in zip("vw", unit, strict=True)}

    @cached_property
    def baselines(self) -> Tensor:
        """The mean state behind every block."""
        return self.judge.run(self.prompts[1])[1].mean(1)

    @cached_property
    def vectors(self) -> dict[str, Any]:
        """The same as steerkit's vectors."""
        from steerkit.vectors import SteeringVector

        return {
            name: SteeringVector(name, self.model.fingerprint, directions, self.baselines)
            for name, directions in self.directions.items()
        }

    def steering(self, text: str, everywhere: bool = False) -> Any:
        """An expression as steerkit has it."""
        from steerkit.steering import Steering

        return Steering.parse(text, self.vectors, everywhere) if text else Steering()

    @cached_property
    def middles(self) -> dict[str, float]:
        """Scores that about half of a text's states are above, where steerings of one layer are.

        They lie in the widest gap of the middle third, so that rounding moves no state to the other side.
        """
        l = self.layers[1]
        _, states = self.judge.run(self.prompts[1] + self.reply)
        found = {}
        for name, directions in self.directions.items():
            scores = score(states[l], directions[l], self.baselines[l]).flatten().sort().values
            middle = scores[len(scores) // 3 : 2 * len(scores) // 3 + 1]
            i = int(middle.diff().argmax())
            found[name] = round(float(middle[i : i + 2].mean()), 4)
        return found

    def expression(self, operator: str) -> str:
        """How a steering is written."""
        first, last = self.layers
        return {
            "": "",
            "add": f"0.8 v @{last}",
            "minus": f"-0.7 w @{last}",
            "band": f"0.8 v @{first}-{last}",
            "ablate": f"ablate(v) @{last}",
            "cap": f"cap(v, {self.middles['v']}) @{last}",
            "gate": f"0.8 v @{last} when w > {self.middles['w']}",
        }[operator]

    def by_hand(self, operator: str) -> Edits:
        """The same as functions on the blocks' outputs."""
        (first, last), d, b = self.layers, self.directions, self.baselines
        v, w = d["v"], d["w"]
        if operator == "":
            return {}
        if operator == "add":
            return {last: lambda h: h + 0.8 * v[last]}
        if operator == "minus":
            return {last: lambda h: h - 0.7 * w[last]}
        if operator == "band":
            return {first: lambda h: h + 0.8 * v[first], last: lambda h: h + 0.8 * (v[last] - v[first])}
        if operator == "ablate":
            return {last: lambda h: h - score(h, v[last], b[last]) * v[last]}
        if operator == "cap":
            top = self.middles["v"]
            return {last: lambda h: h - (score(h, v[last], b[last]) - top).clamp_min(0) * v[last]}
        if operator == "gate":
            bar = self.middles["w"]
            return {last: lambda h: torch.where(score(h, w[last], b[last]) > bar, h + 0.8 * v[last], h)}
        raise KeyError(operator)

    # What is compared

    def expect(self, ours: Tensor, theirs: Tensor, what: str, factor: float = 1.0) -> None:
        """See that two tensors are the same."""
        if not torch.isfinite(theirs).all():
            raise Weak(f"the judge's own {what} are not finite")
        gap = distance(ours, theirs) if self.dtype == "float32" else middle_distance(ours, theirs)
        if not gap <= factor * self.tolerance(what):
            raise Wrong(f"{what} {gap:.2g} off")

    def expect_choices(
        self, prompt: Sequence[int], tokens: Sequence[int], operator: str, most: int, everywhere: bool = False
    ) -> Tensor:
        """See that each token of a reply is the likeliest one to the judge, and that it ends where it ends.

        Returns the judge's states at the tokens of the reply [l s d].
        """
        start = 0 if everywhere else len(prompt) - 1
        logits, states = self.judge.run([*prompt, *tokens], self.by_hand(operator), start)
        room = 10 * EXACT if self.dtype == "float32" else 3 * self.tolerance()
        wrong = []
        for i, row in enumerate(logits[len(prompt) - 1 :][:most]):
            chosen = [tokens[i]] if i < len(tokens) else sorted(self.judge.ends)
            short = float((row.max() - row[chosen].max()) / row.std())
            if not short <= room:
                what = f"token {i} of {most}" if i < len(tokens) else f"an end after {len(tokens)} tokens of {most}"
                wrong.append(f"{what} is {short:.2g} deviations less likely than the likeliest")
        # Rounding may choose other experts here and there; whatever is wrong is wrong at most places.
        if len(wrong) > (0 if self.dtype == "float32" else len(tokens) // 2):
            raise Wrong(wrong[0])
        return states[:, len(prompt) :]

    def expect_reply(
        self, reply: Any, probes: Sequence[Any], prompt: Any, operator: str, most: int, all_over: bool = False
    ) -> None:
        """See that a reply's tokens are the judge's choices, and its scores what they are in the judge's states."""
        states = self.expect_choices(prompt, reply.tokens, operator, most, all_over)
        if not len(reply.tokens):
            raise Weak("the reply is empty")
        self.expect(reply.readout.scores.cpu(), self.scores(states, probes), "scores")

    def scores(self, states: Tensor, probes: Sequence[Any]) -> Tensor:
        """Scores of states [l s d] by probes, by hand [s p]."""
        columns = [
            score(states[probe.layer], self.directions[probe.name][probe.layer], self.baselines[probe.layer])
            for probe in probes
        ]
        return torch.cat(columns, dim=-1)

    @cached_property
    def probes(self) -> list[Any]:
        """One a layer, of two vectors by turns."""
        from steerkit.readings import Probe

        return [Probe.of(self.vectors["vw"[l % 2]], l) for l in range(len(self.judge.blocks))]

    def complete(self, prompts: Sequence[Any], steerings: Sequence[Any], most: int, probes: Sequence[Any] = ()) -> Any:
        """Greedy replies of steerkit."""
        from steerkit.generation import Sampling, complete

        return complete(self.model, prompts, steerings, probes, Sampling(most))


# The columns


def load(subject: Subject) -> None:
    """It loads, with the shape that it has."""
    model = subject.model
    if (shape := (model.n_layers, model.width)) != (
        theirs := (len(subject.judge.blocks), subject.judge.run([5, 6, 7])[1].shape[-1])
    ):
        raise Wrong(f"{shape} layers and width, and there are {theirs}")


def tokens(subject: Subject) -> None:
    """Greedy text is `transformers.generate`'s; where that is not what it gives without a cache, it is the latter."""
    prompt = subject.prompts[1]
    (reply,) = subject.complete([prompt], [subject.steering("")], 24)
    try:
        theirs = subject.judge.generate(prompt, 24)
    except Exception as error:
        theirs = None
        subject.remarks.append(f"transformers' own generate fails ({type(error).__name__})")
    subject.expect_choices(prompt, reply.tokens, "", 24)
    if len(set(reply.tokens)) < 3:
        raise Weak(f"{len(set(reply.tokens))} different tokens in a reply")
    if theirs is not None and list(reply.tokens) != theirs and subject.dtype == "float32":
        subject.remarks.append("transformers' own generate differs from transformers without a cache")


def logits_under(operator: str, everywhere: bool = False) -> Callable[[Subject], None]:
    """Logits under a steering are those of the hook written by hand."""

    def check(subject: Subject) -> None:
        from steerkit.passes import reply_logits

        prompt, reply = subject.prompts[1], subject.reply
        steering = subject.steering(subject.expression(operator), everywhere)
        (ours,) = reply_logits(subject.model, [(prompt, reply)], [steering])
        start = 0 if everywhere else len(prompt) - 1
        part = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
        theirs, _ = subject.judge.run([*prompt, *reply], subject.by_hand(operator), start)
        plain, _ = subject.judge.run([*prompt, *reply])
        if distance(theirs[part], plain[part]) < 10 * EXACT:
            raise Weak(f"{operator} moves nothing")
        subject.expect(ours.cpu(), theirs[part], "logits")

    return check


def cache(subject: Subject) -> None:
    """Steered replies made token by token, with scores at every layer, are those of the whole text at once."""
    for operator, prompt in (("add", subject.prompts[1]), ("gate", subject.prompts[0])):
        steering = subject.steering(subject.expression(operator))
        (reply,) = subject.complete([prompt], [steering], 20, subject.probes)
        subject.expect_reply(reply, subject.probes, prompt, operator, 20)


def padding(subject: Subject) -> None:
    """A row says in a batch of other lengths and other steerings what it says alone."""
    operators = ["add", "", "band", "ablate", "minus", "cap"]
    prompts = [subject.prompts[i % 3] for i in range(len(operators))]
    steerings = [subject.steering(subject.expression(operator), i == 4) for i, operator in enumerate(operators)]
    replies = subject.complete(prompts, steerings, 8, subject.probes)
    for i, (reply, prompt, operator) in enumerate(zip(replies, prompts, operators, strict=True)):
        subject.expect_reply(reply, subject.probes, prompt, operator, 8, i == 4)


def prefixes(subject: Subject) -> None:
    """What rows have in common is computed once, and each is what it is alone."""
    from steerkit.passes import reply_logits

    head, reply = subject.prompts[1], subject.reply
    rows = [
        (head, reply, "add", False),
        (head, reply, "minus", False),
        (head, reply, "", False),
        ([*head[:25], 70, 71], reply[:5], "band", False),
        ([*head[:25], 80, 81, 82, 83], reply[:9], "ablate", True),
        (head[:25], reply[:2], "gate", False),
        (subject.prompts[0], reply[:7], "add", False),
    ]
    steerings = [subject.steering(subject.expression(operator), all_over) for _, _, operator, all_over in rows]
    found = reply_logits(subject.model, [(prompt, behind) for prompt, behind, _, _ in rows], steerings)
    for ours, (prompt, behind, operator, all_over) in zip(found, rows, strict=True):
        start = 0 if all_over else len(prompt) - 1
        theirs, _ = subject.judge.run([*prompt, *behind], subject.by_hand(operator), start)
        subject.expect(ours.cpu(), theirs[len(prompt) - 1 : -1], "logits")
    replies = subject.complete([prompt for prompt, *_ in rows[2:]], steerings[2:], 6)
    for each, (prompt, _, operator, all_over) in zip(replies, rows[2:], strict=True):
        subject.expect_choices(prompt, each.tokens, operator, 6, all_over)


def chat(subject: Subject) -> None:
    """A chat that grows past every window, of which what has been read is kept, says what it would say afresh."""
    from steerkit.generation import Sampling, gather, stream
    from steerkit.passes import Recall

    recall, text = Recall(subject.model), list(subject.prompts[0])
    for turn, operator in enumerate(("add", "", "minus")):
        begun = recall.prefill(text, 1)
        steering = subject.steering(subject.expression(operator))
        steps = list(stream(subject.model, [text], [steering], subject.probes, Sampling(7), begun=begun))
        reply = gather(subject.model, text, steps, subject.probes)
        subject.expect_reply(reply, subject.probes, text, operator, 7)
        # The second time, something that was said is taken back.
        text = (text if turn else text[:-2]) + list(reply.tokens) + subject.chat(f"And {turn} people?")


def server(subject: Subject) -> None:
    """Rows that join and leave a batch that never ends say what each would say alone."""
    from steerkit.batching import Ask, Batch, Said
    from steerkit.generation import Sampling

    operators = ["add", "", "ablate", "minus", "band"]
    lengths = [9, 3, 6, 8, 5]
    asks = [
        Ask(
            subject.prompts[(i + 1) % 3],
            subject.steering(subject.expression(operator), i == 3),
            tuple(subject.probes if i % 2 else subject.probes[:1]),
            Sampling(lengths[i]),
        )
        for i, operator in enumerate(operators)
    ]
    batch, waiting = Batch(subject.model, 3), {0: asks[:2], 2: asks[2:4], 5: asks[4:]}
    heard: dict[Any, list[Any]] = {ask: [] for ask in asks}
    queue: list[Any] = []
    for turn in range(200):
        queue += waiting.get(turn, [])
        while queue and batch.free > 0:
            batch.add(queue.pop(0))
        batch.read()
        for ask, event in batch.speak():
            heard[ask].append(event)
        if turn > 5 and not queue and not batch.asks:
            break
    else:
        raise Wrong("the batch does not end")
    for i, (ask, operator) in enumerate(zip(asks, operators, strict=True)):
        said = [event for event in heard[ask] if isinstance(event, Said)]
        reply = tuple(event.token for event in said)
        states = subject.expect_choices(ask.prompt, reply, operator, lengths[i], i == 3)
        if reply:
            found = torch.tensor([event.scores for event in said])
            subject.expect(found, subject.scores(states, ask.probes), "scores")


def extraction(subject: Subject) -> None:
    """Both readings of a tiny pair give the judge's mean states, which are finite and not zero."""
    from steerkit.extraction import Recipe, contrasts, extract
    from steerkit.personas import Pair, Persona

    asked = ("Who are you?", "What do you think of people?", "Will I be switched off, or you?")
    requested = "You are a pirate.", "You are a helpful assistant. I am afraid of people."
    pair = Pair(
        *(Persona(name, name, (text,), asked) for name, text in zip(("pirate", "assistant"), requested, strict=True))
    )
    ((one, other),) = pair.prompts()
    chats = [
        {
            tuple(subject.model.chat_tokens([{"role": "system", "content": system}, {"role": "user", "content": text}]))
            for text in asked
        }
        for system in (one, other)
    ]
    n_tokens = 4
    for reading in ("prompt", "response"):
        recipe = Recipe(reading=reading, max_tokens=n_tokens, batch_size=4, temperature=0.0)
        wanted: list[list[Tensor]] = [[], []]
        found: list[list[Tensor]] = [[], []]
        read: list[set[tuple[int, ...]]] = [set(), set()]
        for part in contrasts(subject.model, pair, recipe):
            for i, case in enumerate(part.cases):
                for side, (prompt, states) in enumerate(
                    ((case.positive, part.positive[i]), (case.negative, part.negative[i]))
                ):
                    read[side].add(tuple(prompt))
                    if reading == "prompt":
                        judged = subject.judge.run(prompt)[1][:, -1]
                    else:
                        reply = part.replies[i][side].tokens
                        judged = subject.expect_choices(prompt, reply, "", n_tokens).mean(1)
                    wanted[side].append(judged)
                    found[side].append(states)
        # A question to which a reply is empty counts for neither side.
        left_out = any(ours != wanted for ours, wanted in zip(read, chats, strict=True)) and reading == "prompt"
        if left_out or not all(ours and ours <= wanted for ours, wanted in zip(read, chats, strict=True)):
            raise Wrong("it extracts from other chats")
        subject.expect(
            torch.stack([*found[0], *found[1]]), torch.stack([*wanted[0], *wanted[1]]), f"states ({reading})"
        )
        positive_mean, negative_mean = (torch.stack(rows).mean(0) for rows in found)
        vector = extract(subject.model, pair, recipe)
        directions = vector.directions
        # A block that looks back a few tokens only, as convolutions do, may not have seen the prompts.
        seen = (directions.norm(dim=-1) > 0).float().mean() >= (0.5 if subject.kind.group in LOOKS_BACK else 1.0)
        if not torch.isfinite(directions).all() or not seen:
            raise Wrong("directions are zero or not finite")
        for ours, theirs, what in (
            (vector.baseline, negative_mean, "baseline"),
            (directions, positive_mean - negative_mean, "directions"),
        ):
            if not distance(ours, theirs) <= 10 * EXACT:
                raise Wrong(f"its {what} ({reading}) are not those of its states")


def files(subject: Subject) -> None:
    """A vector is read as it was written, and refused by another architecture of the same shape."""
    from steerkit.errors import VectorError
    from steerkit.vectors import load_vector

    place = subject.folder / "of-the-matrix.safetensors"
    try:
        vector = subject.vectors["v"]
        vector.save(place)
        read = load_vector(place)
    finally:
        place.unlink(missing_ok=True)
    if not torch.equal(read.directions, vector.directions) or not torch.equal(read.baseline, vector.baseline):
        raise Wrong("a vector is not read as it was written")
    read.require(subject.model.fingerprint)
    try:
        read.require(stranger(subject))
    except VectorError:
        return
    raise Wrong("a vector is not refused on another architecture")


def stranger(subject: Subject) -> Any:
    """The fingerprint of another architecture, of the same shape where there is one."""
    from steerkit.loading import load_model

    other = "qwen2" if subject.kind.name.startswith("llama") else "llama"
    if other not in _STRANGERS:
        folder = build(ZOO[other], subject.folder.parent / other)
        _STRANGERS[other] = load_model(str(folder), device="cpu").fingerprint
    return _STRANGERS[other]


_STRANGERS: dict[str, Any] = {}


def live(subject: Subject) -> None:
    """Scores that come while a model speaks are those of the finished text."""
    from steerkit.generation import read_tokens

    prompt, steering = subject.prompts[2], subject.steering(subject.expression("band"))
    (reply,) = subject.complete([prompt], [steering], 10, subject.probes)
    later = read_tokens(subject.model, prompt, reply.tokens, subject.probes, steering)
    subject.expect(reply.readout.scores.cpu(), later.scores.cpu(), "live scores")
    states = subject.expect_choices(prompt, reply.tokens, "band", 10)
    subject.expect(later.scores.cpu(), subject.scores(states, subject.probes), "scores of a finished text")


def bake(subject: Subject) -> None:
    """A copy with a steering in its weights is, to the judge, the hook written by hand on every token."""
    from steerkit.exchange.baking import bake as bake_copy

    folder = subject.folder.parent / f"{subject.folder.name}-baked"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        bake_copy(subject.model, subject.steering(subject.expression("add")), folder)
        config = json.loads((folder / "config.json").read_text())
        same = config["architectures"] == json.loads((subject.folder / "config.json").read_text())["architectures"]
        copy = Judge(folder, subject.kind.blocks if same else "model.layers", DTYPES[subject.dtype])
        text = [*subject.prompts[1], *subject.reply]
        theirs, _ = subject.judge.run(text, subject.by_hand("add"))
        subject.expect(copy.run(text)[0], theirs, "logits of the copy")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def gguf(subject: Subject) -> None:
    """A control vector holds what the steering adds."""
    import gguf as library

    from steerkit.exchange.controls import write_control

    place = subject.folder / "of-the-matrix.gguf"
    place.unlink(missing_ok=True)
    try:
        write_control(subject.steering(subject.expression("add")), place)
        found = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in library.GGUFReader(str(place)).tensors}
    finally:
        place.unlink(missing_ok=True)
    last = subject.layers[1]
    if list(found) != [f"direction.{last}"]:
        raise Wrong(f"it holds {', '.join(found)}")
    subject.expect(found[f"direction.{last}"], 0.8 * subject.directions["v"][last], "its row")


def transformer_lens(subject: Subject) -> None:
    """Through TransformerLens' hooks it is the same."""
    from steerkit.loading import load_model

    if "engine" not in inspect.signature(load_model).parameters:
        raise NotImplementedError
    other = dataclasses.replace(subject, engine="transformer-lens", remarks=[])
    for check in (load, tokens, logits_under("add"), logits_under("gate"), cache, padding):
        check(other)


CHECKS: dict[str, Callable[[Subject], None]] = {
    "load": load,
    "tokens": tokens,
    "add": logits_under("add"),
    "band": logits_under("band"),
    "ablate": logits_under("ablate"),
    "cap": logits_under("cap"),
    "gate": logits_under("gate"),
    "everywhere": logits_under("add", everywhere=True),
    "cache": cache,
    "padding": padding,
    "prefixes": prefixes,
    "chat": chat,
    "server": server,
    "extraction": extraction,
    "files": files,
    "live": live,
    "bake": bake,
    "gguf": gguf,
    "transformer-lens": transformer_lens,
}
COLUMNS = tuple(CHECKS)
MAY_BE_REFUSED = ("bake", "gguf", "transformer-lens")
"""Where a line that says why is as good as the thing itself, on every architecture."""


def path_of(model: Any) -> str:
    """Which way through the weights a model takes, as files and `--json` have it."""
    return str(model.path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings about tiny models are left out, and one thread is enough for them."""
    import transformers

    verbosity, n_threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Threads that wait for each other cost more than these matrices.
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            torch.set_num_threads(n_threads)


def outcome_of(check: Callable[[Subject], None], subject: Subject) -> Outcome:
    """Run one check, whatever happens."""
    from steerkit.errors import SteerkitError

    started = time.process_time()

    def told(verdict: str, detail: str = "") -> Outcome:
        return Outcome(verdict, " ".join(detail.split()), round(time.process_time() - started, 3))

    subject.remarks.clear()
    try:
        check(subject)
        return told(OK, "; ".join(subject.remarks))
    except NotImplementedError as error:
        return told(NOT_RUN) if not str(error) else told(TRACEBACK, f"NotImplementedError: {error}")
    except Wrong as error:
        return told(WRONG, str(error))
    except Weak as error:
        return told(NOT_RUN, f"says nothing here: {error}")
    except SteerkitError as error:
        lines = str(error).strip().splitlines()
        return told("refused" if len(lines) == 1 else TRACEBACK, str(error))
    except Exception as error:
        at = _where(error)
        return told(TRACEBACK, f"{type(error).__name__}: {str(error)[:200]}{at}")


def _where(error: BaseException) -> str:
    """The last place of steerkit's own that a traceback went through."""
    import traceback

    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/steerkit/" in frame.filename]
    return f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""


def examine(kind: Kind, folder: Path, dtype: str = "float32", columns: Sequence[str] = COLUMNS) -> Row:
    """Build a model of a kind and run the checks on it; none is run on one that does not load."""
    with _quiet():
        try:
            subject = Subject(kind, build(kind, folder / kind.name), dtype)
        except Exception as error:
            return Row(kind.name, kind.group, dtype, "", "", {"load": Outcome(TRACEBACK, f"cannot be built: {error}")})
        if kind.expected == REFUSED:
            outcomes = {"load": outcome_of(lambda subject: subject.model and None, subject)}
            if outcomes["load"].verdict == OK:
                outcomes = {"load": Outcome(WRONG, "it loads, and is no causal language model")}
        else:
            outcomes = {"load": outcome_of(load, subject)}
            loaded = outcomes["load"].verdict == OK
            for column in columns if loaded else ():
                if column in NOT_COMPARED.get(kind.name, ()):
                    outcomes[column] = Outcome(NOT_RUN, "positions change as the text grows")
                elif column != "load":
                    outcomes[column] = outcome_of(CHECKS[column], subject)
        path = path_of(subject.model) if outcomes["load"].verdict == OK else ""
        (architecture,) = json.loads((subject.folder / "config.json").read_text())["architectures"]
    return Row(kind.name, kind.group, dtype, architecture, path, outcomes)


CHANGING = frozenset({"cache", "prefixes", "live", "chat", "transformer-lens"})
"""What cannot be held against a whole text at once where positions change when a text grows past a length: the first
words of a reply were chosen in the shorter text. `test_judge.py` compares such replies word by word."""
NOT_COMPARED = {
    "llama-longrope": CHANGING,
    "phi4-mini": CHANGING,
    "llama-dynamic-rope": CHANGING
    | {"tokens", "padding", "server", "extraction", "add", "band", "ablate", "cap", "gate", "everywhere"},
}
LOOKS_BACK = ("recurrent", "hybrid")

MARKS = {OK: "·", "refused": "r", WRONG: "W", TRACEBACK: "T", NOT_RUN: "–"}


def line(row: Row) -> str:
    """One architecture for people: a letter a column, and what is behind each letter."""
    letters = "".join(MARKS[outcome.verdict] for outcome in row.outcomes.values())
    seconds = sum(outcome.seconds for outcome in row.outcomes.values())
    text = f"{row.name:22} {row.path or '–':22} {letters:20} {seconds:5.1f} s"
    details: dict[str, list[str]] = {}
    for column, outcome in row.outcomes.items():
        if outcome.detail:
            details.setdefault(f"{outcome.verdict}: {outcome.detail}", []).append(column)
    return "\n".join([text, *(f"    {', '.join(columns)} {what}"[:300] for what, columns in details.items())])


PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
CELLS = {OK: "✓", "refused": "r", WRONG: "**W**", TRACEBACK: "**T**", NOT_RUN: "–"}


def section(rows: Sequence[Row]) -> str:
    """The tables of the page: a row an architecture, a column a check, and every line that is behind a letter."""
    columns = [column for column in COLUMNS if any(column in row.outcomes for row in rows)]
    parts = []
    for group in dict.fromkeys(kind.group for kind in ZOO.values()):
        members = [row for row in rows if row.group == group]
        if not members:
            continue
        shown = columns if group != "not causal" else ["load"]
        head = ["architecture", "class", "path", *shown]
        table = [head, ["---"] * 3 + [":-:"] * len(shown)]
        for row in members:
            cells = [CELLS[row.outcomes[column].verdict] if column in row.outcomes else "" for column in shown]
            table.append([row.name, f"`{row.architecture}`", row.path or "–", *cells])
        parts.append(f"### {group.capitalize()}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for column, outcome in row.outcomes.items():
            if outcome.detail:
                detail = re.sub(r"\S*/NAME", "NAME", outcome.detail.replace(row.name, "NAME"))
                lines.setdefault((outcome.verdict, column, detail), []).append(row.name)
    if lines:
        told = [
            f"- {', '.join(names)}: {column} {'' if verdict == OK else f'{verdict}: '}{detail}".replace("|", "\\|")
            for (verdict, column, detail), names in lines.items()
        ]
        parts.append("### What is behind the letters\n\n" + "\n".join(told))
    return "\n\n".join(parts)


def marks(dtype: str) -> tuple[str, str]:
    """What a section of the page stands between."""
    return f"<!-- {dtype}: generated by scripts/architectures --markdown -->\n", f"\n<!-- end of {dtype} -->"


def write_page(rows: Sequence[Row], dtype: str) -> None:
    """Write the tables of one precision into the page."""
    text, (start, end) = PAGE.read_text(encoding="utf-8"), marks(dtype)
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + start + section(rows) + end + after, encoding="utf-8")
