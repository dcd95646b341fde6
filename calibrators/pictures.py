"""Calibration feeds of an image encoder: photographs in the encoder's frame, one in memory at a time. numpy and Pillow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import sha256_of
from trt_sam.errors import InputError
from trt_sam.imaging.frame import to_frame
from trt_sam.imaging.photos import list_images, read_image

__all__ = ["Picture", "PictureFeeds", "picture_feeds"]

Array = npt.NDArray[Any]

_FORMAT = "trt_sam picture feeds 1"
"""Hashed into fingerprints; a change of how photographs reach the frame gets a new number."""


@dataclass(frozen=True)
class Picture:
    """One photograph."""

    path: Path
    original_size: tuple[int, int]
    """(height, width) in pixels."""
    digest: bytes = field(repr=False)
    """SHA-256 of what the encoder is fed, so that copies of one photograph are one picture."""
    photo_sha256: str
    """Of the file."""

    def feed(self) -> dict[str, Array]:
        """`image` and `image_size`, as an `encode` graph takes them; raises InputError where the file has gone or changed."""
        feed, _ = _fed(self.path)
        if _digest(feed) != self.digest:
            raise InputError(f"{self.path} has changed since calibration began; start again")
        return feed


class PictureFeeds:
    """Feeds of an encoder graph, one for each photograph: ordered, finite, the same on every iteration."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = tuple(pictures)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Feeds in order; raises InputError where a photograph has gone or changed."""
        for picture in self.pictures:
            yield picture.feed()

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_images(self) -> int:
        return len(self.pictures)

    @property
    def num_prompts(self) -> int:
        """None: an encoder does not see them."""
        return 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what the encoder is fed: equal photographs in equal order have equal ones."""
        return hashlib.sha256(_FORMAT.encode() + b"".join(picture.digest for picture in self.pictures)).hexdigest()

    def split(self, held_out: float, most: int) -> tuple[PictureFeeds, PictureFeeds]:
        """Those to calibrate with, and a share `held_out` of them, at most `most`, to judge by; both keep the order.

        Which are held out depends on the pictures alone, not on their names or order.

        Raises:
            InputError: there are fewer than two different photographs.
        """
        ranked = sorted({picture.digest for picture in self.pictures})
        if len(ranked) < 2:
            raise InputError("there is 1 different photograph, which cannot be both calibrated with and judged by; give more")
        chosen = set(ranked[: min(max(round(held_out * len(ranked)), 1), most, len(ranked) - 1)])
        parts = [[each for each in self.pictures if (each.digest in chosen) is held] for held in (False, True)]
        return PictureFeeds(parts[0]), PictureFeeds(parts[1])

    def to_dict(self) -> dict[str, Any]:
        """What the feeds are, as JSON-able data; without names, which may be private."""
        return {
            "fingerprint": self.fingerprint,
            "images": self.num_images,
            # Of what the encoder is fed, which decides; of the files, for people.
            "image_sha256": [picture.digest.hex() for picture in self.pictures],
            "photo_sha256": [picture.photo_sha256 for picture in self.pictures],
            "prompts": 0,
        }


def picture_feeds(folder: Path, progress: Callable[[str, int, int], None] | None = None) -> PictureFeeds:
    """Feeds over the photographs of a folder, each read once, whole, before calibration begins.

    Args:
        folder: with images; other files in it are passed over.
        progress: called after each photograph with "photos", how many were read and how many there are.

    Raises:
        InputError: there is no image, one cannot be read, or it is of one colour everywhere.
    """
    paths = list_images([folder])
    pictures = []
    for number, path in enumerate(paths, start=1):
        feed, size = _fed(path)
        height, width = feed["image_size"]
        if np.ptp(feed["image"][0, :height, :width], axis=(0, 1)).max() == 0:
            raise InputError(f"{path} is of one colour everywhere, which tells nothing of an encoder's ranges; leave it out")
        pictures.append(Picture(path, size, _digest(feed), sha256_of(path)))
        if progress is not None:
            progress("photos", number, len(paths))
    return PictureFeeds(pictures)


def _fed(path: Path) -> tuple[dict[str, Array], tuple[int, int]]:
    """What the encoder is fed of a photograph, and its (height, width)."""
    rgb = read_image(path)
    image, size = to_frame(rgb)
    return {"image": image, "image_size": size}, (rgb.shape[0], rgb.shape[1])


def _digest(feed: dict[str, Array]) -> bytes:
    return hashlib.sha256(feed["image_size"].astype("<i4").tobytes() + feed["image"].tobytes()).digest()
