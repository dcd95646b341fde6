"""One reference, any number of candidates, the same prompts: figures, the noise floor, and a verdict on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import Example
from trt_sam.accuracy.sides import Side
from trt_sam.contract import LABEL_ABSENT
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import join_limits
from trt_sam.gate.answers import Answer, answer_of
from trt_sam.gate.limits import ARITHMETICS, Limits
from trt_sam.gate.reference import last_place
from trt_sam.gate.tally import Figures, Tally
from trt_sam.gate.verdict import FAIL, PASS, Check, Verdict, judge
from trt_sam.runtime.emulated_runner import EmulationRunner

if TYPE_CHECKING:
    from trt_sam.gate.layers import LayerRow
    from trt_sam.gate.search import Blame

__all__ = ["Candidate", "Comparison", "Floor", "Questions", "compare_with", "fitting"]

FLOOR_PROMPTS = 64
"""The noise floor is measured on the first of them."""

Asked = tuple[Example, Answer | None]


@dataclass(frozen=True)
class Questions:
    """What both sides are asked."""

    examples: Iterable[Asked] = field(repr=False)
    """Each with the reference's answer where golden data have it."""
    description: str
    """What the prompts are put on."""
    masks_mean_something: bool = True
    """False on random embeddings."""


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
        half: the reference in float16, for the noise floor.
        progress: told the number of prompts done.

    Raises:
        InputError: there is no question, or sides cannot be compared.
        InferenceError: a side failed.
    """
    tallies = [Tally() for _ in candidates]
    floors = {"the reference in FP16": Tally(keep_worst=0), "one unit of the last place of every logit": Tally(keep_worst=0)}
    done = 0
    for example, known in questions.examples:
        answer = known if known is not None else _answered(reference, example)
        for side, tally in zip(candidates, tallies, strict=True):
            tally.add(example, answer, answer_of(side.runner.run(example.feed)))
        if done < FLOOR_PROMPTS and answer.step == 1:
            floors["one unit of the last place of every logit"].add(example, answer, last_place(answer))
            if half is not None:
                floors["the reference in FP16"].add(example, answer, answer_of(half(example.feed)))
        done += len(example.kinds)
        if progress is not None:
            progress(done)
    if not done:
        raise InputError("there is nothing to compare on: the input has no prompt that both sides take")
    source, executed, sha256 = about or _about(reference)
    own = reference.arithmetic if reference is not None else "fp32"
    return Comparison(
        source,
        executed,
        sha256,
        questions.description,
        done,
        tuple(
            _judged(side, tally, limits, own, sha256, questions.masks_mean_something, expected)
            for side, tally in zip(candidates, tallies, strict=True)
        ),
        tuple(Floor(name, tally.figures()) for name, tally in floors.items() if tally.prompts),
    )


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


def fitting(asked: Iterable[Asked], sides: Sequence[Side]) -> Iterator[Asked]:
    """What all sides take: prompts with too many points are left out, rows are padded with absent points and calls split.

    Raises:
        InputError: the sides have no size in common.
    """
    limits = join_limits(limits for side in sides for limits in (side.runner.limits, _fixed(side)))
    fewest, most_points = limits.get("num_points", (1, 1 << 30))
    least, most = limits.get("num_prompts", (1, 1 << 30))
    for example, answer in asked:
        labels = example.feed["point_labels"]
        kept = np.flatnonzero((labels != LABEL_ABSENT).sum(axis=1) <= most_points)
        for start in range(0, len(kept), most):
            rows = kept[start : start + most]
            if len(rows) < least:
                continue
            part, told = rows_of(example, answer, rows)
            yield _of_width(part, fewest, most_points), told


def _fixed(side: Side) -> dict[str, tuple[int, int]]:
    """The sizes that a graph was given for good, where our own have dynamic ones."""
    dims = next(spec.dims for spec in side.runner.inputs if spec.name == "point_coords")
    return {name: (dim, dim) for name, dim in zip(("num_prompts", "num_points"), dims[:2], strict=True) if isinstance(dim, int)}


def rows_of(example: Example, answer: Answer | None, rows: npt.NDArray[np.intp]) -> Asked:
    """Some of an example's prompts, and what was answered to them."""
    feed, count = dict(example.feed), len(example.kinds)
    if np.array_equal(rows, np.arange(count)):
        return example, answer
    for name in ("point_coords", "point_labels", "mask_input", "has_mask_input"):
        if name in feed:
            feed[name] = feed[name][rows]
    kinds = tuple(example.kinds[row] for row in rows)
    if answer is not None:
        answer = Answer(answer.scores[rows], answer.inside[rows], answer.logits[rows], answer.step)
    truth = None if example.truth is None else example.truth[rows]
    return dataclasses.replace(example, feed=feed, kinds=kinds, truth=truth), answer


def _of_width(example: Example, fewest: int, most: int) -> Example:
    """The same with so many points that the graph takes them."""
    feed = dict(example.feed)
    labels = feed["point_labels"]
    width = max(fewest, min(labels.shape[1], most))
    if width != labels.shape[1]:
        grown = max(0, width - labels.shape[1])
        # Points come first in a row and absent ones last, so that only these are cut.
        feed["point_labels"] = np.pad(labels, [(0, 0), (0, grown)], constant_values=LABEL_ABSENT)[:, :width].copy()
        feed["point_coords"] = np.pad(feed["point_coords"], [(0, 0), (0, grown), (0, 0)])[:, :width].copy()
    feed["orig_im_size"] = np.array(example.image.original_size, np.int64)
    return dataclasses.replace(example, feed=feed)


def _judged(
    side: Side,
    tally: Tally,
    limits: Mapping[str, Limits],
    reference: str,
    sha256: str,
    masks_mean_something: bool,
    expected: str | None,
) -> Candidate:
    coarser = max(reference, side.arithmetic, key=ARITHMETICS.index)
    applied = coarser if expected is None else max(reference, expected, key=ARITHMETICS.index)
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
        (*_notes(side, sha256), *note),
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


def _notes(side: Side, sha256: str) -> Iterator[str]:
    if "" not in (side.checkpoint_sha256, sha256) and side.checkpoint_sha256 != sha256:
        yield f"it holds other weights than the reference (SHA-256 {side.checkpoint_sha256[:12]} and {sha256[:12]})"
    if isinstance(side.runner, EmulationRunner):
        yield (
            f"{side.source} was not run in FP16: its FP32 emulation rounds every FP16 tensor, the largest |x| before that "
            f"was {side.runner.largest:.0f} of 65504"
        )
