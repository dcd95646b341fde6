"""A script for Polygraphy's `--data-loader-script`: our prompts on real embeddings instead of random numbers.

    export TRT_SAM_GOLDEN=golden.npz         # prompts of trt-sam golden, or
    export TRT_SAM_EMBEDDINGS=embeddings/    # of trt-sam embed, with prompts drawn anywhere in the picture
    export TRT_SAM_GRAPH=decoder.onnx        # whose inputs are given; without it the three that every graph has
    export TRT_SAM_PROMPTS=32                # how many (default: 32)
    polygraphy run decoder.onnx --onnxrt --data-loader-script "$(python -m trt_sam.polygraphy.data_loader)"

Run as a module it prints its own path. Without either variable it is an error: Polygraphy would feed noise and say PASSED.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import InputError

__all__ = ["load_data"]

Array = npt.NDArray[Any]
_PLAIN = ("image_embeddings", "point_coords", "point_labels")
_PER_CALL = 4


def load_data() -> Iterator[dict[str, Array]]:
    """Feeds by input name, as the decoder takes them.

    Raises:
        InputError: neither variable is set, or what it names cannot be read.
    """
    golden, embeddings = os.environ.get("TRT_SAM_GOLDEN"), os.environ.get("TRT_SAM_EMBEDDINGS")
    prompts = _prompts(os.environ.get("TRT_SAM_PROMPTS", "32"))
    names = _inputs(os.environ.get("TRT_SAM_GRAPH"))
    if golden:
        return _chosen(_of_golden(golden), names, prompts)
    if embeddings:
        return _chosen(_of_embeddings(embeddings, prompts), names, prompts)
    raise InputError("set TRT_SAM_GOLDEN to a file of trt-sam golden, or TRT_SAM_EMBEDDINGS to a folder of trt-sam embed")


def _of_golden(path: str) -> Iterator[dict[str, Array]]:
    from trt_sam.gate.golden import load_golden

    for example in load_golden(path).examples:
        yield example.feed


def _of_embeddings(folder: str, prompts: int) -> Iterator[dict[str, Array]]:
    from trt_sam.accuracy.examples import make_examples, stored
    from trt_sam.feeds.feeds import stored_images

    images = stored_images(folder)
    each = -(-prompts // len(images))
    named = stored((f"image {number}", image) for number, image in enumerate(images))
    for example in make_examples(named, each, prompts_per_call=_PER_CALL):
        yield {**example.feed, "orig_im_size": np.array(example.image.original_size, np.int64)}


def _chosen(feeds: Iterator[dict[str, Array]], names: Sequence[str], prompts: int) -> Iterator[dict[str, Array]]:
    left = prompts
    for feed in feeds:
        if left <= 0:
            return
        count = min(left, len(feed["point_labels"]))
        left -= count
        by_prompt = ("point_coords", "point_labels", "mask_input", "has_mask_input")
        yield {name: np.ascontiguousarray(feed[name][:count]) if name in by_prompt else feed[name] for name in names}


def _inputs(graph: str | None) -> tuple[str, ...]:
    if not graph:
        return _PLAIN
    from trt_sam.graph.metadata import read_graph

    return tuple(spec.name for spec in read_graph(graph).inputs)


def _prompts(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"TRT_SAM_PROMPTS is {text!r}, must be a whole number from 1")
    return int(text)


if __name__ == "__main__":
    print(os.path.abspath(__file__))
