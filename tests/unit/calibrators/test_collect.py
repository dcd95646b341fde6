"""Statistics over a graph's inner tensors, against numpy on the same values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from calibrators.collect import collect_channels, collect_histograms
from calibrators.histogram import histogram_of
from trt_sam.errors import CalibrationError, InferenceError

Feed = dict[str, npt.NDArray[Any]]
TENSORS = ["wide", "x", "positive"]


def make_model() -> onnx.ModelProto:
    """x [num_prompts, 5, 3] to wide = 10 x - 3 and positive = relu(wide); the output comes after both."""
    nodes = [
        helper.make_node("Mul", ["x", "ten"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "three"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("Neg", ["positive"], ["y"]),
        helper.make_node("Add", ["y", "unused_by_tensors"], ["z"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["num_prompts", 5, 3]),
        helper.make_tensor_value_info("unused_by_tensors", TensorProto.FLOAT, [1]),
    ]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["num_prompts", 5, 3])
    constants = [helper.make_tensor(n, TensorProto.FLOAT, [1], [v]) for n, v in (("ten", 10.0), ("three", 3.0))]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def make_feeds(count: int = 7) -> list[Feed]:
    rng = np.random.default_rng(3)
    sizes = (1, 9, 2, 6, 4, 3, 5)
    return [
        {
            "x": (rng.normal(0, 1, (sizes[i % 7], 5, 3)) * [1, 10, 0.1]).astype(np.float32),
            "unused_by_tensors": np.zeros(1, np.float32),
            "not_in_the_graph": np.zeros(2),
        }
        for i in range(count)
    ]


def expected(feeds: list[Feed]) -> dict[str, npt.NDArray[np.float32]]:
    x = np.concatenate([feed["x"] for feed in feeds]).reshape(-1, 3)
    wide = x * np.float32(10) - np.float32(3)
    return {"x": x, "wide": wide, "positive": np.maximum(wide, 0)}


def test_channels_are_those_of_numpy_and_the_model_stays_as_it_was() -> None:
    feeds, model = make_feeds(), make_model()
    before = model.SerializeToString()
    found = collect_channels(model, TENSORS, feeds)
    assert model.SerializeToString() == before
    assert list(found) == TENSORS
    for name, rows in expected(feeds).items():
        stats = found[name]
        assert stats.mean.dtype == stats.amin.dtype == stats.amax.dtype == np.float64
        # Both sum in float64; they may differ in its last digits only.
        np.testing.assert_allclose(stats.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-13)
        np.testing.assert_array_equal(stats.amin, rows.min(axis=0))
        np.testing.assert_array_equal(stats.amax, rows.max(axis=0))
        assert stats.count == len(rows)


def test_histograms_are_those_of_all_values_at_once() -> None:
    feeds = make_feeds()
    found = collect_histograms(make_model(), TENSORS, feeds, bins=256)
    for name, rows in expected(feeds).items():
        whole = histogram_of(rows, bins=256)
        assert found[name].amax == whole.amax == float(np.abs(rows).max())
        np.testing.assert_array_equal(found[name].counts, whole.counts)
        assert found[name].total == rows.size


def test_the_order_of_feeds_changes_nothing() -> None:
    feeds, model = make_feeds(), make_model()
    channels, histograms = collect_channels(model, TENSORS, feeds), collect_histograms(model, TENSORS, feeds)
    rng = np.random.default_rng(0)
    for _ in range(5):
        shuffled = [feeds[i] for i in rng.permutation(len(feeds))]
        for name, stats in collect_channels(model, TENSORS, shuffled).items():
            for field in ("mean", "amin", "amax"):
                np.testing.assert_array_equal(getattr(stats, field), getattr(channels[name], field))
        for name, histogram in collect_histograms(model, TENSORS, shuffled).items():
            assert histogram.amax == histograms[name].amax
            np.testing.assert_array_equal(histogram.counts, histograms[name].counts)


def test_progress_counts_feeds_of_each_pass() -> None:
    seen: list[tuple[str, int, int]] = []
    collect_histograms(make_model(), ["wide"], make_feeds(3), progress=lambda *step: seen.append(step))
    assert seen == [(phase, done, 3) for phase in ("ranges", "counts") for done in (1, 2, 3)]


def test_feeds_that_change_between_the_passes_are_an_error() -> None:
    class Growing:
        factor = 1.0

        def __iter__(self) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
            for feed in make_feeds(2):
                yield {**feed, "x": feed["x"] * np.float32(self.factor)}
            self.factor *= 2

    with pytest.raises(CalibrationError, match="changed between two passes"):
        collect_histograms(make_model(), ["wide"], Growing())


def test_bad_feeds_and_names() -> None:
    model, feeds = make_model(), make_feeds(2)
    with pytest.raises(CalibrationError, match="no feed"):
        collect_channels(model, ["wide"], [])
    with pytest.raises(TypeError, match="ends after one pass"):
        collect_histograms(model, ["wide"], iter(feeds))
    with pytest.raises(ValueError, match="no tensor 'wode'"):
        collect_channels(model, ["wode"], feeds)
    with pytest.raises(InferenceError, match="failed in ONNX Runtime"):
        collect_channels(model, ["wide"], [{"x": np.zeros((1, 5, 3))}])
    for value in (np.nan, np.inf, -np.inf):
        feeds[1]["x"][0, 0, 0] = value
        for collect in (collect_channels, collect_histograms):
            with pytest.raises(CalibrationError, match="tensor wide is NaN or infinite"):
                collect(model, ["wide"], feeds)
