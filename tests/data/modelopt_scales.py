"""Twenty seeded arrays on which calibrators are compared with ModelOpt's; results in modelopt_scales.npz."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Generator = np.random.Generator

COUNT = 60_007
"""Odd, so that percentile 99.99 is not exactly at a value, where rounding would decide."""


def _softmax(rng: Generator, keys: int, spread: float) -> npt.NDArray[np.float64]:
    scores = np.exp(rng.normal(0, spread, (COUNT // keys + 1, keys)))
    return scores / scores.sum(axis=1, keepdims=True)


def _gelu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


ARRAYS: dict[str, Callable[[Generator], npt.NDArray[np.float64]]] = {
    "gauss": lambda rng: rng.normal(0, 1, COUNT),
    "gauss of few values": lambda rng: rng.normal(0, 1, 3001),
    "gauss off centre": lambda rng: rng.normal(3, 0.2, COUNT),
    "uniform": lambda rng: rng.uniform(-5, 5, COUNT),
    "laplace": lambda rng: rng.laplace(0, 1, COUNT),
    "logistic": lambda rng: rng.logistic(0, 1, COUNT),
    "student 3": lambda rng: rng.standard_t(3, COUNT),
    "student 6": lambda rng: rng.standard_t(6, COUNT),
    "lognormal": lambda rng: rng.lognormal(0, 1, COUNT),
    "relu": lambda rng: np.maximum(rng.normal(0, 1, COUNT), 0),
    "gelu": lambda rng: _gelu(rng.normal(0, 2, COUNT)),
    "softmax of 7": lambda rng: _softmax(rng, 7, 1),
    "softmax of 4096": lambda rng: _softmax(rng, 4096, 1),
    "two modes": lambda rng: rng.choice([-8, 8], COUNT) + rng.normal(0, 0.5, COUNT),
    "two unequal modes": lambda rng: np.where(rng.random(COUNT) < 0.02, 20, 0) + rng.normal(0, 1, COUNT),
    "one outlier": lambda rng: np.append(rng.normal(0, 1, COUNT), 60),
    "one large token of 7": lambda rng: rng.normal(0, 1, (COUNT // 7, 7)) * np.array([1, 1, 1, 40, 1, 1, 1]),
    "three large channels of 256": lambda rng: rng.normal(0, 1, (256, 256)) * np.where(np.arange(256) < 3, 12, 1),
    "mostly zero": lambda rng: rng.normal(0, 1, COUNT) * (rng.random(COUNT) < 0.05),
    "tiny": lambda rng: rng.normal(0, 1e-6, COUNT),
}


def make_array(name: str) -> FloatArray:
    """float32, flat; the same on every machine as long as numpy keeps its streams (a hash beside the results tells)."""
    rng = np.random.default_rng(list(ARRAYS).index(name))
    return ARRAYS[name](rng).astype(np.float32).reshape(-1)
