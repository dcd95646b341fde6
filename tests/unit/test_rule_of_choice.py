"""SAM's rule of which mask to take stands three times: for arrays, in the graph, in the runner's hot path. All say the same."""

from __future__ import annotations

import numpy as np
import torch

from trt_sam.accuracy.metrics import best_masks
from trt_sam.contract import LABEL_ABSENT
from trt_sam.graph.export import select_best
from trt_sam.runtime.call.decoded import chosen_mask


def test_the_three_rules_agree() -> None:
    rng = np.random.default_rng()  # fresh inputs: the property holds for all
    count = 400
    labels = rng.choice(np.array([-2, -1, 0, 1, 2, 3], np.float32), (count, 5))
    scores = rng.normal(0.7, 0.4, (count, 4)).astype(np.float32)
    masks = np.arange(count * 4, dtype=np.float32).reshape(count, 4, 1, 1)
    by_arrays = best_masks(scores, labels)
    by_lists = [chosen_mask(s, p) for s, p in zip(scores.tolist(), labels.tolist(), strict=True)]
    best, best_scores = select_best(torch.from_numpy(masks), torch.from_numpy(scores), torch.from_numpy(labels))
    assert by_arrays.tolist() == by_lists
    assert (best.flatten().numpy() % 4).astype(int).tolist() == by_lists
    assert np.array_equal(best_scores.flatten().numpy(), scores[np.arange(count), by_lists])
    counted = (labels != LABEL_ABSENT).sum(axis=1)
    assert ((by_arrays == 0) == (counted > 2)).all(), "three tokens, absent ones apart, decide for mask 0"
