"""Masks thresholded and packed by the graph: the nodes alone in ONNX Runtime, and what the runner copies of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import GRAPHS, clicks, engine_of, expected, opened, tokens
from trt_sam.accuracy.metrics import best_masks
from trt_sam.cuda.device import Device
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.errors import ContractError, RecipeError
from trt_sam.graph.mask_bits import append_mask_bits
from trt_sam.recipe import GraphOptions
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.plans.unpack import Unpacker

Array = np.ndarray[Any, Any]

BITS, BEST, FULL = GRAPHS["mask_bits"], GRAPHS["best_mask_bits"], GRAPHS["full_resolution_bits"]
FULL_BEST = dataclasses.replace(FULL, best_mask=True)


def bits_of(dtype: type, logits: Array, *, full: bool = False) -> Array:
    """What the appended nodes give for these logits."""
    element, name = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), "masks" if full else "low_res_masks"
    given = [helper.make_tensor_value_info("given", element, list(logits.shape))]
    size = [helper.make_tensor_value_info("orig_im_size", TensorProto.INT64, [2])] if full else []
    output = helper.make_tensor_value_info(name, element, list(logits.shape))
    graph = helper.make_graph([helper.make_node("Identity", ["given"], [name])], "bits", given + size, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    append_mask_bits(model)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"given": logits.astype(dtype)}
    if full:
        feed["orig_im_size"] = np.array(logits.shape[2:])
    (found,) = session.run(["mask_bits"], feed)
    return np.asarray(found)


def logits_with_edges(shape: tuple[int, ...]) -> Array:
    """Random logits, many of them on the edge: zeros of both signs, the smallest numbers, infinities and NaN."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, shape)
    edges = np.array([0.0, -0.0, 6e-8, -6e-8, np.inf, -np.inf, np.nan])
    chosen = rng.random(shape) < 0.3
    logits[chosen] = rng.choice(edges, int(chosen.sum()))
    return logits


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bits_are_what_numpy_packs_with_zero_and_nan_outside(dtype: type) -> None:
    logits = logits_with_edges((2, 3, 256, 256)).astype(dtype)
    found = bits_of(dtype, logits)
    assert (found.dtype, found.shape) == (np.uint8, (2, 3, 256, 32))
    np.testing.assert_array_equal(found, np.packbits(logits > 0, axis=-1))
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 64, 65])
def test_the_last_byte_of_a_row_is_filled_up_with_zeros(width: int) -> None:
    logits = logits_with_edges((2, 1, 5, width)).astype(np.float32)
    found = bits_of(np.float32, logits, full=True)
    assert found.shape == (2, 1, 5, -(-width // 8))
    np.testing.assert_array_equal(found, np.packbits(logits > 0, axis=-1))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 30])
def test_unpacking_is_numpys_and_follows_its_source(width: int) -> None:
    packed = np.empty((3, 1, 4, -(-width // 8)), np.uint8)
    unpacker = Unpacker(packed, width, np.empty(16 * packed.size, np.uint8))
    rng = np.random.default_rng(1)
    for _ in range(2):
        masks = rng.random((3, 1, 4, width)) > 0.5
        packed[...] = np.packbits(masks, axis=-1)
        unpacker.unpack()
        assert unpacker.pixels.dtype == np.bool_
        np.testing.assert_array_equal(unpacker.pixels, masks)


def test_the_option_is_a_switch() -> None:
    assert not GraphOptions().mask_bits
    with pytest.raises(RecipeError, match="mask_bits is 1, must be true or false"):
        GraphOptions(mask_bits=1)  # type: ignore[arg-type]


def wanted_masks(options: GraphOptions, feed: dict[str, Array], masks: str) -> tuple[Array, Array]:
    """Logits that the caller sees, and scores, from the graph run the plain way."""
    outputs = expected(options, feed)
    logits, iou = outputs.get("masks", outputs["low_res_masks"]), outputs["iou_predictions"]
    if masks == "best" and iou.shape[1] > 1:
        rows, chosen = np.arange(len(iou)), best_masks(iou, feed["point_labels"])
        logits, iou = logits[rows, chosen][:, None], iou[rows, chosen][:, None]
    return logits, iou


@pytest.mark.hostcuda
@pytest.mark.parametrize("options", [BITS, BEST, FULL, FULL_BEST], ids=["four", "best", "full", "full best"])
@pytest.mark.parametrize("masks", ["best", "all"])
def test_bits_from_the_gpu_are_the_thresholded_logits(host_cuda: HostCuda, options: GraphOptions, masks: str) -> None:
    with opened(host_cuda, options) as (runner, _):
        runner.set_image(toy_embedding(3))
        for seed, count, size in ((1, 1, (20, 30)), (2, 3, (9, 64)), (3, 4, (64, 5)), (4, 2, (7, 16)), (1, 1, (20, 30))):
            given = clicks(seed, count, 2)
            feed, asked = tokens(toy_embedding(3), *given), {}
            if options.full_resolution:
                feed["orig_im_size"], asked["image_size"] = np.array(size), size
            logits, iou = wanted_masks(options, feed, masks)
            assert 0.2 < (logits > 0).mean() < 0.8
            for bits in (True, "packed", False):
                found = runner.decode(*given, masks=masks, bits=bits, **asked)
                right = {True: logits > 0, "packed": np.packbits(logits > 0, axis=-1), False: logits}[bits]
                np.testing.assert_array_equal(found.masks, right)
                assert found.masks.dtype == right.dtype
                np.testing.assert_array_equal(found.iou_predictions, iou)
                assert (found.low_res_masks is None) == bool(bits)


@pytest.mark.hostcuda
def test_only_what_was_asked_is_copied(host_cuda: HostCuda) -> None:
    """Three prompts in a bucket of four; a mask of bits is 8 KiB, of float16 logits 128 KiB."""
    mask, scores = 256 * 256 // 8, 3 * 4 * 4
    wanted = {
        (BEST, "best", True): [3 * mask, 3 * 4],
        (BEST, "best", "packed"): [3 * mask, 3 * 4],
        (BEST, "best", False): [256 + 3 * 16 * mask],
        (BITS, "all", True): [3 * 4 * mask, scores],
        (BITS, "all", False): [256 + 3 * 4 * 16 * mask],
        (BITS, "best", True): [scores, mask, mask, mask],
        (BITS, "best", False): [scores, 16 * mask, 16 * mask, 16 * mask],
        (BITS, "device", "packed"): [],
        (FULL, "all", True): [4 * 4 * 64 * 8 + scores],  # 20 x 30 pixels, but the scores lie behind room for 64 x 64
        (FULL, "best", True): [scores, 80, 80, 80],
        # A graph without bits: the logits, as ever.
        (GRAPHS["best_mask"], "best", True): [256 + 3 * 16 * mask],
    }
    for (options, masks, bits), sizes in wanted.items():
        with opened(host_cuda, options) as (runner, _):
            runner.set_image(toy_embedding(1))
            given, size = clicks(1, 3, 2), (20, 30) if options.full_resolution else None
            runner.decode(*given, masks=masks, bits=bits, image_size=size)
            start = len(host_cuda.log)
            runner.decode(*given, masks=masks, bits=bits, image_size=size)
            log = [line.split() for line in host_cuda.log[start:]]
            assert [int(line[-1]) for line in log if line[:2] == ["run", "DtoH"]] == sizes, (options, masks, bits)


@pytest.mark.hostcuda
def test_a_full_bucket_of_bits_is_one_copy_with_its_scores(host_cuda: HostCuda) -> None:
    with opened(host_cuda, BEST) as (runner, _):
        runner.set_image(toy_embedding(1))
        given = clicks(1, 1, 2)
        runner.decode(*given, bits=True)
        start = len(host_cuda.log)
        runner.decode(*given, bits=True)
        log = [line.split() for line in host_cuda.log[start:]]
        assert [int(line[-1]) for line in log if line[:2] == ["run", "DtoH"]] == [8192 + 4]


@pytest.mark.hostcuda
@pytest.mark.parametrize("bits", [True, "packed"])
def test_copies_and_many_prompts(host_cuda: HostCuda, bits: bool | str) -> None:
    given = clicks(3, 11, 2)
    logits, iou = wanted_masks(BITS, tokens(toy_embedding(2), *given), "best")
    right = logits > 0 if bits is True else np.packbits(logits > 0, axis=-1)
    with opened(host_cuda, BITS, in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(2))
        many = runner.decode_many(*given, bits=bits)
        np.testing.assert_array_equal(many.masks, right)
        np.testing.assert_array_equal(many.iou_predictions, iou)
        assert many.low_res_masks is None
        kept = runner.decode(given[0][:2], given[1][:2], bits=bits, copy=True)
        for _ in range(2):
            runner.decode(given[0][5:7], given[1][5:7], bits=bits)
        np.testing.assert_array_equal(kept.masks, right[:2])
        assert (kept.masks.flags.owndata, kept.low_res_masks) == (True, None)


@pytest.mark.hostcuda
def test_packed_bits_can_stay_on_the_gpu(host_cuda: HostCuda) -> None:
    with opened(host_cuda, BITS) as (runner, _):
        runner.set_image(toy_embedding(2))
        found = runner.decode(*clicks(1, 3, 2), masks="device", bits="packed")
        assert isinstance(found.masks, DeviceArray)
        assert (found.masks.dtype, found.masks.shape) == (np.uint8, (3, 4, 256, 32))
        assert (found.low_res_masks.dtype, found.low_res_masks.shape) == (np.float16, (3, 4, 256, 256))
        assert found.masks.__cuda_array_interface__["typestr"] == "|u1"


@pytest.mark.hostcuda
def test_a_set_of_two_graphs_refines_and_packs(host_cuda: HostCuda) -> None:
    plain = dataclasses.replace(BITS, precision="fp32")
    mask = dataclasses.replace(plain, mask_input=True)
    given = clicks(1, 2, 2)
    with DecoderRunner([engine_of(host_cuda, each)[0] for each in (plain, mask)], Device()) as runner:
        runner.set_image(toy_embedding(2))
        first = runner.decode(*given, copy=True).low_res_masks
        feed = {**tokens(toy_embedding(2), *given), "mask_input": first, "has_mask_input": np.ones(2, np.float32)}
        logits, _ = wanted_masks(mask, feed, "best")
        np.testing.assert_array_equal(runner.decode(*given, mask_input=first, bits=True).masks, logits > 0)


@pytest.mark.hostcuda
def test_what_cannot_be_had_is_refused_in_words(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, BITS) as (runner, _), opened(host_cuda, GRAPHS["fp16"]) as (without, _):
        for each in (runner, without):
            each.set_image(toy_embedding(2))
            with pytest.raises(ContractError, match="bits is 'yes', must be True, False or 'packed'"):
                each.decode(*given, bits="yes")
            with pytest.raises(ContractError, match="bits are made on the host"):
                each.decode(*given, bits=True, masks="device")
            with pytest.raises(ContractError, match="masks is 'every output', must be one of"):
                each.decode(*given, masks="every output")
        with pytest.raises(ContractError, match="packs no bits; build one with --mask-bits, or ask for bits=True"):
            without.decode(*given, bits="packed")
