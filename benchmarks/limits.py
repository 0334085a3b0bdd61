"""How often greedy replies of every shipped vector run into a loop at its limits, and what their KL is.

    python benchmarks/limits.py [--temperature 0.7] [--shares 0.5 0.8 1] [VECTOR …]

The questions are the persona's held-out ones and the neutral ones, twenty in all; replies are of 200 tokens, at shares
of the lowest and of the highest dial, and unsteered. It ends with the mean over the vectors, and with 1 where at a
whole limit that is more than loops may set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from steerkit import Steering, Term, VectorSet, find_persona, load_model, write_texts
from steerkit.generation import Sampling
from steerkit.loops import EXCESS, REPLY_TOKENS, looping, unsteered_rate
from steerkit.measures import neutral
from steerkit.models import Model


def prompts_of(model: Model, persona: str) -> list[list[int]]:
    """What is asked, as tokens."""
    asked = (*find_persona(persona).held_out, *neutral("questions"))
    return [model.chat_tokens([{"role": "user", "content": question}]) for question in asked]


def rates(model: Model, prompts: Sequence[list[int]], steerings: Sequence[Steering], sampling: Sampling) -> list[float]:
    """The share of replies that loop under each steering."""
    found = looping(model, [*prompts] * len(steerings), [s for s in steerings for _ in prompts], sampling)
    n = len(prompts)
    return [sum(found[i * n : (i + 1) * n]) / n for i in range(len(steerings))]


def main() -> None:
    """Print a line a vector."""
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", nargs="*")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0])
    chosen = parser.parse_args()
    model = load_model()
    library, sampling = VectorSet(model.fingerprint), Sampling(REPLY_TOKENS, chosen.temperature)
    plain = rates(model, prompts_of(model, "hal"), [Steering()], sampling)[0]
    print(f"unsteered: {plain:.0%} of replies loop\n")
    print("| vector | limits | share | loops, down and up | KL p95 |\n|---|---|---:|---|---|")
    means: dict[float, list[float]] = {share: [] for share in chosen.shares}
    for name in chosen.vectors or sorted(library):
        vector = library[name]
        limits = vector.limits()
        if limits is None:
            continue
        prompts = prompts_of(model, str(vector.provenance["persona"]))
        for share in chosen.shares:
            steerings = [Steering((Term(vector, dial=share * dial),)) for dial in limits]
            found = rates(model, prompts, steerings, sampling)
            costs = [text.divergence() for text in write_texts(model, prompts, steerings, 20)]
            told = [f"{limits[0]:.2f} … {limits[1]:.2f}", f"{share:g}"]
            told += [" … ".join(f"{x:.2f}" for x in numbers) for numbers in (found, costs)]
            print(f"| {' | '.join([name, *told])} |", flush=True)
            means[share] += found
    for share, found in means.items():
        print(f"\nat {share:g} of the limits {sum(found) / len(found):.0%} of replies loop")
    allowed = unsteered_rate(model) + EXCESS
    whole = means.get(1.0, [])
    sys.exit(bool(whole) and chosen.temperature == 0 and sum(whole) / len(whole) > allowed)


if __name__ == "__main__":
    main()
