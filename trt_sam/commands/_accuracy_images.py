"""The images of `accuracy` and `sensitivity`: some to calibrate with, others to judge by, never the same ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_sam.embeddings import Embedding, save_embedding
from trt_sam.errors import InputError
from trt_sam.images import list_images

if TYPE_CHECKING:
    from trt_sam.accuracy_feeds import PromptedImage
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["Images", "add_image_arguments", "open_images"]

_CALIBRATION_SCENES = 1_000_000
"""Scenes for calibration begin this far after those for evaluation."""

Progress = Callable[[float, str], None]


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
    from trt_sam.accuracy_feeds import EVALUATION_SEED, photos, scenes, stored
    from trt_sam.model.checkpoint import STANDINS
    from trt_sam.scenes import make_scene

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
        sha256 = checkpoint.image_encoder().sha256 if checkpoint.encoder_kind.startswith("vit_") else ""
        judged, used = _split(_embedding_files(args.embeddings), args, wanted)
        for _ in stored(judged, sha256):
            # Read once now: one bad file must not end a long measurement.
            pass
        for path in used:
            (folder / path.name).symlink_to(path.resolve())
        return Images(
            ready, lambda: stored(judged, sha256), f"{len(judged)} of the embeddings in {args.embeddings.name}", sha256
        )
    if args.photos is not None:
        encoder = checkpoint.image_encoder()
        judged, used = _split(list_images([args.photos]), args, wanted)
        for number, (path, image) in enumerate(zip(used, photos(used, encoder.embed), strict=True), start=1):
            saved = Embedding(image.embedding, image.original_size, path.name, encoder.sha256)
            # Numbered: cat.jpg and cat.png are two photos.
            save_embedding(folder / f"{number:06d}.npz", saved)
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
        rgb = make_scene(seed).image
        saved = Embedding(encoder.embed(rgb), (rgb.shape[0], rgb.shape[1]), f"scene {seed}", encoder.sha256)
        save_embedding(folder / f"{number:06d}.npz", saved)
        tell(number + 1)
    count = args.images
    return Images(ready, lambda: scenes(encoder.embed, count), f"{count} synthetic scenes", encoder.sha256)


def _split(files: Sequence[Path], args: argparse.Namespace, wanted: int) -> tuple[list[Path], list[Path]]:
    """(to judge by, to calibrate with), drawn with the seed, each in the order of `files`."""
    if len(files) < args.images + wanted:
        needed = f"--images {args.images}" + (f" and --calibration-images {wanted}" if wanted else "")
        raise InputError(
            f"there are {len(files)} images, {needed} need {args.images + wanted}, for none may serve twice; "
            "give more or ask for less"
        )
    order = np.random.default_rng(args.seed).permutation(len(files)).tolist()
    judged, used = order[: args.images], order[args.images : args.images + wanted]
    return [files[place] for place in sorted(judged)], [files[place] for place in sorted(used)]


def _embedding_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise InputError(f"no embedding file (.npz) in {folder}; write some with trt-sam embed PHOTOS --output {folder}")
    return files
