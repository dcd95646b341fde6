"""`EncoderTrials` on an encoder that says how bright a place is and a decoder that takes what is bright."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from calibrators.encoder_trials import EncoderTrials
from calibrators.pictures import picture_feeds
from trt_sam.accuracy.metrics import selection_scores
from trt_sam.errors import CalibrationError

Array = np.ndarray[Any, Any]

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
brightness (uint8[1,1024,1024,3] image, int32[2] image_size) => (float[1,256,64,64] image_embeddings)
<int64[5] cells = {1, 64, 16, 64, 16}, int64[4] shape = {1, 256, 64, 64},
 int64[1] last = {3}, int64[2] inner = {2, 4}, int64[1] second = {1}>
{
   pixels = Cast <to = 1> (image)
   grey = ReduceMean <keepdims = 0> (pixels, last)
   parts = Reshape (grey, cells)
   means = ReduceMean <keepdims = 0> (parts, inner)
   planes = Unsqueeze (means, second)
   image_embeddings = Expand (planes, shape)
}
"""


def decode(feed: Mapping[str, Array]) -> dict[str, Array]:
    """Four masks, each wanting more light than the one before; the third has the best score."""
    light = np.kron(feed["image_embeddings"][0, 0], np.ones((4, 4), np.float32))
    masks = np.stack([light - wanted for wanted in (80, 100, 120, 140)])
    count = len(feed["point_labels"])
    scores = np.tile(np.array([0.1, 0.2, 0.9, 0.3], np.float32), (count, 1))
    return {"low_res_masks": np.tile(masks, (count, 1, 1, 1)), "iou_predictions": scores}


def decode_other(feed: Mapping[str, Array]) -> dict[str, Array]:
    """The same masks, with the second as the best."""
    return {**decode(feed), "iou_predictions": decode(feed)["iou_predictions"][:, [0, 2, 1, 3]]}


@pytest.fixture
def trials(tmp_path: Path) -> EncoderTrials:
    for number in range(2):
        slope = np.linspace(0, 255, 64 + 16 * number, dtype=np.uint8)
        picture = np.broadcast_to(slope[None, :, None], (48, len(slope), 3))
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / f"{number}.png")
    return EncoderTrials(onnx.parser.parse_model(GRAPH), decode, picture_feeds(tmp_path).pictures, prompts=4)


def embeddings_of(trials: EncoderTrials) -> list[Array]:
    return [
        np.broadcast_to(
            picture.feed()["image"].mean(-1, dtype=np.float32).reshape(1, 1, 64, 16, 64, 16).mean((3, 5)), (1, 256, 64, 64)
        )
        for picture in trials.pictures
    ]


def test_the_same_encoder_costs_nothing(trials: EncoderTrials) -> None:
    for score in (trials.score(onnx.parser.parse_model(GRAPH)), trials.score_embeddings(embeddings_of(trials))):
        assert (score.mean_iou, score.flips, score.prompts) == (1.0, 0, 8)
    assert trials.runs == 2


def test_a_darker_embedding_loses_its_share_of_the_mask(trials: EncoderTrials) -> None:
    score = trials.score_embeddings(embedding - 20 for embedding in embeddings_of(trials))
    # Of a slope from 0 to 255, 115 instead of 135 are above the threshold; to the width of a cell.
    assert score.mean_iou == pytest.approx(115 / 135, abs=0.03)
    assert score.flips == 0


def test_another_decoder_is_judged_with_them(trials: EncoderTrials) -> None:
    several_clicks = []

    def decode_and_note(feed: Mapping[str, Array]) -> dict[str, Array]:
        outputs = decode_other(feed)
        several_clicks.extend(selection_scores(outputs["iou_predictions"], feed["point_labels"]).argmax(axis=1) == 0)
        return outputs

    score = trials.score_embeddings(embeddings_of(trials), decode=decode_and_note)
    assert score.mean_iou == 1.0
    # SAM's rule takes the first mask for several clicks, whatever its score.
    assert 0 < score.flips == score.prompts - sum(several_clicks)


def test_each_picture_needs_its_embedding(trials: EncoderTrials) -> None:
    with pytest.raises(ValueError, match="zip"):
        trials.score_embeddings(embeddings_of(trials)[:1])


def test_nothing_to_judge_by() -> None:
    with pytest.raises(CalibrationError, match=r"no picture to judge"):
        EncoderTrials(onnx.parser.parse_model(GRAPH), decode, [], prompts=4)
