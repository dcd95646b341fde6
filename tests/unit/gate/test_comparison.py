"""What a comparison leaves out: masks that float16 alone changes, and prompts that a side does not take; both are said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.made_answers import answer, example, outputs, side
from trt_sam.errors import InputError
from trt_sam.gate.comparison import MOST_DOUBTS, Candidate, Questions, compare_with
from trt_sam.gate.fitting import LeftOut, fitting
from trt_sam.gate.limits import DEFAULTS, limits_for
from trt_sam.gate.report.page import comparison_page
from trt_sam.gate.report.text import junit, lines, markdown, to_dict

Array = np.ndarray[Any, Any]
LIMITS = {name: limits_for(name, {"min_prompts": 1}) for name in DEFAULTS}
FLOOR = limits_for("fp16").min_iou


def with_a_smaller_mask(*prompts: int) -> dict[str, Array]:
    """The selected mask of some of 100 prompts is smaller."""
    given = outputs(100)
    given["low_res_masks"][list(prompts), 1] -= np.float32(2.0)
    return given


def judged(candidate: Mapping[str, Array], half: Mapping[str, Array]) -> Candidate:
    def halved(feed: Mapping[str, Any]) -> dict[str, Array]:
        # The one prompt in doubt is given alone, by its place in x.
        rows = np.arange(100) if len(feed["point_labels"]) == 100 else feed["point_coords"][:, 1, 0].astype(int)
        return {name: array[rows] for name, array in half.items()}

    told: Callable[[Mapping[str, Any]], dict[str, Array]] = halved
    asked = example(100)
    asked.feed["point_coords"][:, 1, 0] = np.arange(100)
    reference = side(outputs(100), "fp32")
    return compare_with(reference, [side(candidate)], Questions([(asked, None)], "a call"), LIMITS, half=told).candidates[0]


def test_a_mask_that_the_reference_in_float16_changes_too_is_left_out_of_the_least() -> None:
    seen = judged(with_a_smaller_mask(3), with_a_smaller_mask(3))
    (least,) = (check for check in seen.verdict.checks if check.name == "min_iou")
    assert seen.figures.iou.min() < FLOOR
    assert least.status == "pass"
    assert "; 1 left out, which the reference in FP16 changes too (here 0." in least.sentence
    assert seen.notes[0].startswith("no prompt brought an earlier mask")
    assert seen.notes[1].startswith("least IoU: 1 left out, which the reference in FP16 changes too")


def test_a_mask_that_the_candidate_alone_changes_fails() -> None:
    for half in (outputs(100), with_a_smaller_mask(4)):
        seen = judged(with_a_smaller_mask(3), half)
        (least,) = (check for check in seen.verdict.checks if check.name == "min_iou")
        assert least.status == "fail"
        assert least.value == seen.figures.iou.min() < FLOOR


def test_with_many_masks_in_doubt_the_candidate_is_to_blame() -> None:
    for count, status in ((MOST_DOUBTS, "pass"), (MOST_DOUBTS + 1, "fail")):
        wrong = with_a_smaller_mask(*range(count))
        (least,) = (check for check in judged(wrong, wrong).verdict.checks if check.name == "min_iou")
        assert least.status == status


def test_earlier_masks_go_to_those_that_take_them_and_it_is_said_where_none_came() -> None:
    asked = example()
    asked.feed["has_mask_input"][1] = 1.0
    takes, takes_none = side(outputs()), side(outputs(3), masks=False)
    left_out = LeftOut()
    ((whole, _),) = fitting([(asked, None)], [takes], left_out)
    assert len(whole.kinds) == 4
    assert left_out.sentences == ()
    ((part, told),) = fitting([(asked, answer())], [takes, takes_none], left_out)
    (said,) = left_out.sentences
    assert said == "1 of 8 prompts bring an earlier mask, and candidate.onnx takes none; nobody was asked them"
    assert part.feed["has_mask_input"].tolist() == [0.0, 0.0, 0.0]
    assert told is not None
    assert np.array_equal(told.scores, answer().scores[[0, 2, 3]])
    about = ("made up", "PyTorch in float64", "")
    for given, notes in ((asked, 0), (example(), 1)):
        found = compare_with(None, [takes], Questions([(given, answer())], "a call"), LIMITS, about=about)
        assert sum("makes of mask_input was NOT JUDGED" in note for note in found.candidates[0].notes) == notes
    of_a_set = dataclasses.replace(takes, left_out={Path("set/decoder_mask.onnx"): "prompts with an earlier mask"})
    found = compare_with(None, [of_a_set], Questions([(asked, answer())], "a call"), LIMITS, about=about)
    assert found.candidates[0].notes[0].startswith("set/decoder_mask.onnx, the set's decoder")
    one = dataclasses.replace(takes, graphs=(Path("decoder.onnx"),))
    found = compare_with(one, [one], Questions([(asked, None)], "a call"), LIMITS)
    assert "is the reference itself" in found.candidates[0].notes[0]
    with pytest.raises(InputError, match="nothing to compare on"):
        compare_with(None, [takes], Questions([], "no call"), LIMITS, about=about)


def test_prompts_that_one_candidate_does_not_take_are_said_in_every_report() -> None:
    asked = example()
    asked.feed["point_coords"] = np.zeros((4, 9, 2), np.float32)
    asked.feed["point_labels"] = np.float32([[1] + [-1] * 8] + [[1, -1] + [-2] * 7] * 3)
    large, small = side(outputs(3)), dataclasses.replace(side(outputs(3)), source="small.engine")
    large.runner.limits = {"num_points": (1, 16)}  # type: ignore[misc]
    said = "1 of 4 prompts have more points than small.engine takes (8, and takes more when built with --max-points)"
    about, left_out = ("made up", "PyTorch in float64", ""), LeftOut()
    questions = Questions(fitting([(asked, answer())], [large, small], left_out), "a call", left_out=left_out)
    found = compare_with(None, [large, small], questions, LIMITS, about=about)
    assert found.prompts == 3
    assert found.left_out == (f"{said}; nobody was asked them",)
    assert to_dict(found)["left_out"] == [f"{said}; nobody was asked them"]
    pages = ("\n".join(lines(found)), markdown(found), junit(found), comparison_page(found, {}))
    assert [page.count(said) for page in pages] == [1, 1, 2, 1]
    asked.feed["point_labels"][:] = 1
    questions = Questions(fitting([(asked, answer())], [small], left_out), "a call", left_out=left_out)
    with pytest.raises(InputError, match=r"no prompt that all sides take; 5 of 8 prompts have more points than small"):
        compare_with(None, [small], questions, LIMITS, about=about)
