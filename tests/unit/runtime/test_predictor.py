"""`Predictor` against transformers' SAM on a non-square image, and the rest of Meta's `SamPredictor` behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MLP_DIM, make_decoder, make_embedding

from tests.fixtures.recorder import GreyEncoder, Recorder, recorded
from trt_sam.errors import ContractError, InputError
from trt_sam.model.naming import HF_TIED_COPY, HF_TIED_SOURCE, meta_to_hf
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import ImageNotSetError, Predictor
from trt_sam.runtime.torch_runner import TorchRunner

SIZE = (300, 451)
"""(height, width): the factors of x and y differ by rounding."""
POINTS = np.array([[100, 50], [400, 250], [20, 299]])
LABELS = np.array([1, 0, 1])
BOX = np.array([30.5, 40, 300, 220])

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def predictor(graphs: dict[str, Path]) -> Iterator[Predictor]:
    with OnnxRunner(graphs["mask"], threads=1) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        yield predictor


class SecondOpinion:
    """transformers' SAM and processor with the same weights."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.SamConfig(
            vision_config={"hidden_size": 32, "num_hidden_layers": 0, "num_attention_heads": 1},
            mask_decoder_config={"layer_norm_eps": 1e-5, "mlp_dim": MLP_DIM},
        )
        self.model = transformers.SamModel(config).eval().requires_grad_(False)
        state, unknown = meta_to_hf(make_decoder().state_dict())
        assert not unknown
        state[HF_TIED_COPY] = state[HF_TIED_SOURCE]
        assert not self.model.load_state_dict(state, strict=False).unexpected_keys
        self.processor = transformers.SamProcessor(transformers.SamImageProcessorPil())

    def predict(
        self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None, *, multimask: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = np.zeros((*SIZE, 3), np.uint8)
        arguments = {
            "input_points": None if points is None else [[points.tolist()]],
            "input_labels": None if labels is None else [[labels.tolist()]],
            "input_boxes": None if box is None else [[box.tolist()]],
        }
        inputs = self.processor(image, **{k: v for k, v in arguments.items() if v is not None}, return_tensors="pt")
        prompts = {name: inputs[name] for name in arguments if name in inputs}
        prompts |= {name: value.float() for name, value in prompts.items() if name != "input_labels"}
        if mask is not None:
            prompts["input_masks"] = torch.from_numpy(mask)[None]
        embedding = torch.from_numpy(make_embedding())
        with torch.no_grad():
            output = self.model(image_embeddings=embedding, multimask_output=multimask, **prompts)
        low_res = output.pred_masks[:, 0]
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (logits,) = self.processor.image_processor.post_process_masks(list(low_res[None]), *sizes, binarize=False)
        return logits[0].numpy(), output.iou_scores[0, 0].numpy(), low_res[0].numpy()


@pytest.fixture(scope="module")
def second_opinion() -> SecondOpinion:
    return SecondOpinion()


def relative(result: np.ndarray, expected: np.ndarray) -> float:
    assert result.shape == expected.shape
    return float(np.abs(result - expected).max() / np.abs(expected).max())


PROMPTS = {
    "one click": (POINTS[:1], LABELS[:1], None, False),
    "clicks": (POINTS, LABELS, None, False),
    "box": (None, None, BOX, False),
    "clicks and box": (POINTS, LABELS, BOX, False),
    "click and mask": (POINTS[:1], LABELS[:1], None, True),
    "box and mask": (None, None, BOX, True),
}


@pytest.mark.parametrize("multimask", [True, False], ids=["three", "one"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_masks_at_the_original_size_are_transformers(
    prompt: str, multimask: bool, predictor: Predictor, second_opinion: SecondOpinion
) -> None:
    points, labels, box, with_mask = PROMPTS[prompt]
    mask = np.random.default_rng(5).normal(0, 4, (1, 256, 256)).astype(np.float32) if with_mask else None
    logits, iou, low_res = predictor.predict(points, labels, box, mask, multimask, return_logits=True)
    expected = second_opinion.predict(points, labels, box, mask, multimask=multimask)
    count = 3 if multimask else 1
    assert (logits.shape, iou.shape, low_res.shape) == ((count, *SIZE), (count,), (count, 256, 256))
    assert {logits.dtype, iou.dtype, low_res.dtype} == {np.dtype(np.float32)}
    for ours, theirs in zip((logits, iou, low_res), expected, strict=True):
        assert relative(ours, theirs) < 1e-4
    masks, _, _ = predictor.predict(points, labels, box, mask, multimask)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, logits > 0)


def test_only_a_mask_and_nothing_at_all(predictor: Predictor) -> None:
    """Without points or box there is no token at all: what PyTorch gives for an empty prompt, which Meta's code allows."""
    decoder = make_decoder()
    mask = np.random.default_rng(6).normal(0, 4, (1, 256, 256)).astype(np.float32)
    for hint in (mask, None):
        _, iou, low_res = predictor.predict(mask_input=hint)
        with torch.no_grad():
            expected, scores = decoder(
                torch.from_numpy(make_embedding()),
                torch.zeros(1, 0, 2),
                torch.zeros(1, 0),
                torch.from_numpy(np.zeros((1, 1, 256, 256), np.float32) if hint is None else hint[None]),
                torch.tensor([float(hint is not None)]),
            )
        assert relative(low_res, expected[0, 1:].numpy()) < 1e-4
        assert relative(iou, scores[0, 1:].numpy()) < 1e-4


def test_a_batch_gives_what_each_prompt_gives_alone(predictor: Predictor) -> None:
    points = [POINTS[:1], POINTS, POINTS[1:]]
    labels = [LABELS[:1], LABELS, LABELS[1:]]
    boxes = np.stack([BOX, BOX + 20, BOX / 2])
    hints = np.random.default_rng(8).normal(0, 4, (3, 1, 256, 256)).astype(np.float32)
    for box_rows, hint_rows in ((None, None), (boxes, None), (boxes, hints)):
        together = predictor.predict_batch(points, labels, box_rows, hint_rows, return_logits=True)
        assert together[0].shape == (3, 3, *SIZE)
        for row in range(3):
            alone = predictor.predict(
                points[row],
                labels[row],
                None if box_rows is None else box_rows[row],
                None if hint_rows is None else hint_rows[row],
                return_logits=True,
            )
            for ours, expected in zip(together, alone, strict=True):
                assert relative(ours[row], expected) < 1e-5


def test_prompts_without_points_in_a_batch() -> None:
    recorder = Recorder()
    recorded(recorder).predict_batch([None, np.ones((1, 2))], [None, np.ones(1)], np.ones((2, 4)))
    assert recorder.feeds[0]["point_labels"].tolist() == [[2, 3, -2], [1, 2, 3]]


@pytest.mark.parametrize("graph", ["plain", "mask", "full", "half", "fixed"])
def test_every_kind_of_graph_gives_the_same_masks(graph: str, graphs: dict[str, Path]) -> None:
    runner = TorchRunner(make_decoder())
    expected = Predictor(runner)
    expected.set_image_embedding(make_embedding(), SIZE)
    with OnnxRunner(graphs[graph], threads=1) as onnx_runner:
        predictor = Predictor(onnx_runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        results = predictor.predict_batch([POINTS, POINTS[:1]], [LABELS, LABELS[:1]], return_logits=True)
    for ours, theirs in zip(
        results, expected.predict_batch([POINTS, POINTS[:1]], [LABELS, LABELS[:1]], return_logits=True), strict=True
    ):
        assert relative(ours, theirs) < (1e-3 if graph == "half" else 1e-4)


def test_a_box_may_have_a_batch_axis_as_in_metas_notebook(predictor: Predictor) -> None:
    np.testing.assert_array_equal(predictor.predict(box=BOX)[2], predictor.predict(box=BOX[None])[2])


@pytest.mark.parametrize("value", [-1e3, 1e6, 1e9, -1e30])
def test_any_finite_coordinate_is_accepted(value: float, predictor: Predictor) -> None:
    _, iou, low_res = predictor.predict(np.array([[value, 10]]), np.array([1]), BOX - value)
    assert np.isfinite(iou).all()
    assert np.isfinite(low_res).all()


def test_two_predictors_share_a_runner(graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        first, second = Predictor(runner), Predictor(runner)
        first.set_image_embedding(make_embedding(1), SIZE)
        alone = first.predict(POINTS, LABELS)[2]
        second.set_image_embedding(make_embedding(2), SIZE)
        other = second.predict(POINTS, LABELS)[2]
        np.testing.assert_array_equal(first.predict(POINTS, LABELS)[2], alone)
        np.testing.assert_array_equal(second.predict(POINTS, LABELS)[2], other)
        assert relative(other, alone) > 1e-2


def test_images_rgb_and_bgr() -> None:
    predictor = Predictor(Recorder(), GreyEncoder())
    image = np.zeros((30, 40, 3), np.uint8)
    image[..., 0], image[..., 2] = 7, 9
    for image_format, first in (("RGB", 7), ("BGR", 9)):
        predictor.set_image(image, image_format)
        assert predictor.is_image_set
        assert predictor.original_size == (30, 40)
        assert (predictor.get_image_embedding() == first).all()
    predictor.reset_image()
    assert not predictor.is_image_set


def test_without_an_image() -> None:
    predictor = Predictor(Recorder())
    with pytest.raises(ImageNotSetError, match="no image is set"):
        predictor.predict(POINTS, LABELS)
    with pytest.raises(RuntimeError):
        predictor.get_image_embedding()
    predictor = recorded(Recorder())
    predictor.reset_image()
    with pytest.raises(InputError, match="no image is set"):
        predictor.predict(POINTS, LABELS)


def test_a_failed_set_image_leaves_no_image(predictor: Predictor, graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        with pytest.raises(ContractError):
            predictor.set_image_embedding(np.zeros((1, 256, 32, 32), np.float32), SIZE)
        with pytest.raises(ImageNotSetError):
            predictor.predict(POINTS, LABELS)


WITHOUT_TORCH = """
import importlib.util, sys
sys.path[:0] = sys.argv[1:3]
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
import numpy as np
from trt_sam import OnnxRunner, Predictor
data = np.load(sys.argv[4])
with OnnxRunner(sys.argv[3], threads=1) as runner:
    predictor = Predictor(runner)
    predictor.set_image_embedding(data["embedding"], tuple(data["size"]))
    masks, iou, low_res = predictor.predict(data["points"], data["labels"], data["box"], return_logits=True)
assert "torch" not in sys.modules
np.savez(sys.argv[5], masks=masks, iou=iou, low_res=low_res)
"""


def torch_free_packages(folder: Path) -> Path:
    """A folder with numpy, ONNX Runtime and Pillow alone; with `python -S` and this on the path nothing else is installed."""
    import numpy
    import onnxruntime

    site = Path(onnxruntime.__file__).parent.parent
    assert Path(numpy.__file__).parent.parent == site
    folder.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime", "PIL", "pillow.libs"):
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def test_a_graph_and_an_embedding_need_no_torch(graphs: dict[str, Path], predictor: Predictor, tmp_path: Path) -> None:
    packages = torch_free_packages(tmp_path / "packages")
    np.savez(tmp_path / "in.npz", embedding=make_embedding(), size=SIZE, points=POINTS, labels=LABELS, box=BOX)
    arguments = [packages, Path(__file__).parents[3], graphs["plain"], tmp_path / "in.npz", tmp_path / "out.npz"]
    command = [sys.executable, "-S", "-c", WITHOUT_TORCH, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    results = np.load(tmp_path / "out.npz")
    expected = predictor.predict(POINTS, LABELS, BOX, return_logits=True)
    for name, array in zip(("masks", "iou", "low_res"), expected, strict=True):
        assert relative(results[name], array) < 1e-5
