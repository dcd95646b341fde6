"""What the predictor hands to its runner: tokens, padding and batches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fixtures.recorder import Recorder, recorded

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(
    ("points", "box", "labels"),
    [
        (np.ones((1, 2)), None, [1, -1]),
        (np.ones((2, 2)), None, [1, 1, -1]),
        (np.ones((0, 2)), None, [-1]),
        (None, np.array([1, 2, 3, 4]), [2, 3]),
        (np.ones((1, 2)), np.array([1, 2, 3, 4]), [1, 2, 3]),
        (None, None, [-2]),
    ],
)
def test_tokens_are_metas(points: np.ndarray | None, box: np.ndarray | None, labels: list[int]) -> None:
    recorder = Recorder()
    recorded(recorder).predict(points, None if points is None else np.ones(len(points)), box)
    (feed,) = recorder.feeds
    assert feed["point_labels"].tolist() == [labels]
    if box is not None:
        assert feed["point_coords"][0, -2:].tolist() == [[2, 4], [6, 8]]
    assert feed["point_coords"].dtype == feed["point_labels"].dtype == np.float32


def test_batches_are_padded_with_absent_points_and_split_at_the_limit() -> None:
    recorder = Recorder(prompts=(1, 2), points=(3, 8))
    points = [np.full((n, 2), n) for n in (1, 3, 1)]
    masks, iou, low_res = recorded(recorder).predict_batch(points, [np.ones(len(p)) for p in points])
    assert [feed["point_labels"].tolist() for feed in recorder.feeds] == [
        [[1, -1, -2, -2], [1, 1, 1, -1]],
        [[1, -1, -2]],
    ]
    assert (masks.shape, low_res.shape) == ((3, 3, 512, 512), (3, 3, 256, 256))
    # In the order of the prompts: the recorder scores a prompt by its first x, here doubled by the frame.
    assert iou[:, 0].tolist() == [2, 6, 2]
