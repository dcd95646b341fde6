"""A quantized graph must not be judged on the images that its ranges were measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trt_sam.accuracy.sides import Side
from trt_sam.errors import InputError
from trt_sam.gate.fitting import Asked
from trt_sam.gate.golden import digest_of_embedding

__all__ = ["refuse_calibration_images"]


def refuse_calibration_images(asked: Iterable[Asked], candidates: Sequence[Side]) -> Iterator[Asked]:
    """The same questions.

    Raises:
        InputError: one is on an embedding that a candidate was calibrated with (its graph's metadata have the hashes).
    """
    seen: dict[int, set[str]] = {}
    for example, answer in asked:
        if id(example.image) not in seen:
            seen = {id(example.image): {digest_of_embedding(example.feed["image_embeddings"]), example.image.whole_sha256}}
        for side in candidates:
            if seen[id(example.image)] & side.calibration_images:
                raise InputError(
                    f"{side.source} was calibrated with {example.image.name}, and would be judged on what it was made for; give"
                    " other images, or --allow-calibration-images"
                )
        yield example, answer
