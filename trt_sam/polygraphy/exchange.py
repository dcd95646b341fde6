"""Golden data in Polygraphy's own files, so that references computed on one machine judge an engine on another.

Ours to Polygraphy: inputs for `--load-inputs`, outputs for `--load-outputs`. Polygraphy's to ours: what `polygraphy run
... --save-inputs inputs.json --save-outputs outputs.json` wrote becomes golden data.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path, existing_file
from trt_sam._lazy import require
from trt_sam.accuracy.examples import Example, PromptedImage, embedding_picture
from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LOW_RES_SIZE
from trt_sam.errors import InputError
from trt_sam.gate.answers import Answer, answer_of
from trt_sam.gate.golden import Golden

__all__ = ["read_polygraphy", "write_polygraphy"]

Array = npt.NDArray[Any]


def write_polygraphy(golden: Golden, inputs: str | os.PathLike[str], outputs: str | os.PathLike[str]) -> None:
    """Write the prompts and answers of golden data as Polygraphy's JSON.

    Raises:
        InputError: the golden data keep only some of the logits, or a file cannot be written.
        MissingDependencyError: Polygraphy is not installed.
    """
    require("polygraphy", "to write Polygraphy's files")
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    if any(answer.step != 1 for answer in golden.answers):
        raise InputError(
            "the golden data keep only some of the logits, Polygraphy's outputs are whole; write them without --every"
        )
    feeds = [
        OrderedDict((name, example.feed[name]) for name in ("image_embeddings", "point_coords", "point_labels"))
        for example in golden.examples
    ]
    results = RunResults()
    iterations = [
        IterationResult(OrderedDict(a.outputs), runner_name=f"trt-sam golden of {golden.checkpoint}") for a in golden.answers
    ]
    results.append((f"trt-sam golden of {golden.checkpoint}", iterations))
    # It prints to stdout, which may be a report, the name of a file that is there for a moment.
    with G_LOGGER.verbosity():
        with atomic_path(inputs) as temporary:
            save_json(feeds, str(temporary))
        with atomic_path(outputs) as temporary:
            results.save(str(temporary))


def read_polygraphy(inputs: str | os.PathLike[str], outputs: str | os.PathLike[str]) -> Golden:
    """Golden data from what Polygraphy saved; whose weights they are of, nobody knows.

    Raises:
        InputError: a file is missing or not Polygraphy's, or the two do not belong together.
        MissingDependencyError: Polygraphy is not installed.
    """
    require("polygraphy", "to read Polygraphy's files")
    from polygraphy.comparator import RunResults
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import load_json
    from polygraphy.logger import G_LOGGER

    paths = [existing_file(path, what) for path, what in ((inputs, "inputs"), (outputs, "outputs"))]
    try:
        # It would print what it then raises, and the error below says it in one line.
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            feeds = list(load_json(str(paths[0])))
            runner, iterations = next(iter(RunResults.load(str(paths[1])).items()))
    except (PolygraphyException, ValueError, KeyError, TypeError, StopIteration, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{paths[0]} and {paths[1]} are not what polygraphy run --save-inputs and --save-outputs write ({reason})"
        ) from None
    if len(feeds) != len(iterations):
        raise InputError(f"{paths[0]} has {len(feeds)} feeds, {paths[1]} has {len(iterations)} results; save both in one run")
    pairs = [_pair(number, feed, result, paths) for number, (feed, result) in enumerate(zip(feeds, iterations, strict=True))]
    examples, answers = zip(*_one_image_each(pairs), strict=True)
    return Golden(f"Polygraphy's {runner}", "", tuple(examples), tuple(answers), {}, str(paths[1]))


def _pair(number: int, feed: Any, result: Any, paths: list[Path]) -> tuple[Example, Answer]:
    try:
        arrays = {name: np.asarray(feed[name]) for name in feed}
        seen = {name: np.asarray(result[name]) for name in ("low_res_masks", "iou_predictions")}
        labels, embedding = arrays["point_labels"], arrays["image_embeddings"]
    except (KeyError, TypeError) as error:
        raise InputError(f"feed or result {number} of {paths[0]} and {paths[1]} is not that of a decoder ({error})") from None
    count = len(labels)
    if embedding.shape != EMBEDDING_SHAPE or len(seen["iou_predictions"]) != count:
        raise InputError(
            f"feed {number} of {paths[0]} has embeddings {list(embedding.shape)} and {count} prompts, its result "
            f"{len(seen['iou_predictions'])}: not of one run of a decoder"
        )
    size = arrays.get("orig_im_size", np.array([FRAME_SIZE, FRAME_SIZE], np.int64))
    arrays.setdefault("mask_input", np.zeros((count, 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32))
    arrays.setdefault("has_mask_input", np.zeros(count, np.float32))
    height, width = (int(n) for n in size)
    picture = embedding_picture(embedding.astype(np.float32))
    image = PromptedImage(f"feed {number}", embedding.astype(np.float32), (height, width), picture)
    seen["low_res_masks"] = seen["low_res_masks"].astype(np.float32)
    return Example(arrays, ("prompt",) * count, image), answer_of(seen)


def _one_image_each(pairs: list[tuple[Example, Answer]]) -> list[tuple[Example, Answer]]:
    """Feeds on equal embeddings share their image, so that it is known for one."""
    known: list[PromptedImage] = []
    joined = []
    for example, answer in pairs:
        image = next((i for i in known if np.array_equal(i.embedding, example.image.embedding)), None)
        if image is None:
            known.append(image := example.image)
        joined.append((Example(example.feed, example.kinds, image), answer))
    return joined
