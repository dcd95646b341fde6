"""`OnnxRunner`: a decoder graph of this package in ONNX Runtime. numpy and onnxruntime alone; no torch, no onnx.

ONNX Runtime on a CPU computes float16 graphs in float32, so it shows their structure and weight rounding, never overflow. Only
the CPU provider has ever been run by the authors; the embedding is placed on the GPU for the CUDA ones, untested.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam.contract import EMBEDDING_BYTES, FRAME_SIZE, NUM_MASKS, TensorSpec, size_of
from trt_sam.errors import ContractError, GraphError, InferenceError
from trt_sam.runtime.call.decode import check_asked, decode, tokens_of
from trt_sam.runtime.call.decoded import Asked, Bits, Decoded, Masks, Numbers
from trt_sam.runtime.call.given import given_prompts, height_and_width
from trt_sam.runtime.call.pending import Pending, image_of
from trt_sam.runtime.call.several import filled_feed, image_of_each, spans
from trt_sam.runtime.decoders.of_set import OnnxDecoders
from trt_sam.runtime.decoders.prepared import PREPARED_PER_PASS
from trt_sam.runtime.interface import PROMPTS_PER_PASS, as_given, checked_inputs, passes
from trt_sam.runtime.onnx_images import OnnxImages
from trt_sam.runtime.session import Providers, reason_in
from trt_sam.runtime.set_graphs import check_is_set, graphs_of_set, is_set, prepared_of_set

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["OnnxRunner"]

Array = npt.NDArray[Any]

_NO_LIMIT = (1, 2**31 - 1)
_PROMPTS_PER_PASS_ON_A_GPU = 64
_FULL_SIZE_BYTES = 256 << 20
"""What the masks of one pass may take in a full-resolution graph, in the frame and at the image's size together."""


class OnnxRunner(OnnxImages):
    """Runs an exported graph; the interface is `interface.PromptRunner`, as `DecoderRunner`'s. One thread at a time."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Providers | None = None,
        emulate_quantization: bool = False,
        image_bytes: int = 4 * EMBEDDING_BYTES,
    ) -> None:
        """Open a graph that `trt-sam export` wrote, or a set of them.

        Args:
            path: the `.onnx` file; or the folder of a set, whose graphs run here whether it has engines or not: the decoder,
                the one that takes masks for prompts that bring one, and, for `set_image` with a photo, the image encoder. Where
                the set has the decoder in two graphs, these run from the second call on an image on, or for several prompts:
                see `trt_sam.runtime.decoders.kept`. A set's `decoder_prepared.onnx` by name takes every call.
            threads: CPU threads of one call; None takes the cores that this process may use.
            providers: ONNX Runtime's execution providers, best first, each a name or a name with its options; None is the CPU.
            emulate_quantization: run Q/DQ pairs as they stand, with products in floating point between them, instead of as the
                integer products of this CPU, which saturate on some: slower, and the same everywhere.
            image_bytes: bound of the memory for images that are held (4 MiB each); the least recently used goes first. Of a set
                with the decoder in two graphs 26 MiB more for each of up to four images.

        Raises:
            GraphError: the file is no ONNX graph, or not a SAM decoder of this package; or the decoders of a set are of two.
            ManifestError: the set is damaged, or has no decoder.
            InputError: it is missing, empty or a folder that is no set, or a provider or the number of threads is impossible.
            ContractError: `image_bytes` holds no image.
            MissingDependencyError: onnxruntime is not installed.
        """
        if Path(path).is_dir():
            check_is_set(path)
        graphs = graphs_of_set(path) if is_set(path) else prepared_of_set(path) or {"decode": existing_file(path, "graph")}
        if image_bytes < EMBEDDING_BYTES:
            raise ContractError(f"image_bytes is {image_bytes}, must hold an image, {EMBEDDING_BYTES}")
        self._decoders: OnnxDecoders | None = OnnxDecoders(
            Path(path), graphs, threads, providers, emulate_quantization=emulate_quantization
        )
        decoder = self._decoders.whole
        self._inputs, self._outputs = decoder.inputs, decoder.outputs
        self.options = decoder.options
        """What the graph computes (`recipe.GraphOptions`)."""
        self.metadata: Mapping[str, str] = decoder.metadata
        """What the graph's exporter and calibration wrote into it."""
        self.checkpoint_sha256 = decoder.checkpoint_sha256
        """Hash of the decoder weights in the graph; empty where its exporter did not know it."""
        dynamic = {dim for spec in self._inputs for dim in spec.dims if isinstance(dim, str)}
        self._limits = dict.fromkeys(sorted(dynamic), _NO_LIMIT)
        held = image_bytes // EMBEDDING_BYTES
        super().__init__(self._decoders.path, graphs.get("encode"), self.checkpoint_sha256, threads, decoder.device, held)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, threads: int | None = None, image_bytes: int = 4 * EMBEDDING_BYTES) -> Self:
        """The runner of a set (or graph) on the CPU, called as `DecoderRunner.open` is for the GPU; errors as the class."""
        return cls(path, threads=threads, image_bytes=image_bytes)

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

    def decode(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        copy: bool = True,
        **asked: Unpack[Asked],
    ) -> Decoded:
        """Decode prompts on an image; arguments as `DecoderRunner.submit`, whose results they are.

        Any number of prompts may come, also on several images: `image` then names one for each prompt, in any order. A graph of
        N images (`trt-sam export --images N`) takes up to N of them in one pass, any other one.
        `timeout` and `copy` are for the GPU: nothing is waited for here, and results always belong to the caller.

        Raises:
            ContractError: prompts that do not fit, no image, or one that is not held any more.
            InferenceError: execution failed (the runner stays open), or the runner is closed.
        """
        run, feed, rows = self._prepared(points, labels, boxes, mask_input, masks, **asked)
        return decode(run, feed, rows, masks, asked.get("bits", False))

    decode_many = decode
    """As `DecoderRunner.decode_many`: one call takes them all."""

    def submit(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        **asked: Unpack[Asked],
    ) -> Pending:
        """As `decode`, on a thread of the runner's, which makes one call after the other; returns at once."""
        run, feed, rows = self._prepared(points, labels, boxes, mask_input, masks, **asked)
        return Pending(self._on_worker(decode, run, feed, rows, masks, asked.get("bits", False)))

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed (see `interface.Runner.run`); every output by name, float32 (`mask_bits` uint8), owned by the caller.

        Many prompts are computed `most_prompts` at a time: beside the results, memory does not grow with their number. On a set
        a feed of whose prompts none has a mask (`has_mask_input`, or neither input is there) runs in the decoder without.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed (the runner stays open), or the runner is closed.
        """
        return {name: as_given(array) for name, array in self._outputs_of(feed, self._image).items()}

    def _prepared(
        self,
        points: Numbers,
        labels: Numbers,
        boxes: Numbers,
        mask_input: Numbers,
        masks: Masks,
        *,
        image: int | Sequence[int] | None = None,
        bits: Bits = False,
        image_size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> tuple[Callable[[Mapping[str, Array]], dict[str, Array]], dict[str, Array], list[slice]]:
        """A call that can be made now or later, whatever becomes of the arguments: what runs, its feed, its passes."""
        self._require_open()
        given = given_prompts(points, labels, boxes, mask_input)
        size = None if image_size is None else height_and_width(image_size)
        with_mask = mask_input is not None
        check_asked(self._inputs, self._outputs, masks=masks, bits=bits, with_mask=with_mask, image_size=size)
        numbers = image_of_each(image, given.count)
        used = list(dict.fromkeys(numbers))
        held = [self._image if number is None else self._held.get(number) for number in used]
        if held[0] is None:
            raise ContractError("there is no image; call set_image before")
        feed = tokens_of(given, self._inputs, size)
        if len(used) > 1:
            feed["image_index"] = np.array([used.index(number) for number in numbers], np.int32)
        most = self.most_prompts(given.num_points, image_size=size)
        return partial(self._on_images, held), feed, list(spans(numbers, most, self.options.images))

    def _on_images(self, held: Sequence[Any], feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a pass on no more images than the graph takes; its `image_index` counts in `held`, without it is 0."""
        feed = dict(feed)
        used, index = np.unique(feed.pop("image_index", np.zeros(1, np.int32)), return_inverse=True)
        if len(used) == 1:
            return self._outputs_of(feed, held[used[0]])
        feed["image_embeddings"] = np.concatenate([image_of(held[number]).numpy() for number in used])
        feed["image_index"] = index.astype(np.int32)
        return self._outputs_of(feed, None)

    def _outputs_of(self, feed: Mapping[str, Array], image: Any) -> dict[str, Array]:
        """Every output in the graph's dtype; `image` counts where the feed has none."""
        decoders = self._opened_decoders()
        if "image_embeddings" not in feed:
            image = image_of(image)
        if self.options.images > 1 and (image is not None or "image_embeddings" in feed):
            given = feed if "image_embeddings" in feed else {**feed, "image_embeddings": image.numpy()}
            feed = filled_feed(given, self.options.images)
        without_masks = not {"mask_input", "has_mask_input"}.intersection(feed)
        inputs = decoders.inputs_without_masks if without_masks else self._inputs
        arrays = checked_inputs(feed, inputs, self._limits, has_image=image is not None)
        sizes = {
            str(dim): seen
            for spec in self._inputs
            if spec.name in arrays
            for dim, seen in zip(spec.dims, arrays[spec.name].shape, strict=True)
        }
        if "orig_im_size" in arrays:
            sizes["height"], sizes["width"] = map(int, arrays["orig_im_size"])
        try:
            decoder, given = decoders.choose(arrays, image)
            # ONNX Runtime writes into the arrays that the caller gets: no copy, and nothing shared between calls.
            outputs = {spec.name: np.empty([size_of(d, sizes) for d in spec.dims], spec.dtype) for spec in self._outputs}
            most = self._prompts_per_pass(sizes)
            most = min(most, PREPARED_PER_PASS) if decoder.prepared else most
            for rows in passes(len(arrays["point_coords"]), most):
                decoder.execute(arrays, rows, given, outputs)
        except GraphError:
            raise
        except (Exception, MemoryError) as error:
            raise InferenceError(
                f"{self._path} failed in ONNX Runtime ({reason_in(error)}); the runner is still open"
            ) from error
        return outputs

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

    def close(self) -> None:
        """Free the sessions and the images; safe to call again. A call under way ends first, those that wait are dropped."""
        self._decoders = None
        self._close_images()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _require_open(self) -> None:
        self._opened_decoders()

    def _opened_decoders(self) -> OnnxDecoders:
        if self._decoders is None:
            raise InferenceError(f"the runner of {self._path} is closed; open a new one")
        return self._decoders
