"""`Predictor` call by call beside Meta's own `SamPredictor` with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MLP_DIM, make_decoder, make_embedding

from tests.metas_sam import PatchEncoder, metas_predictor
from trt_sam.errors import InputError
from trt_sam.runtime.predictor import Predictor
from trt_sam.runtime.torch_runner import TorchRunner

SIZE = (300, 451)
IMAGE = np.random.default_rng(4).integers(0, 256, (*SIZE, 3), np.uint8)
POINTS = np.array([[100, 50], [400, 250], [20, 299]])
LABELS = np.array([1, 0, 1])
BOXES = np.array([[30.5, 40, 300, 220], [0, 0, 450, 299], [-5, 10, 60, 400]])

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def metas() -> Any:
    predictor = metas_predictor(make_decoder(), MLP_DIM)
    predictor.set_image(IMAGE)
    return predictor


@pytest.fixture
def ours() -> Predictor:
    predictor = Predictor(TorchRunner(make_decoder()), PatchEncoder())
    predictor.set_image(IMAGE)
    return predictor


def close(found: Any, expected: Any) -> bool:
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    found, expected = np.asarray(found), np.asarray(expected)
    if found.dtype == np.bool_:
        return float((found == expected).mean()) > 0.9999
    return float(np.abs(found - expected).max()) <= 1e-4 * float(np.abs(expected).max())


@pytest.mark.parametrize("size", [(300, 451), (1024, 1024), (683, 1024), (4000, 3000), (1, 7), (1365, 2048), (500, 375)])
def test_the_transform_is_metas(metas: Any, ours: Predictor, size: tuple[int, int]) -> None:
    coords = np.random.default_rng(1).uniform(-50, 4000, (4, 5, 2))
    boxes = coords.reshape(-1, 4)
    theirs, mine = metas.transform, ours.transform
    assert mine.target_length == theirs.target_length
    assert mine.get_preprocess_shape(*size, 1024) == theirs.get_preprocess_shape(*size, 1024)
    assert mine.get_preprocess_shape(*size, 512) == theirs.get_preprocess_shape(*size, 512)
    for name, given in (("apply_coords", coords), ("apply_boxes", boxes), ("apply_coords", coords.astype(int))):
        before = given.copy()
        found, expected = getattr(mine, name)(given, size), getattr(theirs, name)(given, size)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        found, expected = (getattr(each, f"{name}_torch")(torch.from_numpy(given), size) for each in (mine, theirs))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        np.testing.assert_array_equal(given, before)


def test_images_are_scaled_as_meta_scales_them(metas: Any, ours: Predictor) -> None:
    np.testing.assert_array_equal(ours.transform.apply_image(IMAGE), metas.transform.apply_image(IMAGE))
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()
    resized = ours.transform.apply_image_torch(tensor)
    assert resized.shape == (1, 3, 681, 1024)
    assert float((resized[0].permute(1, 2, 0) - torch.from_numpy(metas.transform.apply_image(IMAGE))).abs().max()) < 1


def test_attributes(metas: Any, ours: Predictor) -> None:
    assert ours.is_image_set
    assert ours.original_size == metas.original_size == SIZE
    assert ours.input_size == metas.input_size == (681, 1024)
    assert ours.device == metas.device == ours.model.device
    assert ours.model.mask_threshold == metas.model.mask_threshold
    assert ours.model.image_format == metas.model.image_format
    assert ours.model.image_encoder.img_size == metas.model.image_encoder.img_size
    assert close(ours.features, metas.features)
    assert close(torch.from_numpy(ours.get_image_embedding()), metas.get_image_embedding())
    ours.reset_image()
    assert not ours.is_image_set
    assert ours.features is None


PREDICT: dict[str, dict[str, Any]] = {
    "a click": {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    "clicks, one mask": {"point_coords": POINTS, "point_labels": LABELS, "multimask_output": False},
    "a box": {"box": BOXES[0]},
    "a box of one row, logits": {"box": BOXES[:1], "return_logits": True},
    "everything": {
        "point_coords": POINTS,
        "point_labels": LABELS,
        "box": BOXES[0],
        "mask_input": np.random.default_rng(6).normal(0, 4, (1, 256, 256)).astype(np.float32),
    },
}


@pytest.mark.parametrize("case", PREDICT)
def test_predict(case: str, metas: Any, ours: Predictor) -> None:
    for found, expected in zip(ours.predict(**PREDICT[case]), metas.predict(**PREDICT[case]), strict=True):
        assert close(found, expected)


def test_predict_torch_as_detectors_use_it(metas: Any, ours: Predictor) -> None:
    """The lines of Grounded-SAM: boxes of a detector, transformed, all at once."""
    masks = []
    for predictor in (ours, metas):
        boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(BOXES), IMAGE.shape[:2]).to(predictor.device)
        with torch.no_grad():
            masks.append(predictor.predict_torch(point_coords=None, point_labels=None, boxes=boxes, multimask_output=False))
    for found, expected in zip(*masks, strict=True):
        assert close(found, expected)


def test_predict_torch_with_points_and_masks(metas: Any, ours: Predictor) -> None:
    points = torch.from_numpy(np.stack([POINTS, POINTS[::-1], POINTS + 9])).float().requires_grad_()
    labels = torch.from_numpy(np.stack([LABELS] * 3)).int()
    boxes = torch.from_numpy(BOXES).float()
    hint = torch.randn(3, 1, 256, 256, generator=torch.Generator().manual_seed(0)) * 4
    for arguments in (
        {"point_coords": points, "point_labels": labels},
        {"point_coords": points, "point_labels": labels, "boxes": boxes, "return_logits": True},
        {"point_coords": None, "point_labels": None, "boxes": boxes, "mask_input": hint},
        {"point_coords": points[:1], "point_labels": labels[:1], "mask_input": hint[:1], "multimask_output": False},
        {"point_coords": None, "point_labels": None, "boxes": boxes, "mask_input": hint[:1]},
    ):
        for found, expected in zip(ours.predict_torch(**arguments), metas.predict_torch(**arguments), strict=True):
            assert close(found, expected)


def test_set_torch_image(metas: Any, ours: Predictor) -> None:
    scaled = metas.transform.apply_image(IMAGE)
    tensor = torch.from_numpy(scaled).permute(2, 0, 1)[None]
    ours.reset_image()
    ours.set_torch_image(tensor, IMAGE.shape[:2])
    assert ours.original_size == SIZE
    assert close(ours.features, metas.features)
    ours.set_torch_image(tensor.float() + 0.25, IMAGE.shape[:2])
    assert close(ours.features, metas.features)
    with pytest.raises(InputError, match=r"transformed_image has shape \[1, 3, 681, 1024\], must be \[1, 3, 1024, 681\]"):
        ours.set_torch_image(tensor, SIZE[::-1])


def test_an_image_is_restored_by_its_attributes(ours: Predictor) -> None:
    """How embeddings are cached with Meta's predictor."""
    expected = ours.predict(box=BOXES[0])[2]
    kept = (ours.features, ours.original_size, ours.input_size)
    ours.set_image(IMAGE[::-1].copy())
    assert np.abs(ours.predict(box=BOXES[0])[2] - expected).max() > 1e-3
    ours.reset_image()
    with pytest.raises(InputError, match="no image is set"):
        ours.is_image_set = True
    ours.features, ours.original_size, ours.input_size = kept
    assert not ours.is_image_set
    ours.is_image_set = True
    np.testing.assert_array_equal(ours.predict(box=BOXES[0])[2], expected)
    ours.features = kept[0]
    with pytest.raises(InputError, match="needs original_size assigned before"):
        ours.is_image_set = True
    ours.is_image_set = False
    assert not ours.is_image_set


def test_the_threshold_may_be_changed(metas: Any, ours: Predictor) -> None:
    logits = ours.predict(box=BOXES[0], return_logits=True)[0]
    ours.model.mask_threshold = float(np.median(logits))
    np.testing.assert_array_equal(ours.predict(box=BOXES[0])[0], logits > ours.model.mask_threshold)


def test_corners_given_as_points_are_a_box(ours: Predictor) -> None:
    """As users of Meta's ONNX export write a box; no "not a point" stands beside it."""
    corners = BOXES[0].reshape(2, 2)
    for clicks, labels in ((POINTS[:0], LABELS[:0]), (POINTS, LABELS)):
        points, kinds = np.concatenate([clicks, corners]), np.concatenate([labels, [2, 3]])
        for found, expected in zip(
            ours.predict(points, kinds),
            ours.predict(clicks if len(clicks) else None, labels if len(clicks) else None, BOXES[0]),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
    for odd in ([1, 2], [1, 3], [2, 2]):
        with pytest.raises(InputError, match="corners of a box and come in pairs"):
            ours.predict(POINTS[:2], np.array(odd))


HALF = torch.tensor(POINTS, dtype=torch.bfloat16)
MASK = np.random.default_rng(2).normal(0, 4, (2, 1, 256, 256)).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"point_coords": [HALF]}, {"point_coords": [HALF.float().numpy()]}),
        ({"point_coords": [torch.tensor(POINTS * 1.0, requires_grad=True)]}, {"point_coords": [POINTS]}),
        ({"point_coords": [POINTS.tolist()], "point_labels": [LABELS.tolist()]}, {"point_coords": [POINTS]}),
        (
            {"point_coords": torch.from_numpy(POINTS)[None], "point_labels": torch.from_numpy(LABELS)[None]},
            {"point_coords": [POINTS]},
        ),
        ({"point_coords": [[torch.tensor(p) for p in POINTS]]}, {"point_coords": [POINTS]}),
    ],
)
def test_points_come_in_any_array(given: dict[str, Any], plain: dict[str, Any], ours: Predictor) -> None:
    found = ours.predict_batch(**{"point_labels": [LABELS]} | given)
    for array, expected in zip(found, ours.predict_batch(**{"point_labels": [LABELS]} | plain), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("convert", [list, torch.from_numpy, lambda m: torch.from_numpy(m).requires_grad_()])
def test_masks_and_boxes_come_in_any_array(convert: Callable[[np.ndarray], Any], ours: Predictor) -> None:
    expected = ours.predict_batch(boxes=BOXES[:2], mask_input=MASK)
    found = ours.predict_batch(boxes=convert(BOXES[:2]), mask_input=convert(MASK))
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    for array, wanted in zip(ours.predict(box=convert(BOXES[0]), mask_input=convert(MASK[0])), expected, strict=True):
        assert close(array, wanted[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": "here"}, "box is an array of <U4, must be numbers"),
        ({"box": [1, 2, [3], 4]}, "box is a list that numpy cannot take"),
        ({"point_coords": [[1, 2]], "point_labels": ["1"]}, "point_labels is an array of <U1, must be numbers"),
        ({"point_coords": 5, "point_labels": [1]}, r"point_coords has shape \[\], must be"),
        ({"box": BOXES[0] * 1j}, "box is an array of complex128"),
        ({"box": BOXES[0], "mask_input": {}}, "mask_input is an array of object, must be numbers"),
    ],
)
def test_what_is_no_array_of_numbers(arguments: dict[str, Any], message: str, ours: Predictor) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ours.predict(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_batches_and_sizes(ours: Predictor) -> None:
    for arguments in ({"boxes": 5}, {"point_coords": 5, "point_labels": 5}, {"mask_input": 1.0}):
        with pytest.raises(InputError, match="must hold one entry for each prompt"):
            ours.predict_batch(**arguments)
    for size in (IMAGE.shape, (300,), 300, ("300", "451"), (300.5, 451), (0, 3), None):
        with pytest.raises(InputError, match=r"original_size is .*must be \(height, width\).*image.shape\[:2\]"):
            ours.set_image_embedding(make_embedding(), size)  # type: ignore[arg-type]
    assert not ours.is_image_set
    for size in (np.array(SIZE), np.array(SIZE, np.float32), torch.Size(SIZE), list(SIZE)):
        ours.set_image_embedding(make_embedding(), size)
        assert ours.original_size == SIZE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_embeddings_of_any_float_type(dtype: torch.dtype, ours: Predictor) -> None:
    tensor = torch.from_numpy(make_embedding()).to(dtype).requires_grad_()
    ours.set_image_embedding(tensor, SIZE)
    np.testing.assert_array_equal(ours.get_image_embedding(), tensor.detach().float().numpy())
