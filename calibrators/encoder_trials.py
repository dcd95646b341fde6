"""`EncoderTrials`: quantized forms of an image encoder judged end to end, by the masks that the float32 decoder makes of them.

Prompts are drawn once, on what float32 segments; then the float32 encoder's masks are kept as bits, and a trial embeds the same
photographs with a quantized encoder and decodes the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calibrators.pictures import Picture
from calibrators.trials import KeptMasks, Score, score_masks, trial_session
from trt_sam.accuracy.metrics import selection_scores
from trt_sam.contract import LOW_RES_SIZE
from trt_sam.errors import CalibrationError, InferenceError, first_line
from trt_sam.feeds.realistic import Decode, draw_realistic, picture_part

__all__ = ["EncoderTrials"]

Array = npt.NDArray[Any]

_AT_ONCE = 4
"""Prompts of one call of the decoder."""


@dataclass(frozen=True)
class _Prompted:
    """A photograph and its prompts, a few to a feed; of equally many points each."""

    picture: Picture
    feeds: tuple[Mapping[str, Array], ...] = field(repr=False)
    """Without embeddings."""
    kept: tuple[KeptMasks, ...] = field(repr=False)


class EncoderTrials:
    """The masks of the float32 encoder and decoder on some prompts, and the comparison with them."""

    def __init__(
        self, plain: onnx.ModelProto, decode: Decode, pictures: Sequence[Picture], *, prompts: int, seed: int = 0
    ) -> None:
        """Run the float32 encoder `plain` once on `pictures`, and draw `prompts` on each.

        Args:
            plain: the float32 graph.
            decode: the float32 decoder, with four masks (`TorchRunner.run`).
            pictures: to judge by.
            prompts: of each picture, in the mixture that people give (`feeds.realistic`), without earlier masks.
            seed: of the prompts.

        Raises:
            CalibrationError: there is no picture.
            InferenceError: ONNX Runtime cannot run the graph.
        """
        self._decode = decode
        if not pictures:
            raise CalibrationError("there is no picture to judge the encoder on; give at least one")
        self._prompted = [
            _prompted(picture, embedding, decode, prompts, np.random.default_rng((seed, *picture.digest)))
            for picture, embedding in zip(pictures, _embeddings(plain, pictures), strict=True)
        ]
        self.prompts = sum(len(kept.best) for each in self._prompted for kept in each.kept)
        self.runs = 0
        """Trials so far."""

    def score(self, model: onnx.ModelProto) -> Score:
        """Run `model`, a quantized form of the float32 encoder; raises InferenceError where ONNX Runtime cannot."""
        return self.score_embeddings(_embeddings(model, self.pictures))

    def score_embeddings(self, embeddings: Iterable[Array], *, decode: Decode | None = None) -> Score:
        """Judge what another encoder made of `pictures`, in their order.

        Args:
            embeddings: float32 [1, 256, 64, 64] each.
            decode: another decoder to go with it, as the float32 one was given; None for that one.
        """
        kept = [held for each in self._prompted for held in each.kept]
        self.runs += 1
        return score_masks(kept, self._runs(embeddings, decode or self._decode))

    @property
    def pictures(self) -> list[Picture]:
        """What is judged by."""
        return [each.picture for each in self._prompted]

    def _runs(self, embeddings: Iterable[Array], decode: Decode) -> Iterator[tuple[Array, Array]]:
        for each, embedding in zip(self._prompted, embeddings, strict=True):
            for feed in each.feeds:
                yield _decoded(decode, feed, embedding, each.picture)


def _prompted(picture: Picture, embedding: Array, decode: Decode, count: int, rng: np.random.Generator) -> _Prompted:
    drawn = draw_realistic(rng, embedding, picture.original_size, count, decode)
    by_length: dict[int, list[Any]] = {}
    for prompt in drawn:
        by_length.setdefault(len(prompt.labels), []).append(prompt)
    feeds = tuple(
        {
            "point_coords": np.stack([prompt.coords for prompt in same[start : start + _AT_ONCE]]),
            "point_labels": np.stack([prompt.labels for prompt in same[start : start + _AT_ONCE]]),
        }
        for same in by_length.values()
        for start in range(0, len(same), _AT_ONCE)
    )
    return _Prompted(picture, feeds, tuple(KeptMasks(*_decoded(decode, feed, embedding, picture)) for feed in feeds))


def _decoded(decode: Decode, feed: Mapping[str, Array], embedding: Array, picture: Picture) -> tuple[Array, Array]:
    """(masks [n, 4, height, width] of the picture's part, scores as SAM's rule ranks them [n, 4])."""
    count = len(feed["point_labels"])
    no_mask = {
        "mask_input": np.zeros((count, 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32),
        "has_mask_input": np.zeros(count, np.float32),
    }
    outputs = decode({**feed, **no_mask, "image_embeddings": embedding})
    rows, columns = picture_part(picture.original_size)
    ranked = selection_scores(outputs["iou_predictions"], feed["point_labels"])
    return outputs["low_res_masks"][..., rows, columns], ranked


def _embeddings(model: onnx.ModelProto, pictures: Sequence[Picture]) -> Iterator[Array]:
    """float32 [1, 256, 64, 64] of each picture."""
    session = trial_session(model, "encoder")
    for picture in pictures:
        try:
            (embedding,) = session.run(["image_embeddings"], picture.feed())
        except Exception as error:
            raise InferenceError(f"the encoder to try failed in ONNX Runtime ({first_line(error)})") from error
        yield embedding
