"""Engines on a real GPU against PyTorch, and the runner's promises where only a GPU can show them.

Run with `make test-gpu`; skipped with the reason where there is no GPU. TRT_SAM_GPU_BACKEND=rtx or tensorrt chooses one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trt_sam.cli import main
from trt_sam.errors import InferenceError, ManifestError, TrtSamError
from trt_sam.export import random_feed
from trt_sam.metrics import best_masks
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.recipe import GraphOptions
from trt_sam.tensorrt import available_flavours, choose_flavour, gpu_compute_capability

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_compute_capability() is None, reason="no CUDA GPU that the driver answers for"),
]

Array = np.ndarray[Any, Any]

TOLERANCE = {"fp32": 2e-2, "fp16": 3e-2}
"""Relative to the largest |logit|; TensorRT may use TF32 for float32 products."""
LEAST_IOU = {"fp32": 0.999, "fp16": 0.99, "int8": 0.9}
"""Mean IoU of the masks with PyTorch's. INT8 scales come from random pictures here: it is a test that it works."""
SIZES = ((1, 1), (1, 2), (3, 5), (16, 8))


def build(folder: Path, *more: str) -> Path:
    """Build, or skip with TensorRT's own words where it does not take this GPU."""
    if not available_flavours():
        pytest.skip("no TensorRT is installed")
    backend = os.environ.get("TRT_SAM_GPU_BACKEND") or choose_flavour(None).backend
    capability = gpu_compute_capability()
    arguments = ["build", "--checkpoint", "standin", "--backend", backend, *more, "--output", str(folder)]
    if backend == "rtx" and "--compute-capability" not in more:
        from trt_sam.tensorrt import load_flavour

        if capability not in load_flavour("rtx").compute_capabilities:
            pytest.skip(f"TensorRT-RTX does not build for compute capability {capability}")
    assert main(arguments) == 0
    return folder


def open_runner(folder: Path, **asked: Any) -> Any:
    pytest.importorskip("pycuda", reason="PyCUDA is not installed")
    from trt_sam.runner import DecoderRunner

    return DecoderRunner.open(folder, **asked)


@pytest.fixture(params=["fp32", "fp16", "int8"], scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    more = []
    if request.param == "int8":
        from PIL import Image

        photos = tmp_path_factory.mktemp("photos")
        rng = np.random.default_rng(0)
        for number in range(4):
            blocks = rng.integers(0, 255, (24, 32, 3), np.uint8)
            Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(photos / f"{number}.png")
        more = ["--photos", str(photos)]
    return request.param, build(tmp_path_factory.mktemp("engine"), "--precision", request.param, *more)


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fp16"), "--precision", "fp16")


@pytest.fixture
def runner(fp16: Path) -> Iterator[Any]:
    with open_runner(fp16, in_flight=2) as opened:
        opened.set_image(embedding(0))
        yield opened


def embedding(seed: int) -> Array:
    return random_feed(np.random.default_rng(seed), 1, 1, GraphOptions())["image_embeddings"]


def clicks(seed: int, count: int, points: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1024, (count, points, 2)).astype(np.float32), rng.integers(0, 2, (count, points)).astype(np.float32)


def in_torch(feed: dict[str, Array]) -> tuple[Array, Array]:
    decoder = load_checkpoint("standin").decoder
    with torch.no_grad():
        masks, iou = decoder(*(torch.from_numpy(array) for array in feed.values()))
    return masks.numpy(), iou.numpy()


def mean_iou(ours: Array, theirs: Array) -> float:
    ours, theirs = ours > 0, theirs > 0
    union = (ours | theirs).sum(axis=(-1, -2))
    return float(np.where(union == 0, 1.0, (ours & theirs).sum(axis=(-1, -2)) / np.maximum(union, 1)).mean())


@pytest.mark.parametrize("size", SIZES)
def test_the_engine_matches_pytorch(built: tuple[str, Path], size: tuple[int, int]) -> None:
    precision, folder = built
    with open_runner(folder) as runner:
        feed = random_feed(np.random.default_rng(0), *size, GraphOptions())
        masks, iou = in_torch(feed)
        out = runner.run(feed)
        if precision in TOLERANCE:
            scale = float(np.abs(masks).max())
            assert np.abs(out["low_res_masks"] - masks).max() <= TOLERANCE[precision] * scale
            np.testing.assert_allclose(out["iou_predictions"], iou, atol=TOLERANCE[precision])
        assert mean_iou(out["low_res_masks"], masks) >= LEAST_IOU[precision]


@pytest.mark.parametrize("kind", ["clicks", "box", "box and clicks"])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_each_kind_of_prompt_in_each_bucket(built: tuple[str, Path], kind: str, count: int) -> None:
    precision, folder = built
    rng = np.random.default_rng(3)
    boxes = None
    if "box" in kind:
        boxes = np.sort(rng.uniform(0, 1024, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    points, labels = clicks(1, count, 3) if "clicks" in kind else (None, None)
    coords = np.zeros((count, 0, 2), np.float32) if points is None else points
    tokens = np.zeros((count, 0), np.float32) if labels is None else labels
    if boxes is not None:
        coords = np.concatenate([coords, boxes.reshape(count, 2, 2)], 1)
        tokens = np.concatenate([tokens, np.full((count, 1), 2, np.float32), np.full((count, 1), 3, np.float32)], 1)
    else:
        coords = np.concatenate([coords, np.zeros((count, 1, 2), np.float32)], 1)
        tokens = np.concatenate([tokens, np.full((count, 1), -1, np.float32)], 1)
    feed = {"image_embeddings": embedding(0), "point_coords": coords, "point_labels": tokens}
    masks, _ = in_torch(feed)
    with open_runner(folder) as runner:
        runner.set_image(embedding(0))
        found = runner.decode(points, labels, boxes, masks="all", copy=True)
        assert mean_iou(found.low_res_masks, masks) >= LEAST_IOU[precision]
        best = runner.decode(points, labels, boxes, masks="best")
        chosen = best_masks(found.iou_predictions, tokens)
        np.testing.assert_array_equal(best.masks[:, 0], found.masks[np.arange(count), chosen])


def test_graph_or_no_graph_bit_for_bit(fp16: Path) -> None:
    with open_runner(fp16) as with_graphs, open_runner(fp16, graphs=False) as without:
        for each in (with_graphs, without):
            each.set_image(embedding(0))
        for count, points in ((1, 1), (2, 3), (5, 2), (16, 7)):
            given = clicks(count, count, points)
            first, second = (each.decode(*given, masks="all", copy=True) for each in (with_graphs, without))
            for _ in range(3):
                again = with_graphs.decode(*given, masks="all")
                np.testing.assert_array_equal(again.masks, first.masks)
            np.testing.assert_array_equal(first.masks, second.masks)
            np.testing.assert_array_equal(first.iou_predictions, second.iou_predictions)
        if not with_graphs.graphs_held:
            pytest.skip("TensorRT-RTX recorded by its own strategy: no graph of ours was compared")


@pytest.mark.parametrize("more", [(), ("--full-resolution",)], ids=["low resolution", "full resolution"])
def test_bits_made_on_the_gpu_are_its_own_logits_above_zero(more: tuple[str, ...], tmp_path: Path) -> None:
    folder = build(tmp_path / "engine", "--mask-bits", *more)
    with open_runner(folder) as runner:
        runner.set_image(embedding(0))
        for count, width in ((1, 64), (3, 333), (16, 501)):
            asked = {"image_size": (240, width)} if more else {}
            given = clicks(count, count, 2)
            for masks in ("all", "best"):
                inside = runner.decode(*given, masks=masks, **asked).masks > 0
                np.testing.assert_array_equal(runner.decode(*given, masks=masks, bits=True, **asked).masks, inside)
                packed = runner.decode(*given, masks=masks, bits="packed", **asked).masks
                np.testing.assert_array_equal(packed, np.packbits(inside, axis=-1))


def test_a_hundred_thousand_calls_without_memory_growth(runner: Any) -> None:
    import resource

    given = [clicks(seed, 1 + seed % 3, 1 + seed % 2) for seed in range(6)]
    runner.warm_up()
    for turn in range(2000):
        runner.decode(*given[turn % 6])
    device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for turn in range(100_000):
        runner.decode(*given[turn % 6], masks="best" if turn % 7 else "all")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 20 * 1024, "kilobytes"
    if device is not None:
        assert device - torch.cuda.mem_get_info()[0] < 2 << 20


def test_eight_threads_get_their_own_results(runner: Any) -> None:
    given = [clicks(seed, 1 + seed % 4, 2) for seed in range(8)]
    images = [runner.add_image(embedding(seed)) for seed in range(8)]
    wanted = [runner.decode(*given[i], image=images[i], copy=True) for i in range(8)]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(200):
                found = runner.decode(*given[number], image=images[number], copy=True)
                if not np.array_equal(found.masks, wanted[number].masks):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no CUDA")
def test_torch_tensors_go_in_and_come_out_without_the_host(runner: Any) -> None:
    given = clicks(1, 3, 2)
    wanted = runner.decode(*given, masks="all", copy=True)
    source = torch.from_numpy(embedding(0)).cuda() * 1.0  # work of torch's own stream, still under way
    runner.set_image(source)
    source.zero_()
    found = runner.decode(*given, masks="all", copy=True)
    np.testing.assert_array_equal(found.masks, wanted.masks)
    call = runner.submit(*given, masks="device")
    masks = torch.from_dlpack(call.device_arrays.masks)
    np.testing.assert_array_equal((masks + 0).cpu().numpy(), wanted.masks)
    call.result()
    for bad, words in (
        (source.half(), "float16 on the GPU, must be float32"),
        (source.permute(0, 1, 3, 2), "not contiguous"),
        (source[:, :, :32], "has shape"),
    ):
        with pytest.raises(TrtSamError, match=words):
            runner.set_image(bad)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that torch can use")
def test_an_embedding_on_another_gpu_is_refused(runner: Any) -> None:
    with pytest.raises(TrtSamError, match="is on GPU 1, the runner on GPU 0"):
        runner.set_image(torch.zeros(1, 256, 64, 64, device="cuda:1"))


def test_out_of_memory_is_said_and_a_new_runner_works(fp16: Path) -> None:
    from trt_sam.cuda import Device

    with Device() as device:
        size = 1 << 30
        while size >= 1 << 20:
            try:
                device.buffer(size)
            except InferenceError:
                size //= 2
        with pytest.raises(TrtSamError, match=r"out of memory|could not load|cannot run"):
            open_runner(fp16)
    with open_runner(fp16) as runner:
        runner.set_image(embedding(0))
        assert np.isfinite(runner.decode(*clicks(1, 1, 1)).masks).all()


def test_an_engine_of_another_gpu_is_refused(tmp_path: Path) -> None:
    if "rtx" not in {flavour.backend for flavour in available_flavours()}:
        pytest.skip("only TensorRT-RTX builds for another GPU than this machine's, and it is not installed")
    other = "8.9" if gpu_compute_capability() != "8.9" else "8.6"
    folder = tmp_path / "engine"
    arguments = ["build", "--checkpoint", "standin", "--precision", "fp16", "--backend", "rtx", "--compute-capability", other]
    assert main([*arguments, "--output", str(folder)]) == 0
    with pytest.raises(ManifestError, match=r"this GPU is|cannot run this engine"):
        open_runner(folder)
