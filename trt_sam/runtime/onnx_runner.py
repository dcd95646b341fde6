"""`OnnxRunner`: a decoder graph of this package in ONNX Runtime. numpy and onnxruntime alone; no torch, no onnx.

ONNX Runtime on a CPU computes float16 graphs in float32, so it shows their structure and weight rounding, never overflow. Only
the CPU provider has ever been run by the authors; the embedding is placed on the GPU for the CUDA ones, untested.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE, NUM_MASKS, TensorSpec, input_specs, output_specs, size_of
from trt_sam.errors import GraphError, InferenceError, InputError, ManifestError
from trt_sam.graph.metadata import recorded_options
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.interface import PROMPTS_PER_PASS, as_given, checked_embedding, checked_inputs, passes
from trt_sam.runtime.onnx_encoder import OnnxEncoder
from trt_sam.runtime.session import disabled_optimizers, reason_in, session_options, specs_of
from trt_sam.runtime.set_graphs import graphs_of_set, is_set

__all__ = ["OnnxRunner"]

Array = npt.NDArray[Any]

_NO_LIMIT = (1, 2**31 - 1)
_PROMPTS_PER_PASS_ON_A_GPU = 64
_FULL_SIZE_BYTES = 256 << 20
"""What the masks of one pass may take in a full-resolution graph, in the frame and at the image's size together."""
_TOO_NEW = re.compile(r"model IR version|official(ly)? support|Opset \d+ is under development", re.IGNORECASE)
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxRunner:
    """Runs an exported graph; the interface is `interface.Runner`. One thread at a time."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        emulate_quantization: bool = False,
    ) -> None:
        """Open a graph that `trt-sam export` wrote, or a set of them.

        Args:
            path: the `.onnx` file; or the folder of a set, whose graphs run here whether it has engines or not: the decoder
                (that takes masks, where there is one) and, for `set_image` with a photo, the image encoder.
            threads: CPU threads of one call; None takes the cores that this process may use.
            providers: ONNX Runtime's execution providers, best first, each a name or a name with its options; None is the CPU.
            emulate_quantization: run Q/DQ pairs as they stand, with products in floating point between them, instead of as the
                integer products of this CPU, which saturate on some: slower, and the same everywhere.

        Raises:
            GraphError: the file is no ONNX graph, or not a SAM decoder of this package.
            ManifestError: the set is damaged, or has no decoder.
            InputError: it is missing or empty, or a provider or the number of threads is impossible.
            MissingDependencyError: onnxruntime is not installed.
        """
        ort = require("onnxruntime", "to run an ONNX graph")
        self._encoder: OnnxEncoder | None = None
        self._encoder_path: Path | None = None
        if is_set(path):
            graphs = graphs_of_set(path)
            self._encoder_path = graphs.get("encode")
            decoder = graphs.get("decode_mask", graphs.get("decode"))
            if decoder is None:
                raise ManifestError(f"the set {path} has no decoder, only {', '.join(graphs)}")
            path = decoder
        path = existing_file(path, "graph")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, must be at least 1, or None for the cores of this process")
        wanted = list(providers or ["CPUExecutionProvider"])
        chosen = [_provider_name(each) for each in wanted]
        available = ort.get_available_providers()
        # ONNX Runtime would go on without a missing one, on the CPU and much slower.
        for name in chosen:
            if name not in available:
                raise InputError(f"provider {name} is not in this onnxruntime; it has {', '.join(available)}")
        settings = session_options(threads, emulate_quantization=emulate_quantization)
        try:
            session = ort.InferenceSession(
                os.fspath(path), settings, providers=wanted, disabled_optimizers=disabled_optimizers(chosen)
            )
        except Exception as error:  # onnxruntime has a class per status, all directly under Exception
            reason = reason_in(error)
            if _TOO_NEW.search(reason):
                raise GraphError(
                    f"{path} is too new for onnxruntime {ort.__version__} ({reason}); get a newer one: "
                    "pip install --upgrade 'onnxruntime>=1.20'"
                ) from None
            raise GraphError(f"{path} is not an ONNX graph that can be loaded ({reason}); export it again") from None
        if session.get_providers()[0] != chosen[0]:
            raise InputError(f"provider {chosen[0]} could not be started; check its CUDA and driver, or leave it out")
        self._ort, self._session, self._path = ort, session, path
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        self._inputs, self._outputs = specs_of(session.get_inputs()), specs_of(session.get_outputs())
        self.options = _checked_options(path, metadata, self._inputs, self._outputs)
        """What the graph computes (`recipe.GraphOptions`)."""
        self.metadata: Mapping[str, str] = metadata
        """What the graph's exporter and calibration wrote into it."""
        self.checkpoint_sha256 = metadata.get("trt_sam.checkpoint_sha256", "")
        """Hash of the decoder weights in the graph; empty where its exporter did not know it."""
        dynamic = {dim for spec in self._inputs for dim in spec.dims if isinstance(dim, str)}
        self._limits = dict.fromkeys(sorted(dynamic), _NO_LIMIT)
        self._device = "cuda" if chosen[0] in _CUDA_PROVIDERS else "cpu"
        self._threads = threads
        self._image: Any = None
        self._image_id = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs with the types that the graph has; `run` gives float16 ones as float32."""
        return self._outputs

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Least and largest value of each dynamic dimension; ONNX Runtime itself sets none but memory."""
        return self._limits

    @property
    def image_id(self) -> int:
        """0 before the first `set_image`, then a new number after each."""
        return self._image_id

    @property
    def takes_photos(self) -> bool:
        """Whether it was opened on a set with an image encoder."""
        return self._encoder_path is not None

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64].

        The encoder is opened by the first call.

        Raises:
            GraphError: there is no image encoder, or it belongs to another decoder.
            InputError: not such an array, or too narrow to be scaled.
            InferenceError: execution failed, or the runner is closed.
        """
        self._require_open()
        if self._encoder_path is None:
            raise GraphError(
                f"{self._path} was opened without an image encoder; give an embedding, or open a set of trt-sam export"
            )
        if self._encoder is None:
            encoder = OnnxEncoder(self._encoder_path, threads=self._threads)
            if encoder.checkpoint_sha256 != self.checkpoint_sha256:
                raise GraphError(
                    f"{self._encoder_path} is the encoder of another checkpoint than {self._path}; export both from one"
                )
            self._encoder = encoder
        return self._encoder.embed(rgb)

    def set_image(self, embedding: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> None:
        """Keep a copy of `embedding` float32 [1, 256, 64, 64] where the graph runs, for the calls that follow.

        Of a set with an image encoder it may be a photo, uint8 [height, width, 3] RGB of any size.

        Raises:
            ContractError: another dtype or shape, or a value that is not finite.
            GraphError: a photo, and there is no image encoder.
            InferenceError: execution failed, or the runner is closed.
        """
        self._require_open()
        if embedding.dtype == np.uint8 and embedding.ndim == 3:
            embedding = self.embed(cast(npt.NDArray[np.uint8], embedding))
        self._image = self._ort.OrtValue.ortvalue_from_numpy(checked_embedding(embedding), self._device, 0)
        self._image_id += 1

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed (see `interface.Runner.run`); every output by name, float32 (`mask_bits` uint8), owned by the caller.

        Many prompts are computed `most_prompts` at a time: beside the results, memory does not grow with their number.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed (the runner stays open), or the runner is closed.
        """
        self._require_open()
        arrays = checked_inputs(feed, self._inputs, self._limits, has_image=self._image is not None)
        sizes = {
            str(dim): seen
            for spec in self._inputs
            if spec.name in arrays
            for dim, seen in zip(spec.dims, arrays[spec.name].shape, strict=True)
        }
        if "orig_im_size" in arrays:
            sizes["height"], sizes["width"] = map(int, arrays["orig_im_size"])
        try:
            # ONNX Runtime writes into the arrays that the caller gets: no copy, and nothing shared between calls.
            outputs = {spec.name: np.empty([size_of(d, sizes) for d in spec.dims], spec.dtype) for spec in self._outputs}
            for rows in passes(len(arrays["point_coords"]), self._prompts_per_pass(sizes)):
                self._execute(_rows_of(arrays, self._inputs, rows), _rows_of(outputs, self._outputs, rows))
        except (Exception, MemoryError) as error:
            raise InferenceError(
                f"{self._path} failed in ONNX Runtime ({reason_in(error)}); the runner is still open"
            ) from error
        return {name: as_given(array) for name, array in outputs.items()}

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False, image_size: tuple[int, int] | None = None) -> int:
        """How many prompts are computed at once, whatever their `num_tokens` and mask, for masks of `image_size`.

        A call takes more, which then take turns; a caller that splits them itself keeps the results small as well.
        """
        height, width = image_size or (0, 0)
        return self._prompts_per_pass({"height": height, "width": width})

    def _prompts_per_pass(self, sizes: Mapping[str, int]) -> int:
        if "num_prompts" not in self._limits:
            return next(int(spec.dims[0]) for spec in self._inputs if spec.name == "point_coords")
        most = PROMPTS_PER_PASS if self._device == "cpu" else _PROMPTS_PER_PASS_ON_A_GPU
        if not self.options.full_resolution:
            return most
        pixels = sizes["height"] * sizes["width"] + FRAME_SIZE**2
        return max(1, min(most, _FULL_SIZE_BYTES // (NUM_MASKS * 4 * pixels)))

    def _execute(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """One pass of the session: `inputs` (the image that is set, where they have none) into `outputs`, both contiguous."""
        binding = self._session.io_binding()
        if "image_embeddings" not in inputs:
            binding.bind_ortvalue_input("image_embeddings", self._image)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """Free the session and the image; safe to call again."""
        self._session = self._image = None
        if self._encoder is not None:
            self._encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._session is None:
            raise InferenceError(f"the runner of {self._path} is closed; open a new one")


def _provider_name(provider: Any) -> str:
    name, options = provider if isinstance(provider, tuple) and len(provider) == 2 else (provider, {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise InputError(f"provider {provider!r} is neither a name nor (name, {{option: value}}); give one of both")
    return name


def _rows_of(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], rows: slice) -> dict[str, Array]:
    """Views of the prompts in `rows`; what has no axis of prompts is whole."""
    by_prompt = {spec.name for spec in specs if spec.dims[0] == "num_prompts"}
    return {name: array[rows] if name in by_prompt else array for name, array in arrays.items()}


def _checked_options(
    path: object, metadata: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> GraphOptions:
    """The options in a graph's metadata, once its tensors are found to be those of such a graph."""
    names = [spec.name for spec in inputs]
    held = f"inputs {', '.join(names[:6]) or 'none'}; outputs {', '.join(s.name for s in outputs[:4]) or 'none'}"
    options = recorded_options(metadata, path)
    if options is None:
        if {"image_embeddings", "point_coords", "point_labels"} <= set(names):
            raise GraphError(
                f"{path} is a SAM decoder of another exporter, such as Meta's ({held}); it does not know label -2 and TensorRT "
                "cannot build it: write one from the checkpoint with trt-sam export"
            )
        raise GraphError(f"{path} is not a SAM decoder ({held}); write one with trt-sam export")
    version = metadata.get("trt_sam.version", "unknown")
    expected = input_specs(mask_input=options.mask_input, full_resolution=options.full_resolution)
    dtype = "float32" if options.precision == "fp32" else "float16"
    expected += output_specs(
        full_resolution=options.full_resolution, best_mask=options.best_mask, mask_bits=options.mask_bits, dtype=dtype
    )
    found = {spec.name: spec for spec in (*inputs, *outputs)}
    for spec in expected:
        if spec.name not in found or not _fits(found[spec.name], spec):
            seen = str(found.get(spec.name, "missing"))
            raise GraphError(f"{path} is a damaged or changed graph: {seen}, expected {spec}; export it again")
    for name in found:
        if name not in {spec.name for spec in expected}:
            raise GraphError(
                f"{path} has the tensor {name}, which its options do not tell of (trt_sam {version}); export it again"
            )
    return options


def _fits(seen: TensorSpec, expected: TensorSpec) -> bool:
    """Whether a graph's tensor is the expected one; a dynamic dimension may have been made a fixed one."""
    return (
        seen.dtype == expected.dtype
        and len(seen.dims) == len(expected.dims)
        and all(s == e or (isinstance(s, int) and isinstance(e, str)) for s, e in zip(seen.dims, expected.dims, strict=True))
    )
