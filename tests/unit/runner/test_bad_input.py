"""Prompts and images that cannot be used are refused in one line each, before anything is queued."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import check_decoded, clicks, make, opened, tokens
from trt_sam.errors import ContractError

pytestmark = pytest.mark.hostcuda


class OnGpu:
    """A tensor of another library on the GPU, as far as anybody looks at it."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"points": [[1, 2]], "labels": [3]}, "labels hold 3; allowed are -2, 0, 1; box corners"),
    "nan": ({"points": [[1, np.nan]], "labels": [1]}, "points or boxes hold NaN"),
    "infinite box": ({"boxes": [1, 2, 3, np.inf]}, "points or boxes hold NaN"),
    "shape": ({"points": [1, 2], "labels": [1]}, r"points are int64 \[2\], must be numbers"),
    "text": ({"points": [["a", "b"]], "labels": [1]}, "must be numbers"),
    "labels": ({"points": [[1, 2]], "labels": [1, 1]}, r"labels are int64 \[1, 2\], must be \[1, 1\]"),
    "no labels": ({"points": [[1, 2]]}, "labels are"),
    "no points": ({"labels": [1]}, "labels came without points"),
    "boxes": ({"boxes": [1, 2, 3]}, r"boxes are int64 \[3\], must be numbers \[num_prompts, 4\]"),
    "text in boxes": ({"boxes": ["a", "b", "c", "d"]}, r"boxes are <U1 \[4\], must be numbers"),
    "ragged": ({"points": [[1, 2], [3]], "labels": [1, 1]}, "points: not to be had as an array"),
    "half of torch": (
        {"points": torch.ones(1, 2).bfloat16(), "labels": [1]},
        "points: not to be had .*dtype",
    ),
    "points on a GPU": ({"points": OnGpu(), "labels": [1]}, r"points: on the GPU.*torch: \.cpu\(\)"),
    "labels on a GPU": ({"points": [[1, 2]], "labels": OnGpu()}, "labels: on the GPU"),
    "boxes on a GPU": ({"boxes": OnGpu()}, "boxes: on the GPU"),
    "mask on a GPU": ({"mask_input": OnGpu()}, "mask_input: on the GPU"),
    "counts": ({"points": [[1, 2]], "labels": [1], "boxes": np.ones((2, 4))}, "boxes has 2 prompts, but there are 1"),
    "nothing": ({}, "there is no prompt"),
    "too many points": ({"points": np.ones((1, 9, 2)), "labels": np.ones((1, 9))}, "num_points = 10"),
    "masks": ({"boxes": [1, 2, 3, 4], "masks": "some"}, "masks is 'some', must be one of best, all, device"),
    "bits": ({"boxes": [1, 2, 3, 4], "masks": "device", "bits": True}, "bits are made on the host"),
    "size": ({"boxes": [1, 2, 3, 4], "image_size": (3, 4)}, "takes no image_size"),
    "image": ({"boxes": [1, 2, 3, 4], "image": 99}, "image 99 is not held"),
}


def test_bad_prompts_are_refused_in_words_and_the_slot_is_free_again(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(2))
        runner.decode(*given)
        for name, (arguments, words) in BAD.items():
            before = host_cuda.count("cuMemcpyHtoDAsync")
            with pytest.raises(ContractError, match=words):
                runner.decode(**arguments)
            with pytest.raises(ContractError):
                runner.decode_many(**arguments)
            assert host_cuda.count("cuMemcpyHtoDAsync") == before, name
            check_decoded(runner.decode(*given, timeout=0), tokens(toy_embedding(2), *given))
    with pytest.raises(ContractError, match="in_flight is 0"):
        make(host_cuda, in_flight=0)
    with pytest.raises(ContractError, match="image_bytes is 1000"):
        make(host_cuda, image_bytes=1000)


def test_bad_images_are_refused_in_words_and_the_last_one_stays(host_cuda: HostCuda) -> None:
    given, good = clicks(1, 1, 1), toy_embedding(2)
    tensor = torch.from_numpy(good)
    not_finite = good.copy()
    not_finite[0, 5, 6, 7] = np.nan
    bad: list[tuple[Any, str]] = [
        (good[0], r"has shape \[256, 64, 64\]"),
        (good.astype(np.float16), r"is float16, must be float32; convert with .astype\('float32'\)"),
        (tensor.bfloat16(), "image_embeddings: not to be had as an array of numbers .*dtype"),
        (tensor.clone().requires_grad_(), r"image_embeddings: not to be had .*use tensor.detach\(\)"),
        ([[1], [2, 3]], "image_embeddings: not to be had"),
        (not_finite, "NaN"),
    ]
    with opened(host_cuda) as (runner, _):
        runner.set_image(good)
        for image, words in bad:
            with pytest.raises(ContractError, match=words):
                runner.set_image(image)
            assert runner.images_held == 1
            check_decoded(runner.decode(*given), tokens(good, *given))
