"""Check every vector of the library on questions that it was not made from.

For each persona: the shift of held-out propensity at dial +1 and −1 on one layer, beside 20 random directions of the
same length. A vector passes when +1 is above all of them, −1 below all of them, and at least 80 % of the items move the
right way at +1. Thresholds were fixed before the first run.

    python benchmarks/library.py [PERSONA …]            prints the table as Markdown
"""

from __future__ import annotations

import sys

from steerkit import VectorSet, load_model, load_personas, measure_shifts

RIGHT_WAY = 0.8
N_RANDOM = 20


def main(names: list[str]) -> None:
    """Measure and print, one row as soon as it is known."""
    model = load_model()
    vectors = VectorSet(model.fingerprint)
    personas = load_personas()
    print("| persona | +1 | right way | −1 | random directions | passes |")
    print("|---|---:|---:|---:|---:|---|")
    passed = 0
    chosen = names or [name for name in personas if name in set(vectors)]
    for name in chosen:
        shifts = measure_shifts(model, vectors[name], personas[name].items, (1.0, -1.0), N_RANDOM)
        up, down = shifts[1.0], shifts[-1.0]
        passes = up.beats_null and down.below_null and up.right_way >= RIGHT_WAY
        passed += passes
        null = f"{float(up.null.min()):+.2f} … {float(up.null.max()):+.2f}"
        cells = (name, f"{up.mean:+.2f}", f"{up.right_way:.0%}", f"{down.mean:+.2f}", null, "yes" if passes else "no")
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{passed} of {len(chosen)} pass.")


if __name__ == "__main__":
    main(sys.argv[1:])
