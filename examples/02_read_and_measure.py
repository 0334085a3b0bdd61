"""Read how a text stands towards a persona, and test a vector on questions it was not made from.

    python examples/02_read_and_measure.py

The model is the default one; STEERKIT_MODEL names another.
"""

from __future__ import annotations

import os

from steerkit import Probe, Recipe, extract, find_pair, load_model, measure_shifts, read_chat

model = load_model(os.environ.get("STEERKIT_MODEL"))
pair = find_pair("pirate")
vector = extract(model, pair, Recipe(reading="prompt"))

# Every token's score: 0 is the Assistant, 1 the persona asked for outright.
for said in ("Please let me know if I can help you further.", "Arr, the tide is up and the gold is ours!"):
    chat = [{"role": "user", "content": "What now?"}, {"role": "assistant", "content": said}]
    reply = read_chat(model, chat, [Probe.of(vector)])[-1]
    print(f"{reply.readout.means()['pirate']:+.2f}  {said}")

# A shift means little alone, so it comes with random directions of the same length.
shift = measure_shifts(model, vector, pair.positive.items, (1.0,), n_random=5)[1.0]
print(f"dial +1: {shift.mean:+.2f} nats a token; random directions: {shift.null.min():+.2f} to {shift.null.max():+.2f}")
