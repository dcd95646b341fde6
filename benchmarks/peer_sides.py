"""The peers' sides for `benchmarks/peers.py`; each is opened in a worker process (`trt_sam.bench.worker`)."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import trt_sam
from trt_sam.bench.feed import make_feed
from trt_sam.contract import LABEL_NOT_A_POINT, output_specs
from trt_sam.engine.graph_set import decoder_writers, write_graph_set
from trt_sam.model import SamDecoder
from trt_sam.model.checkpoint import DATA_FOLDER, Checkpoint, load_checkpoint
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.runtime.session import disabled_optimizers, session_options
from trt_sam.runtime.set_graphs import graphs_of_set

Array = npt.NDArray[Any]
Outputs = tuple[Array, Array]

OPSET = 17
"""The default of Meta's export script."""


class MetaGraph(nn.Module):
    """The arithmetic of Meta's ONNX export (`SamOnnxModel`), but for the last step, which enlarges masks to the photo's size.

    Points are embedded by one comparison per label, the mask branch is always computed and chosen by `has_mask_input`, the
    image is repeated for every prompt, and all four masks are given. There is no absent label.
    """

    def __init__(self, decoder: SamDecoder, *, mask_branch: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.mask_branch = mask_branch

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of one image; `mask_input` [1, 1, 256, 256] and `has_mask_input` [1] count for all prompts."""
        encoder = self.decoder.prompt_encoder
        encoded = encoder.pe_layer.encode((point_coords + 0.5) / encoder.frame_size)
        labels = point_labels.unsqueeze(-1).expand_as(encoded)
        sparse = encoded * (labels != LABEL_NOT_A_POINT)
        sparse = sparse + encoder.not_a_point_embed.weight * (labels == LABEL_NOT_A_POINT)
        for label, table in enumerate(encoder.point_embeddings):
            sparse = sparse + table.weight * (labels == label)
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if self.mask_branch:
            dense = has_mask_input * encoder.mask_downscaling(mask_input) + (1 - has_mask_input) * dense
        image = image_embeddings.expand(sparse.shape[0], -1, -1, -1) + dense
        image = image.flatten(2).transpose(1, 2)
        kind = self.decoder.mask_decoder.mask_tokens.weight.dtype  # float16 where it is to be
        pe = self.decoder.image_pe.to(kind)
        masks, iou = self.decoder.mask_decoder.predict_masks(image.to(kind), pe, sparse.to(kind), grid=self.decoder.grid)
        return masks, iou.float()


def export_meta(decoder: SamDecoder, path: str | os.PathLike[str], *, mask_branch: bool) -> None:
    """Write Meta's graph, with the number of prompts dynamic as well (in Meta's own it is 1)."""
    names = ["image_embeddings", "point_coords", "point_labels"]
    feed = make_feed(3)
    tensors = [torch.from_numpy(feed[name]) for name in names]
    axes = {"point_coords": {0: "num_prompts", 1: "num_points"}, "point_labels": {0: "num_prompts", 1: "num_points"}}
    if mask_branch:
        names += ["mask_input", "has_mask_input"]
        tensors += [torch.zeros(1, 1, 256, 256), torch.zeros(1)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            MetaGraph(decoder, mask_branch=mask_branch).eval(),
            tuple(tensors),
            os.fspath(path),
            # Meta's script uses this exporter, whose constant folding is part of what its users get.
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=names,
            output_names=["low_res_masks", "iou_predictions"],
            dynamic_axes=axes | {"low_res_masks": {0: "num_prompts"}, "iou_predictions": {0: "num_prompts"}},
        )


def export_meta_as_ours(path: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write Meta's graph of the stand-in, without mask branch, under the contract's tensors: `trt-sam build` takes it.

    With `half` all after the position encoding is float16, as its users build it; for timing, its masks are not judged.
    """
    checkpoint = load_checkpoint("standin")
    if half:
        checkpoint.decoder.mask_decoder.half()
    export_meta(checkpoint.decoder, path, mask_branch=False)
    model = onnx.load(path)
    del model.graph.output[:]
    for spec in output_specs(dtype="float16" if half else "float32"):
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        model.graph.output.append(onnx.helper.make_tensor_value_info(spec.name, element, list(spec.dims)))
    options = GraphOptions(precision="fp16" if half else "fp32", target="gpu")
    metadata = {
        "trt_sam.version": trt_sam.__version__,
        "trt_sam.options": json.dumps(dataclasses.asdict(options)),
        "trt_sam.checkpoint_sha256": checkpoint.sha256,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_set(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Write our decoder for a CPU as a set of graphs, in one graph and in two; gives the files by role."""
    recipe = EngineRecipe(graph=GraphOptions(precision="fp32", target="cpu"))
    write_graph_set(decoder_writers(checkpoint.decoder, recipe.graph, checkpoint.sha256), recipe, folder)
    return graphs_of_set(folder)


class MetaSide:
    """Meta's graph in ONNX Runtime; the embedding is bound once, as in `OnnxRunner`, and outputs are the caller's."""

    def __init__(self, path: str, threads: int, *, one_at_a_time: bool, our_optimizers: bool) -> None:
        providers = ["CPUExecutionProvider"]
        left_out = disabled_optimizers(providers) if our_optimizers else None
        self._session = ort.InferenceSession(path, session_options(threads), providers=providers, disabled_optimizers=left_out)
        self._names = [each.name for each in self._session.get_inputs()]
        self._one_at_a_time = one_at_a_time
        self._image: Any = None
        self._feeds: list[dict[str, Array]] = []
        self.about = {
            "runtime": f"ONNX Runtime {ort.__version__}" + (", the optimizers of OnnxRunner" if our_optimizers else ""),
            "device": "CPU",
            "precision": "fp32",
            "threads": str(threads),
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        self._image = ort.OrtValue.ortvalue_from_numpy(feed["image_embeddings"], "cpu", 0)
        prompts = {name: feed[name] for name in ("point_coords", "point_labels")}
        rows = [{n: a[i : i + 1] for n, a in prompts.items()} for i in range(len(feed["point_labels"]))]
        self._feeds = rows if self._one_at_a_time else [prompts]
        if "mask_input" in self._names:
            no_mask = {"mask_input": np.zeros((1, 1, 256, 256), np.float32), "has_mask_input": np.zeros(1, np.float32)}
            self._feeds = [each | no_mask for each in self._feeds]

    def call(self) -> Outputs:
        total = sum(len(each["point_labels"]) for each in self._feeds)
        masks, iou = np.empty((total, 4, 256, 256), np.float32), np.empty((total, 4), np.float32)
        at = 0
        for feed in self._feeds:
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("image_embeddings", self._image)
            for name, array in feed.items():
                binding.bind_cpu_input(name, array)
            here = slice(at, at := at + len(feed["point_labels"]))
            for name, array in (("low_res_masks", masks[here]), ("iou_predictions", iou[here])):
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        return masks, iou

    def device_ms(self, count: int) -> list[float] | None:
        return None

    def close(self) -> None:
        self._session = self._image = None


class TransformersSide:
    """`transformers.SamModel` on an embedding that is there already, eager or compiled; gives three masks."""

    def __init__(self, threads: int, *, compiled: bool) -> None:
        import transformers

        torch.set_num_threads(threads)
        folder = Path(DATA_FOLDER) / "standin"
        config = transformers.SamConfig.from_pretrained(folder)
        # The weights were trained with Meta's epsilon; transformers' default is 1e-6.
        config.mask_decoder_config.layer_norm_eps = 1e-5
        transformers.logging.disable_progress_bar()
        model = transformers.SamModel.from_pretrained(folder, config=config, dtype=torch.float32)
        self._model: Any = model.eval().requires_grad_(False)
        attention = self._model.config._attn_implementation
        self._decode = torch.compile(self._model, dynamic=False) if compiled else self._model
        self._arguments: dict[str, Any] = {}
        mode = "torch.compile (fixed shapes)" if compiled else "eager"
        self.about = {
            "runtime": f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {mode}, attention {attention}",
            "device": "CPU",
            "precision": "fp32",
            "threads": str(threads),
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        # It appends the padding token by itself.
        clicks, labels = feed["point_coords"][:, :1], feed["point_labels"][:, :1]
        self._arguments = {
            "image_embeddings": torch.from_numpy(feed["image_embeddings"]),
            "input_points": torch.from_numpy(np.ascontiguousarray(clicks))[None],
            "input_labels": torch.from_numpy(np.ascontiguousarray(labels)).int()[None],
        }

    def call(self) -> Outputs:
        with torch.inference_mode():
            output = self._decode(multimask_output=True, **self._arguments)
        return output.pred_masks[0].numpy(), output.iou_scores[0].numpy()

    def device_ms(self, count: int) -> list[float] | None:
        return None

    def close(self) -> None:
        self._decode = self._model = None


def open_meta(path: str, threads: int, *, one_at_a_time: bool = False, our_optimizers: bool = False) -> MetaSide:
    return MetaSide(path, threads, one_at_a_time=one_at_a_time, our_optimizers=our_optimizers)


def open_transformers(threads: int, *, compiled: bool) -> TransformersSide:
    return TransformersSide(threads, compiled=compiled)
