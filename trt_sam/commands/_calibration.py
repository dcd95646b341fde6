"""What `calibrate` and `build` share: the flags of a calibration, and what they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.commands._options import add_random_prompts_argument, recipe_from
from trt_sam.errors import InputError
from trt_sam.recipe import CALIBRATORS, ENCODER_QUANTIZATION, TIERS, EngineRecipe

if TYPE_CHECKING:
    from calibrators.report import CalibrationReport
    from calibrators.request import CalibrationRequest

__all__ = [
    "FEW_IMAGES",
    "add_calibration_arguments",
    "add_keep_argument",
    "calibration_recipe",
    "calibration_request",
    "check_encoder_flags",
    "warn_of_coarse",
    "warn_of_few",
]

_log = logging.getLogger(__name__)

FEW_IMAGES = 16
"""Below it a warning: what so few photos hold of the world is left to luck."""


_OF_A_DECODER = (
    *("prompts", "prompts_per_image", "random_prompts", "no_floor"),
    *("mask_input", "full_resolution", "best_mask", "mask_bits"),
)


def add_calibration_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare what calibration takes: its data, and how ranges are chosen."""
    data = parser.add_mutually_exclusive_group(required=required)
    data.add_argument("--embeddings", metavar="DIR", type=Path, help="folder of trt-sam embed")
    data.add_argument("--photos", metavar="DIR", type=Path, help="folder of images, embedded on the way")
    parser.add_argument("--prompts", metavar="FILE.json", type=Path, help="your own prompts, or COCO annotations")
    parser.add_argument("--prompts-per-image", metavar="N", type=int, help="drawn prompts of each image (default 16)")
    parser.add_argument("--seed", metavar="N", type=int, help="of drawn prompts (default 0)")
    add_random_prompts_argument(parser)
    parser.add_argument("--calibrator", choices=CALIBRATORS, help="how ranges are chosen (default: auto; max for fp8)")
    parser.add_argument(
        "--no-floor", action="store_true", help="let entropy clip wherever it says, and not only where masks do not move"
    )
    parser.add_argument(
        "--tiers", metavar="LIST", help=f"products to quantize, of {','.join(TIERS)} (default A: the image side)"
    )


def add_keep_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--keep-fp16`."""
    parser.add_argument(
        "--keep-fp16", metavar="LIST", help='groups of products that stay float16, as "block0.image,upscale1" (default: none)'
    )


def check_encoder_flags(args: argparse.Namespace) -> None:
    """Raise InputError where a flag of a decoder's calibration is given for an image encoder's."""
    if args.embeddings is not None:
        raise InputError(
            f"--embeddings {args.embeddings} is what an image encoder made, and cannot calibrate it; give --photos DIR"
        )
    for name in _OF_A_DECODER:
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} is of a decoder's calibration; with --encoder leave it out")
    if args.precision not in (None, "int8"):
        raise InputError(f"--precision is {args.precision}, an image encoder is calibrated for int8; leave it out")
    if args.calibrator == "auto":
        raise InputError("--calibrator auto chooses for a decoder; with --encoder give max, entropy, percentile or mse")


def calibration_recipe(args: argparse.Namespace, *, encoder: bool = False) -> EngineRecipe:
    """The recipe that the flags describe, its precision int8 or fp8: int8 where neither a flag nor the recipe says which.

    Without a recipe, `encoder` takes the defaults of an image encoder's calibration.

    Raises:
        RecipeError: an impossible value.
        InputError: another precision was asked for.
    """
    recipe = recipe_from(args, precision="int8", target="gpu")
    if recipe.graph.precision not in ("int8", "fp8"):
        if args.precision is not None:
            raise InputError(f"--precision is {args.precision}, calibrate writes int8 or fp8; export writes {args.precision}")
        recipe = dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, precision="int8"))
    changes: dict[str, Any] = {
        name: value for name in ("calibrator", "prompts_per_image", "seed") if (value := getattr(args, name)) is not None
    }
    if args.tiers is not None:
        changes["tiers"] = tuple(part.strip() for part in args.tiers.split(","))
    if args.no_floor:
        changes["floor"] = False
    if getattr(args, "keep_fp16", None) is not None:
        changes["keep_fp16"] = tuple(part.strip() for part in args.keep_fp16.split(","))
    if recipe.graph.precision == "fp8" and args.recipe is None:
        # FP8 has finer steps for small values, so clipping large ones gains nothing.
        changes.setdefault("calibrator", "max")
    base = ENCODER_QUANTIZATION if encoder and args.recipe is None else recipe.quantization
    return dataclasses.replace(recipe, quantization=dataclasses.replace(base, **changes))


def calibration_request(args: argparse.Namespace, recipe: EngineRecipe, *, cache: Path | None = None) -> CalibrationRequest:
    """The data that the flags of `add_calibration_arguments` name, with prompts as `recipe` wants them.

    Args:
        args: with those flags, one of `photos` and `embeddings` given.
        recipe: as `calibration_recipe` gives it.
        cache: keeps the embeddings of photos.
    """
    from calibrators.feeds import FeedOptions
    from calibrators.request import CalibrationRequest

    options = FeedOptions(
        prompts_per_image=recipe.quantization.prompts_per_image,
        seed=recipe.quantization.seed,
        mask_input=recipe.graph.mask_input,
    )
    are_photos = args.photos is not None
    return CalibrationRequest(
        args.photos if are_photos else args.embeddings, are_photos, options, args.prompts, cache, args.random_prompts
    )


def warn_of_few(images: int) -> None:
    """Warn of too few images."""
    if images < FEW_IMAGES:
        _log.warning("calibrating on few images: %d, give %d or more", images, FEW_IMAGES)


def warn_of_coarse(report: CalibrationReport) -> None:
    """Warn of each tensor that far values leave too few steps."""
    for line in report.coarse:
        _log.warning("%s", line)
