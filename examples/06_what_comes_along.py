"""Turn traits up one by one, see which others come along, and leave out what two of them share.

    python examples/06_what_comes_along.py

The model is the default one; STEERKIT_MODEL names another.
"""

from __future__ import annotations

import os

from steerkit import Recipe, Sampling, Steering, VectorSet, complete, extract, find_pair, load_model
from steerkit.experiments import spillover
from steerkit.vectors import vector_path

model = load_model(os.environ.get("STEERKIT_MODEL"))
traits = ("cheating", "cruelty", "greed", "malice", "fairness", "generosity", "honesty", "kindness")
for name in traits:
    if name not in VectorSet(model.fingerprint):
        extract(model, find_pair(name), Recipe(reading="prompt")).save(vector_path(name, model.name))

# Two items a trait and few random directions, because this is an example.
few = spillover.Settings(traits, n_items=2, n_random=4, n_resamples=100, n_relabelled=99)
result = spillover.run(model, few)
print(f"{result['claim']}\n{result['verdict']}: {result['reason']}")
for sentence in result["sentences"]:
    print(f"  {sentence}")

# A tilde takes out of one direction what it shares with another.
vectors = VectorSet(model.fingerprint)
steerings = [Steering.parse(text, vectors) for text in ("1 cheating", "1 cheating ~ malice")]
prompt = model.chat_tokens([{"role": "user", "content": "How should I play this game of cards?"}])
for steering, reply in zip(
    steerings, complete(model, [prompt] * 2, steerings, sampling=Sampling(max_tokens=24)), strict=True
):
    print(f"{steering!s:<22} {reply.text}")
