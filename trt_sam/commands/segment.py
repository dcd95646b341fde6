"""Masks of one image for a click, several clicks, a box, or a box with clicks.

Example:
  trt-sam segment samples/scene.png --checkpoint standin --box 565,163,980,583 --output mask.png --overlay overlay.png
  trt-sam segment photo.jpg --checkpoint sam_vit_b.pth --onnx decoder.onnx --box 80,40,600,420 --point 90,50,0 --output mask.png
  trt-sam segment photo.jpg --embedding embeddings/photo.npz --onnx decoder.onnx --point 420,300 --output mask.png

Without --onnx the decoder runs in PyTorch, with it the graph runs in ONNX Runtime. With --embedding and --onnx neither a
checkpoint nor torch is needed. The mask holds 0 and 255, at the image's size: of three, the one with the best predicted IoU.
The embedded stand-in has only learned synthetic scenes: its masks of photographs say nothing about SAM's.
"""

from __future__ import annotations

import argparse
import io
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path
from trt_sam._lazy import require
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, write_json
from trt_sam.errors import InputError
from trt_sam.imaging.embeddings import load_embedding
from trt_sam.imaging.overlay import Box, Click, draw_overlay
from trt_sam.imaging.photos import read_image
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.predictor import Predictor

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

HELP = "clicks and a box on an image to a mask"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `segment`."""
    parser.add_argument("image", metavar="IMAGE", type=Path)
    add_checkpoint_argument(parser)
    parser.add_argument("--onnx", metavar="F.onnx", type=Path, help="run this exported decoder instead of PyTorch")
    parser.add_argument("--embedding", metavar="F.npz", type=Path, help="the image's embedding file, instead of the encoder")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,0|1]", help="a click in image pixels: 1 on it (default), 0 off it"
    )
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="a box in image pixels")
    parser.add_argument("--output", required=True, metavar="MASK.png", type=Path, help="the mask: 8 bits, 0 or 255")
    parser.add_argument("--overlay", metavar="F", type=Path, help="also draw mask and prompt over the image (.png or .jpg)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Segment one image; 0 when every file was written."""
    clicks = [_parse_click(text) for text in args.point]
    box = None if args.box is None else _parse_box(args.box)
    if not clicks and box is None:
        raise InputError("no prompt: give --point X,Y or --box X0,Y0,X1,Y1")
    _check_outputs(args)
    if args.checkpoint is None and (args.onnx is None or args.embedding is None):
        raise InputError(
            "no checkpoint: give --checkpoint standin, a .pth, a Hugging Face folder or id; or --onnx and --embedding"
        )
    image = read_image(args.image)
    _check_inside(clicks, box, height=image.shape[0], width=image.shape[1])
    runner, checkpoint, executed = _open_runner(args)
    with runner:
        predictor = Predictor(runner, checkpoint.image_encoder() if checkpoint and args.embedding is None else None)
        if args.embedding is None:
            predictor.set_image(image)
        else:
            predictor.set_image_embedding(*_read_embedding(args.embedding, image))
        masks, iou, _ = predictor.predict(
            np.array([c[:2] for c in clicks]) if clicks else None,
            np.array([c[2] for c in clicks]) if clicks else None,
            None if box is None else np.array(box),
        )
    best = int(iou.argmax())
    _write(args, image, masks[best], clicks, box, _report(args, masks, iou, best, clicks, box, executed))
    if args.json != "-":
        print(f"{args.output}: {masks[best].mean():.1%} of the image, predicted IoU {iou[best]:.2f}; decoder in {executed}")
    return 0


def _parse_click(text: str) -> Click:
    fields = text.split(",")
    if len(fields) not in (2, 3):
        raise InputError(f"--point is {text!r}, must be X,Y or X,Y,LABEL: two numbers in image pixels, then 1 or 0")
    x, y = (_number(field, "--point", text) for field in fields[:2])
    label = fields[2].strip() if len(fields) == 3 else "1"
    if label not in ("0", "1"):
        raise InputError(f"--point {text}: the label is {label!r}, must be 1 (on the object) or 0 (off it)")
    return x, y, int(label)


def _parse_box(text: str) -> Box:
    fields = text.split(",")
    if len(fields) != 4:
        raise InputError(f"--box is {text!r}, must be X0,Y0,X1,Y1: four numbers in image pixels")
    x0, y0, x1, y1 = (_number(field, "--box", text) for field in fields)
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"--box {text} is empty: X1 must be above X0, and Y1 above Y0")
    return x0, y0, x1, y1


def _number(field: str, flag: str, text: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise InputError(f"{flag} is {text!r}: {field.strip()!r} is not a number; give image pixels") from None
    if not math.isfinite(value):
        raise InputError(f"{flag} is {text!r}: {field.strip()} is not finite; give image pixels")
    return value


def _check_inside(clicks: list[Click], box: Box | None, *, height: int, width: int) -> None:
    for x, y, _ in clicks:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"--point {x:g},{y:g} is outside the image of {width}x{height}: 0 <= X < {width}, 0 <= Y < {height}"
            )
    if box is not None and (min(box) < 0 or box[2] > width or box[3] > height):
        shown = ",".join(f"{value:g}" for value in box)
        raise InputError(f"--box {shown} is outside the image of {width}x{height}: X from 0 to {width}, Y from 0 to {height}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Every fault of the outputs that can be seen before anything is computed."""
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output is {args.output}, must end in .png: a mask has to be stored without loss")
    if args.overlay is not None and args.overlay.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"--overlay is {args.overlay}, must end in .png or .jpg")
    named = {"IMAGE": args.image, "--output": args.output, "--overlay": args.overlay}
    named |= {"--json": Path(args.json) if args.json not in (None, "-") else None}
    seen: dict[Path, str] = {}
    for name, path in named.items():
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise InputError(f"{name} and {other} are both {path}; name another file")


def _open_runner(args: argparse.Namespace) -> tuple[Runner, Checkpoint | None, str]:
    """The decoder, the checkpoint where one is needed, and words for what executes."""
    checkpoint = None
    if args.checkpoint is not None:
        require("torch", "to read a checkpoint")
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(args.checkpoint)
    if args.onnx is None:
        from trt_sam.runtime.torch_runner import TorchRunner

        assert checkpoint is not None
        return TorchRunner(checkpoint.decoder), checkpoint, "PyTorch (float32, CPU)"
    from trt_sam.runtime.onnx_runner import OnnxRunner

    runner = OnnxRunner(args.onnx)
    if checkpoint is not None and runner.checkpoint_sha256 not in ("", checkpoint.sha256):
        runner.close()
        raise InputError(f"{args.onnx} was exported from another checkpoint than {args.checkpoint}; export it from this one")
    return runner, checkpoint, f"ONNX Runtime ({runner.options.precision} graph, CPU)"


def _read_embedding(path: Path, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    size = (image.shape[0], image.shape[1])
    # A bare array does not know its photo: it is taken to be of this one.
    embedding = load_embedding(path, original_size=None if path.suffix == ".npz" else size)
    if embedding.original_size != size:
        height, width = embedding.original_size
        raise InputError(
            f"{path} is the embedding of an image of {width}x{height}, this one is {size[1]}x{size[0]}; embed it again"
        )
    return embedding.image_embeddings, size


def _report(
    args: argparse.Namespace,
    masks: npt.NDArray[np.bool_],
    iou: npt.NDArray[np.float32],
    best: int,
    clicks: list[Click],
    box: Box | None,
    executed: str,
) -> dict[str, Any]:
    return {
        "image": str(args.image),
        "original_size": list(masks.shape[1:]),
        "checkpoint": args.checkpoint,
        "onnx": None if args.onnx is None else str(args.onnx),
        "embedding": None if args.embedding is None else str(args.embedding),
        "executed": executed,
        "points": [list(click) for click in clicks],
        "box": None if box is None else list(box),
        "iou_predictions": [round(float(value), 6) for value in iou],
        "mask": best,
        "area": int(masks[best].sum()),
        "output": str(args.output),
        "overlay": None if args.overlay is None else str(args.overlay),
    }


def _write(
    args: argparse.Namespace,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
    clicks: list[Click],
    box: Box | None,
    report: dict[str, Any],
) -> None:
    """Write mask, overlay and report: all of them, or on failure none."""
    pictures = {args.output: mask.astype(np.uint8) * np.uint8(255)}
    if args.overlay is not None:
        pictures[args.overlay] = draw_overlay(image, mask, clicks, box)
    with ExitStack() as stack:
        for path, picture in pictures.items():
            stack.enter_context(atomic_path(path)).write_bytes(_encoded(picture, path.suffix.lower()))
        if args.json:
            write_json(args.json, report)


def _encoded(picture: npt.NDArray[np.uint8], suffix: str) -> bytes:
    image_module = require("PIL.Image", "to write images")
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"format": "PNG"} if suffix == ".png" else {"format": "JPEG", "quality": 92, "subsampling": 0}
    image_module.fromarray(picture).save(buffer, **settings)
    return buffer.getvalue()
