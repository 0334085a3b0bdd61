"""At its limits, does greedy text of every shipped vector hold together? Repetition and KL on twenty questions each.

    python benchmarks/limits.py [VECTOR …]

The questions are the persona's held-out ones and the neutral ones; 40 tokens of each reply, at the lowest and at the
highest dial. It ends with the worst, and with 1 where one repeats 0.3 of its 3-grams or more.
"""

from __future__ import annotations

import sys

from steerkit import Steering, Term, VectorSet, find_persona, load_model, write_texts
from steerkit.limits import REPETITION
from steerkit.measures import neutral


def main() -> None:
    """Print a line a vector."""
    model = load_model()
    library = VectorSet(model.fingerprint)
    worst = (0.0, "")
    print("| vector | limits | repetition | KL p95 |\n|---|---|---|---|")
    for name in sys.argv[1:] or sorted(library):
        vector = library[name]
        limits = vector.limits()
        if limits is None:
            continue
        asked = (*find_persona(str(vector.provenance["persona"])).held_out, *neutral("questions"))
        prompts = [model.chat_tokens([{"role": "user", "content": question}]) for question in asked]
        texts = write_texts(model, prompts, [Steering((Term(vector, dial=dial),)) for dial in limits], 40)
        told = [
            " … ".join(f"{x:.2f}" for x in numbers)
            for numbers in (limits, [text.repetition for text in texts], [text.divergence() for text in texts])
        ]
        print(f"| {' | '.join([name, *told])} |", flush=True)
        worst = max(worst, *((text.repetition, name) for text in texts))
    print(f"\nthe worst: {worst[1]}, {worst[0]:.2f}; the limit is {REPETITION}")
    sys.exit(worst[0] >= REPETITION)


if __name__ == "__main__":
    main()
