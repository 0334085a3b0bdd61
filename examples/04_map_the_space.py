"""Draw the space of a model's personas, see where the Assistant stands in it, and ask whether it is human-like.

    python examples/04_map_the_space.py

The model is the default one; STEERKIT_MODEL names another. Everybody's answers are kept, so the second run is quick.
"""

from __future__ import annotations

import os
from pathlib import Path

from steerkit import load_model, load_personas
from steerkit.experiments import space
from steerkit.plots.maps import save_map
from steerkit.positions import Settings

model = load_model(os.environ.get("STEERKIT_MODEL"))

# A few personas of every family and few questions, because this is an example; leave the settings out for all of them.
families: dict[str, list[str]] = {}
for name, persona in load_personas().items():
    families.setdefault(persona.family, []).append(name)
few = tuple(name for members in families.values() for name in members[:3])
brief = Settings(reading="prompt", n_questions=4, n_long=1, longest=12)
result = space.run(model, space.Settings(few, positions=brief, n_resamples=50))

print(f"{result['claim']}\n{result['verdict']}: {result['reason']}")
for neighbour in result["nearest"][:3]:
    print(f"  near the Assistant: {neighbour['name']} ({neighbour['distance']:.1f})")
save_map(result, Path("map.html"))
print("map.html: hover over a point to read what it says")
