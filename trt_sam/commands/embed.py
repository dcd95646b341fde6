"""Run the image encoder once per photo; prompts are then decoded from its files at any time, without it.

Example:
  trt-sam embed photos/ --checkpoint standin --output embeddings/
  trt-sam embed cat.jpg dog.jpg --checkpoint sam_vit_b_01ec64.pth --output embeddings/ --json report.json

writes embeddings/cat.npz and embeddings/dog.npz: image_embeddings float32 [1, 256, 64, 64], original_size int64 [2] (height,
width), file_name, encoder_sha256, checkpoint_sha256.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trt_sam._lazy import require_all
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, write_json
from trt_sam.commands._outputs import check_output_folder
from trt_sam.errors import InputError
from trt_sam.imaging.embeddings import embed_pixels, save_embedding
from trt_sam.imaging.photos import list_images, read_image
from trt_sam.progress import Stages

HELP = "photos to embedding files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `embed`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", type=Path, help="image files or folders of them")
    add_checkpoint_argument(parser, required=True)
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="folder for one .npz per photo")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Embed all photos; each file appears whole, in the order of the photos, and earlier ones stay if a later photo fails."""
    photos = list_images(args.photos)
    targets = _targets(photos, args.output)
    rows: list[dict[str, Any]] = []
    with Stages({"load": 1, "embed": len(photos)}) as stages:
        stages.begin("load", f"loading {args.checkpoint}")
        require_all(("torch", "PIL"), "to run the image encoder")
        from trt_sam.model.checkpoint import load_checkpoint

        encoder = load_checkpoint(args.checkpoint).image_encoder()
        progress = stages.begin("embed", f"embedding {len(photos)} photos")
        started = time.perf_counter()
        for number, (photo, target) in enumerate(zip(photos, targets, strict=True)):
            progress(number / len(photos), f"{number + 1} of {len(photos)}, {photo.name}")
            rgb = read_image(photo)
            begun = time.perf_counter()
            embedding = embed_pixels(rgb, photo.name, encoder)
            seconds = time.perf_counter() - begun
            save_embedding(target, embedding)
            size = list(embedding.original_size)
            rows.append({"photo": str(photo), "file": str(target), "original_size": size, "encoder_seconds": round(seconds, 4)})
    if args.json:
        head = {"checkpoint": args.checkpoint, "encoder_kind": encoder.kind, "encoder_sha256": encoder.sha256}
        write_json(args.json, {**head, "embeddings": rows})
    if args.json != "-":
        seconds = (time.perf_counter() - started) / len(photos)
        print(f"{len(photos)} embeddings in {args.output} (encoder {encoder.kind}, {seconds:.2f} s a photo on the CPU)")
    return 0


def _targets(photos: Sequence[Path], folder: Path) -> list[Path]:
    """One .npz per photo; every fault that can be seen before the encoder runs is raised here."""
    check_output_folder(folder)
    writers: dict[str, Path] = {}
    for photo in photos:
        other = writers.setdefault(photo.stem, photo)
        if other != photo:
            raise InputError(f"{other} and {photo} would both become {photo.stem}.npz; rename one, or embed them apart")
    return [folder / f"{photo.stem}.npz" for photo in photos]
