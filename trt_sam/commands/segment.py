"""Masks of one image for a click, several clicks, a box, or a box with clicks.

Example:
  trt-sam segment photo.jpg --checkpoint mobile_sam --point 500,375
  trt-sam segment photo.jpg --checkpoint mobile_sam --box 80,40,600,420 --point 90,50,0 --output mask.png --overlay overlay.png
  trt-sam segment photo.jpg --checkpoint mobile_sam --everything --output masks.json --overlay overlay.png
  trt-sam segment photos/ --checkpoint mobile_sam --everything --output masks.jsonl
  trt-sam segment photos/ --checkpoint mobile_sam --prompts prompts.json --output masks.jsonl
  trt-sam segment photos/ --ray auto --set mobile_sam/ --everything --output masks/
  trt-sam segment photo.jpg --embedding embeddings/photo.npz --onnx decoder.onnx --point 420,300 --output mask.png
  trt-sam segment photo.jpg --set mobile_sam/ --point 500,375 --output mask.png

writes photo.mask.png and photo.overlay.png beside the photo, or what --output and --overlay name; a file that is there is
replaced. The mask holds 0 and 255, at
the image's size: of three candidates, the one with the best predicted IoU; --all-masks writes each.

--everything clicks on a grid of points and writes all masks that the decoder is sure of: --output names a list of annotations
as SA-1B has them (.json), a picture of numbers (.png), packed bits (.npz) or a folder; --format takes other JSON formats.

A folder of photos, or --prompts with many prompts (as calibrate takes them, or COCO's boxes), goes into JSON lines: one photo
a line as a file of SA-1B has it, written as soon as it is done. The same command goes on where it was stopped; it is refused
if the weights, a setting, or the file or prompts of a photo with a line have changed. A photo that
cannot be read is named and left out, and the exit code is 1. --ray does a folder on a cluster, into a folder with a file for
each 64 photos, JSON lines or --parquet; its failed.jsonl names what could not be done.

The photo's embedding and the decoder's graph are kept in the user's cache, so that a second click loads neither checkpoint nor
torch. --onnx runs another graph; with --embedding and --onnx no checkpoint is needed. Nor is one with --set, a folder of
trt-sam export --encoder or build --encoder: ONNX Runtime runs encoder and decoder of it on the CPU, without torch. The embedded
stand-in has only learned synthetic scenes: its masks of photographs say nothing about SAM's.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path
from trt_sam.commands._decoder import OpenedDecoder, keep_for_the_next, open_decoder
from trt_sam.commands._everything import add_everything_arguments, check_flags_of_everything, run_everything
from trt_sam.commands._many import add_many_arguments, is_of_many, run_many
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, write_json
from trt_sam.commands._outputs import check_distinct, check_output_file, check_picture_suffix, picture_bytes
from trt_sam.commands._prompt_flags import add_prompt_arguments, prompt_of
from trt_sam.commands._ray import add_ray_arguments, run_on_ray
from trt_sam.errors import InputError
from trt_sam.formats.records import Photo
from trt_sam.formats.save import FOLDER, encoded, format_of, suffix_of
from trt_sam.imaging.inside import check_inside
from trt_sam.imaging.overlay import Box, Click, draw_overlay
from trt_sam.imaging.photos import read_image
from trt_sam.runtime.predictor import Predictor

HELP = "clicks and a box on an image to a mask, or everything in it"

_CANDIDATES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `segment`."""
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a photo, or a folder of photos")
    add_checkpoint_argument(parser)
    parser.add_argument("--onnx", metavar="F.onnx", type=Path, help="run this exported decoder")
    parser.add_argument("--set", metavar="DIR", type=Path, help="run decoder and image encoder of this set, on the CPU")
    parser.add_argument("--embedding", metavar="F.npz", type=Path, help="the image's embedding file, instead of the encoder")
    add_prompt_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="MASK.png",
        type=Path,
        help="the mask: .png of 0 and 255, .json or .npz (default: IMAGE's name with .mask.png)",
    )
    parser.add_argument(
        "--overlay",
        metavar="F",
        type=Path,
        help="mask and prompt over the image, .png or .jpg (default: IMAGE's name with .overlay.png, without --output)",
    )
    parser.add_argument("--all-masks", action="store_true", help="also write the candidates, as MASK-0.png and so on")
    add_everything_arguments(parser)
    add_many_arguments(parser)
    add_ray_arguments(parser)
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew, and keep nothing")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Segment one image; 0 when every file was written."""
    if args.ray is not None:
        return run_on_ray(args)
    for flag, given in (("--shard-size", args.shard_size is not None), ("--parquet", args.parquet)):
        if given:
            raise InputError(f"{flag} goes with --ray; add that, or leave it out")
    if is_of_many(args):
        return run_many(args)
    if args.everything:
        return run_everything(args)
    check_flags_of_everything(args)
    started = time.perf_counter()
    clicks, box = prompt_of(args)
    outputs = _outputs(args)
    if args.set is not None and not (args.checkpoint is args.onnx is None):
        raise InputError("--set brings decoder and image encoder; leave --checkpoint and --onnx out")
    if args.set is None and args.checkpoint is None and (args.onnx is None or args.embedding is None):
        raise InputError(
            "no checkpoint: give --checkpoint mobile_sam, standin, a .pth, a Hugging Face folder or id; "
            "or --set; or --onnx and --embedding"
        )
    image = read_image(args.image)
    check_inside(clicks, box, height=image.shape[0], width=image.shape[1])
    with open_decoder(args, image) as decoder:
        predictor = Predictor(decoder.runner)
        predictor.set_image_embedding(decoder.embedding, (image.shape[0], image.shape[1]))
        masks, iou, _ = predictor.predict(
            np.array([c[:2] for c in clicks]) if clicks else None,
            np.array([c[2] for c in clicks]) if clicks else None,
            None if box is None else np.array(box),
        )
        best = int(iou.argmax())
        _write(args, outputs, image, masks[best], masks, clicks, box, _report(args, outputs, masks, iou, best, decoder))
        if args.json != "-":
            _print(outputs, masks, iou, best, decoder, time.perf_counter() - started)
        keep_for_the_next(decoder)
    return 0


@dataclass(frozen=True)
class _Outputs:
    """The pictures to write."""

    mask: Path
    format: str
    """Of the mask's file, by `formats.save`."""
    overlay: Path | None
    candidates: tuple[Path, ...]


def _outputs(args: argparse.Namespace) -> _Outputs:
    """Names of the pictures, once every fault that can be seen before anything is computed was looked for."""
    mask, overlay = args.output, args.overlay
    if mask is None:
        mask = args.image.with_name(f"{args.image.stem}.mask{suffix_of(args.format or 'binary')}")
        overlay = overlay or args.image.with_name(f"{args.image.stem}.overlay.png")
    if mask.suffix.lower() not in (".png", ".json", ".npz") or args.format == FOLDER:
        raise InputError(f"--output is {mask}, must end in .png, .json or .npz; a folder is for the masks of --everything")
    chosen = format_of(mask, args.format, single=True)
    check_picture_suffix("--overlay", overlay)
    candidates = [mask.with_name(f"{mask.stem}-{number}.png") for number in range(_CANDIDATES)] if args.all_masks else []
    named = {"IMAGE": args.image, "--output": mask, "--overlay": overlay}
    named |= {f"candidate {number}": path for number, path in enumerate(candidates)}
    named |= {"--json": Path(args.json) if args.json not in (None, "-") else None}
    check_distinct(named)
    for flag, path in named.items():
        check_output_file(None if flag == "IMAGE" else path)
    return _Outputs(mask, chosen, overlay, tuple(candidates))


def _report(
    args: argparse.Namespace,
    outputs: _Outputs,
    masks: npt.NDArray[np.bool_],
    iou: npt.NDArray[np.float32],
    best: int,
    decoder: OpenedDecoder,
) -> dict[str, Any]:
    clicks, box = prompt_of(args)
    return {
        "image": str(args.image),
        "original_size": list(masks.shape[1:]),
        "checkpoint": args.checkpoint,
        "onnx": None if args.onnx is None else str(args.onnx),
        "set": None if args.set is None else str(args.set),
        "embedding": None if args.embedding is None else str(args.embedding),
        "executed": decoder.executed,
        "from_cache": list(decoder.from_cache),
        "points": [list(click) for click in clicks],
        "box": None if box is None else list(box),
        "iou_predictions": [round(float(value), 6) for value in iou],
        "mask": best,
        "area": int(masks[best].sum()),
        "output": str(outputs.mask),
        "overlay": None if outputs.overlay is None else str(outputs.overlay),
        "candidates": [str(path) for path in outputs.candidates],
    }


def _print(
    outputs: _Outputs,
    masks: npt.NDArray[np.bool_],
    iou: npt.NDArray[np.float32],
    best: int,
    decoder: OpenedDecoder,
    seconds: float,
) -> None:
    kept = f", {' and '.join(decoder.from_cache)} from the cache" if decoder.from_cache else ""
    print(
        f"{outputs.mask}: {masks[best].mean():.1%} of the image, predicted IoU {iou[best]:.2f}; "
        f"decoder in {decoder.executed}{kept}, {seconds:.1f} s"
    )
    for number, path in enumerate(outputs.candidates):
        chosen = ", the one above" if number == best else ""
        print(f"{path}: {masks[number].mean():.1%} of the image, predicted IoU {iou[number]:.2f}{chosen}")
    if outputs.overlay is not None:
        print(f"{outputs.overlay}: mask and prompt over the image")
    sys.stdout.flush()  # what follows takes a while


def _write(
    args: argparse.Namespace,
    outputs: _Outputs,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
    candidates: npt.NDArray[np.bool_],
    clicks: list[Click],
    box: Box | None,
    report: dict[str, Any],
) -> None:
    """Write masks, overlay and report: all of them, or on failure none."""
    record = {"segmentation": mask, "predicted_iou": report["iou_predictions"][report["mask"]]}
    photo = Photo(args.image.name, (image.shape[0], image.shape[1]))
    pictures = {path: _black_and_white(each) for path, each in zip(outputs.candidates, candidates, strict=False)}
    if outputs.overlay is not None:
        pictures[outputs.overlay] = draw_overlay(image, mask, clicks, box)
    with ExitStack() as stack:
        stack.enter_context(atomic_path(outputs.mask)).write_bytes(encoded(photo, [record], outputs.format))
        for path, picture in pictures.items():
            stack.enter_context(atomic_path(path)).write_bytes(picture_bytes(picture, path.suffix.lower()))
        if args.json:
            write_json(args.json, report)


def _black_and_white(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return mask.astype(np.uint8) * np.uint8(255)
