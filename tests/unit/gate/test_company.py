"""A candidate's verdict is its own: who else is in the comparison, and in which order, changes nothing about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.fixtures.made_answers import example, outputs, side
from trt_sam.gate.comparison import MOST_DOUBTS, Candidate, Questions, compare_with
from trt_sam.gate.limits import limits_for

Array = np.ndarray[Any, Any]
PROMPTS = 12
OPEN = {"min_mean_iou": 0.0, "min_p5_iou": 0.0, "min_mean_iou_four": 0.0, "min_p5_iou_four": 0.0, "min_sqnr_db": 0.0}
FAR = {"low_res_masks": 1.0, "iou_predictions": 1.0}
LIMITS = {"fp16": limits_for("fp16", {"min_prompts": 1, **OPEN, "tolerances": FAR})}
"""The least IoU alone decides, but for clear flips and what is not finite."""


def smaller(*prompts: int) -> dict[str, Array]:
    """The selected mask of some prompts is smaller, far below `min_iou`."""
    given = outputs(PROMPTS)
    given["low_res_masks"][list(prompts), 1] -= np.float32(2.0)
    return given


def judged(candidates: Sequence[Mapping[str, Array]], half: Mapping[str, Array], *, calls: int = 1) -> tuple[Candidate, ...]:
    """All in one comparison, which asks the same call so many times; `half` is what the reference gives in float16."""

    def halved(feed: Mapping[str, Any]) -> dict[str, Array]:
        # Prompts in doubt come without the others; their place is in x.
        return {name: array[feed["point_coords"][:, 1, 0].astype(int)] for name, array in half.items()}

    asked = example(PROMPTS)
    asked.feed["point_coords"][:, 1, 0] = np.arange(PROMPTS)
    questions = Questions([(asked, None)] * calls, "a call")
    sides = [side(candidate) for candidate in candidates]
    return compare_with(side(outputs(PROMPTS), "fp32"), sides, questions, LIMITS, half=halved).candidates


def test_a_broken_candidate_takes_no_doubt_from_one_beside_it() -> None:
    half = smaller(3)
    broken, good = smaller(*range(4, 4 + MOST_DOUBTS)), smaller(3)
    alone = [judged([each], half)[0].verdict for each in (broken, good)]
    assert [verdict.status for verdict in alone] == ["fail", "pass"]
    assert [each.verdict for each in judged([broken, good], half)] == alone
    assert [each.verdict for each in judged([good, broken], half)] == alone[::-1]


def test_no_verdict_depends_on_the_other_candidates_or_on_their_order() -> None:
    rng = np.random.default_rng()  # fresh inputs: the property holds for all
    excused, others = np.split(rng.permutation(PROMPTS), [10])
    half, calls = smaller(*excused), int(rng.integers(1, 3))
    candidates = [outputs(PROMPTS), half, outputs(PROMPTS), outputs(PROMPTS)]
    candidates[2]["low_res_masks"][rng.integers(PROMPTS), 1, 3, 5] = np.nan
    candidates[3]["iou_predictions"][rng.choice(PROMPTS, 5, replace=False), 3] = 1.0
    for count in (1, MOST_DOUBTS // calls, MOST_DOUBTS // calls + 1):
        candidates.append(smaller(*rng.choice(excused, count, replace=False)))
        candidates.append(smaller(*rng.choice(excused, count - 1, replace=False), rng.choice(others)))
    alone = [judged([each], half, calls=calls)[0] for each in candidates]
    assert [each.verdict.status for each in alone] == ["pass", *["fail"] * 3, *["pass", "fail"] * 2, "fail", "fail"]
    for _ in range(2):
        order = rng.permutation(len(candidates))[: rng.integers(2, len(candidates) + 1)].tolist()
        for number, seen in zip(order, judged([candidates[each] for each in order], half, calls=calls), strict=True):
            assert seen.verdict == alone[number].verdict, (number, order, calls)
            assert seen.notes == alone[number].notes, (number, order, calls)
