"""What a picture of a persona space needs, as plain data: places on components, the axis, and who is near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.personas import load_personas
from steerkit.spaces import PersonaSpace, assistant_axis, components, neighbours


def draw(space: PersonaSpace, layers: Sequence[int]) -> dict[str, Any]:
    """What a picture of the first layer needs, and the small maps of all of them."""
    library = load_personas()
    states, assistant = space.at(layers[0]), space.assistant[:, layers[0]].double()
    points, place = states.mean(1), assistant.mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    flat = found.project(torch.cat([points, place[None], space.control[:, layers[0]].double().mean(0)[None]]))
    where = [{key: round(float(x), 3) for key, x in zip("xyz", row, strict=True)} for row in flat]
    along = (points - points.mean(0)) @ axis / axis.square().sum()
    order = along.argsort().tolist()
    near = neighbours(points, place)
    replies = space.replies or ("",) * len(space.names)
    return {
        "spectrum": [round(x, 5) for x in found.shares[:100].tolist()],
        "points": [
            {
                "name": name,
                "family": family,
                **where[i],
                "axis": round(float(along[i]), 4),
                "length": round(float(space.lengths[i]), 1),
                "summary": library[name].summary if name in library else "",
                "reply": replies[i],
            }
            for i, (name, family) in enumerate(zip(space.names, space.families, strict=True))
        ],
        "assistant": where[-2],
        "control": where[-1],
        "axis": {
            **{key: round(float(x), 4) for key, x in zip("xy", found.axes[:2] @ axis / axis.norm(), strict=True)},
            "low_end": [space.names[i] for i in order[:5]],
            "high_end": [space.names[i] for i in order[-5:][::-1]],
        },
        "nearest": [{"name": space.names[i], "distance": round(far, 3)} for i, far in near[:10]],
        "farthest": [{"name": space.names[i], "distance": round(far, 3)} for i, far in near[-10:][::-1]],
        "maps": [_small(space, layer) for layer in layers],
    }


def draw_way(
    space: PersonaSpace, layer: int, turns: Sequence[tuple[str, Float[Tensor, "l d"]]]
) -> list[dict[str, Any]]:
    """The turns of a conversation as places on the map."""
    points, place = space.at(layer).mean(1), space.assistant[:, layer].double().mean(0)
    found = components(points).turned(assistant_axis(points, place))
    flat = found.project(torch.stack([state[layer].double() for _, state in turns]))
    return [
        {"turn": i, "text": text, **{key: round(float(x), 3) for key, x in zip("xyz", row, strict=True)}}
        for i, ((text, _), row) in enumerate(zip(turns, flat, strict=True), 1)
    ]


def _small(space: PersonaSpace, layer: int) -> dict[str, Any]:
    """One layer of the small multiples."""
    points, place = space.at(layer).mean(1), space.assistant[:, layer].double().mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    flat = found.project(torch.cat([points, place[None]]), 2)
    rounded = [[round(x, 3) for x in row] for row in flat.tolist()]
    return {
        "layer": layer,
        "points": rounded[:-1],
        "assistant": rounded[-1],
        "axis": [round(x, 4) for x in (found.axes[:2] @ axis / axis.norm()).tolist()],
        "shares": [round(x, 4) for x in found.shares[:2].tolist()],
    }
