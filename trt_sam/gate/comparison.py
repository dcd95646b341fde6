"""One reference, any number of candidates, the same prompts: figures, the noise floor, and a verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import Example
from trt_sam.accuracy.sides import Side
from trt_sam.errors import InputError
from trt_sam.gate.answers import Answer, answer_of
from trt_sam.gate.fitting import Asked, LeftOut, rows_of
from trt_sam.gate.limits import ARITHMETICS, DEFAULTS, LARGE_MASK, Limits
from trt_sam.gate.reference import last_place
from trt_sam.gate.tally import Figures, Tally
from trt_sam.gate.verdict import FAIL, PASS, Check, Verdict, judge
from trt_sam.runtime.emulated_runner import EmulationRunner

if TYPE_CHECKING:
    from trt_sam.gate.layers import LayerRow
    from trt_sam.gate.search import Blame

__all__ = ["Candidate", "Comparison", "Floor", "Questions", "compare_with"]

FLOOR_PROMPTS = 64
"""The noise floor is measured on the first of them."""
MOST_DOUBTS = 8
"""So many masks of a candidate that miss `min_iou` are put to the reference in float16, which is slow on a CPU; with more the
candidate is to blame."""


@dataclass(frozen=True)
class Questions:
    """What both sides are asked."""

    examples: Iterable[Asked] = field(repr=False)
    """Each with the reference's answer where golden data have it."""
    description: str
    """What the prompts are put on."""
    masks_mean_something: bool = True
    """False on random embeddings."""
    left_out: LeftOut = field(default_factory=LeftOut, repr=False)
    """What `fitting` left out of them, known once they were iterated."""


@dataclass(frozen=True)
class Candidate:
    """One candidate, judged."""

    name: str
    executed_by: str
    arithmetic: str
    """Of the candidate itself."""
    limits_of: str
    """Which arithmetic's limits were applied."""
    limits: Limits
    figures: Figures = field(repr=False)
    verdict: Verdict
    notes: tuple[str, ...] = ()
    checkpoint_sha256: str = ""
    layers: tuple[LayerRow, ...] = field(default=(), repr=False)
    blame: Blame | None = None


@dataclass(frozen=True)
class Floor:
    """A difference that nobody can complain of."""

    name: str
    figures: Figures = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows."""

    reference: str
    executed_by: str
    checkpoint_sha256: str
    """Of the reference."""
    data: str
    prompts: int
    candidates: tuple[Candidate, ...]
    floors: tuple[Floor, ...] = ()
    left_out: tuple[str, ...] = ()
    """Which prompts nobody was asked, and why, by sentences: the verdicts do not cover them."""

    @property
    def passed(self) -> bool:
        """Whether every candidate passed."""
        return all(candidate.verdict.passed for candidate in self.candidates)


def compare_with(
    reference: Side | None,
    candidates: Sequence[Side],
    questions: Questions,
    limits: Mapping[str, Limits],
    *,
    about: tuple[str, str, str] | None = None,
    expected: str | None = None,
    half: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run everything once and judge.

    Args:
        reference: asked where a question has no answer yet; None where all have.
        candidates: at least one; they stay open.
        questions: iterated once.
        limits: by arithmetic.
        about: (source, executed by, checkpoint hash) of the reference where `reference` is None.
        expected: the arithmetic that the candidates should have; a coarser one fails, whatever its figures.
        half: the reference in float16, for the noise floor, and for masks that miss `min_iou`: one that float16 alone changes
            is left out of that limit.
        progress: told the number of prompts done.

    Raises:
        InputError: there is no question, or sides cannot be compared.
        InferenceError: a side failed.
    """
    tallies = [Tally() for _ in candidates]
    floors = {"the reference in FP16": Tally(keep_worst=0), "one unit of the last place of every logit": Tally(keep_worst=0)}
    own = reference.arithmetic if reference is not None else "fp32"
    # Each has its own, so that no verdict depends on the candidates beside it.
    doubts = [MOST_DOUBTS] * len(candidates)
    done, masks_given = 0, False
    for example, known in questions.examples:
        answer = known if known is not None else _answered(reference, example)
        for number, (side, tally) in enumerate(zip(candidates, tallies, strict=True)):
            ious, area = tally.add(example, answer, answer_of(side.runner.run(example.feed)))
            missed = (area >= LARGE_MASK) & (ious < limits[_coarser(own, expected or side.arithmetic)].min_iou)
            if half is not None and 0 < missed.sum() <= doubts[number]:
                tally.leave_out(_changed_by_half(half, example, answer, missed))
                doubts[number] -= int(missed.sum())
        if done < FLOOR_PROMPTS and answer.step == 1:
            floors["one unit of the last place of every logit"].add(example, answer, last_place(answer))
            if half is not None:
                floors["the reference in FP16"].add(example, answer, answer_of(half(example.feed)))
        done += len(example.kinds)
        masks_given |= bool(np.any(example.feed.get("has_mask_input", 0)))
        if progress is not None:
            progress(done)
    if not done:
        why = "".join(f"; {sentence}" for sentence in questions.left_out.sentences)
        raise InputError(f"there is nothing to compare on: the input has no prompt that all sides take{why}")
    source, executed, sha256 = about or _about(reference)
    return Comparison(
        source,
        executed,
        sha256,
        questions.description,
        done,
        tuple(
            _judged(side, tally, limits, own, sha256, questions.masks_mean_something, expected, unjudged)
            for side, tally in zip(candidates, tallies, strict=True)
            for unjudged in [tuple(_unjudged(side, reference, masks_given))]
        ),
        tuple(Floor(name, tally.figures()) for name, tally in floors.items() if tally.prompts),
        questions.left_out.sentences,
    )


def _changed_by_half(
    half: Callable[[Mapping[str, Any]], dict[str, Any]], example: Example, answer: Answer, missed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which of the `missed` selected masks the reference itself changes in float16 more than that may, bool [num_prompts]."""
    part, told = rows_of(example, answer, np.flatnonzero(missed))
    assert told is not None
    ious, _ = Tally(keep_worst=0).add(part, told, answer_of(half(part.feed)))
    changed = missed.copy()
    changed[missed] = ious < DEFAULTS["fp16"].min_iou
    return changed


def _coarser(first: str, second: str) -> str:
    return max(first, second, key=ARITHMETICS.index)


def _answered(reference: Side | None, example: Example) -> Answer:
    assert reference is not None, "a question without an answer needs a reference"
    answer = answer_of(reference.runner.run(example.feed))
    for name, output in answer.outputs.items():
        if broken := int((~np.isfinite(output)).sum()):
            raise InputError(
                f"the reference {reference.source} gives {name} with {broken} values that are NaN or infinite on "
                f"{example.image.name}; nothing can be judged by it"
            )
    return answer


def _judged(
    side: Side,
    tally: Tally,
    limits: Mapping[str, Limits],
    reference: str,
    sha256: str,
    masks_mean_something: bool,
    expected: str | None,
    unjudged: Sequence[str],
) -> Candidate:
    applied = _coarser(reference, side.arithmetic if expected is None else expected)
    figures = tally.figures()
    own = [] if expected is None else [_precision(side, expected)]
    levels, note = _levels(side, figures, limits[applied])
    verdict = judge(figures, limits[applied], masks_mean_something=masks_mean_something, own=[*own, *levels])
    return Candidate(
        side.source,
        side.executed_by,
        side.arithmetic,
        applied,
        limits[applied],
        figures,
        verdict,
        (*unjudged, *_left_out(verdict), *_notes(side, sha256), *note),
        side.checkpoint_sha256,
    )


def _precision(side: Side, expected: str) -> Check:
    found, asked = ARITHMETICS.index(side.arithmetic), ARITHMETICS.index(expected)
    detail = f"{expected} was asked for, the candidate is {side.arithmetic}"
    status = PASS if found <= asked else FAIL
    return Check("precision", "coarseness of the arithmetic (0: fp32)", found, asked, False, status, said=detail)


def _levels(side: Side, figures: Figures, limits: Limits) -> tuple[list[Check], list[str]]:
    """A check of every int8 range of a graph on the calls that were hardest, and a note where it cannot be made.

    Of engines it is the graphs that they were built from: the ranges are the same, and an engine does not give its own.
    """
    if side.arithmetic != "quantized":
        return [], []
    try:
        import onnx
        import onnxruntime  # noqa: F401

        from trt_sam.gate.pairs import level_checks
    except ImportError as error:
        return [], [f"how many levels the ranges of {side.source} use was not looked at: {error.name} is not installed"]
    checks: dict[str, Check] = {}
    for path in side.graphs:
        for check in level_checks(onnx.load(path), figures.hardest, limits.min_levels):
            # The two decoders of a set have the same groups: the coarser range counts.
            checks[check.name] = min(checks.get(check.name, check), check, key=lambda each: each.value)
    return list(checks.values()), []


def _about(reference: Side | None) -> tuple[str, str, str]:
    assert reference is not None
    return reference.source, reference.executed_by, reference.checkpoint_sha256


def _unjudged(side: Side, reference: Side | None, masks_given: bool) -> Iterator[str]:
    """What a verdict on the side does not cover, as notes."""
    if reference is not None and side.graphs and side.graphs == reference.graphs:
        yield f"{side.source} is the reference itself: that it agrees with itself says nothing"
    if not masks_given and any(spec.name == "mask_input" for spec in side.runner.inputs):
        yield (
            f"no prompt brought an earlier mask, so that what {side.source} makes of mask_input was NOT JUDGED; prompts of "
            "--photos and --embeddings bring some where reference and all candidates take them"
        )
    for path, takes in side.left_out.items():
        yield f"{path}, the set's decoder for {takes}, was NOT JUDGED; name that file to judge it"


def _left_out(verdict: Verdict) -> Iterator[str]:
    """Masks that did not count for `min_iou`: whoever reads that it passes is to know of them."""
    yield from (f"least IoU: {check.detail}" for check in verdict.checks if check.name == "min_iou" and check.detail)


def _notes(side: Side, sha256: str) -> Iterator[str]:
    if "" not in (side.checkpoint_sha256, sha256) and side.checkpoint_sha256 != sha256:
        yield f"it holds other weights than the reference (SHA-256 {side.checkpoint_sha256[:12]} and {sha256[:12]})"
    if isinstance(side.runner, EmulationRunner):
        yield (
            f"{side.source} was not run in FP16: its FP32 emulation rounds every FP16 tensor, the largest |x| before that "
            f"was {side.runner.largest:.0f} of 65504"
        )
