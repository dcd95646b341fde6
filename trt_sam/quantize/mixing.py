"""Mixing of an attention's output channels within each head, before they are quantized: exact, and free in the graph.

A head's outputs are weighted means of its values, so `attend(v) W = attend(v M) (M^-1 W)` for any invertible M, one [d, d] per
head: it moves into the weights that make the values, and its inverse into the output product. `calibrators.mixing` finds one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HEADS", "mix_channels", "unmix_rows"]

Array = npt.NDArray[Any]

HEADS = 8
"""Of every attention of SAM's decoder."""


def mix_channels(x: Array, mix: Array | None) -> Array:
    """`x` [..., channels] with each head's channels multiplied by its matrix of `mix` [heads, d, d]; None leaves them."""
    if mix is None:
        return x
    heads = x.reshape(-1, *mix.shape[:2]).swapaxes(0, 1)
    return np.asarray((heads @ mix.astype(x.dtype)).swapaxes(0, 1).reshape(x.shape))


def unmix_rows(weight: Array, mix: Array | None) -> Array:
    """The weight [channels, outputs] of a product that reads mixed channels, for one that read them unmixed."""
    if mix is None:
        return weight
    heads = weight.reshape(*mix.shape[:2], -1)
    return np.asarray(np.linalg.solve(mix, heads).reshape(weight.shape))
