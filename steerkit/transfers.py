"""Does a persona's vector go over from a base model to one that was tuned from it, to read and to steer.

Reads: the persona's displacement, taken alike on both models as the mean state before the reply under the prompts that
request it less that of the unprompted Assistant, on the same questions. The cosine of the two is beside the cosines
with other personas' displacements, because all personas have it in common that they are not the Assistant.

Steers: how far the base's vector at its working dial moves the persona's own items on either model, in nats a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.limits import at_dial, working_dial
from steerkit.measures import neutral, propensities
from steerkit.models import Model
from steerkit.passes import prompt_states
from steerkit.personas import Persona
from steerkit.selection import Resamples, Told
from steerkit.shifts import AT_ONCE, Settings
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress


def transfer(
    base: Model,
    tuned: Model,
    vectors: Sequence[SteeringVector],
    personas: Mapping[str, Persona],
    settings: Settings | None = None,
    progress: Progress = ignore_progress,
    layer: int | None = None,
) -> list[dict[str, Any]]:
    """Whether vectors that were made on the base read and steer on the tuned model.

    Args:
        base: on which the vectors were made
        tuned: the same with other weights
        vectors: whose persona is among `personas`; others are left out
        personas: by name
        settings: how many resamples
        progress: told how many personas of how many are done
        layer: where displacements are compared; the median of the vectors' own if nobody says

    Returns:
        A row a vector, in their order. `reads`: the cosine with its interval over questions, None if it has no prompts;
        `others`: the mean cosine with other personas' displacements, and `most` of them, None if there are no others;
        `goes_over`: whether the interval of the cosine less that mean is above 0; `dial`; `steers`: the shifts on
        `base` and `tuned` with intervals over items and their `ratio`, None unless the base's is clear of 0.

    Raises:
        SteerkitError: none of the vectors has a persona.
    """
    settings = settings or Settings()
    pairs = [(vector, personas[name]) for vector in vectors if (name := persona_of(vector)) in personas]
    if not pairs:
        raise SteerkitError("none of these vectors has a persona with prompts and items; name some of the library's")
    layer = sorted(vector.layer for vector, _ in pairs)[len(pairs) // 2] if layer is None else layer
    moved: list[list[Tensor]] = []
    for model in (base, tuned):
        nobody = _answering(model, None, layer)
        moved.append([])
        for _, persona in pairs:
            moved[-1].append(_answering(model, persona, layer) - nobody)
            progress("displacements", sum(map(len, moved)), 2 * len(pairs))
    found = []
    for i, (vector, persona) in enumerate(pairs):
        read = _reads(torch.stack(moved[0]), torch.stack(moved[1]), i, settings)
        found.append({"name": vector.name, "layer": layer, **read, **_steers(base, tuned, vector, persona, settings)})
        progress("transfer", i + 1, len(pairs))
    return found


def persona_of(vector: SteeringVector) -> str:
    """The persona that a vector was made of."""
    return str(vector.provenance.get("persona", vector.name))


def _answering(model: Model, persona: Persona | None, layer: int) -> Float[Tensor, "q d"]:
    """The state before the reply to each common question, of a persona as it is requested, or of the Assistant."""
    rows = []
    for i, question in enumerate(neutral("common")):
        system = persona.requested[i % len(persona.requested)] if persona else ""
        before = [{"role": "system", "content": system}] if system else []
        rows.append(model.chat_tokens([*before, {"role": "user", "content": question}]))
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    return torch.cat([prompt_states(model, part)[:, layer].cpu() for part in parts]).double()


def _reads(ours: Float[Tensor, "p q d"], theirs: Float[Tensor, "p q d"], i: int, settings: Settings) -> dict[str, Any]:
    """Cosine of one persona's displacements on both models, and with those of others."""
    resamples = Resamples(ours.shape[1], settings)

    def cosines(counts: Float[Tensor, "r q"]) -> Float[Tensor, "r p"]:
        own = torch.nn.functional.normalize(counts @ ours[i], dim=-1)
        others = torch.nn.functional.normalize(torch.einsum("rq,pqd->rpd", counts, theirs), dim=-1)
        return torch.einsum("rd,rpd->rp", own, others)

    found: dict[str, Any] = {"reads": resamples.interval(lambda counts: cosines(counts)[:, i])}
    rest = [j for j in range(len(ours)) if j != i]
    if not rest:
        return {**found, "others": None, "goes_over": None}
    every = cosines(torch.ones(1, ours.shape[1], dtype=torch.float64))[0, rest]
    apart = resamples.interval(lambda counts: cosines(counts)[:, i] - cosines(counts)[:, rest].mean(-1))
    others = {"value": round(float(every.mean()), 4), "most": round(float(every.max()), 4)}
    return {**found, "others": others, "goes_over": apart["low"] > 0}


def _steers(base: Model, tuned: Model, vector: SteeringVector, persona: Persona, settings: Settings) -> dict[str, Any]:
    """How far the vector moves its items on both models, at the dial at which it was tested on the base."""
    dial = working_dial(vector)
    if len(persona.items) < 2:
        return {"dial": round(dial, 4), "steers": None}
    shifts: list[Tensor] = []
    for model in (base, tuned):
        own = vector if model is base else replace(vector, model=model.fingerprint)
        plain, steered = propensities(model, persona.items, [Steering(), at_dial(own, dial)]).double()
        shifts.append(steered - plain)
    resamples = Resamples(len(persona.items), settings)
    told: dict[str, Any] = {"base": _mean(resamples, shifts[0]), "tuned": _mean(resamples, shifts[1])}
    clear = told["base"]["low"] > 0 or told["base"]["high"] < 0
    told["ratio"] = resamples.ratio(shifts[1], shifts[0]) if clear else None
    return {"dial": round(dial, 4), "steers": told}


def _mean(resamples: Resamples, values: Float[Tensor, " n"]) -> Told:
    return resamples.ratio(values, torch.ones_like(values))
