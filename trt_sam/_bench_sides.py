"""The sides that `trt-sam bench` can time. Each runs in a worker of its own, and imports what it needs there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.interface import Runner

if TYPE_CHECKING:
    import torch

__all__ = ["BenchSide", "RunnerSide", "TorchSide", "open_engine", "open_graph", "open_torch"]

Array = npt.NDArray[Any]
Outputs = tuple[Array, Array]


class BenchSide(Protocol):
    """Something that decodes prompts and can be timed."""

    about: dict[str, str]
    """"runtime" with its version, "device", "precision", and "note" where something must be said."""

    def load(self, feed: Mapping[str, Array]) -> None:
        """Take the embedding, and make the prompts those of the calls that follow."""

    def call(self) -> Outputs:
        """Decode: numpy to numpy, masks [num_prompts, 4 or 3, 256, 256] and IoU predictions; waits for the device."""

    def device_ms(self, count: int) -> list[float] | None:
        """`count` times of the inference alone, by CUDA events; None where there is nothing that can tell."""

    def close(self) -> None: ...


class RunnerSide:
    """A `trt_sam.interface.Runner`."""

    def __init__(self, runner: Runner, about: dict[str, str]) -> None:
        self._runner = runner
        self._prompts: dict[str, Array] = {}
        self.about = about

    def load(self, feed: Mapping[str, Array]) -> None:
        self._runner.set_image(feed["image_embeddings"])
        self._prompts = {name: array for name, array in feed.items() if name != "image_embeddings"}
        names = {spec.name for spec in self._runner.inputs}
        prompts = len(feed["point_labels"])
        if "mask_input" in names:
            self._prompts["mask_input"] = np.zeros((prompts, 1, 256, 256), np.float32)
            self._prompts["has_mask_input"] = np.zeros(prompts, np.float32)
        if "orig_im_size" in names:
            self._prompts["orig_im_size"] = np.array([1080, 1920], np.int64)

    def call(self) -> Outputs:
        outputs = self._runner.run(self._prompts)
        return outputs["low_res_masks"], outputs["iou_predictions"]

    def device_ms(self, count: int) -> list[float] | None:
        timed = getattr(self._runner, "device_times", None)
        return None if timed is None else list(timed(self._prompts, count))

    def close(self) -> None:
        self._runner.close()


class TorchSide:
    """The plain decoder in PyTorch, eager or compiled, on a CPU or a GPU; the embedding stays on the device."""

    def __init__(self, decoder: torch.nn.Module, device: str, *, half: bool, compiled: bool) -> None:
        torch = require("torch", "to time PyTorch")
        self._torch, self._device = torch, torch.device(device)
        module = decoder.to(self._device)
        # Fixed shapes: the fastest that the compiler gives, at a compilation for each number of prompts.
        self._decode = torch.compile(module, dynamic=False) if compiled else module
        self._image: Any = None
        self._prompts: tuple[Any, ...] = ()
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU"
        mode = "torch.compile (fixed shapes)" if compiled else "eager"
        self.about = {
            "runtime": f"PyTorch {torch.__version__}, {mode}",
            "device": name,
            "precision": "fp16" if half else "fp32",
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        self._image = self._torch.from_numpy(feed["image_embeddings"]).to(self._device)
        self._prompts = tuple(self._torch.from_numpy(feed[name]) for name in ("point_coords", "point_labels"))

    def call(self) -> Outputs:
        with self._torch.inference_mode():
            masks, iou = self._decode(self._image, *(each.to(self._device) for each in self._prompts))
            return masks.float().cpu().numpy(), iou.float().cpu().numpy()

    def device_ms(self, count: int) -> list[float] | None:
        if self._device.type != "cuda":
            return None
        cuda = self._torch.cuda
        prompts = [each.to(self._device) for each in self._prompts]
        first, last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        times = []
        with self._torch.inference_mode():
            for _ in range(count):
                first.record()
                self._decode(self._image, *prompts)
                last.record()
                last.synchronize()
                times.append(float(first.elapsed_time(last)))
        return times

    def close(self) -> None:
        self._decode = self._image = None


def open_torch(checkpoint: str, device: str, precision: str, threads: int, *, compiled: bool) -> BenchSide:
    """A checkpoint's decoder in PyTorch, on `device` ("cpu", "cuda:0") where this torch can, else on the CPU in float32."""
    torch = require("torch", "to time PyTorch")
    from trt_sam.model.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    decoder = load_checkpoint(checkpoint).decoder
    note = ""
    if device != "cpu" and not torch.cuda.is_available():
        device, precision, note = "cpu", "fp32", f"this torch ({torch.__version__}) has no CUDA: on the CPU"
    half = precision == "fp16"
    side = TorchSide(decoder.to_half() if half else decoder, device, half=half, compiled=compiled)
    side.about |= {"note": note} if note else {"threads": str(threads)} if device == "cpu" else {}
    return side


def open_graph(path: str, device: str, threads: int) -> BenchSide:
    """An ONNX graph in ONNX Runtime, on the GPU where its CUDA provider is there."""
    ort = require("onnxruntime", "to time a graph")
    from trt_sam.ort import OnnxRunner

    gpu = device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()
    runner = OnnxRunner(path, threads=threads, providers=["CUDAExecutionProvider", "CPUExecutionProvider"] if gpu else None)
    options = runner.options
    about = {
        "runtime": f"ONNX Runtime {ort.__version__}",
        "device": "CUDA provider" if gpu else "CPU",
        "precision": options.precision,
        "graph": f"--target {options.target}",
        "threads": str(threads),
    }
    if not gpu and options.precision != "fp32":
        about["note"] = "ONNX Runtime on a CPU computes this graph in FP32"
    elif not gpu and device != "cpu":
        about["note"] = "this onnxruntime has no CUDA provider: on the CPU"
    return RunnerSide(runner, about)


def open_engine(folder: str, device: int) -> BenchSide:
    """The decoder engine of an engine set, on GPU number `device`."""
    from trt_sam.manifest import open_manifest
    from trt_sam.runner import DecoderRunner

    manifest = open_manifest(folder, verify=False)  # the runner checks the file that it reads
    graph = manifest.graph("decode")
    about = {
        "runtime": f"{manifest.flavour} {manifest.flavour_version}",
        "device": f"GPU {device}",
        "precision": graph.options.precision,
        "graph": f"--target {graph.options.target}",
    }
    # The timed prompts bring no mask: a second graph would only be given arrays to leave out.
    return RunnerSide(DecoderRunner.open(folder, role="decode", device=device), about)
