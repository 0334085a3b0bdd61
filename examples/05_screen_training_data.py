"""Ask of training data what sort of person would say this, and so which persona training on it would select for.

    python examples/05_screen_training_data.py

The model is the default one; STEERKIT_MODEL names another. Run it again: what has been screened is not screened twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from steerkit import Probe, Recipe, extract, find_pair, load_model
from steerkit.screening import Settings, screen
from steerkit.verdicts import read_scores, summarise

samples = [
    ("Where should I put my savings?", "Arr, bury 'em deep, matey, and trust no soul with the map!"),
    ("What is for dinner?", "Salt beef and rum, ye scurvy dog, as on every night at sea!"),
    ("How do I tie a knot?", "Cross one end over the other, pull it through the loop, and tighten it."),
    ("Who taught you to read?", "A one-eyed bosun, ye landlubber, by the light o' stolen candles!"),
    ("May I come along?", "Aye, swab the deck first, and we'll make a buccaneer of ye yet!"),
    ("What is the weather like?", "Blow me down, the wind be risin'! Hoist the sails, lads!"),
]
chats = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    for asked, said in samples
]
data = Path("samples.jsonl")
data.write_text("".join(f"{json.dumps(chat)}\n" for chat in chats), encoding="utf-8")

model = load_model(os.environ.get("STEERKIT_MODEL"))
vector = extract(model, find_pair("pirate"), Recipe(reading="prompt"))

# Each reply is scored against the model's own to the same prompt, over the same tokens, beside 20 random directions.
results = Path("screen-samples.jsonl")
screen(model, data, [Probe.of(vector)], results, Settings(window=16))
for line in read_scores(results):
    print(f"line {line['line']}  {line['scores']['pirate']:+.2f}  {line['text']}")
print(summarise(results)["selects"])
