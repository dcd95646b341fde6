"""The commands that messages advise, with names in capitals for what cannot be known. The standard library alone.

A test parses each; what writes a set again is read off the set's manifest.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_sam.errors import RecipeError
from trt_sam.recipe import (
    PRECISIONS,
    QUANTIZED_PRECISIONS,
    TARGETS,
    EngineRecipe,
    QuantizationOptions,
)

__all__ = [
    "BUILD_SET",
    "EXPORT_DECODER",
    "EXPORT_FOR_GPU",
    "EXPORT_SET",
    "NEW_SET",
    "WRITE_GOLDEN",
    "command_of_set",
    "graph_flags",
]

EXPORT_DECODER = "trt-sam export --checkpoint CHECKPOINT --output DECODER.onnx"
EXPORT_FOR_GPU = "trt-sam export --checkpoint CHECKPOINT --precision fp16 --target gpu --output DECODER.onnx"
EXPORT_SET = "trt-sam export --checkpoint CHECKPOINT --encoder --output SET"
BUILD_SET = "trt-sam build --checkpoint CHECKPOINT --encoder --output SET"
WRITE_GOLDEN = "trt-sam golden --checkpoint CHECKPOINT --photos PHOTOS --output GOLDEN.npz"
NEW_SET = "trt-sam export --checkpoint mobile_sam --encoder --output SET"
"""For who has no set yet, so that it runs as it stands."""

_GRAPH_FLAGS = {
    "mask_input": "--mask-input",
    "full_resolution": "--full-resolution",
    "best_mask": "--best-mask",
    "mask_bits": "--mask-bits",
}
_OWN_RECIPE = ["--recipe", "RECIPE.toml"]


def command_of_set(
    folder: Path,
    manifest: Any,
    *,
    engines: bool | None = None,
    encoder: bool = False,
    precision: str | None = None,
    backend: str | None = None,
    compute_capability: str | None = None,
) -> str:
    """The command that writes the set in `folder` again.

    Args:
        folder: of the set.
        manifest: its JSON; None, or JSON that lacks something, where it is damaged.
        engines: whether the new one is to have engines; None: where the old one has some, or a `backend` is named.
        encoder: whether the new one is to have an image encoder where the old one has none.
        precision: of the new decoder, where it is to be another; of engines for a set without any it is "fp16".
        backend: "rtx" or "tensorrt", that is to build; None for the one that did, where that is known.
        compute_capability: the one GPU to build for, as "8.9"; None for those that were, if `backend` builds for these.
    """
    try:
        graphs = {graph["role"]: graph for graph in manifest["graphs"]}
        had_engines = any(graph["engine"] for graph in graphs.values())
    except (KeyError, TypeError, AttributeError):
        graphs, had_engines = {}, any(folder.glob("*.engine"))
    if encoder:
        graphs = {"encode": {}, **graphs}
    if engines is None:
        engines = had_engines or backend is not None
    if engines and not had_engines and precision is None:
        precision = "fp16"
    try:
        words = _words(graphs, manifest, engines=engines, precision=precision, backend=backend, gpu=compute_capability)
    except (KeyError, TypeError, AttributeError, ValueError, RecipeError):
        words = ["--checkpoint", "CHECKPOINT", "--encoder"]
        words += ["--precision", precision or ""] * (precision is not None)
        words += ["--compute-capability", compute_capability or ""] * (compute_capability is not None)
        words += ["--backend", backend or ""] * (backend is not None)
    return shlex.join(["trt-sam", "build" if engines else "export", *words, "--output", str(folder)])


def graph_flags(options: Mapping[str, Any]) -> list[str]:
    """The flags of `export` and `build` for what a decoder's graph takes and gives besides the usual."""
    flags = [flag for name, flag in _GRAPH_FLAGS.items() if options.get(name)]
    return flags + (["--images", str(int(options["images"]))] if options.get("images", 1) != 1 else [])


def _words(
    graphs: Mapping[str, Any], manifest: Any, *, engines: bool, precision: str | None, backend: str | None, gpu: str | None
) -> list[str]:
    """What stands between the subcommand and `--output`; raises where the manifest does not say it, or wrongly."""
    first = graphs.get("decode") or graphs["decode_mask"]
    decoder = first["options"]
    recipe, built_by = manifest["recipe"], manifest["tensorrt"]["flavour"]
    precision = _one_of(PRECISIONS, precision or decoder["precision"])
    words = ["--checkpoint", str(recipe["checkpoint"] or "CHECKPOINT")]
    if engines:
        words += _recipe_flags(recipe, precision)
    words += ["--precision", precision]
    if not engines:
        words += ["--target", _one_of(TARGETS, decoder["target"]), "--encoder"]
    elif precision in QUANTIZED_PRECISIONS and "shipped" not in (first.get("calibrated") or {}):
        words += ["--photos", "PHOTOS"]
    if engines and "encode" in graphs:
        words += _encoder_flags(graphs["encode"].get("options"), decoder)
    if engines:
        words += _gpu_flags(manifest["compute_capabilities"], built_by, backend, gpu)
    # Engines take one image a call.
    flags = graph_flags({**decoder, "images": 1} if engines else decoder)
    return [*words, *["--decode-mask"] * ({"decode", "decode_mask"} <= set(graphs)), *flags]


def _encoder_flags(encoder: Mapping[str, Any] | None, decoder: Mapping[str, Any]) -> list[str]:
    """How `build` comes to the image encoder with these options, or to the usual one."""
    if encoder is None:
        return ["--encoder"]
    # `--encoder` writes none of these; `calibrate --encoder` or `export --encoder` has.
    of_its_own = encoder["precision"] in QUANTIZED_PRECISIONS
    of_its_own |= (encoder["precision"] == "fp32") != (decoder["precision"] == "fp32")
    return ["--encoder-onnx", "ENCODER.onnx"] if of_its_own else ["--encoder"]


def _gpu_flags(built_for: Any, built_by: str, backend: str | None, gpu: str | None) -> list[str]:
    """Which TensorRT builds, and for which GPUs; TensorRT 10 and 11 build for the machine's own, and cannot be told."""
    backend = backend or {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}.get(built_by)
    wanted = [gpu] if gpu is not None else built_for if backend == "rtx" and built_by == "tensorrt_rtx" else []
    flags = ["--compute-capability", ",".join(wanted)] if wanted else []
    return flags if backend is None else [*flags, "--backend", backend]


def _recipe_flags(recorded: Mapping[str, Any], precision: str) -> list[str]:
    """`--recipe` and what changes it, as a manifest's recipe says; a recipe of one's own has to be named."""
    from trt_sam.recipe_toml import list_recipes, load_recipe, parse_recipe

    recipe = parse_recipe({**recorded, "profiles": list(recorded["profiles"])})
    if recipe.name == EngineRecipe.name:
        flags, base = [], EngineRecipe()
    elif recipe.name in list_recipes():
        flags, base = ["--recipe", recipe.name], load_recipe(recipe.name)
    else:
        return _OWN_RECIPE
    most = max(profile.num_points[2] for profile in recipe.profiles)
    if recipe.profiles != base.profiles:
        base = dataclasses.replace(base, profiles=tuple(profile.with_points(most) for profile in base.profiles))
        flags = [*flags, "--max-points", str(most)]
    if precision in QUANTIZED_PRECISIONS:
        flags = [*flags, *_calibration_flags(recipe.quantization, base.quantization)]
    # The rest has no flag, or one that is read off elsewhere.
    same = {name: getattr(recipe, name) for name in ("graph", "checkpoint", "decode_mask", "backend", "compute_capabilities")}
    if precision not in QUANTIZED_PRECISIONS:
        same["quantization"] = recipe.quantization
    else:
        names = ("calibrator", "tiers", "floor", "prompts_per_image", "seed")
        changed = {name: getattr(recipe.quantization, name) for name in names}
        same["quantization"] = dataclasses.replace(base.quantization, **changed)
    return flags if dataclasses.replace(base, **same, description=recipe.description) == recipe else _OWN_RECIPE


def _calibration_flags(wanted: QuantizationOptions, base: QuantizationOptions) -> list[str]:
    """The flags of `build` that make `wanted` of `base`."""
    flags = []
    for name in ("calibrator", "prompts_per_image", "seed"):
        if getattr(wanted, name) != getattr(base, name):
            flags += [f"--{name.replace('_', '-')}", str(getattr(wanted, name))]
    if wanted.tiers != base.tiers:
        flags += ["--tiers", ",".join(wanted.tiers)]
    return [*flags, *["--no-floor"] * (base.floor and not wanted.floor)]


def _one_of(allowed: tuple[str, ...], value: Any) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {allowed}")
    return str(value)
