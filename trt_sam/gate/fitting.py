"""Which of the prompts, and in which form, all sides of a comparison take; none on images that a graph was calibrated with."""

from __future__ import annotations

import dataclasses
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

__all__ = ["Asked", "fitting", "refuse_calibration_images", "rows_of"]

Asked = tuple[Example, Answer | None]
"""A call and the reference's answer to it, where golden data have it."""


def fitting(asked: Iterable[Asked], sides: Sequence[Side]) -> Iterator[Asked]:
    """What all sides take: prompts with too many points, and with an earlier mask where a side takes none, are left out; rows
    are padded with absent points and calls split.

    Raises:
        InputError: the sides have no size in common.
    """
    limits = join_limits(limits for side in sides for limits in (side.runner.limits, _fixed(side)))
    fewest, most_points = limits.get("num_points", (1, 1 << 30))
    least, most = limits.get("num_prompts", (1, 1 << 30))
    masks = all(any(spec.name == "mask_input" for spec in side.runner.inputs) for side in sides)
    for example, answer in asked:
        labels = example.feed["point_labels"]
        given = np.asarray(example.feed.get("has_mask_input", np.zeros(len(labels)))) != 0
        kept = np.flatnonzero(((labels != LABEL_ABSENT).sum(axis=1) <= most_points) & (masks | ~given))
        for start in range(0, len(kept), most):
            rows = kept[start : start + most]
            if len(rows) < least:
                continue
            part, told = rows_of(example, answer, rows)
            yield _of_width(part, fewest, most_points), told


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
