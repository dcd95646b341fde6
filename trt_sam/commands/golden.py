"""Write golden data: prompts on your photos and what PyTorch answers to them in float64, to judge a graph or engine anywhere.

Example:
  trt-sam golden --checkpoint mobile_sam --photos photos/ --output golden.npz
  trt-sam golden --checkpoint standin --embeddings embeddings/ --prompts 64 --every 16 --half --output small.npz
  trt-sam compare --golden golden.npz engines/built/mobile_sam

The file holds embeddings, prompts, masks, scores and logits, with hashes, and no weights: compare needs neither PyTorch nor
the checkpoint. Answers are computed in float64 and stored in float32. A file for 256 prompts has 1 GiB of logits; --every 16
keeps those of every 16th row and column beside all masks, and --half the embeddings in float16 (the answers are then those to
the rounded ones).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_sam._files import sha256_of
from trt_sam._lazy import require
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, write_json
from trt_sam.commands._outputs import check_output_file, check_output_folder
from trt_sam.errors import InputError
from trt_sam.progress import Stages

if TYPE_CHECKING:
    from trt_sam.accuracy.examples import Example, PromptedImage
    from trt_sam.gate.fitting import Asked

HELP = "prompts and PyTorch's answers in float64, to judge graphs and engines by"

_STEPS = (1, 2, 4, 8, 16, 32, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `golden`."""
    add_checkpoint_argument(parser, required=True)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--photos", metavar="P", type=Path, nargs="+", help="images, or folders of them")
    data.add_argument("--embeddings", metavar="DIR", type=Path, help="folder of trt-sam embed")
    parser.add_argument("--output", required=True, metavar="F.npz", type=Path, help="the file to write")
    parser.add_argument("--prompts", metavar="N", type=int, default=256, help="on all images together (default: %(default)s)")
    parser.add_argument(
        "--every", metavar="N", type=int, choices=_STEPS, default=1, help="keep logits of every Nth row and column"
    )
    parser.add_argument("--half", action="store_true", help="round the embeddings to float16 first, for half the size")
    parser.add_argument("--polygraphy", metavar="DIR", type=Path, help="also write inputs.json and outputs.json for Polygraphy")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the prompts (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file; 0 when it is there."""
    if args.output.suffix != ".npz":
        raise InputError(f"--output is {args.output}, must end in .npz")
    check_output_file(args.output)
    check_output_file(args.json)
    if args.output.exists() and not args.force:
        raise InputError(f"{args.output} exists; give --force to replace it, or another --output")
    if args.polygraphy is not None:
        check_output_folder(args.polygraphy)
        require("polygraphy", "to write its files")
        if args.every != 1:
            raise InputError("--polygraphy needs every logit; leave --every out")
    if args.prompts < 1:
        raise InputError(f"--prompts is {args.prompts}, must be at least 1")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}, must be at least 0")
    photos = _photos(args)
    for package in ("torch", "PIL"):
        require(package, "to write golden data")
    from trt_sam.gate.golden import save_golden
    from trt_sam.gate.questions import of_embeddings, of_photos
    from trt_sam.gate.reference import make_golden
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.runtime.torch_runner import TorchRunner

    with Stages({"load": 1, "answers": 5}) as stages:
        stages.begin("load", f"loading {args.checkpoint}")
        checkpoint = load_checkpoint(args.checkpoint)
        decode = TorchRunner(checkpoint.decoder).run
        if args.photos is not None:
            embed = checkpoint.image_encoder().embed
            questions = of_photos(photos, embed, args.prompts, decode, seed=args.seed, earlier_masks=False)
        else:
            questions = of_embeddings(
                args.embeddings,
                (),
                args.prompts,
                decode,
                seed=args.seed,
                earlier_masks=False,
                encoder_sha256=checkpoint.encoder_sha256,
            )
        telling = stages.begin("answers", f"answering {args.prompts} prompts in float64")

        def tell(done: int) -> None:
            telling(min(1.0, done / args.prompts), f"{done} prompts")

        examples = _examples(questions.examples, half=args.half)
        golden = make_golden(checkpoint, args.checkpoint, examples, step=args.every, progress=tell)
    save_golden(args.output, golden, half=args.half)
    if args.polygraphy is not None:
        from trt_sam.polygraphy.exchange import write_polygraphy

        write_polygraphy(golden, args.polygraphy / "inputs.json", args.polygraphy / "outputs.json")
    size = args.output.stat().st_size
    report = {
        "output": str(args.output),
        "sha256": sha256_of(args.output),
        "bytes": size,
        "checkpoint": args.checkpoint,
        "checkpoint_sha256": golden.checkpoint_sha256,
        "images": [image.name for image in golden.images],
        "prompts": golden.prompts,
        "every": args.every,
    }
    if args.json:
        write_json(args.json, report)
    if args.json != "-":
        print(f"{args.output}: {golden.prompts} prompts on {len(golden.images)} images, {size / 1e6:.1f} MB")
    return 0


def _photos(args: argparse.Namespace) -> list[Path]:
    """The photos; raises InputError for folders that hold nothing, before a checkpoint is loaded."""
    from trt_sam.imaging.embeddings import embedding_files
    from trt_sam.imaging.photos import list_images

    if args.embeddings is not None:
        embedding_files(args.embeddings)
    return [] if args.photos is None else list_images(args.photos)


def _examples(asked: Iterable[Asked], *, half: bool) -> Iterator[Example]:
    """The examples; with `half` on embeddings that float16 holds exactly, one object for all examples of an image."""
    before: PromptedImage | None = None
    rounded: PromptedImage | None = None
    for example, _ in asked:
        if not half:
            yield example
            continue
        if rounded is None or example.image is not before:
            before, rounded = example.image, _rounded(example.image)
        feed = {**example.feed, "image_embeddings": rounded.embedding}
        yield dataclasses.replace(example, image=rounded, feed=feed)


def _rounded(image: PromptedImage) -> PromptedImage:
    from trt_sam.gate.golden import digest_of_embedding

    with np.errstate(over="ignore"):
        embedding = image.embedding.astype(np.float16).astype(np.float32)
    if not np.isfinite(embedding).all():
        raise InputError(f"the embedding of {image.name} does not fit float16; leave --half out")
    # A graph that was calibrated with the image knows the embedding as it was.
    return dataclasses.replace(image, embedding=embedding, whole_sha256=digest_of_embedding(image.embedding))
