"""Mixing of a head's channels: its inverse, and what is learned; that it changes nothing in a graph is in test_qdq."""

from __future__ import annotations

import numpy as np

from calibrators.mixing import learn_mix
from trt_sam.quantize.mixing import HEADS, mix_channels, unmix_rows


def some_mix(width: int, seed: int = 0) -> np.ndarray:
    return np.eye(width) + np.random.default_rng(seed).normal(0, 0.3, (HEADS, width, width))


def test_mixing_and_its_inverse_cancel() -> None:
    rng, mix = np.random.default_rng(1), some_mix(4)
    x, weight = rng.normal(size=(3, 5, 32)), rng.normal(size=(32, 7))
    np.testing.assert_allclose(mix_channels(x, mix) @ unmix_rows(weight, mix), x @ weight, atol=1e-9)
    # Each head by its own matrix.
    np.testing.assert_allclose(mix_channels(x, mix)[..., 4:8], x[..., 4:8] @ mix[1])


def noise(rows: np.ndarray, weight: np.ndarray, mix: np.ndarray) -> float:
    """Of the products' outputs, where each channel is scaled to its limits: step^2 / 12 of each, times what reads it."""
    half = np.ptp(mix_channels(rows, mix), axis=0) / 2
    return float(((half / 127) ** 2 / 12) @ (unmix_rows(weight, mix) ** 2).sum(axis=1))


def test_what_is_learned_has_less_noise_on_rows_that_were_not_seen() -> None:
    rng = np.random.default_rng(2)
    drawn = np.einsum("nhd,hde->nhe", rng.laplace(size=(8000, 2, 8)), rng.normal(size=(2, 8, 8)))
    rows = np.asarray(drawn.reshape(8000, 16) + 3.0, np.float32)
    weight = rng.normal(size=(16, 20)) * np.geomspace(1, 30, 16)[:, None]
    seen, held_out = rows[:4000], rows[4000:].astype(np.float64)
    mix = learn_mix(seen, weight, heads=2)
    unmixed = np.stack([np.eye(8)] * 2)
    assert noise(held_out, weight, mix) < 0.6 * noise(held_out, weight, unmixed)
    assert np.linalg.cond(mix).max() < 1000
    # The order of the feeds does not matter.
    np.testing.assert_array_equal(learn_mix(seen[::-1], weight, heads=2), mix)


def test_a_head_that_never_varies_has_a_mixing_all_the_same() -> None:
    mix = learn_mix(np.ones((50, 16), np.float32), np.ones((16, 3)), heads=2)
    assert np.isfinite(mix).all()
    assert np.linalg.cond(mix).max() < 1e8
