"""The calibrator of TensorRT 10: the real bindings of 10.16 call it from C++, over PyCUDA and the host-memory driver."""

from __future__ import annotations

import ctypes
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from calibrators.cache import CalibrationCache, parse_cache
from calibrators.implicit import ImplicitCalibration, fit_feed, make_calibrator
from tests.fixtures.calibrator_calls import CalibratorCalls, tensorrt_10
from tests.fixtures.hostcuda import OUT_OF_MEMORY, HostCuda
from trt_sam.cuda import accounts
from trt_sam.engine.flavour import Flavour
from trt_sam.errors import BuildError, CalibrationError, ContractError, InferenceError, InputError

SHAPES = {
    "image_embeddings": (1, 256, 64, 64),
    "point_coords": (1, 4, 2),
    "point_labels": (1, 4),
    "mask_input": (1, 1, 256, 256),
    "has_mask_input": (1,),
}
PLAIN = {name: SHAPES[name] for name in ("image_embeddings", "point_coords", "point_labels")}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return tensorrt_10()


def feed(seed: int, prompts: int, points: int, mask_input: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {
        "image_embeddings": rng.standard_normal((1, 256, 64, 64), np.float32),
        "point_coords": rng.uniform(0, 1024, (prompts, points, 2)).astype(np.float32),
        "point_labels": rng.integers(0, 2, (prompts, points)).astype(np.float32),
    }
    if mask_input:
        made["mask_input"] = rng.standard_normal((prompts, 1, 256, 256), np.float32)
        made["has_mask_input"] = np.ones(prompts, np.float32)
    return made


def on_device(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """What lies there; the host-memory driver's addresses can be read."""
    return np.frombuffer(ctypes.string_at(address, 4 * int(np.prod(shape))), np.float32).reshape(shape)


def drain(calls: CalibratorCalls, names: list[str]) -> list[dict[str, np.ndarray]]:
    batches = []
    while (addresses := calls.get_batch(names)) is not None:
        batches.append({name: on_device(address, SHAPES[name]) for name, address in zip(names, addresses, strict=True)})
    return batches


@pytest.mark.hostcuda
@pytest.mark.parametrize("algorithm", ["entropy", "minmax"])
def test_every_order_of_names_gets_its_own_inputs(trt: ModuleType, host_cuda: HostCuda, algorithm: str) -> None:
    data = feed(1, 120, 3, mask_input=True)
    calibrator = make_calibrator(trt, [data], shapes=SHAPES, algorithm=algorithm)
    calls = CalibratorCalls(calibrator, algorithm)
    assert calls.read_cache() is None
    for row, names in enumerate(itertools.permutations(SHAPES)):  # 120 orders, a prompt for each
        addresses = calls.get_batch(names)
        assert addresses is not None
        got = {name: on_device(address, SHAPES[name]) for name, address in zip(names, addresses, strict=True)}
        np.testing.assert_array_equal(got["image_embeddings"], data["image_embeddings"])
        np.testing.assert_array_equal(got["mask_input"], data["mask_input"][row : row + 1])
        np.testing.assert_array_equal(got["has_mask_input"], [1])
        np.testing.assert_array_equal(got["point_coords"][0, :3], data["point_coords"][row])
        np.testing.assert_array_equal(got["point_labels"][0], [*data["point_labels"][row], -2])
    assert calls.get_batch(list(SHAPES)) is None
    assert calls.get_batch(list(SHAPES)) is None
    assert calibrator.failure is None
    # One embedding for all prompts of an image: 120 prompts of four small inputs, and one of 4 MiB.
    assert sum("run HtoD" in line for line in host_cuda.log) == 120 * 4 + 1
    calibrator.close()


@pytest.mark.hostcuda
def test_feeds_come_in_order_and_an_array_that_is_filled_anew_is_uploaded_anew(trt: ModuleType, host_cuda: HostCuda) -> None:
    expected = [feed(seed, prompts, points) for seed, prompts, points in ((1, 2, 1), (2, 1, 4), (3, 3, 2))]

    def reused() -> Iterator[dict[str, np.ndarray]]:
        embedding = np.empty((1, 256, 64, 64), np.float32)
        for each in expected:
            embedding[:] = each["image_embeddings"]
            yield {**each, "image_embeddings": embedding}

    calibrator = make_calibrator(trt, reused(), shapes=PLAIN)
    batches = drain(CalibratorCalls(calibrator, "entropy"), list(PLAIN))
    calibrator.close()
    rows = [(each, row) for each in expected for row in range(len(each["point_labels"]))]
    assert len(batches) == len(rows) == 6
    for batch, (each, row) in zip(batches, rows, strict=True):
        np.testing.assert_array_equal(batch["image_embeddings"], each["image_embeddings"])
        np.testing.assert_array_equal(batch["point_coords"][0, : each["point_coords"].shape[1]], each["point_coords"][row])


@pytest.mark.hostcuda
@pytest.mark.parametrize("algorithm", ["entropy", "minmax"])
def test_a_cache_goes_round(trt: ModuleType, host_cuda: HostCuda, algorithm: str) -> None:
    first = make_calibrator(trt, [feed(1, 1, 1)], shapes=PLAIN, algorithm=algorithm)
    calls = CalibratorCalls(first, algorithm)
    drain(calls, list(PLAIN))
    text = CalibrationCache.from_ranges({"a": 2.0, "b:c": 0.5}, trt.__version__, algorithm).to_text().encode()
    calls.write_cache(text)
    first.close()
    gc.collect()
    assert first.written == text  # though TensorRT's memory has gone
    second = make_calibrator(trt, None, shapes=PLAIN, algorithm=algorithm, cache=first.written)
    again = CalibratorCalls(second, algorithm).read_cache()
    assert again == text
    assert parse_cache(again).scales == {"a": float(np.float32(2 / 127)), "b:c": float(np.float32(0.5 / 127))}
    second.close()


@pytest.mark.hostcuda
def test_what_a_feed_raises_is_kept_and_ends_the_build(trt: ModuleType, host_cuda: HostCuda) -> None:
    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield feed(1, 1, 1)
        raise InputError("photo7.npz has changed")

    stop = threading.Event()
    calibrator = make_calibrator(trt, failing(), shapes=PLAIN, stop=stop)
    calls = CalibratorCalls(calibrator, "entropy")
    assert calls.get_batch(list(PLAIN)) is not None
    assert not stop.is_set()
    assert calls.get_batch(list(PLAIN)) is None
    assert stop.is_set()
    assert isinstance(calibrator.failure, InputError)
    calls.write_cache(b"scales of half the data")
    assert calibrator.written is None
    calibrator.close()


@pytest.mark.hostcuda
@pytest.mark.parametrize("data", [[], iter(())])
def test_no_data_is_an_error(trt: ModuleType, host_cuda: HostCuda, data: Any) -> None:
    calibrator = make_calibrator(trt, data, shapes=PLAIN)
    assert CalibratorCalls(calibrator, "entropy").get_batch(list(PLAIN)) is None
    assert isinstance(calibrator.failure, CalibrationError)
    calibrator.close()


@pytest.mark.hostcuda
def test_feeds_that_do_not_fit_are_told(trt: ModuleType, host_cuda: HostCuda) -> None:
    cases = {
        "num_points = 5": (feed(1, 1, 5), list(PLAIN)),
        "'mask_input'; the feeds": (feed(1, 1, 1), [*PLAIN, "mask_input"]),
        "unknown input": (feed(1, 1, 1, mask_input=True), list(PLAIN)),
        "must be float32": ({**feed(1, 1, 1), "point_labels": np.ones((1, 1))}, list(PLAIN)),
    }
    for words, (data, names) in cases.items():
        calibrator = make_calibrator(trt, [data], shapes=PLAIN)
        assert CalibratorCalls(calibrator, "entropy").get_batch(names) is None
        assert isinstance(calibrator.failure, CalibrationError | ContractError)
        assert words in str(calibrator.failure)
        calibrator.close()


@pytest.mark.hostcuda
def test_a_cache_that_tensorrt_refuses_is_told(trt: ModuleType, host_cuda: HostCuda) -> None:
    alone = make_calibrator(trt, None, shapes=PLAIN, cache=b"TRT-1")
    assert CalibratorCalls(alone, "entropy").get_batch(list(PLAIN)) is None
    with pytest.raises(CalibrationError, match="did not take the calibration cache"):
        raise alone.failure
    beside = make_calibrator(trt, [feed(1, 2, 1)], shapes=PLAIN, cache=b"TRT-1")
    assert len(drain(CalibratorCalls(beside, "entropy"), list(PLAIN))) == 2
    assert beside.failure is None
    assert beside.warnings == ["TensorRT did not take the calibration cache and calibrated anew"]
    beside.close()


@pytest.mark.hostcuda
def test_a_stop_ends_the_data(trt: ModuleType, host_cuda: HostCuda) -> None:
    stop = threading.Event()
    calibrator = make_calibrator(trt, [feed(1, 5, 1)], shapes=PLAIN, stop=stop)
    calls = CalibratorCalls(calibrator, "entropy")
    assert calls.get_batch(list(PLAIN)) is not None
    stop.set()
    assert calls.get_batch(list(PLAIN)) is None
    assert calibrator.failure is None
    calibrator.close()


@pytest.mark.hostcuda
@pytest.mark.parametrize("count", range(1, 4))
def test_what_was_allocated_is_freed_where_an_allocation_fails(trt: ModuleType, host_cuda: HostCuda, count: int) -> None:
    host_cuda.fail("cuMemAlloc", count, OUT_OF_MEMORY, times=-1)
    with pytest.raises(InferenceError, match="out of memory"):
        make_calibrator(trt, [feed(1, 1, 1)], shapes=PLAIN)
    gc.collect()
    assert not accounts.outstanding()


@pytest.mark.hostcuda
def test_a_failing_copy_is_kept_and_buffers_are_freed(trt: ModuleType, host_cuda: HostCuda) -> None:
    calibrator = make_calibrator(trt, [feed(1, 1, 1)], shapes=PLAIN)
    host_cuda.fail("cuMemcpyHtoDAsync")
    assert CalibratorCalls(calibrator, "entropy").get_batch(list(PLAIN)) is None
    assert isinstance(calibrator.failure, InferenceError)
    calibrator.close()
    calibrator.close()
    gc.collect()
    assert not accounts.outstanding()


@pytest.mark.hostcuda
def test_nothing_is_left_after_many_calibrators(trt: ModuleType, host_cuda: HostCuda) -> None:
    seen = []
    for _ in range(20):
        calibrator = make_calibrator(trt, [feed(1, 1, 1)], shapes=PLAIN)
        drain(CalibratorCalls(calibrator, "entropy"), list(PLAIN))
        assert accounts.outstanding()["device_bytes"] == 4 * (256 * 64 * 64 + 4 * 2 + 4)
        calibrator.close()
        seen.append(weakref.ref(calibrator))
        del calibrator
        gc.collect()
        assert not accounts.outstanding()
    assert not any(each() for each in seen)


@pytest.mark.hostcuda
def test_scales_by_onnx_name_become_a_cache_of_the_installed_version(trt: ModuleType, host_cuda: HostCuda) -> None:
    flavour = Flavour("tensorrt", trt.__version__, trt)
    make = ImplicitCalibration(scales={"x": 0.25, "gone": 1.0}, algorithm="minmax")
    for _ in range(2):  # one per build
        calibrator = make(flavour, PLAIN, ["x", "y"], threading.Event())
        text = CalibratorCalls(calibrator, "minmax").read_cache()
        assert text == b"TRT-101601-MinMaxCalibration\nx: 3e800000\n"
        assert calibrator.warnings == ["calibration: 1 scales found their tensor, 1 did not (gone); 1 tensors have none"]
        calibrator.close()


def test_a_cache_of_another_version_or_graph_is_refused(trt: ModuleType) -> None:
    flavour = Flavour("tensorrt", trt.__version__, trt)
    cases = (
        (ImplicitCalibration(cache=CalibrationCache(101401, "entropy", {"x": 1.0})), "TensorRT 101401"),
        (ImplicitCalibration(cache=CalibrationCache(101601, "entropy", {"z": 1.0})), "of another"),
        (ImplicitCalibration(scales={"z": 1.0}), "of another"),
    )
    for make, words in cases:
        with pytest.raises(InputError, match=words):
            make(flavour, PLAIN, ["x"], threading.Event())


def test_what_cannot_be_calibrated_with_is_refused(trt: ModuleType) -> None:
    with pytest.raises(InputError, match="nothing to calibrate with"):
        ImplicitCalibration()
    with pytest.raises(InputError, match="give one of them"):
        ImplicitCalibration(cache=CalibrationCache(101601), scales={})
    with pytest.raises(InputError, match="must be one of entropy, minmax"):
        ImplicitCalibration([], algorithm="mse")
    with pytest.raises(InputError, match="nothing to calibrate with"):
        make_calibrator(trt, None, shapes=PLAIN)


def test_tensorrt_rtx_has_no_calibrators() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError, match="explicit"):
        make_calibrator(rtx, [], shapes=PLAIN)


def test_prompts_are_cut_into_groups_and_a_short_group_repeats_its_own() -> None:
    data = feed(5, 5, 2)
    shapes = {**PLAIN, "point_coords": (3, 4, 2), "point_labels": (3, 4)}
    first, second = fit_feed(data, shapes)
    assert first["image_embeddings"] is second["image_embeddings"]
    for batch, rows in ((first, [0, 1, 2]), (second, [3, 4, 3])):
        np.testing.assert_array_equal(batch["point_coords"][:, :2], data["point_coords"][rows])
        np.testing.assert_array_equal(batch["point_labels"][:, :2], data["point_labels"][rows])
        assert (batch["point_labels"][:, 2:] == -2).all()
        assert {name: batch[name].shape for name in batch} == shapes
