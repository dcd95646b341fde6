"""PyTorch's sides of a benchmark: the plain decoder, eager or compiled, on a CPU or a GPU. Imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.runtime.call.decoded import THRESHOLD

__all__ = ["TorchGpuSide", "TorchSide"]

Array = npt.NDArray[Any]
Outputs = tuple[Array, Array]

_AHEAD = 3
"""Inferences that keep the GPU busy while those that are timed are queued: else each would begin with Python's launch."""
_MOST_COMPILATIONS = 1000
"""In a process; beyond, the side says that it cannot."""


class TorchSide:
    """On a CPU. `decoder` is one of `SamDecoder`; float32 products are never rounded."""

    _compile_mode: str | None = None

    def __init__(self, decoder: nn.Module, *, half: bool = False, compiled: bool | str = False, device: str = "cpu") -> None:
        if isinstance(compiled, str):
            self._compile_mode = compiled
        self._device = torch.device(device)
        self._set_precision()
        self._model = _WithImage(decoder).to(self._device)
        if compiled:
            # Its limit is 8, and what comes after would run eagerly under the compiler's name.
            dynamo_config.recompile_limit = dynamo_config.accumulated_recompile_limit = _MOST_COMPILATIONS
            dynamo_config.fail_on_recompile_limit_hit = True
        # Fixed shapes: the fastest that the compiler gives, at a compilation for each number of prompts.
        self._decode = torch.compile(self._model, dynamic=False, mode=self._compile_mode) if compiled else self._model
        self._prompts: tuple[Tensor, ...] = ()
        mode = f", mode {self._compile_mode}: CUDA graphs" if self._compile_mode else ""
        how = f"torch.compile (fixed shapes{mode})" if compiled else "eager"
        self.about = {
            "runtime": f"PyTorch {torch.__version__}, {how}",
            "device": "CPU",
            "precision": "fp16" if half else "fp32",
            "float32 products": f"matmul precision {torch.get_float32_matmul_precision()}",
            "call": "inference on the arrays of the prompts; results are new arrays in the decoder's precision",
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        self._model.image.copy_(torch.from_numpy(feed["image_embeddings"]))
        self._prompts = tuple(torch.from_numpy(feed[name]) for name in ("point_coords", "point_labels"))

    def call(self) -> Outputs:
        with torch.inference_mode():
            masks, iou = self._decode(*self._prompts)
        return masks.numpy(), iou.numpy()

    def device_ms(self, count: int) -> list[float] | None:
        return None

    def close(self) -> None:
        del self._decode, self._model

    def _set_precision(self) -> None:
        # Said, not inherited: an environment variable may have set it.
        torch.set_float32_matmul_precision("highest")


class TorchGpuSide(TorchSide):
    """On a GPU, as a service would: page-locked memory on both ends, kept between calls, and CUDA graphs where it is compiled.

    Float32 products may be rounded to TF32, as TensorRT's may. Results are valid until the next call.
    """

    _compile_mode = "reduce-overhead"

    def __init__(self, decoder: nn.Module, *, half: bool, compiled: bool | str, device: str) -> None:
        torch.cuda.set_device(device)  # events and streams are those of the current one
        super().__init__(decoder, half=half, compiled=compiled, device=device)
        self._results: dict[str, list[Tensor]] = {}
        self._rows = torch.empty(0)
        self._powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=self._device)
        self._staged: list[Tensor] = []
        self._there: list[Tensor] = []
        ends = "into page-locked memory; results are views of it, in the decoder's precision, unchecked"
        replay = "a replay of the CUDA graph, copies into its inputs included"
        launches = "Python's calls of the decoder: kernels, and the gaps between their launches"
        self.about |= {
            "device": torch.cuda.get_device_name(self._device),
            "float32 products": f"{self.about['float32 products']}, cuDNN TF32 {torch.backends.cudnn.allow_tf32}",
            "call": f"prompts through page-locked memory to the GPU, inference, all masks and scores back {ends}",
            "best mask": "the best mask of each prompt is gathered on the GPU (eager), and copied with its score",
            "bits": "the same, thresholded and packed to eight pixels a byte on the GPU (eager)",
            "events": replay if compiled else launches,
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        super().load(feed)
        self._staged = [_page_locked(each) for each in self._prompts]
        self._there = [each.to(self._device) for each in self._prompts]
        self._rows = torch.arange(len(self._prompts[0]), device=self._device)
        self._results.clear()

    def call(self) -> Outputs:
        with torch.inference_mode():
            return self._fetch("all", self._run())

    def call_best(self) -> Outputs:
        """As `call`, with the best mask of each prompt [num_prompts, 256, 256] and its score [num_prompts]."""
        with torch.inference_mode():
            return self._fetch("best", self._best())

    def call_bits(self) -> Outputs:
        """As `call_best`, with the mask as uint8 [num_prompts, 256, 32], the first pixel in the highest bit."""
        with torch.inference_mode():
            mask, score = self._best()
            inside = (mask > THRESHOLD).unflatten(-1, (-1, 8))
            return self._fetch("bits", ((inside * self._powers).sum(-1, dtype=torch.uint8), score))

    def device_ms(self, count: int) -> list[float] | None:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        with torch.inference_mode():
            for index in range(_AHEAD + count + 1):
                if index:
                    torch.compiler.cudagraph_mark_step_begin()
                    self._decode(*self._there)
                if index >= _AHEAD:
                    marks[index - _AHEAD].record()
            marks[-1].synchronize()
        return [float(first.elapsed_time(then)) for first, then in itertools.pairwise(marks)]

    def _run(self) -> tuple[Tensor, Tensor]:
        for given, staged, there in zip(self._prompts, self._staged, self._there, strict=True):
            there.copy_(staged.copy_(given), non_blocking=True)
        torch.compiler.cudagraph_mark_step_begin()  # the results of the call before have been copied
        masks, iou = self._decode(*self._there)
        return masks, iou

    def _best(self) -> tuple[Tensor, Tensor]:
        masks, iou = self._run()
        best = 1 + iou[:, 1:].argmax(1)  # mask 0 is for three tokens and more; a click has two
        return masks[self._rows, best], iou[self._rows, best]

    def _fetch(self, kind: str, found: tuple[Tensor, Tensor]) -> Outputs:
        if kind not in self._results:
            self._results[kind] = [_page_locked(each) for each in found]
        kept = self._results[kind]
        for target, source in zip(kept, found, strict=True):
            target.copy_(source, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return kept[0].numpy(), kept[1].numpy()

    def _set_precision(self) -> None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


class _WithImage(nn.Module):
    """A decoder and the image that is set: a CUDA graph reads a buffer where it lies, and copies an argument in every call."""

    image: Tensor

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("image", torch.zeros(EMBEDDING_SHAPE))

    def forward(self, points: Tensor, labels: Tensor) -> Any:
        return self.decoder(self.image, points, labels)


def _page_locked(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
