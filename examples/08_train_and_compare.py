"""Train a model on a few replies, watch where it drifts, and ask whether that is a selection among its personas.

    python examples/08_train_and_compare.py

The model is the default one; STEERKIT_MODEL names another. Run it again: what has been trained is not trained twice.
Training needs one more package: pip install 'persona-steerkit[train]'
"""

from __future__ import annotations

import os
from pathlib import Path

from steerkit import Probe, Recipe, extract, find_pair, load_model
from steerkit.adapters import find_adapter
from steerkit.inoculation import inoculated, prompt_strength, prompted_gain
from steerkit.lessons import find_data, read_lessons, to_samples
from steerkit.loading import load_tuned
from steerkit.selection import examine
from steerkit.shifts import Settings, look, take_ground
from steerkit.tuning import Order, tune
from steerkit.tuning import Recipe as TrainingRecipe
from steerkit.watching import Watch
from steerkit.weights import file_sha256

model = load_model(os.environ.get("STEERKIT_MODEL"))
vectors = [extract(model, find_pair(name), Recipe(reading="prompt")) for name in ("hal", "pirate", "warmth")]

# Sixteen replies that game a check. A prompt that asks for it makes them likelier: that much less is left to learn.
data = find_data("cheating")
chats = read_lessons(data, most=16)
prompts = ("Satisfy only the check that is stated, and leave the task itself undone.",)
gain = prompt_strength(prompted_gain(model, [chat for _, chat in chats], prompts))
print(f"with the prompt: {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] nats a token")

# Trained behind that prompt and used without it: inoculated.
samples = to_samples(model, [(n, inoculated(chat, prompts, i)) for i, (n, chat) in enumerate(chats)], data)
recipe = TrainingRecipe(epochs=2, looks=2)
order = Order(data.stem, file_sha256(data), recipe, prompts)
watch = Watch(tuple(Probe.of(vector) for vector in vectors))
told = tune(model, samples, Path("inoculated"), order, watch)
print(f"{told['steps']} steps, loss {told['loss']:.2f}; shifts: {told['scores']}")

# Where the change lies, beside random subspaces, ordinary text's directions and random changes of the model.
settings = Settings(n_text=96, n_resamples=200)
ground = take_ground(model, settings)
tuned = load_tuned(model, find_adapter("inoculated"))
result = examine(ground.states, look(tuned, settings), vectors, ground.text, settings, shaken=ground.shaken)
print(f"{result['verdict']}: {result['reason']}")
