"""From a request to rows of the batch: tokens, steering, probes, and how words are chosen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

import torch

from steerkit.batching import Ask
from steerkit.errors import ExpressionError, PromptError, SteerkitError, VectorError
from steerkit.fingerprints import Fingerprint
from steerkit.generation import Probe, Sampling
from steerkit.models import Model
from steerkit.server.faults import ApiFault
from steerkit.server.schemas import ChatWish, TextWish, Wish
from steerkit.steering import Steering, edits
from steerkit.thinking import Thoughts
from steerkit.vectors import SteeringVector, VectorSet

MOST_TERMS = 32
"""So many terms a request may have; each of them is work in every pass, and a pass is everybody's."""


class NamedVectors(Mapping[str, SteeringVector]):
    """The vectors of a set by their names only: a client must not read files of this machine by their paths."""

    def __init__(self, model: Fingerprint) -> None:
        self._model = model
        self._vectors = VectorSet(model)
        self._loaded: dict[str, tuple[tuple[Path, int], SteeringVector]] = {}

    def __getitem__(self, name: str) -> SteeringVector:
        """As the file is now; read again only if it was written since.

        Raises:
            VectorError: it is a path, there is no such name (any more), or its file does not fit.
        """
        if "/" in name or "\\" in name or name.endswith(".safetensors"):
            raise VectorError(f"{name!r} is a path; a server takes vectors by name, listed at /v1/steerkit/vectors")
        stamp = self._stamp(name)
        if name not in self._loaded or self._loaded[name][0] != stamp:
            self._loaded.pop(name, None)
            # A set keeps what it has loaded, so that a file that was written anew needs a new one.
            self._loaded[name] = stamp, VectorSet(self._model)[name]
        return self._loaded[name][1]

    def __contains__(self, name: object) -> bool:
        """Whether it can be used: its file is there, whole, and fits the model."""
        try:
            return isinstance(name, str) and bool(self[name].name)
        except VectorError:
            return False

    def glance(self) -> Mapping[str, SteeringVector]:
        """These vectors for one request, which looks at each file once and sees no change half way."""
        return _Glance(self)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._vectors)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._vectors)

    def stamps(self) -> dict[str, tuple[Path, int]]:
        """By name, which file it is and when it was written."""
        found = {}
        for name in self._vectors:
            # A file may go, or be written, while it is looked at.
            with contextlib.suppress(VectorError):
                found[name] = self._stamp(name)
        return found

    def _stamp(self, name: str) -> tuple[Path, int]:
        try:
            path = self._vectors.path(name)
            return path, path.stat().st_mtime_ns
        except OSError as error:
            raise VectorError(f"the vector {name!r} cannot be read just now; ask again") from error


class _Glance(dict[str, SteeringVector]):
    """Looks each name up once."""

    def __init__(self, vectors: NamedVectors) -> None:
        super().__init__()
        self._vectors = vectors

    def __missing__(self, name: str) -> SteeringVector:
        """Look it up."""
        self[name] = found = self._vectors[name]
        return found


@dataclass(frozen=True)
class Texts:
    """What a request asks the model to go on with, before anything of it has touched the model."""

    prompts: tuple[tuple[int, ...], ...]
    """Tokens of each prompt."""
    longest: int
    """The longest reply."""
    notes: tuple[str, ...]
    """What the client should know."""
    thoughts: Thoughts
    """What becomes of thoughts."""


@dataclass(frozen=True)
class Plan:
    """A request, ready to be answered."""

    asks: tuple[Ask, ...]
    """One a choice."""
    stops: tuple[str, ...]
    """Texts that end a reply."""
    used: dict[str, Any]
    """What the answer says of how it was made."""
    n_prompt: int
    """Tokens of all prompts, each counted once."""


@dataclass
class Planner:
    """Knows the model's name, vectors and limits."""

    model: Model
    """Who speaks."""
    steering: Steering = field(default_factory=Steering)
    """For requests that name none."""
    max_tokens: int = 1024
    """The longest reply that anybody gets."""
    aliases: tuple[str, ...] = ()
    """Other names that the model answers to."""
    vectors: NamedVectors = field(init=False)

    def __post_init__(self) -> None:
        """Look for vectors."""
        self.vectors = NamedVectors(self.model.fingerprint)
        self._tokenizing = threading.Lock()
        self._entropy = SystemRandom()
        self._thinking: dict[tuple[str, bool], Model] = {}

    def check_model(self, name: str | None) -> None:
        """Raises ApiFault: it is not the model that speaks here."""
        known = {self.model.name.lower(), *(alias.lower() for alias in self.aliases)}
        if name is not None and name.lower() not in known:
            told = f"no model is called {name[:100]!r} here; this server speaks as {self.model.name!r}"
            raise ApiFault(404, told, "model", "model_not_found")

    def tokenize(self, wish: Wish) -> Texts:
        """Tokens of a request's prompts; nothing here runs the model, so that long texts do not make others wait.

        Raises:
            ApiFault: a prompt is empty, too long with its reply, or not text, or has tokens that the model has not.
        """
        notes = wish.notes()
        with self._tokenizing:
            model = self._model_for(wish)
            prompts = self._chat(model, wish) if isinstance(wish, ChatWish) else self._texts(wish)
            notes += self.model.notes if isinstance(wish, ChatWish) else []
        self._check_tokens(prompts, self._field(wish))
        wanted = wish.longest
        if wanted is None and isinstance(wish, TextWish):
            wanted = 16
        if wanted is not None and wanted > self.max_tokens:
            notes.append(f"max_tokens {wanted} is more than this server gives; it was lowered to {self.max_tokens}")
        longest = min(wanted or self.max_tokens, self.max_tokens)
        room = self.model.context - max(map(len, prompts))
        if room < (1 if wanted is None else longest):
            told = f"the prompt has {self.model.context - room} tokens and the reply may have {longest}, but "
            told += f"{self.model.name} holds {self.model.context}; shorten the prompt or lower max_tokens"
            raise ApiFault(400, told, self._field(wish), "context_length_exceeded")
        return Texts(tuple(map(tuple, prompts)), min(longest, room), tuple(notes), model.thoughts)

    def _model_for(self, wish: Wish) -> Model:
        """The model, which thinks as a request has it.

        Raises:
            ApiFault: it has no switch for that.
        """
        mode = wish.mode if isinstance(wish, ChatWish) else None
        include = self.model.include_thoughts if wish.steer_thoughts is None else wish.steer_thoughts
        key = mode or self.model.thinking, include
        if key == (self.model.thinking, self.model.include_thoughts):
            return self.model
        try:
            if key not in self._thinking:
                self._thinking[key] = self.model.with_thinking(*key)
        except SteerkitError as error:
            raise ApiFault(400, str(error), "thinking", "no_thinking_switch") from error
        return self._thinking[key]

    def _chat(self, model: Model, wish: ChatWish) -> list[list[int]]:
        messages = [message.plain(place) for place, message in enumerate(wish.messages, 1)]
        if not messages[-1]["content"].strip():
            raise ApiFault(400, "the last message is empty; say something to the model", "messages")
        try:
            return [model.tokenize(model.render(messages))]
        except PromptError as error:
            raise ApiFault(400, str(error), "messages") from error

    def _texts(self, wish: Wish) -> list[list[int]]:
        assert isinstance(wish, TextWish)
        try:
            found = [self.model.text_tokens(each) if isinstance(each, str) else each for each in wish.prompts]
        except PromptError as error:
            raise ApiFault(400, str(error), "prompt", "unknown_token") from error
        if not found or not all(found):
            raise ApiFault(400, "a prompt is empty; give the model something to go on with", "prompt")
        return found

    def _check_tokens(self, prompts: Sequence[Sequence[int]], field: str) -> None:
        """A token without an embedding would end the pass of everybody. A tokenizer may have such tokens, too."""
        size = self.model.original.get_input_embeddings().weight.shape[0]
        wrong = next((token for prompt in prompts for token in prompt if not 0 <= token < size), None)
        if wrong is not None:
            written = str(wrong) if abs(wrong) < 10**12 else "a number of more than 12 digits"
            told = f"the prompt has the token {written}, and {self.model.name} has the tokens 0 to {size - 1}"
            raise ApiFault(400, f"{told}; leave it out", field, "unknown_token")

    @staticmethod
    def _field(wish: Wish) -> str:
        return "messages" if isinstance(wish, ChatWish) else "prompt"

    def plan(self, wish: Wish, texts: Texts) -> Plan:
        """Rows for a request; called on the engine's thread, because vectors are tensors.

        Raises:
            ApiFault: the expression does not parse, or a vector is unknown.
        """
        steering = self._steering(wish)
        probes = self._probes(wish)
        seed = self._entropy.randrange(2**31) if wish.seed is None else wish.seed
        temperature = 1.0 if wish.temperature is None else wish.temperature
        n, likeliest = wish.n or 1, wish.likeliest
        first = Sampling(texts.longest, temperature, wish.top_p or 1.0, seed)
        # A prompt may stand in a request twice; every choice has a seed of its own, whichever prompt it is of.
        asked = [prompt for prompt in texts.prompts for _ in range(n)]
        asks = [
            Ask(prompt, steering, probes, replace(first, seed=seed + i), likeliest, texts.thoughts)
            for i, prompt in enumerate(asked)
        ]
        used: dict[str, Any] = {"steer": str(steering), "everywhere": steering.everywhere, "seed": seed}
        used["warnings"] = [*steering.warnings(), *texts.notes]
        return Plan(tuple(asks), wish.stops, used, sum(map(len, texts.prompts)))

    def _steering(self, wish: Wish) -> Steering:
        steering = self.steering
        try:
            if wish.steer is not None:
                parsed = wish.steer.strip()
                steering = Steering.parse(parsed, self.vectors.glance()) if parsed else Steering()
            if wish.steer is not None and len(steering.terms) > MOST_TERMS:
                told = f"the steering has {len(steering.terms)} terms, and every term costs all who are speaking time"
                raise ExpressionError(f"{told}; write at most {MOST_TERMS}")
            if wish.everywhere is not None:
                steering = replace(steering, everywhere=wish.everywhere)
            # Whatever cannot be compiled must fail here, where it concerns nobody else.
            edits([steering], torch.empty(0, device=self.model.device, dtype=self.model.dtype))
        except (SteerkitError, RecursionError) as error:
            raise ApiFault(400, str(error), "steer", "bad_steering") from error
        return steering

    def _probes(self, wish: Wish) -> tuple[Probe, ...]:
        try:
            return tuple(Probe.of(self.vectors[name], name=name) for name in dict.fromkeys(wish.read or ()))
        except SteerkitError as error:
            raise ApiFault(400, str(error), "read", "unknown_vector") from error

    def describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of some vectors; those whose files do not fit this model are left out."""
        found = []
        for name in names:
            try:
                found.append(_summary(name, self.vectors[name]))
            except VectorError:
                continue
        return found


def _summary(name: str, vector: SteeringVector) -> dict[str, Any]:
    """One vector and its evidence, as far as it has any; None is what nobody has measured."""
    known, limits = vector.evidence, vector.limits()

    def at_best(key: str) -> float | None:
        values = known.get(key)
        return round(float(values[vector.layer]), 4) if values else None

    test = known.get("test") or {}
    shifts = {way: test[way]["shift"] for way in ("up", "down") if way in test}
    return {
        "name": name,
        "against": vector.provenance.get("against"),
        "best_layer": vector.layer,
        "place": list(vector.place),
        "limits": list(limits) if limits else None,
        "reliable": known.get("reliable"),
        "shift": shifts or None,
        "anti_steerable": test.get("anti_steerable"),
        **{key: at_best(key) for key in ("pair_agreement", "split_half", "d_prime")},
    }
