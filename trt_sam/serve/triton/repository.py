"""`write_repository`: the folder that Triton is started on, from an engine set or a set of graphs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from trt_sam._files import atomic_folder
from trt_sam._version import __version__
from trt_sam.engine.manifest import ONNX_RUNTIME, FileEntry, GraphEntry, Manifest, open_manifest
from trt_sam.errors import InputError, ManifestError
from trt_sam.runtime.interface import PROMPTS_PER_PASS
from trt_sam.serve.triton.config import DECODER, ENCODER, SAM, ModelConfig, decoder_config, encoder_config, sam_config
from trt_sam.serve.triton.readme import readme

__all__ = ["BACKENDS", "CONTRACT_NAME", "MARKER", "write_repository"]

BACKENDS = ("python", "tensorrt")
MARKER = ".trt-sam-triton"
"""Lies in a repository of ours; only such a folder is ever replaced."""
CONTRACT_NAME = "contract.json"
_SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"
_MODEL = '''"""Triton looks for this class; what it does is in trt_sam, which the server's Python must have."""

from trt_sam.serve.triton.models.{module} import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    backend: str = "python",
    tensorrt_version: str | None = None,
    images: int = 64,
    force: bool = False,
) -> Manifest:
    """Write a model repository of `sam_encoder`, `sam_decoder` and `sam`, whole or not at all; gives the set's manifest.

    Args:
        folder: a set with an image encoder.
        output: the repository's folder.
        backend: "tensorrt" copies the set's engines; "python" its graphs, which ONNX Runtime runs on the CPU.
        tensorrt_version: of the Triton that will run the engines, where it is known.
        images: embeddings that `sam` keeps.
        force: replace a repository of ours that is there.

    Raises:
        ManifestError: no set, a damaged one, or engines that this Triton cannot run.
        InputError: no image encoder, only best masks, `output` is taken, or the disk is full.
    """
    manifest = open_manifest(folder)
    encoder, decoder = _checked(manifest)
    if images < 1:
        raise InputError(f"images is {images}, must be at least 1")
    plan = backend == "tensorrt"
    if plan:
        _check_engines(manifest, tensorrt_version)
    target = Path(output)
    replaces = _may_replace(target, force=force)
    configs = _configs(manifest, encoder, decoder, plan=plan, images=images)
    written = target.with_name(f".{target.name}.{secrets.token_hex(4)}") if replaces else target
    with atomic_folder(written) as stage:
        for config in configs:
            (stage / config.name / "1").mkdir(parents=True)
            (stage / config.name / "config.pbtxt").write_text(config.text())
        for name, graph, module, model in (
            (ENCODER, encoder, "encoder", "EncoderModel"),
            (DECODER, decoder, "decoder", "DecoderModel"),
        ):
            version = stage / name / "1"
            file: FileEntry = manifest.engine(graph) if plan else graph.onnx
            (version / ("model.plan" if plan else "model.onnx")).write_bytes(manifest.read(file))
            if not plan:
                (version / "model.py").write_text(_MODEL.format(module=module, name=model))
        (stage / SAM / "1" / "model.py").write_text(_MODEL.format(module="sam", name="SamModel"))
        (stage / SAM / "1" / CONTRACT_NAME).write_text(json.dumps(_contract(encoder, decoder, plan=plan), indent=2) + "\n")
        (stage / "README.md").write_text(readme(manifest, plan=plan))
        (stage / MARKER).write_text(f"{__version__}\n")
    if replaces:
        shutil.rmtree(target)
        os.replace(written, target)
    return manifest


def _checked(manifest: Manifest) -> tuple[GraphEntry, GraphEntry]:
    """The image encoder and the decoder, that takes masks where there is one."""
    graphs = {graph.role: graph for graph in manifest.graphs}
    if "encode" not in graphs:
        raise InputError(
            f"set {manifest.folder} has no image encoder, only {', '.join(graphs)}; write it again with "
            f"{manifest.command(encoder=True)}"
        )
    decoder = graphs.get("decode_mask") or manifest.graph("decode")
    if decoder.options.best_mask:
        raise InputError(f"set {manifest.folder} gives only its best mask, `sam` chooses itself: export without --best-mask")
    return graphs["encode"], decoder


def _check_engines(manifest: Manifest, tensorrt_version: str | None) -> None:
    """Raise where Triton's TensorRT backend cannot run the engines of the set."""
    again = f"build them with {manifest.command(engines=True, backend='tensorrt')}, or take --backend python"
    if manifest.flavour == ONNX_RUNTIME:
        raise ManifestError(f"set {manifest.folder} holds graphs for ONNX Runtime and no engines; {again}")
    if manifest.flavour != "tensorrt":
        raise ManifestError(
            f"set {manifest.folder} was built by TensorRT for RTX {manifest.flavour_version}, Triton has TensorRT; {again}"
        )
    if tensorrt_version is not None and not manifest.takes_version(tensorrt_version):
        raise ManifestError(
            f"set {manifest.folder} was built by TensorRT {manifest.flavour_version}, and this Triton has {tensorrt_version}: "
            f"it would refuse the plans; take the Triton with {manifest.flavour_version} ({_SUPPORT_MATRIX}), or build with "
            f"{tensorrt_version}"
        )


def _may_replace(target: Path, *, force: bool) -> bool:
    """Whether there is a repository of ours that is to be replaced; raises InputError where something may not be."""
    if not target.exists() and not target.is_symlink():
        return False
    if not target.is_dir() or (any(target.iterdir()) and not (target / MARKER).is_file()):
        raise InputError(f"{target} is there and no repository of trt-sam triton; name another --output")
    if not any(target.iterdir()):
        return False
    if not force:
        raise InputError(f"{target} is there already and was kept; --force replaces it, or name another --output")
    return True


def _configs(
    manifest: Manifest, encoder: GraphEntry, decoder: GraphEntry, *, plan: bool, images: int
) -> tuple[ModelConfig, ...]:
    dtype = encoder.outputs[0].dtype if plan else "float32"
    takes_masks = any(spec.name == "mask_input" for spec in decoder.inputs)
    return (
        encoder_config(dtype=dtype, plan=plan),
        decoder_config(decoder.inputs, decoder.outputs, plan=plan, profiles=len(manifest.recipe.profiles)),
        sam_config(takes_masks=takes_masks, on_gpu=plan, images=images),
    )


def _contract(encoder: GraphEntry, decoder: GraphEntry, *, plan: bool) -> dict[str, Any]:
    """What `sam` must know of the decoder."""
    limits = {name: list(bounds) for name, bounds in decoder.limits.items()} if plan else {}
    return {
        "trt_sam": __version__,
        "checkpoint_sha256": decoder.checkpoint_sha256,
        "embedding_dtype": encoder.outputs[0].dtype if plan else "float32",
        "inputs": [[spec.name, spec.dtype, list(spec.dims)] for spec in decoder.inputs],
        "outputs": [[spec.name, spec.dtype, list(spec.dims)] for spec in decoder.outputs],
        "limits": limits,
        "most_prompts": limits.get("num_prompts", [1, PROMPTS_PER_PASS])[1],
        "on_gpu": plan,
    }
