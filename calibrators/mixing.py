"""`find_mixes`: for the outputs of attentions, the mixing of each head's channels that leaves INT8 the least noise.

With each channel scaled to its limits, a channel's noise grows with its range and with the weights that read it, so what counts
is the sum over channels of range^2 |weight row|^2. A matrix M per head changes both (`trt_sam.quantize.mixing`). It is sought
by gradient descent on some rows of the calibration feeds, from the basis that is best for normally distributed inputs: the one
that gives each channel the same product of spread and weight. Ranges of few rows are met by chance, and photos that were not
among them go beyond; so a third of what is minimized is the spread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from calibrators.collect import Feeds, Progress, collect_rows
from trt_sam.quantize.mixing import HEADS
from trt_sam.quantize.share import Product

__all__ = ["MIXED", "find_mixes", "learn_mix"]

FloatArray = npt.NDArray[np.float64]

MIXED = ("block0.image_out", "block1.image_out")
"""Groups whose input is mixed: what an attention gives to every place of the image."""
_STEPS = 400
_ROUNDS = 2
"""The rows that count are looked for again after each: those at the ends of the new channels."""
_RATE = 0.02
"""First step, as a share of the matrix's mean |value|."""
_DIRECTIONS = 512
"""In which the first rows that count lie farthest out."""
_SPREAD = 0.5
"""Weight of the spread beside the range, on the same scale."""


def find_mixes(
    model: onnx.ModelProto, products: Sequence[Product], feeds: Feeds, *, progress: Progress | None = None
) -> dict[str, FloatArray]:
    """By activation of those `products` that are of MIXED, float64 [heads, d, d].

    Args:
        model: the float32 graph that the products are of.
        products: some of its products.
        feeds: to calibrate on; some prompts and rows of each are used.
        progress: told of every feed.

    Raises:
        CalibrationError: there is no feed, or a tensor is NaN or infinite.
        InferenceError: ONNX Runtime cannot run the graph.
    """
    mixed = {product.activation: product for product in products if product.group in MIXED}
    if not mixed:
        return {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {name: onnx.numpy_helper.to_array(stored[product.weight]) for name, product in mixed.items()}
    rows = collect_rows(model, list(mixed), feeds, progress=progress)
    return {name: learn_mix(rows[name], weights[name].astype(np.float64)) for name in mixed}


def learn_mix(rows: npt.NDArray[np.float32], weight: FloatArray, heads: int = HEADS) -> FloatArray:
    """The matrices of one tensor's heads.

    Args:
        rows: float32 [n, channels], of the tensor; their order does not matter.
        weight: float64 [channels, outputs], of the product that reads it.
        heads: of the attention.
    """
    width = rows.shape[1] // heads
    # Sorted by their bytes: a descent makes much of the last digit of a sum, and the order of the feeds is not to matter.
    rows = np.ascontiguousarray(rows)
    rows = rows[np.argsort(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), kind="stable")]
    parts = (slice(start, start + width) for start in range(0, rows.shape[1], width))
    return np.stack([_learn_head(np.ascontiguousarray(rows[:, part].T), weight[part]) for part in parts])


def _learn_head(columns: npt.NDArray[np.float32], weight: FloatArray) -> FloatArray:
    """Of one head: its values [d, n] and the rows [d, outputs] of the weight that reads them."""
    covariance, gram = np.cov(columns.astype(np.float64)), weight @ weight.T
    if not (covariance.any() and gram.any()):
        # It is the same everywhere, or nothing reads it: any basis will do.
        return np.eye(len(gram))
    mix = _balanced(covariance, gram)
    rng = np.random.default_rng(0)
    directions = np.concatenate([np.eye(len(mix)), rng.normal(size=(_DIRECTIONS, len(mix)))])
    kept = _ends(columns, directions @ mix.T)
    for _ in range(_ROUNDS):
        points = columns[:, sorted(kept)].T.astype(np.float64)
        mix = _descend(points, covariance, gram, mix)
        kept |= _ends(columns, mix.T)
    return mix


def _balanced(covariance: FloatArray, gram: FloatArray) -> FloatArray:
    """The best matrix for a normal distribution: it makes spread and weight one diagonal, and that even by a rotation."""
    size = len(covariance)
    # What never varies has no direction of its own: as good as any, once it varies a little.
    spread, axes = np.linalg.eigh(covariance + (1e-9 * np.trace(covariance) / size + 1e-30) * np.eye(size))
    root = axes * np.sqrt(spread)
    squares, turned = np.linalg.eigh(root.T @ gram @ root)
    both = np.sqrt(np.maximum(squares, 1e-12 * squares.max() + 1e-30))
    return np.asarray(np.linalg.inv(root).T @ turned * np.sqrt(both) @ _even_rotation(size))


def _even_rotation(size: int) -> FloatArray:
    """An orthogonal matrix of entries of about one size: Hadamard's where there is one, else the discrete Hartley transform."""
    if size & (size - 1):
        angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
        return np.asarray((np.cos(angles) + np.sin(angles)) / np.sqrt(size))
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]))
    return np.asarray(matrix / np.sqrt(size))


def _ends(columns: npt.NDArray[np.float32], directions: FloatArray) -> set[int]:
    """The places that lie farthest out to both sides of each direction [k, d]."""
    found: set[int] = set()
    for start in range(0, len(directions), 64):
        seen = directions[start : start + 64].astype(np.float32) @ columns
        found |= set(seen.argmax(axis=1).tolist()) | set(seen.argmin(axis=1).tolist())
    return found


def _descend(points: FloatArray, covariance: FloatArray, gram: FloatArray, mix: FloatArray) -> FloatArray:
    """The best matrix met on the way down from `mix` (Adam: Kingma and Ba 2015, arXiv 1412.6980)."""
    first, second = np.zeros_like(mix), np.zeros_like(mix)
    size, channels = float(np.abs(mix).mean()), np.arange(len(mix))
    spans = np.ptp(points @ mix, axis=0) / 2
    # The spread on the scale of ranges, so that the two can be weighed.
    factor = _SPREAD * float(np.mean(spans**2 / np.einsum("ic,ij,jc->c", mix, covariance, mix)))
    best, chosen = np.inf, mix
    for step in range(1, _STEPS + 1):
        seen = points @ mix
        high, low = seen.argmax(axis=0), seen.argmin(axis=0)
        half = (seen[high, channels] - seen[low, channels]) / 2
        wide = half**2 + factor * np.einsum("ic,ij,jc->c", mix, covariance, mix)
        inverse = np.linalg.inv(mix)
        read = inverse @ gram @ inverse.T
        rows = np.diag(read)
        loss = float(wide @ rows)
        if loss < best:
            best, chosen = loss, mix
        outwards = (points[high] - points[low]).T * half + 2 * factor * covariance @ mix
        slope = (outwards * rows - 2 * inverse.T @ (wide[:, None] * read)) / loss
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        rate = _RATE * size * (1 - step / _STEPS)
        mix = mix - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-12)
    return chosen
