"""The image encoder from PyTorch to ONNX: a photo's bytes in, its embedding out, finished only when it matches PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_sam._files import atomic_path
from trt_sam._lazy import require
from trt_sam._version import __version__
from trt_sam.contract import FRAME_SIZE, encoder_input_specs, encoder_output_specs
from trt_sam.errors import ExportError
from trt_sam.graph.float16 import Float16Emulation
from trt_sam.graph.metadata import encoder_entry
from trt_sam.graph.tracing import COMPARING, TRACING, name_nodes, trace
from trt_sam.model.encoders import TinyViT, Vit
from trt_sam.model.encoders.tiny_vit_graph import graph_form, to_half
from trt_sam.model.encoders.vit_graph import VitGraph
from trt_sam.model.image_encoder import PIXEL_MEAN, PIXEL_STD, ImageEncoder
from trt_sam.progress import Progress, silent
from trt_sam.recipe import EXPORT_PRECISIONS

__all__ = ["ENCODER_TOLERANCE", "EncoderGraph", "EncoderReport", "compare_with_pytorch", "export_encoder", "sample_pictures"]

Array = np.ndarray[Any, Any]

_LARGEST = 2_000_000_000
"""Bytes of weights in one file: a protobuf ends at 2^31."""

ENCODER_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-1}
"""Largest |difference| of an embedding allowed on the sample pictures, relative to the largest |value|."""


@dataclass(frozen=True)
class EncoderReport:
    """What was written."""

    path: str
    precision: str
    error: float
    """Largest |difference| on the sample pictures, relative to the largest |value|: of the graph in ONNX Runtime, or, for
    float16, in the emulation that rounds every float16 tensor."""
    largest: float
    """Largest |x| of a float16 tensor on the sample pictures (65504 is float16's limit); 0 in a float32 graph."""


def export_encoder(
    encoder: ImageEncoder,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    target: str = "gpu",
    checkpoint_sha256: str = "",
    samples: list[tuple[Array, Array]] | None = None,
    progress: Progress = silent,
) -> EncoderReport:
    """Write an image encoder as an ONNX graph with the contract's tensors (`contract.encoder_input_specs`).

    Normalising and padding to the mean colour are in the graph. A float16 graph keeps in float32: normalising, LayerNorm's
    statistics and the softmax. The file appears only when the graph agrees with PyTorch.

    Args:
        encoder: of a checkpoint.
        path: the file.
        precision: "fp32" or "fp16".
        target: "gpu" or "cpu", as `GraphOptions.target`.
        checkpoint_sha256: of the decoder that belongs to it.
        samples: (image, image_size) pairs to compare on, as `imaging.frame.to_frame` gives them; None for `sample_pictures`.
        progress: told what is done.

    Raises:
        ExportError: the graph does not match PyTorch, float16 overflows, or the encoder has no graph form.
        InputError: `path` cannot be written.
    """
    if precision not in EXPORT_PRECISIONS:
        raise ExportError(f"an encoder's precision is {precision!r}, must be {' or '.join(EXPORT_PRECISIONS)}")
    pictures = sample_pictures() if samples is None else samples
    with atomic_path(path) as temporary:
        progress(0.0, TRACING)
        model = _trace(EncoderGraph(_form(encoder, precision, target)).eval(), pictures[0])
        name_nodes(model)
        _declare(model, precision, checkpoint_sha256, encoder.sha256)
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        progress(0.5, COMPARING)
        assert isinstance(encoder.model, nn.Module)
        error, largest = compare_with_pytorch(EncoderGraph(encoder.model), model, precision, pictures)
    return EncoderReport(str(path), precision, error, largest)


def _form(encoder: ImageEncoder, precision: str, target: str) -> nn.Module:
    """The encoder in graph form, with weights of its own; raises ExportError where it has none, or is too large."""
    model, half = encoder.model, precision == "fp16"
    if not isinstance(model, TinyViT | Vit):
        raise ExportError(f"the image encoder {encoder.kind} has no graph form, only MobileSAM's and SAM's ViTs have")
    size = sum(parameter.numel() for parameter in model.parameters()) * (2 if half else 4)
    if size > _LARGEST:
        raise ExportError(
            f"the {precision} graph of the image encoder {encoder.kind} would have {size / 1e9:.1f} GB of weights, and an ONNX "
            "file holds 2 GB; export it in fp16"
        )
    if isinstance(model, Vit):
        return VitGraph(model, half=half, fused=target == "gpu")
    form = graph_form(model, fused=target == "gpu")
    return to_half(form) if half else form


class EncoderGraph(nn.Module):
    """The module that is traced: normalising, padding, and an encoder in float32 or float16."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = next(encoder.parameters()).dtype
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN))
        self.register_buffer("std", torch.tensor(PIXEL_STD))

    def forward(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Embed a picture in the frame.

        Args:
            image: uint8 [1, 1024, 1024, 3].
            image_size: int32 [2].

        Returns:
            [1, 256, 64, 64], float32 whatever the encoder's type: what the decoder takes, on the GPU without a copy between.
        """
        places = torch.arange(FRAME_SIZE, dtype=torch.int32)
        inside = (places < image_size[0])[:, None] & (places < image_size[1])
        # Channels first, and a product with the mask: three channels innermost, and Where, are slow in ONNX Runtime.
        pixels = (image.float().permute(0, 3, 1, 2) - self.mean[:, None, None]) / self.std[:, None, None]
        embedding: Tensor = self.encoder((pixels * inside.float()).to(self.dtype))
        return embedding.float()


def sample_pictures() -> list[tuple[Array, Array]]:
    """Two seeded pictures with edges, slopes and noise, one lying and one standing, as (image, image_size)."""
    rng = np.random.default_rng(0)
    pictures = []
    for size in ((683, 1024), (1024, 500)):
        image = np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        picture = np.zeros((*size, 3), np.float32)
        for cell in (256, 64, 16, 1):
            coarse = rng.uniform(0, 255, (-(-size[0] // cell), -(-size[1] // cell), 3)).astype(np.float32)
            picture += np.repeat(np.repeat(coarse, cell, axis=0), cell, axis=1)[: size[0], : size[1]]
        image[0, : size[0], : size[1]] = picture / 4
        pictures.append((image, np.array(size, np.int32)))
    return pictures


def _trace(graph: EncoderGraph, picture: tuple[Array, Array]) -> onnx.ModelProto:
    inputs, outputs = encoder_input_specs(), encoder_output_specs()
    arguments = tuple(map(torch.from_numpy, picture))
    return trace(graph, arguments, [spec.name for spec in inputs], [spec.name for spec in outputs])


def _declare(model: onnx.ModelProto, precision: str, checkpoint_sha256: str, encoder_sha256: str) -> None:
    model.producer_name, model.producer_version = "trt_sam", __version__
    metadata = {
        "trt_sam.version": __version__,
        "trt_sam.role": "encode",
        **encoder_entry(precision),
        "trt_sam.encoder_sha256": encoder_sha256,
        "trt_sam.checkpoint_sha256": checkpoint_sha256,
    }
    onnx.helper.set_model_props(model, metadata)


def compare_with_pytorch(
    reference: EncoderGraph, model: onnx.ModelProto, precision: str, pictures: list[tuple[Array, Array]]
) -> tuple[float, float]:
    """(largest relative error, largest |x| of a float16 tensor); raises ExportError where the graph is not the encoder."""
    emulation = Float16Emulation(model) if precision == "fp16" else None
    if emulation is None:
        ort = require("onnxruntime", "to check the exported graph")
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    errors = []
    for image, size in pictures:
        with torch.inference_mode():
            expected = reference(torch.from_numpy(image), torch.from_numpy(size)).numpy()
        feed = {"image": image, "image_size": size}
        found = session.run(None, feed)[0] if emulation is None else emulation.run(feed)["image_embeddings"]
        errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    largest = 0.0 if emulation is None else float(np.max(list(emulation.largest.values())))
    error, tolerance = float(np.max(errors)), ENCODER_TOLERANCE[precision]
    if not error <= tolerance:
        overflow = f"; the largest |x| of a float16 tensor is {largest:.3g}, its limit 65504" if emulation is not None else ""
        raise ExportError(
            f"the {precision} graph of the image encoder does not match PyTorch: relative error {error:.2g}, allowed "
            f"{tolerance:g}{overflow}; nothing was written"
        )
    return error, largest
