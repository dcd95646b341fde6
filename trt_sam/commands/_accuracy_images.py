"""The images of `accuracy` and `sensitivity`: some to calibrate with, others to judge by, never the same ones."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_sam.commands._options import add_random_prompts_argument
from trt_sam.errors import InputError
from trt_sam.imaging.embeddings import embed_photo, embed_pixels, embedding_files, save_embedding
from trt_sam.imaging.photos import list_images, read_image
from trt_sam.progress import Progress

if TYPE_CHECKING:
    from trt_sam.accuracy.examples import PromptedImage
    from trt_sam.feeds.feeds import Image
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["Images", "add_image_arguments", "open_images"]

_CALIBRATION_SCENES = 1_000_000
"""Scenes for calibration begin this far after those for evaluation."""


@dataclass(frozen=True)
class Images:
    """What to calibrate with and what to judge by."""

    calibration: Path | None
    """A folder of embedding files; None where nothing is calibrated."""
    evaluation: Callable[[], Iterator[PromptedImage]]
    """Gives the images anew, one at a time."""
    description: str
    """For the report."""
    encoder_sha256: str
    """Of the checkpoint's image encoder; "" where it is not ours to run."""


def add_image_arguments(parser: argparse.ArgumentParser, *, images: int, prompts: int, calibration: int) -> None:
    """Declare where images come from and how many are used; the numbers are the defaults."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--embeddings", metavar="DIR", type=Path, help="folder of trt-sam embed (default: synthetic scenes)")
    data.add_argument("--photos", metavar="DIR", type=Path, help="folder of images, embedded on the way")
    parser.add_argument("--images", metavar="N", type=int, default=images, help="to judge by (default: %(default)s)")
    parser.add_argument(
        "--prompts-per-image", metavar="M", type=int, default=prompts, help="of each of them (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration-images", metavar="K", type=int, default=calibration, help="others, for ranges (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration-prompts", metavar="M", type=int, default=16, help="of each of them (default: %(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of prompts and of the split (default: 0)")
    add_random_prompts_argument(parser)


def open_images(
    args: argparse.Namespace, checkpoint: Checkpoint, folder: Path, *, calibrate: bool, progress: Progress | None = None
) -> Images:
    """Split the images that the flags of `add_image_arguments` name.

    Args:
        args: with those flags.
        checkpoint: whose encoder embeds scenes and photos.
        folder: empty; gets the calibration embeddings and must outlive the result.
        calibrate: whether calibration images are needed.
        progress: told how many of them are ready.

    Raises:
        InputError: too few images, an impossible number, no data for a checkpoint that is no stand-in, or a file that cannot be
            used.
    """
    from calibrators.sources import digest_of, from_files
    from trt_sam.accuracy.examples import EVALUATION_SEED, photos, scenes, stored
    from trt_sam.feeds.scenes import make_scene
    from trt_sam.model.checkpoint import STANDINS

    for name in ("images", "prompts_per_image", "calibration_images", "calibration_prompts"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be at least 1")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}, must be at least 0")
    wanted = args.calibration_images if calibrate else 0
    ready = folder if calibrate else None

    def tell(done: int) -> None:
        if progress is not None:
            progress(done / max(wanted, 1), "calibration images")

    if args.embeddings is not None:
        sha256 = checkpoint.encoder_sha256

        def digests(paths: Sequence[Path]) -> Iterator[bytes]:
            return (digest_of(each.image.embedding) for each in from_files(paths, None, sha256))

        judged, used = _split(embedding_files(args.embeddings), digests, args, wanted)
        for path in used:
            (folder / path.name).symlink_to(path.resolve())
        return Images(
            ready, lambda: stored(_named(judged, sha256)), f"{len(judged)} of the embeddings in {args.embeddings.name}", sha256
        )
    if args.photos is not None:
        encoder = checkpoint.image_encoder()
        judged, used = _split(list_images([args.photos]), lambda paths: map(_pixels_digest, paths), args, wanted)
        for number, path in enumerate(used, start=1):
            # Numbered: cat.jpg and cat.png are two photos.
            save_embedding(folder / f"{number:06d}.npz", embed_photo(path, encoder))
            tell(number)
        where = f"{len(judged)} of the photos in {args.photos.name}"
        return Images(ready, lambda: photos(judged, encoder.embed), where, encoder.sha256)
    if checkpoint.source not in STANDINS:
        raise InputError(
            f"no images: give --embeddings DIR or --photos DIR; only {' and '.join(STANDINS)} have scenes of their own"
        )
    encoder = checkpoint.image_encoder()
    for number in range(wanted):
        seed = EVALUATION_SEED + _CALIBRATION_SCENES + number
        embedding = embed_pixels(make_scene(seed).image, f"scene {seed}", encoder)
        save_embedding(folder / f"{number:06d}.npz", embedding)
        tell(number + 1)
    count = args.images
    return Images(ready, lambda: scenes(encoder.embed, count), f"{count} synthetic scenes", encoder.sha256)


def _split(
    files: Sequence[Path], digests: Callable[[Sequence[Path]], Iterator[bytes]], args: argparse.Namespace, wanted: int
) -> tuple[list[Path], list[Path]]:
    """(to judge by, to calibrate with), drawn with the seed, each in the order of `files`; copies of one image serve once."""
    needed = args.images + wanted
    asked = f"--images {args.images}" + (f" and --calibration-images {wanted}" if wanted else "")
    advice = f"{asked} need {needed}, for none may serve twice; give more or ask for less"
    if len(files) < needed:
        raise InputError(f"there are {len(files)} images, {advice}")
    # What serves is read once now: a bad file must not end a long measurement.
    order = np.random.default_rng(args.seed).permutation(len(files)).tolist()
    taken: dict[bytes, int] = {}
    for place, digest in zip(order, digests([files[place] for place in order]), strict=False):
        taken.setdefault(digest, place)
        if len(taken) == needed:
            break
    if len(taken) < needed:
        raise InputError(f"there are {len(taken)} different images in {len(files)} files, {advice}")
    places = list(taken.values())
    judged, used = sorted(places[: args.images]), sorted(places[args.images :])
    return [files[place] for place in judged], [files[place] for place in used]


def _pixels_digest(path: Path) -> bytes:
    rgb = read_image(path)
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).digest()


def _named(files: Sequence[Path], encoder_sha256: str) -> Iterator[tuple[str, Image]]:
    from calibrators.sources import from_files

    for path, each in zip(files, from_files(files, None, encoder_sha256), strict=True):
        yield each.photo or path.name, each.image
