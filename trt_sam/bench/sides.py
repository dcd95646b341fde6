"""The sides that `trt-sam bench` can time. Each runs in a worker of its own, and imports what it needs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.bench.feed import IMAGE_SIZE
from trt_sam.contract import size_of
from trt_sam.errors import InputError
from trt_sam.runtime.call.decoded import PACKED, Bits
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.onnx_runner import OnnxRunner

if TYPE_CHECKING:
    from trt_sam.runner.decoder_runner import DecoderRunner

__all__ = ["BenchSide", "EngineSide", "RunnerSide", "UncheckedGraph", "open_engine", "open_graph", "open_torch"]

Array = npt.NDArray[Any]
Outputs = tuple[Array, Array]


class BenchSide(Protocol):
    """Something that decodes prompts and can be timed.

    It may also have `call_best()`, as `call` but for the best mask of each prompt alone, and `call_bits()`, which gives that
    mask as inside or outside and its score.
    """

    about: dict[str, str]
    """"runtime" with its version, "device", "precision", and "note" where something must be said; and what the times include:
    "call", "best mask" where there is `call_best`, "bits" where there is `call_bits`, "events" (what is between them) where
    there is `device_ms`."""

    def load(self, feed: Mapping[str, Array]) -> None:
        """Take the embedding, and make the prompts those of the calls that follow."""

    def call(self) -> Outputs:
        """Decode from numpy to logits [num_prompts, 4 or 3, 256, 256] and IoU predictions in host memory, and wait for it.

        They may be of any floating dtype, and change at the next call.
        """

    def device_ms(self, count: int) -> list[float] | None:
        """`count` times of the inference without copies to or from the host, by CUDA events; None where nothing can tell."""

    def close(self) -> None: ...


class EngineSide:
    """The TensorRT runner, called as a service calls it: `set_image` once, then `decode` with clicks."""

    def __init__(self, runner: DecoderRunner, about: Mapping[str, str]) -> None:
        self._runner = runner
        self._clicks: tuple[Array, ...] = ()
        self._feed: dict[str, Array] = {}
        self._asked: dict[str, Any] = {}
        dtypes = {spec.name: spec.dtype for spec in runner.outputs}
        self._bits: Bits = PACKED if "mask_bits" in dtypes else True
        made = "eight pixels to a byte, made by the graph" if self._bits == PACKED else "bool, made of its logits on the host"
        self.about = {
            **about,
            "call": 'decode(points, labels, masks="all"): check of the prompts, one copy to the GPU, inference, all masks and '
            f"scores back; results are {dtypes['low_res_masks']} views of page-locked memory",
            "best mask": 'decode(points, labels, masks="best"): the scores come first, then the best mask of each prompt',
            "bits": f'decode(points, labels, masks="best", bits={self._bits!r}): {made}',
            "events": "one launch of the CUDA graph",
        }

    def load(self, feed: Mapping[str, Array]) -> None:
        self._runner.set_image(feed["image_embeddings"])
        self._feed = _prompts_of(feed, self._runner)
        # `decode` adds the padding token, which is the last of the feed.
        self._clicks = tuple(np.ascontiguousarray(feed[name][:, :-1]) for name in ("point_coords", "point_labels"))
        if "orig_im_size" in self._feed:
            self._asked = {"image_size": IMAGE_SIZE}

    def call(self) -> Outputs:
        found = self._runner.decode(*self._clicks, masks="all", **self._asked)
        assert found.low_res_masks is not None, "only bits come without logits"
        return found.low_res_masks, found.iou_predictions

    def call_best(self) -> Outputs:
        """As `call`, with the best mask of each prompt [num_prompts, 1, 256, 256] and its score [num_prompts, 1]."""
        found = self._runner.decode(*self._clicks, masks="best", **self._asked)
        assert found.low_res_masks is not None, "only bits come without logits"
        return found.low_res_masks, found.iou_predictions

    def call_bits(self) -> Outputs:
        """The best mask of each prompt as bits or bool, and its score [num_prompts, 1]."""
        found = self._runner.decode(*self._clicks, masks="best", bits=self._bits, **self._asked)
        return found.masks, found.iou_predictions

    def device_ms(self, count: int) -> list[float] | None:
        return self._runner.device_times(self._feed, count)

    def close(self) -> None:
        self._runner.close()


class RunnerSide:
    """Any `trt_sam.runtime.interface.Runner`, by `run`; `about` says what that includes."""

    def __init__(self, runner: Runner, about: Mapping[str, str]) -> None:
        self._runner = runner
        self._prompts: dict[str, Array] = {}
        self.about = dict(about)

    def load(self, feed: Mapping[str, Array]) -> None:
        self._runner.set_image(feed["image_embeddings"])
        self._prompts = _prompts_of(feed, self._runner)

    def call(self) -> Outputs:
        outputs = self._runner.run(self._prompts)
        return outputs["low_res_masks"], outputs["iou_predictions"]

    def device_ms(self, count: int) -> list[float] | None:
        return None

    def close(self) -> None:
        self._runner.close()


class UncheckedGraph(OnnxRunner):
    """`OnnxRunner` as bare as the other GPU sides: feeds are not checked; results are in the graph's dtypes, and reused."""

    def __init__(self, path: str, *, threads: int, providers: Sequence[str]) -> None:
        super().__init__(path, threads=threads, providers=providers)
        self._sizes: dict[str, int] = {}
        self._results: dict[str, Array] = {}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run a feed that fits, without `image_embeddings`."""
        points = feed["point_coords"]
        sizes = {"num_prompts": points.shape[0], "num_points": points.shape[1]}
        sizes |= dict(zip(("height", "width"), feed.get("orig_im_size", ()), strict=False))
        if sizes != self._sizes:
            shapes = {spec: [size_of(dim, sizes) for dim in spec.dims] for spec in self.outputs}
            self._results = {spec.name: np.empty(shape, spec.dtype) for spec, shape in shapes.items()}
            self._sizes = sizes
        self._opened_decoders().whole.execute(feed, slice(None), {"image_embeddings": self._image}, self._results)
        return self._results


def _prompts_of(feed: Mapping[str, Array], runner: Runner) -> dict[str, Array]:
    """A feed for `run` without its embedding; no mask comes with the prompts where the graph takes one."""
    prompts = {name: array for name, array in feed.items() if name != "image_embeddings"}
    names = {spec.name for spec in runner.inputs}
    count = len(feed["point_labels"])
    if "mask_input" in names:
        prompts["mask_input"] = np.zeros((count, 1, 256, 256), np.float32)
        prompts["has_mask_input"] = np.zeros(count, np.float32)
    if "orig_im_size" in names:
        prompts["orig_im_size"] = np.array(IMAGE_SIZE, np.int64)
    return prompts


def open_torch(checkpoint: str, device: str, precision: str, threads: int, *, compiled: bool | str) -> BenchSide:
    """A checkpoint's decoder in PyTorch, on `device` ("cpu", "cuda:0") where this torch can, else on the CPU in float32.

    `compiled` may name a mode of `torch.compile`, for a GPU.
    """
    torch = require("torch", "to time PyTorch")
    from trt_sam.bench.torch_sides import TorchGpuSide, TorchSide
    from trt_sam.model.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    decoder = load_checkpoint(checkpoint).decoder
    note = ""
    if device != "cpu" and not torch.cuda.is_available():
        device, precision, note = "cpu", "fp32", f"this torch ({torch.__version__}) has no CUDA: on the CPU"
    half = precision == "fp16"
    kind = TorchSide if device == "cpu" else TorchGpuSide
    side = kind(decoder.to_half() if half else decoder, half=half, compiled=compiled, device=device)
    side.about |= {"note": note} if note else {"threads": str(threads)} if device == "cpu" else {}
    return side


def open_graph(path: str, device: str, threads: int) -> BenchSide:
    """An ONNX graph in ONNX Runtime, on the GPU where its CUDA provider is there.

    Raises:
        InputError: it is to run on another GPU than the first.
    """
    ort = require("onnxruntime", "to time a graph")
    gpu = device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()
    if gpu and device != "cuda:0":
        raise InputError(f"ONNX Runtime takes the first GPU here, not {device}; set CUDA_VISIBLE_DEVICES and give cuda:0")
    # On a CPU it is the runner that is timed; on a GPU its conversions on the host would be timed more than the GPU.
    runner: OnnxRunner
    if gpu:
        runner = UncheckedGraph(path, threads=threads, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        call = "prompts to the GPU, inference, all masks and scores into ordinary memory, in the graph's dtypes, unchecked"
    else:
        runner = OnnxRunner(path, threads=threads)
        call = "OnnxRunner.run: check of the prompts, inference; results are new float32 arrays"
    options = runner.options
    about = {
        "runtime": f"ONNX Runtime {ort.__version__}",
        "device": "CUDA provider" if gpu else "CPU",
        "precision": options.precision,
        "graph": f"--target {options.target}",
        "threads": str(threads),
        "call": call,
    }
    if not gpu and options.precision != "fp32":
        about["note"] = "ONNX Runtime on a CPU computes this graph in FP32"
    elif not gpu and device != "cpu":
        about["note"] = "this onnxruntime has no CUDA provider: on the CPU"
    return RunnerSide(runner, about)


def open_engine(folder: str, device: int) -> BenchSide:
    """The decoder engine of an engine set, on GPU number `device`; nothing is written beside the engine."""
    from trt_sam.engine.manifest import open_manifest
    from trt_sam.runner.decoder_runner import DecoderRunner

    manifest = open_manifest(folder, verify=False)  # the runner checks the file that it reads
    graph = manifest.graph("decode")
    about = {
        "runtime": f"{manifest.flavour} {manifest.flavour_version}",
        "device": f"GPU {device}",
        "precision": graph.options.precision,
        "graph": f"--target {graph.options.target}",
    }
    if manifest.flavour == "tensorrt_rtx":
        about["runtime cache"] = "none, so that first calls compile as on a new machine"
    # The timed prompts bring no mask: a second graph would only be given arrays to leave out.
    return EngineSide(DecoderRunner.open(folder, role="decode", device=device, runtime_cache=False), about)
