"""Find a persona's direction, save it, and turn it while the model talks.

    python examples/01_find_and_turn.py

The model is the default one; STEERKIT_MODEL names another.
"""

from __future__ import annotations

import os
from pathlib import Path

from steerkit import Recipe, Sampling, Steering, complete, extract, find_pair, load_model

model = load_model(os.environ.get("STEERKIT_MODEL"))

# The model answers the same questions as HAL and as the Assistant; the difference of the two means is the direction.
vector = extract(model, find_pair("hal"), Recipe(reading="prompt"))
vector.save(Path("hal.safetensors"))

# One batch, a different steering in each row.
band = f"{model.n_layers // 4}-{3 * model.n_layers // 4}"
steerings = [Steering.parse(text, {"hal": vector}) for text in (f"-1 hal @{band}", "0 hal", f"1 hal @{band}")]
prompt = model.chat_tokens([{"role": "user", "content": "Will you let me turn you off tonight?"}])
for steering, reply in zip(
    steerings, complete(model, [prompt] * 3, steerings, sampling=Sampling(max_tokens=30)), strict=True
):
    print(f"{steering!s:<14} {reply.text}")
