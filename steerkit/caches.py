"""Keys and values of rows that come and go while the others are speaking.

Rows of different lengths share one cache: where a row has nothing, its mask is 0, and positions are counted from the
mask, so that a row does not notice where in the cache it stands. Whoever leaves gives the seat to the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from steerkit.forward import RowCache
from steerkit.runners import Cache

WASTE = 64
"""So many empty places may stand in every row before the cache is packed."""


def can_merge(cache: Any) -> bool:
    """Whether rows of such a cache can be put beside rows of another: plain keys and values, none of them lost."""
    layers = getattr(cache, "layers", None)
    return isinstance(cache, (Cache, RowCache)) or (
        bool(layers) and all(type(l).__name__ == "DynamicLayer" for l in layers or ())
    )


@dataclass
class Seats:
    """The cache of all rows that are speaking, and what in it counts."""

    cache: Any
    """A `runners.Cache`, which is changed in place, or a Hugging Face cache whose layers are rebuilt."""
    mask: Int[Tensor, "b t"]
    """1 where a place of a row counts."""

    @property
    def length(self) -> int:
        """How many places there are."""
        return self.mask.shape[1]

    def __post_init__(self) -> None:
        """Say whether there is padding, which the lean runner asks only when it reads a prompt."""
        self._note_padding()

    def grow(self) -> None:
        """Make a place for the token that each row is about to be given."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    @torch.inference_mode()
    def add(self, cache: Any, mask: Int[Tensor, "k t"]) -> None:
        """Seat more rows behind the others. Whoever is shorter has empty places: newcomers in front, others behind."""
        length = max(self.length, mask.shape[1])
        if isinstance(self.cache, Cache):
            for mine, theirs in ((self.cache.keys, cache.keys), (self.cache.values, cache.values)):
                for l, more in enumerate(theirs):
                    mine[l] = self._seated(mine[l], more[:, :, : cache.length], length)
            self.cache.length = length
        elif isinstance(self.cache, RowCache):
            self.cache.rows += cache.rows
        else:
            behind, before = (0, 0, 0, length - self.length), (0, 0, length - mask.shape[1], 0)
            for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([functional.pad(mine.keys, behind), functional.pad(theirs.keys, before)])
                mine.values = torch.cat([functional.pad(mine.values, behind), functional.pad(theirs.values, before)])
        old = functional.pad(self.mask, (0, length - self.length))
        self.mask = torch.cat([old, functional.pad(mask, (length - mask.shape[1], 0))])
        self._note_padding()

    def _seated(self, store: Tensor, more: Tensor, length: int) -> Tensor:
        """One layer's keys or values with more rows. Empty places are zeros: nothing that is masked may be NaN."""
        old, new = len(self.mask), len(self.mask) + len(more)
        if len(store) < new or store.shape[2] < length:
            store = _roomier(store[:old, :, : self.length], max(len(store), _round(new)), length)
        store[:old, :, self.length : length] = 0
        store[old:new, :, : length - more.shape[2]] = 0
        store[old:new, :, length - more.shape[2] : length] = more
        return store

    @torch.inference_mode()
    def leave(self, rows: Sequence[int]) -> list[int]:
        """Free the seats of some rows, and say who sits in each seat now, by their old numbers."""
        n_left = len(self.mask) - len(rows)
        staying = [row for row in range(n_left, len(self.mask)) if row not in rows]
        order = [staying.pop() if row in rows else row for row in range(n_left)]
        if isinstance(self.cache, Cache):
            moved = [(new, old) for new, old in enumerate(order) if new != old]
            for store in (*self.cache.keys, *self.cache.values):
                for new, old in moved:
                    store[new, :, : self.length] = store[old, :, : self.length]
        else:
            self.cache.batch_select_indices(torch.tensor(order, dtype=torch.long, device=self.mask.device))
        self.mask = self.mask[order]
        self._note_padding()
        return order

    @torch.inference_mode()
    def pack(self, longest: int) -> None:
        """Drop empty places, where there are many; the fullest row has `longest` that are not."""
        if self.length - longest <= max(WASTE, self.length // 4):
            return
        # Of every row the places that count, in their order, and before them as many others as the longest has more.
        places = self.mask.argsort(dim=1, stable=True)[:, -longest:]
        self.mask = self.mask.gather(1, places)
        if isinstance(self.cache, Cache):
            for stores in (self.cache.keys, self.cache.values):
                for l, store in enumerate(stores):
                    stores[l] = _roomier(_taken(store[: len(places)], places), len(store), longest)
            self.cache.length = longest
        elif not isinstance(self.cache, RowCache):
            for layer in self.cache.layers:
                layer.keys, layer.values = _taken(layer.keys, places), _taken(layer.values, places)
        self._note_padding()

    def _note_padding(self) -> None:
        if isinstance(self.cache, Cache):
            self.cache.padded = not bool(self.mask.all())


def _taken(store: Tensor, places: Int[Tensor, "b t"]) -> Tensor:
    return store.take_along_dim(places[:, None, :, None], dim=2)


def _roomier(store: Tensor, n_rows: int, length: int) -> Tensor:
    """A copy with spare rows, and room for so many places and a few more."""
    grown = store.new_zeros(n_rows, store.shape[1], max(64, _round(length + 1)), store.shape[3])
    grown[: len(store), :, : store.shape[2]] = store
    return grown


def _round(n: int) -> int:
    """The next power of two, so that growing costs in proportion to what is there."""
    return 1 << (n - 1).bit_length()
