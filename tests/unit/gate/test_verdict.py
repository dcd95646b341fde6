"""The verdict: passes, misses, too few prompts, one pixel of NaN, sides of other shapes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tests.fixtures.made_answers import answer, example, outputs
from trt_sam._json import strict
from trt_sam.gate.answers import Answer, answer_of, reduced
from trt_sam.gate.limits import Limits, limits_for
from trt_sam.gate.tally import Figures, Tally
from trt_sam.gate.verdict import FAIL, PASS, TOO_FEW, Verdict, judge
from trt_sam.imaging.resize import postprocess_masks

FEW = limits_for("fp32", {"min_prompts": 1})


def figures(seen: Answer, expected: Answer | None = None, **made: Any) -> Figures:
    tally = Tally()
    tally.add(example(len(seen.scores), **made), expected or answer(), seen)
    return tally.figures()


def missed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.missed]


def test_the_same_answer_passes_and_fewer_prompts_than_asked_for_do_not() -> None:
    same = figures(answer())
    assert judge(same, FEW).status == PASS
    verdict = judge(same, limits_for("fp32"))
    assert verdict.status == TOO_FEW
    assert missed(verdict) == ["min_prompts"]
    assert verdict.advice.endswith("or ask for fewer (--min-prompts N)")


def test_a_figure_near_its_limit_is_too_few_to_tell() -> None:
    tally = Tally()
    for seed in range(6):
        seen = outputs(seed=seed)
        # Every second image loses a tenth of its selected masks.
        seen["low_res_masks"][:, 1] -= 1.5 * (seed % 2)
        tally.add(example(seed=seed), answer(seed=seed), answer_of(seen))
    mean = float(tally.figures().iou.mean())
    loose = dataclasses.replace(limits_for("quantized", {"min_prompts": 1, "min_p5_iou": 0.0}), min_mean_iou=mean - 0.01)
    verdict = judge(tally.figures(), loose)
    assert verdict.intervals_by == "images"
    check = next(check for check in verdict.checks if check.name == "min_mean_iou")
    assert check.status == TOO_FEW
    advice = Verdict(TOO_FEW, (check,), "images").advice
    assert advice.startswith("judge it by more prompts")
    assert "ask for fewer" not in advice, "that makes no interval narrower"
    assert check.low is not None
    assert check.low < mean - 0.01 < check.value
    assert judge(tally.figures(), dataclasses.replace(loose, min_mean_iou=mean + 0.01)).status == FAIL


@pytest.mark.parametrize("name", ["low_res_masks", "iou_predictions"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_a_named_failure(name: str, value: float) -> None:
    seen = outputs()
    seen[name].flat[-1] = value
    verdict = judge(figures(answer_of(seen)), limits_for("quantized", {"min_prompts": 1, "min_sqnr_db": -100.0}))
    assert verdict.status == FAIL
    assert f"finite {name}" in missed(verdict)
    json.dumps(strict(dataclasses.asdict(verdict)), allow_nan=False)


def test_golden_data_see_a_nan_where_they_keep_no_logit() -> None:
    seen = outputs()
    seen["low_res_masks"][0, 3, 1, 1] = np.nan
    verdict = judge(figures(answer_of(seen), reduced(answer(), 16)), FEW)
    assert "finite low_res_masks" in missed(verdict)


def test_two_masks_in_each_others_place_fail() -> None:
    seen = outputs()
    seen["low_res_masks"] = seen["low_res_masks"][:, [0, 2, 1, 3]]
    verdict = judge(figures(answer_of(seen)), limits_for("quantized", {"min_prompts": 1}))
    assert {"min_mean_iou", "min_mean_iou_four"} <= set(missed(verdict))


def test_the_selected_mask_may_pass_while_another_of_the_four_fails() -> None:
    seen = outputs()
    seen["low_res_masks"][:, 3] = -20
    verdict = judge(figures(answer_of(seen)), limits_for("quantized", {"min_prompts": 1, "min_sqnr_db": 0.0}))
    assert "min_mean_iou_four" in missed(verdict)
    assert "min_mean_iou" not in missed(verdict)


@pytest.mark.parametrize(("score", "clear"), [(0.895, 0), (0.5, 4)])
def test_a_flip_is_clear_beyond_the_margin(score: float, clear: int) -> None:
    expected, seen = outputs(), outputs()
    expected["iou_predictions"][:, 2] = score
    seen["iou_predictions"][:, 2] = 0.95
    assert figures(answer_of(seen), answer_of(expected)).clear_flips == clear


def test_what_lies_in_the_padding_does_not_count() -> None:
    seen = outputs()
    seen["low_res_masks"][:, :, 128:] *= -1
    wide = figures(answer_of(seen), size=(512, 1024))
    assert wide.iou.tolist() == [1.0] * 4
    assert figures(answer_of(seen)).iou.min() < 1.0


def best(of: dict[str, np.ndarray[Any, Any]], mask: int = 1) -> Answer:
    return answer_of({name: array[:, mask : mask + 1] for name, array in of.items()})


def test_a_graph_that_selects_is_compared_with_the_mask_that_it_chose() -> None:
    for expected, seen in ((answer(), best(outputs())), (best(outputs()), answer()), (best(outputs()), best(outputs()))):
        found = figures(seen, expected)
        assert judge(found, FEW).status == PASS
        assert not found.flip.any()


def test_a_graph_that_selects_another_mask_fails_though_the_mask_is_the_references_own() -> None:
    found = figures(best(outputs(), 2))
    assert found.outputs["low_res_masks"].error == 0.0
    assert found.clear_flips == 4
    assert "max_clear_flips" in missed(judge(found, FEW))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_full_resolution_is_checked_against_the_other_sides_low_resolution(shift: float) -> None:
    seen = outputs()
    seen["masks"] = postprocess_masks(seen["low_res_masks"], (96, 96)) + np.float32(shift)
    verdict = judge(figures(answer_of(seen), size=(96, 96), full=True), FEW)
    assert ("tolerance masks" in missed(verdict)) == (shift > 0)


def test_full_resolution_a_pixel_beside_fails_whatever_the_precision() -> None:
    seen = outputs()
    limits = limits_for("quantized", {"min_prompts": 1})
    brought_up = postprocess_masks(seen["low_res_masks"], (512, 512))
    seen["masks"] = brought_up.astype(np.float16)
    assert judge(figures(answer_of(seen), size=(512, 512), full=True), limits).status == PASS
    seen["masks"] = brought_up[..., np.maximum(np.arange(512) - 1, 0)]
    assert missed(judge(figures(answer_of(seen), size=(512, 512), full=True), limits)) == ["own masks"]


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_golden_data_without_every_logit_judge_full_resolution_by_the_candidates_own(value: float) -> None:
    seen = outputs()
    seen["masks"] = postprocess_masks(seen["low_res_masks"], (96, 96))
    assert judge(figures(answer_of(seen), reduced(answer(), 16), size=(96, 96), full=True), FEW).status == PASS
    seen["masks"][0, 2, 50, 60] += value
    verdict = judge(figures(answer_of(seen), reduced(answer(), 16), size=(96, 96), full=True), FEW)
    assert "tolerance masks" in missed(verdict)
    assert ("finite masks" in missed(verdict)) == np.isnan(value)


def test_bits_are_those_of_the_same_sides_masks() -> None:
    seen = outputs()
    seen["mask_bits"] = np.packbits(seen["low_res_masks"] > 0, axis=-1)
    assert judge(figures(answer_of(seen)), FEW).status == PASS
    seen["mask_bits"][0, 1, 3] ^= 1
    assert missed(judge(figures(answer_of(seen)), FEW)) == ["tolerance mask_bits"]


def test_no_mask_counts_where_masks_mean_nothing() -> None:
    seen = outputs()
    seen["low_res_masks"][:, 3] = -20
    loose = limits_for("fp32", {"min_prompts": 1, "min_sqnr_db": -100.0, "tolerances": {"low_res_masks": 10.0}})
    assert judge(figures(answer_of(seen)), loose, masks_mean_something=False).status == PASS
    assert isinstance(loose, Limits)
