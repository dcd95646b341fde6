"""What `Predictor` refuses: one line each, with what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import make_embedding

from tests.fixtures.recorder import GreyEncoder, Recorder
from trt_sam.errors import InputError
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor

SIZE = (300, 451)
POINTS = np.array([[100, 50], [400, 250], [20, 299]])
LABELS = np.array([1, 0, 1])
BOX = np.array([30.5, 40, 300, 220])


@pytest.fixture(scope="module")
def predictor(graphs: dict[str, Path]) -> Iterator[Predictor]:
    with OnnxRunner(graphs["mask"], threads=1) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        yield predictor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": POINTS}, "point_coords came without point_labels"),
        ({"point_labels": LABELS}, "point_labels came without point_coords"),
        ({"point_coords": POINTS, "point_labels": LABELS[:2]}, r"point_labels has shape \[2\], must be \[3\]"),
        ({"point_coords": POINTS[0], "point_labels": LABELS[:1]}, r"point_coords has shape \[2\], must be \[N, 2\]"),
        ({"point_coords": POINTS, "point_labels": np.array([1, 0, 5])}, "point_labels holds 5"),
        ({"point_coords": POINTS * np.nan, "point_labels": LABELS}, "point_coords holds NaN"),
        ({"point_coords": POINTS * np.inf, "point_labels": LABELS}, "point_coords holds NaN or infinity"),
        ({"box": np.ones(3)}, r"box has shape \[3\]"),
        ({"box": np.ones((2, 4))}, r"box has shape \[2, 4\]"),
        ({"box": BOX * np.nan}, "NaN"),
        (
            {"box": BOX, "mask_input": np.zeros((1, 128, 128), np.float32)},
            r"mask_input has shape \[1, 128, 128\], must be \[1, 256",
        ),
        ({"box": BOX, "mask_input": np.full((1, 256, 256), np.nan, np.float32)}, "mask_input holds NaN"),
    ],
)
def test_bad_prompts_are_one_line(arguments: dict[str, np.ndarray], message: str, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=message) as caught:
        predictor.predict(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_batches(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="point_coords 2, boxes 3; each must have the same number"):
        predictor.predict_batch([POINTS, POINTS], [LABELS, LABELS], np.ones((3, 4)))
    with pytest.raises(InputError, match="point_labels has 1 prompts, but there are 2"):
        predictor.predict_batch([POINTS, POINTS], [LABELS])
    with pytest.raises(InputError, match="boxes 0"):
        predictor.predict_batch(boxes=np.ones((0, 4)))


def test_more_points_than_the_graph_takes(graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        runner._limits["num_points"] = (1, 3)
        predictor = Predictor(runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        with pytest.raises(InputError, match="num_points = 4, this graph takes 1 to 3"):
            predictor.predict(POINTS, LABELS)


def test_what_cannot_be_set(graphs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no image encoder"):
        Predictor(Recorder()).set_image(np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(InputError, match="image_format is 'GBR', must be RGB or BGR"):
        Predictor(Recorder(), GreyEncoder()).set_image(np.zeros((5, 5, 3), np.uint8), "GBR")
    with pytest.raises(InputError, match=r"image is float64 \[5, 5, 3\], must be uint8"):
        Predictor(Recorder(), GreyEncoder()).set_image(np.zeros((5, 5, 3)))  # type: ignore[arg-type]
    for size in ((0, 5), (1, 5000)):
        with pytest.raises(InputError):
            Predictor(Recorder()).set_image_embedding(make_embedding(), size)
    with OnnxRunner(graphs["best"], threads=1) as runner, pytest.raises(InputError, match="export without --best-mask"):
        Predictor(runner)
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(make_embedding(), SIZE)
        with pytest.raises(InputError, match="export it with --mask-input"):
            predictor.predict(box=BOX, mask_input=np.zeros((1, 256, 256), np.float32))
