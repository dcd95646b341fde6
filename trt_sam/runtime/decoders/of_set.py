"""`OnnxDecoders`: the decoders of a graph or a set, and which of them takes a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam.contract import TensorSpec
from trt_sam.errors import GraphError, ManifestError
from trt_sam.graph.metadata import PREPARED_ROLES
from trt_sam.runtime.decoders.graph import OnnxDecoder
from trt_sam.runtime.decoders.kept import MANY_PROMPTS
from trt_sam.runtime.decoders.prepared import OnnxPrepared
from trt_sam.runtime.session import Providers

__all__ = ["OnnxDecoders"]

Array = npt.NDArray[Any]


class OnnxDecoders:
    """What an `OnnxRunner` runs; it explains the arguments and errors."""

    def __init__(
        self,
        path: Path,
        graphs: Mapping[str, Path],
        threads: int | None,
        providers: Providers | None,
        *,
        emulate_quantization: bool,
    ) -> None:
        """Open the `graphs` by role of the set at `path`, or the one graph there, as "decode".

        Where `path` is the file of "decode_prepared" itself, that takes every call.
        """
        opened = partial(OnnxDecoder, threads=threads, providers=providers, emulate_quantization=emulate_quantization)
        plain = graphs.get("decode")
        whole = graphs.get("decode_mask", plain)
        if whole is None:
            raise ManifestError(f"the set {path} has no decoder, only {', '.join(graphs)}")
        always = path == graphs.get("decode_prepared")
        self.path = path if always else existing_file(whole, "graph")
        self.whole = opened(whole)
        """The one that takes every call."""
        self._without_masks = None if plain is None or plain == whole else opened(existing_file(plain, "graph"))
        if self._without_masks is not None:
            _check_pair(self.path, self.whole, self._without_masks)
        self._prepared: OnnxPrepared | None = None
        # On a GPU the form for the CPU is the slower one.
        if self.whole.device == "cpu" and plain is not None and all(role in graphs for role in PREPARED_ROLES):
            prepare, decode = (graphs[role] for role in PREPARED_ROLES)
            many = 1 if always else MANY_PROMPTS
            self._prepared = OnnxPrepared(prepare, decode, threads, self._without_masks or self.whole, many)

    @property
    def inputs_without_masks(self) -> tuple[TensorSpec, ...]:
        """What a feed needs that has no earlier mask."""
        return (self._without_masks or self.whole).inputs

    def choose(self, feed: Mapping[str, Array], image: Any) -> tuple[OnnxDecoder, dict[str, Any]]:
        """The decoder for a call, and the OrtValues that it takes of the image.

        Args:
            feed: checked.
            image: an OrtValue that counts where the feed has no `image_embeddings`.

        Raises:
            GraphError: the halves of the decoder are needed for the first time, and do not fit.
        """
        given = {} if "image_embeddings" in feed else {"image_embeddings": image}
        decoder = self.whole
        if decoder.options.mask_input:
            masked = "has_mask_input" in feed and bool(feed["has_mask_input"].any())
            if self._without_masks is None or masked:
                return decoder, given
            decoder = self._without_masks
        if self._prepared is None:
            return decoder, given
        terms = self._prepared.terms(feed.get("image_embeddings", image), len(feed["point_coords"]))
        return (decoder, given) if terms is None else (self._prepared.decoder, dict(terms))


def _check_pair(path: Path, with_masks: OnnxDecoder, without: OnnxDecoder) -> None:
    """Raise GraphError where two decoders are not one with a mask and without."""
    one = (dataclasses.replace(without.options, mask_input=True), without.outputs, without.checkpoint_sha256)
    if one != (with_masks.options, with_masks.outputs, with_masks.checkpoint_sha256):
        raise GraphError(f"the decoders of the set {path.parent} are of two checkpoints or two forms; write the set again")
