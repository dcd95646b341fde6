"""Which of the prompts, and in which form, all sides of a comparison take; none on images that a graph was calibrated with."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import Example
from trt_sam.accuracy.sides import Side
from trt_sam.contract import LABEL_ABSENT
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import join_limits
from trt_sam.gate.answers import Answer
from trt_sam.gate.golden import digest_of_embedding

__all__ = ["Asked", "LeftOut", "fitting", "refuse_calibration_images", "rows_of"]

Asked = tuple[Example, Answer | None]
"""A call and the reference's answer to it, where golden data have it."""


class LeftOut:
    """The prompts that nobody is asked because one side does not take them, counted while `fitting` goes on."""

    def __init__(self) -> None:
        self.prompts = 0
        """All that were to be asked."""
        self._counts: Counter[str] = Counter()

    def note(self, why: str, prompts: int) -> None:
        """Count `prompts` as left out; `why` goes on after their number."""
        if prompts:
            self._counts[why] += prompts

    @property
    def sentences(self) -> tuple[str, ...]:
        """How many, for which side and why; one that two sides do not take is counted for both."""
        return tuple(f"{count} of {self.prompts} prompts {why}; nobody was asked them" for why, count in self._counts.items())


def fitting(asked: Iterable[Asked], sides: Sequence[Side], left_out: LeftOut) -> Iterator[Asked]:
    """What all sides take: prompts with too many points, and with an earlier mask where a side takes none, are left out; rows
    are padded with absent points and calls split.

    Args:
        asked: what is to be asked.
        sides: all that are to answer.
        left_out: told of every prompt that is left out.

    Raises:
        InputError: the sides have no size in common.
    """
    limits = join_limits(limits for side in sides for limits in (side.runner.limits, _fixed(side)))
    fewest, most_points = limits.get("num_points", (1, 1 << 30))
    least, most = limits.get("num_prompts", (1, 1 << 30))
    masks = all(_takes_masks(side) for side in sides)
    for example, answer in asked:
        labels = example.feed["point_labels"]
        given = np.asarray(example.feed.get("has_mask_input", np.zeros(len(labels)))) != 0
        points = (labels != LABEL_ABSENT).sum(axis=1)
        _note(left_out, sides, points, given)
        kept = np.flatnonzero((points <= most_points) & (masks | ~given))
        for start in range(0, len(kept), most):
            rows = kept[start : start + most]
            if len(rows) < least:
                left_out.note(f"are fewer than a call has to have ({least})", len(rows))
                continue
            part, told = rows_of(example, answer, rows)
            yield _of_width(part, fewest, most_points), told


def _note(left_out: LeftOut, sides: Sequence[Side], points: npt.NDArray[np.intp], given: npt.NDArray[np.bool_]) -> None:
    """Count the prompts of a call that a side does not take: by their `points`, and where an earlier mask is `given`."""
    left_out.prompts += len(points)
    for side in sides:
        most = min(limits.get("num_points", (1, 1 << 30))[1] for limits in (side.runner.limits, _fixed(side)))
        built = ", and takes more when built with --max-points" if "num_points" in side.runner.limits else ""
        left_out.note(f"have more points than {side.source} takes ({most}{built})", int((points > most).sum()))
        if not _takes_masks(side):
            left_out.note(f"bring an earlier mask, and {side.source} takes none", int(given.sum()))


def _takes_masks(side: Side) -> bool:
    return any(spec.name == "mask_input" for spec in side.runner.inputs)


def refuse_calibration_images(asked: Iterable[Asked], used: Mapping[str, frozenset[str]]) -> Iterator[Asked]:
    """The same questions; `used` are the hashes of the embeddings that each candidate was calibrated with, by its name.

    Raises:
        InputError: one is on an embedding that a candidate was calibrated with (its graph's metadata have the hashes).
    """
    seen: dict[int, set[str]] = {}
    for example, answer in asked:
        if id(example.image) not in seen:
            seen = {id(example.image): {digest_of_embedding(example.feed["image_embeddings"]), example.image.whole_sha256}}
        for source, hashes in used.items():
            if seen[id(example.image)] & hashes:
                raise InputError(
                    f"{source} was calibrated with {example.image.name}, and would be judged on what it was made for; give"
                    " other images, or --allow-calibration-images"
                )
        yield example, answer


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
