"""What several subcommands share: the checkpoint, recipe and graph flags, and `--json [FILE]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from trt_sam._cache import CACHE_VARIABLE
from trt_sam._files import existing_file, write_atomically
from trt_sam.download import check_source
from trt_sam.errors import InputError
from trt_sam.imaging.embeddings import embedding_files
from trt_sam.imaging.photos import list_images
from trt_sam.recipe import PRECISIONS, TARGETS, EngineRecipe, GraphOptions
from trt_sam.recipe_toml import load_recipe

if TYPE_CHECKING:
    from trt_sam.feeds.realistic import Decode
    from trt_sam.model.checkpoint import Checkpoint

__all__ = [
    "CHECKPOINT_HELP",
    "add_cache_argument",
    "add_capability_argument",
    "add_checkpoint_argument",
    "add_graph_arguments",
    "add_json_argument",
    "add_random_prompts_argument",
    "capabilities_from",
    "check_images_given",
    "checkpoint_of",
    "decoder_for_prompts",
    "gpu_number",
    "recipe_from",
    "write_json",
]


def add_graph_arguments(parser: argparse.ArgumentParser, *, target: bool) -> None:
    """Add `--recipe` and the flags that override it."""
    parser.add_argument("--recipe", metavar="NAME|PATH", help="a recipe of the catalogue or a .toml file; flags override it")
    parser.add_argument("--precision", choices=PRECISIONS, help="type of weights and activations")
    if target:
        parser.add_argument("--target", choices=TARGETS, help="graph form (default: cpu for fp32, gpu for fp16)")
    parser.add_argument("--mask-input", action="store_true", default=None, help="take mask_input and has_mask_input")
    parser.add_argument("--full-resolution", action="store_true", default=None, help="also give masks at orig_im_size")
    parser.add_argument("--best-mask", action="store_true", default=None, help="give only the mask SAM's rule selects")
    parser.add_argument("--mask-bits", action="store_true", default=None, help="also give thresholded masks, 8 pixels a byte")


CHECKPOINT_HELP = "mobile_sam or another name of `trt-sam download --list`, standin, a .pth, a Hugging Face folder or id"


def add_checkpoint_argument(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Add `--checkpoint`, and `--cache` for what a name downloads."""
    parser.add_argument("--checkpoint", required=required, metavar="C", type=check_source, help=CHECKPOINT_HELP)
    add_cache_argument(parser)


def add_cache_argument(parser: argparse._ActionsContainer) -> None:
    """Add `--cache`, which `cli.main` puts into effect for the whole command."""
    parser.add_argument(
        "--cache", metavar="DIR", help=f"where downloads are kept (default: {CACHE_VARIABLE}, else the user's cache folder)"
    )


def add_random_prompts_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--random-prompts`."""
    parser.add_argument(
        "--random-prompts",
        action="store_true",
        help="draw clicks and boxes anywhere (default: clicks anywhere, the rest on what FP32 segments at a click)",
    )


def decoder_for_prompts(args: argparse.Namespace, checkpoint: Checkpoint) -> Decode | None:
    """The float32 decoder on whose masks prompts are drawn; None with `--random-prompts`."""
    if args.random_prompts:
        return None
    from trt_sam.runtime.torch_runner import TorchRunner

    return TorchRunner(checkpoint.decoder).run


def check_images_given(args: argparse.Namespace) -> None:
    """Raise InputError where the photos, embeddings or prompts of the flags are not there, before anything is loaded."""
    if (prompts := getattr(args, "prompts", None)) is not None:
        existing_file(prompts, "prompt file")
    if args.photos is not None:
        list_images([args.photos])
    elif args.embeddings is not None:
        embedding_files(args.embeddings)


def recipe_from(args: argparse.Namespace, *, precision: str, target: str | None = None) -> EngineRecipe:
    """The recipe that the flags of `add_graph_arguments` describe.

    Without a recipe, `precision` is the default and the target follows it (cpu for fp32, gpu for fp16) unless `target`
    is given.
    """
    recipe = load_recipe(args.recipe) if args.recipe else None
    flags = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(GraphOptions)}
    chosen = {name: value for name, value in flags.items() if value is not None}
    if target is not None:
        chosen["target"] = target
    if recipe is None:
        chosen.setdefault("precision", precision)
        chosen.setdefault("target", "cpu" if chosen["precision"] == "fp32" else "gpu")
        return EngineRecipe(graph=GraphOptions(**chosen))
    return dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, **chosen))


def checkpoint_of(args: argparse.Namespace, recipe: EngineRecipe) -> str:
    """The checkpoint that `--checkpoint` or the recipe names; raises InputError where neither does."""
    source = args.checkpoint or recipe.checkpoint
    if not source:
        raise InputError("no checkpoint: give --checkpoint mobile_sam, standin, a .pth, a Hugging Face folder or id")
    return check_source(str(source))


def add_capability_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--compute-capability`."""
    parser.add_argument(
        "--compute-capability", metavar="LIST", help='GPUs to build for, as "8.9,12.0" (RTX; default: all it supports from 8.0)'
    )


def capabilities_from(text: str) -> tuple[str, ...]:
    """Split "8.9,12.0"; the recipe checks each."""
    return tuple(part.strip() for part in text.split(","))


def gpu_number(device: str) -> int:
    """The N of "cuda:N"; raises InputError for anything else."""
    kind, colon, number = device.partition(":")
    if kind != "cuda" or not colon or not number.isdecimal():
        raise InputError(f"--device is {device!r}, must be cuda:N with N from 0")
    return int(number)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json [FILE]`: without FILE the report goes to stdout."""
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the report as JSON (no FILE: to stdout)")


def write_json(destination: str, report: dict[str, Any]) -> None:
    """Write `report` to a file, or to stdout for "-"."""
    text = json.dumps(report, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
    else:
        write_atomically(destination, text)
