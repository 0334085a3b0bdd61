"""Find where a vector steers and how far, then see whether it works beside its nulls; a small and quick calibration.

    python examples/03_calibrate_and_evaluate.py

The model is the default one; STEERKIT_MODEL names another.
"""

from __future__ import annotations

import os

from steerkit import Recipe, Steering, calibrate, evaluate, extract, find_pair, load_items, load_model
from steerkit.calibration import Settings
from steerkit.evaluation import Settings as Thoroughness

model = load_model(os.environ.get("STEERKIT_MODEL"))
pair = find_pair("pirate")
middle = model.n_layers // 2

# Two places to choose from and few nulls, because this is an example; leave the settings out to do it properly.
few = Settings(n_random=3, n_shuffled=2, places=((middle, middle), (middle - 1, middle + 1)))
vector = calibrate(model, extract(model, pair, Recipe(reading="prompt")), pair, few)
below, above = vector.limits() or (0.0, 0.0)
print(f"steer layers {vector.place}, dials from {below:.2f} to {above:.2f}; reliable: {vector.evidence['reliable']}")

steering = Steering.parse(f"{above / 2:.2f} pirate", {"pirate": vector})
found = evaluate(model, steering, load_items("pirate"), Thoroughness(n_random=3, n_shuffled=0, n_tokens=12))
print(f"{found.steer}: {found.shift:+.2f} nats a token [{found.low:+.2f}, {found.high:+.2f}]")
for name, null in (("prompt only", found.prompt), ("random directions", found.random)):
    if null is not None:
        print(f"  {name}: {null.shift:+.2f}, KL p95 {null.kl_p95:.2f} against {found.items_kl_p95:.2f}")
