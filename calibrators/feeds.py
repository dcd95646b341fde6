"""Calibration feeds: image embeddings and prompts, as often as they are wanted, one embedding in memory at a time. numpy only.

Statistics are only as good as what they are taken of, so nothing is made up: no data is an error, and every embedding is read
once, whole, before calibration begins. An image's prompts depend on the seed, on its embedding and on the decoder's
masks of it, not on its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.prompt_file import read_prompts
from calibrators.prompts import sample_prompts
from calibrators.sources import SourceImage, digest_of, from_folder, from_memory
from trt_sam.contract import LOW_RES_SIZE
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import Image, draw_earlier_mask
from trt_sam.feeds.realistic import Decode, DrawnPrompt, shares
from trt_sam.imaging.embeddings import embedding_files

__all__ = ["CalibrationFeeds", "FeedOptions", "calibration_feeds"]

Array = npt.NDArray[Any]

_MASK_EVERY = 4
"""Where the graph takes masks, every fourth prompt of an image brings a made-up one, if they are not those of the decoder."""
_FORMAT = "trt_sam calibration feeds 4"
"""Hashed into fingerprints; a change of how prompts are drawn gets a new number."""


@dataclass(frozen=True)
class FeedOptions:
    """How prompts are put on the images."""

    prompts_per_image: int = 16
    """Without effect where the prompts come from a file: then all of them are used."""
    seed: int = 0
    mask_input: bool = False
    """Whether the graph takes `mask_input` and `has_mask_input`."""
    prompts_per_feed: int = 8
    """At most; prompts of one feed have equally many points, so that none is padded that would not be."""

    def __post_init__(self) -> None:
        for name, least in (("prompts_per_image", 1), ("seed", 0), ("prompts_per_feed", 1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise InputError(f"{name} is {number!r}, must be a whole number from {least}")


@dataclass(frozen=True)
class _Entry:
    """One image: its prompts, and where its embedding is."""

    name: str
    digest: bytes
    """SHA-256 of the embedding's values."""
    load: Callable[[], Image] = field(repr=False)
    prompts: tuple[DrawnPrompt, ...] = field(repr=False)
    photo_sha256: str = ""
    """Of the photo's file; "" where it was not at hand."""


class CalibrationFeeds:
    """Feeds for a decoder graph, each of one image: ordered, finite, the same on every iteration.

    Made by `calibration_feeds`.
    """

    def __init__(
        self, entries: Sequence[_Entry], options: FeedOptions, skipped: Sequence[str] = (), prompts_from: str = "random"
    ) -> None:
        self._entries = tuple(entries)
        self.options = options
        self.prompts_from = prompts_from
        """"file": the user's; "masks": drawn on known objects or on the masks of the float32 decoder; "random": anywhere."""
        self.names = tuple(entry.name for entry in self._entries)
        """Of the images, in order."""
        self.skipped = tuple(skipped)
        """Images for which the user's file has no prompt."""

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Feeds in order; their arrays belong to whoever iterates.

        Raises:
            InputError: an embedding file has gone, or changed since it was first read.
        """
        yield from (feed for feed, _ in self.with_sizes())

    def with_sizes(self) -> Iterator[tuple[dict[str, Array], tuple[int, int]]]:
        """The feeds, each with (height, width) of its photo; raises as iterating does."""
        for entry in self._entries:
            image = entry.load()
            if digest_of(image.embedding) != entry.digest:
                raise InputError(f"{entry.name} has changed since calibration began; start again")
            for rows in _batches(entry.prompts, self.options.prompts_per_feed):
                yield self._feed(entry, image, rows), image.original_size

    def __len__(self) -> int:
        """How many feeds an iteration gives."""
        return sum(len(_batches(entry.prompts, self.options.prompts_per_feed)) for entry in self._entries)

    @property
    def num_images(self) -> int:
        return len(self._entries)

    @property
    def num_prompts(self) -> int:
        return sum(len(entry.prompts) for entry in self._entries)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the embeddings' values, the prompts and the options: equal feeds have equal ones."""
        digest = hashlib.sha256(f"{_FORMAT}\n{json.dumps(dataclasses.asdict(self.options), sort_keys=True)}\n".encode())
        for entry in self._entries:
            digest.update(entry.digest + len(entry.prompts).to_bytes(8, "little"))
            for prompt in entry.prompts:
                digest.update(len(prompt.labels).to_bytes(8, "little"))
                digest.update(prompt.coords.astype("<f4").tobytes() + prompt.labels.astype("<f4").tobytes())
                if prompt.mask is not None:
                    digest.update(prompt.mask.astype("<f2").tobytes())
        return digest.hexdigest()

    def split(self, held_out: float = 0.25, *, most: int | None = None) -> tuple[CalibrationFeeds, CalibrationFeeds]:
        """Two sets of images: those to calibrate with, and a share `held_out` of them to judge by; both keep the order.

        Which image is held out depends on the embeddings alone, not on their names or order. At most `most` different ones are.

        Raises:
            InputError: `held_out` is not between 0 and 1, or there are fewer than two different images.
        """
        if not 0 < held_out < 1:
            raise InputError(f"held_out is {held_out!r}, must be between 0 and 1")
        ranked = sorted({entry.digest for entry in self._entries})
        if len(ranked) < 2:
            raise InputError(
                f"there is {len(ranked)} different image, which cannot be both calibrated with and judged by, as auto does; "
                "give more, or another calibrator"
            )
        wanted = round(held_out * len(ranked)) if most is None else min(round(held_out * len(ranked)), most)
        chosen = set(ranked[: min(max(wanted, 1), len(ranked) - 1)])
        parts = [[entry for entry in self._entries if (entry.digest in chosen) is wanted] for wanted in (False, True)]
        used, held = (CalibrationFeeds(part, self.options, prompts_from=self.prompts_from) for part in parts)
        return used, held

    def to_dict(self) -> dict[str, Any]:
        """What the feeds are, as JSON-able data."""
        kinds = [prompt.kind for entry in self._entries for prompt in entry.prompts]
        return {
            "fingerprint": self.fingerprint,
            "images": self.num_images,
            # Of the embeddings' values, which decide; of the photos' files where these were given, for people.
            "image_sha256": [entry.digest.hex() for entry in self._entries],
            "photo_sha256": [entry.photo_sha256 for entry in self._entries if entry.photo_sha256],
            "prompts": self.num_prompts,
            "prompts_by_kind": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "shares": shares(kinds),
            "prompts_from": self.prompts_from,
            "images_without_prompts": len(self.skipped),
            **dataclasses.asdict(self.options),
        }

    def _feed(self, entry: _Entry, image: Image, rows: Sequence[int]) -> dict[str, Array]:
        prompts = [entry.prompts[row] for row in rows]
        feed: dict[str, Array] = {
            "image_embeddings": image.embedding.copy(),
            "point_coords": np.stack([prompt.coords for prompt in prompts]),
            "point_labels": np.stack([prompt.labels for prompt in prompts]),
        }
        if self.options.mask_input:
            feed["mask_input"] = np.zeros((len(rows), 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
            feed["has_mask_input"] = np.zeros(len(rows), np.float32)
            for place, row in enumerate(rows):
                if (mask := self._earlier_mask(entry, image, row)) is not None:
                    feed["mask_input"][place, 0] = mask
                    feed["has_mask_input"][place] = 1
        return feed

    def _earlier_mask(self, entry: _Entry, image: Image, row: int) -> Array | None:
        """The mask of an earlier call that a prompt brings; None for none."""
        if self.prompts_from == "masks" and image.objects is None:
            return entry.prompts[row].mask
        # Prompts of a file too, be it one an image: else a graph that takes masks would have no range for them.
        if (row + entry.digest[0]) % _MASK_EVERY:
            return None
        # Drawn anew on every iteration: kept, they would be 256 KiB per prompt.
        return draw_earlier_mask(np.random.default_rng((self.options.seed, row, *entry.digest)), image)


def calibration_feeds(
    source: str | os.PathLike[str] | Sequence[Image],
    options: FeedOptions | None = None,
    *,
    prompts: str | os.PathLike[str] | None = None,
    encoder_sha256: str = "",
    photo_sha256: Mapping[str, str] | None = None,
    decode: Decode | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CalibrationFeeds:
    """Feeds over every image of `source`.

    Args:
        source: a folder of embedding files (`trt-sam embed`; bare .npy and .safetensors too, which are taken to fill the 1024
            frame unless COCO says their size), or images in memory.
        options: how prompts are drawn; None for the defaults.
        prompts: a JSON file of the user's own prompts (see `prompt_file`), for a folder; images without any are skipped.
        encoder_sha256: of the checkpoint's image encoder; a file that names another one is an error. "" where unknown.
        photo_sha256: of the photos' files, by the names of their embedding files; to be recorded.
        decode: the float32 decoder (`TorchRunner.run`), on whose masks prompts are drawn where no objects are known; None
            draws them anywhere in the picture, which nobody does who wants an object.
        progress: called after each image with "embeddings", images read and images in all.

    Raises:
        InputError: no image, or no prompt on any; a file that cannot be read, or holds another shape or dtype, NaN, one value
            everywhere, or the work of another encoder; a prompt outside its image.
    """
    options = options or FeedOptions()
    found = None if prompts is None else read_prompts(prompts)
    images: Iterator[SourceImage]
    if isinstance(source, str | os.PathLike):
        images, count = from_folder(Path(source), found, encoder_sha256), len(embedding_files(Path(source)))
    elif found is not None:
        raise InputError("a prompt file names photos, but the images were given in memory; give a folder of embeddings")
    else:
        images, count = from_memory(source), len(source)
    entries, skipped = [], []
    for done, each in enumerate(images, start=1):
        digest, drawn = digest_of(each.image.embedding), each.prompts
        if drawn is None:
            rng = np.random.default_rng((options.seed, *digest))
            drawn = sample_prompts(rng, each.image, options.prompts_per_image, decode=decode, earlier_masks=options.mask_input)
        if drawn:
            hashed = (photo_sha256 or {}).get(Path(each.name).name, "")
            entries.append(_Entry(each.name, digest, each.load, drawn, hashed))
        else:
            skipped.append(each.name)
        if progress is not None:
            progress("embeddings", done, count)
    if not entries and found is not None:
        held = ", ".join(list(found.prompts)[:3])
        raise InputError(f"prompt file {prompts} names no photo of {source}, but {held}; use the photos' file names")
    if not entries:
        raise InputError("there is no image to calibrate with; give at least one")
    return CalibrationFeeds(entries, options, skipped, "file" if found else "random" if decode is None else "masks")


def _batches(prompts: Sequence[DrawnPrompt], most: int) -> list[list[int]]:
    """Rows of prompts with equally many points, at most `most` together."""
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.labels), []).append(row)
    return [rows[start : start + most] for rows in by_length.values() for start in range(0, len(rows), most)]
