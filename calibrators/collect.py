"""Statistics of a graph's inner tensors over feeds: each channel's mean and range, and histograms. ONNX Runtime on the CPU.

The tensors become outputs of a copy of the graph, in memory; what they do not need is left out and never computed. Sums and
counts do not depend on the order of the feeds. No more than a few prompts are run at a time, however many a feed has.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calibrators.histogram import BINS, Histogram, count_bins
from trt_sam._lazy import require
from trt_sam.errors import CalibrationError, InferenceError, first_line
from trt_sam.quantize.mixing import mix_channels
from trt_sam.quantize.rounding import InputMoments

__all__ = ["ChannelStats", "Feeds", "Progress", "collect_channels", "collect_histograms", "collect_rows"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Feeds = Iterable[Mapping[str, Array]]

Progress = Callable[[str, int, int], None]
"""Called with the phase ("channels", "ranges" or "counts"), feeds done and feeds in all (0 where nobody knows)."""

_PROMPTS_AT_ONCE = 4
"""An image-side tensor is 4 MiB per prompt, and a dozen of them are held at a time."""


@dataclass(frozen=True)
class ChannelStats:
    """What a tensor held per channel, its last axis."""

    mean: FloatArray = field(repr=False)
    """float64 [channels]."""
    amin: FloatArray = field(repr=False)
    """float64 [channels], the smallest value."""
    amax: FloatArray = field(repr=False)
    """float64 [channels], the largest value (not of |x|)."""
    covariance: FloatArray = field(repr=False)
    """float64 [channels, channels], of every `_EVERY`th row."""
    count: int
    """Values per channel."""
    mix: FloatArray | None = field(repr=False, default=None)
    """float64 [heads, d, d]: all of these are of the tensor with its channels mixed so; None: as they are."""

    def moments(self, shift: FloatArray, scale: FloatArray) -> InputMoments:
        """Of (x - shift) / scale; shift and scale are float64 [channels]."""
        return InputMoments((self.mean - shift) / scale, self.covariance / np.outer(scale, scale))

    def largest(self, shift: FloatArray, scale: FloatArray) -> float:
        """The largest |x - shift| / scale of all channels."""
        return float((np.maximum(self.amax - shift, shift - self.amin) / scale).max())


def collect_channels(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    mixes: Mapping[str, FloatArray] | None = None,
    progress: Progress | None = None,
) -> dict[str, ChannelStats]:
    """Mean, range and covariance of the channels of `tensors`, in one pass.

    Args:
        model: the graph; not changed.
        tensors: names of float tensors in it, each [..., channels].
        feeds: arrays by input name; inputs that the graph does not have are passed over.
        mixes: by tensor, how its channels are mixed first (`trt_sam.quantize.mixing`), for those that are.
        progress: called after each feed.

    Raises:
        CalibrationError: there is no feed, or a tensor is NaN or infinite.
        InferenceError: ONNX Runtime cannot run the graph.
        ValueError: the graph has no such tensor.
    """
    mixes = mixes or {}
    sums: dict[str, _ChannelSums] = {}
    for name, array in _values(model, tensors, feeds, "channels", progress):
        rows = array.reshape(-1, array.shape[-1])
        rows = mix_channels(rows, mixes[name]) if name in mixes else rows
        sums.setdefault(name, _ChannelSums(array.shape[-1])).add(rows, name)
    return {name: dataclasses.replace(sums[name].stats(), mix=mixes.get(name)) for name in tensors}


def collect_rows(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, *, progress: Progress | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """Some rows [n, channels] of `tensors`: of a few prompts of each feed, and of no more than _ROW_FEEDS feeds.

    Args as for `collect_channels`; raises likewise.
    """
    few = _Thinned(model, feeds)
    kept: dict[str, list[Array]] = {name: [] for name in tensors}
    for name, array in _values(model, tensors, few, "channels", progress):
        rows = array.reshape(-1, array.shape[-1])[::_EVERY]
        if not np.isfinite(rows).all():
            raise _not_finite(name)
        kept[name].append(rows.astype(np.float32))
    return {name: np.concatenate(arrays) for name, arrays in kept.items()}


def collect_histograms(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    ranges: Mapping[str, float] | None = None,
    bins: int = BINS,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Histograms of |x| of `tensors`, in two passes: ranges, then counts; or in one, where the ranges are known.

    Args:
        model: the graph; not changed.
        tensors: names of float tensors in it.
        feeds: as for `collect_channels`; iterated twice, and must give the same both times.
        ranges: the largest |x| of each tensor, to rounding; None to look for it.
        bins: of every histogram.
        progress: called after each feed of every pass.

    Raises:
        CalibrationError: there is no feed, a tensor is NaN or infinite, or the feeds changed between the passes.
        InferenceError: ONNX Runtime cannot run the graph.
        TypeError: `feeds` can be iterated only once.
        ValueError: the graph has no such tensor.
    """
    if isinstance(feeds, Iterator):
        raise TypeError("feeds is an iterator, which ends after one pass; give a list or CalibrationFeeds")
    if ranges is None:
        ranges = _ranges(model, tensors, feeds, progress)
    counts = {name: np.zeros(bins, np.int64) for name in tensors}
    for name, array in _values(model, tensors, feeds, "counts", progress):
        counts[name] += count_bins(array, ranges[name], bins)
    return {name: Histogram(counts[name], ranges[name]) for name in tensors}


def _ranges(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, progress: Progress | None) -> dict[str, float]:
    ranges = dict.fromkeys(tensors, 0.0)
    for name, array in _values(model, tensors, feeds, "ranges", progress):
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _not_finite(name)
        ranges[name] = max(ranges[name], -low, high)
    return ranges


_EVERY = 5
"""Rows between two that count for the covariance: neighbours say nearly the same, and 5 divides no side of the picture."""


_ROW_FEEDS, _ROW_PROMPTS = 128, 2
"""Feeds, and prompts of each, of which rows are kept: 0.4 MiB a prompt and tensor."""


class _Thinned:
    """A few prompts of feeds that are evenly spread over all of them."""

    def __init__(self, model: onnx.ModelProto, feeds: Feeds) -> None:
        self._model, self._feeds = model, feeds
        self._step = max(1, math.ceil((len(feeds) if isinstance(feeds, Sized) else 1) / _ROW_FEEDS))

    def __len__(self) -> int:
        return math.ceil((len(self._feeds) if isinstance(self._feeds, Sized) else 0) / self._step)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for feed in itertools.islice(self._feeds, None, None, self._step):
            yield next(_slices(self._model, feed, _ROW_PROMPTS))


class _ChannelSums:
    """Sums to twice float64's precision, so that their rounded value does not depend on the order."""

    def __init__(self, channels: int) -> None:
        self._sum, self._squares, self._some = _Sum((channels,)), _Sum((channels, channels)), _Sum((channels,))
        self._amin, self._amax = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._count = self._some_count = 0

    def add(self, rows: Array, name: str) -> None:
        self._amin = np.minimum(self._amin, rows.min(axis=0))
        self._amax = np.maximum(self._amax, rows.max(axis=0))
        if not (np.isfinite(self._amin).all() and np.isfinite(self._amax).all()):
            raise _not_finite(name)
        self._sum.add(rows.sum(axis=0, dtype=np.float64))
        self._count += len(rows)
        few = rows[::_EVERY].astype(np.float64)
        self._some.add(few.sum(axis=0))
        self._squares.add(few.T @ few)
        self._some_count += len(few)

    def stats(self) -> ChannelStats:
        few = self._some.value() / self._some_count
        covariance = self._squares.value() / self._some_count - np.outer(few, few)
        return ChannelStats(self._sum.value() / self._count, self._amin, self._amax, covariance, self._count)


class _Sum:
    """A sum of arrays to twice float64's precision."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum, self._rest = np.zeros(shape), np.zeros(shape)

    def add(self, part: FloatArray) -> None:
        # Knuth's exact sum of two: total + lost is the sum without any rounding.
        total = self._sum + part
        carried = total - self._sum
        self._rest += (self._sum - (total - carried)) + (part - carried)
        self._sum = total

    def value(self) -> FloatArray:
        return self._sum + self._rest


def _values(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, phase: str, progress: Progress | None
) -> Iterator[tuple[str, Array]]:
    """Every tensor of every feed, some prompts at a time."""
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in dict.fromkeys(tensors) if name not in inputs]
    session = _session(_with_outputs(model, inner)) if inner else None
    taken = {value.name for value in session.get_inputs()} if session is not None else set()
    total = len(feeds) if isinstance(feeds, Sized) else 0
    done = 0
    for done, feed in enumerate(feeds, start=1):
        for part in _slices(model, feed):
            yield from ((name, np.asarray(part[name])) for name in dict.fromkeys(tensors) if name in inputs)
            if session is not None:
                given = {name: array for name, array in part.items() if name in taken}
                yield from zip(inner, _run(session, inner, given), strict=True)
        if progress is not None:
            progress(phase, done, total)
    if not done:
        raise CalibrationError("there is no feed: calibration needs at least one image with a prompt")


def _slices(model: onnx.ModelProto, feed: Mapping[str, Array], at_once: int = _PROMPTS_AT_ONCE) -> Iterator[dict[str, Array]]:
    """The feed, a few prompts at a time; whole where its graph has no dimension `num_prompts`."""
    per_prompt = {
        value.name
        for value in model.graph.input
        if [dim.dim_param for dim in value.type.tensor_type.shape.dim][:1] == ["num_prompts"] and value.name in feed
    }
    count = max((len(feed[name]) for name in per_prompt), default=1)
    for start in range(0, count, at_once):
        rows = slice(start, start + at_once)
        yield {name: array[rows] if name in per_prompt else array for name, array in feed.items()}


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """The graph with `tensors` as its only outputs, serialized; ONNX Runtime drops what they do not need."""
    known = {name for node in model.graph.node for name in node.output}
    for name in tensors:
        if name not in known:
            raise ValueError(f"the graph has no tensor {name!r}")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    # Without a type: ONNX Runtime infers it.
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return changed.SerializeToString()


def _session(model: bytes) -> Any:
    ort = require("onnxruntime", "to calibrate")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # errors come as exceptions
    settings.intra_op_num_threads = len(os.sched_getaffinity(0))
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class per status, all directly under Exception
        raise InferenceError(f"ONNX Runtime cannot load the graph to calibrate ({first_line(error)})") from error


def _run(session: Any, tensors: Sequence[str], feed: dict[str, Array]) -> list[Array]:
    try:
        results: list[Array] = session.run(list(tensors), feed)
    except Exception as error:
        raise InferenceError(f"the graph to calibrate failed in ONNX Runtime ({first_line(error)})") from error
    return results


def _not_finite(name: str) -> CalibrationError:
    return CalibrationError(f"tensor {name} is NaN or infinite on a feed; check the checkpoint and the embeddings")
