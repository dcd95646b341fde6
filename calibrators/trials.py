"""`Trials`: quantized forms of a decoder judged by what users see, its masks, on prompts that no range was calibrated on.

The float32 graph runs once; of its masks only bits are kept. A trial runs a quantized graph on the same prompts and compares
the mask that SAM's rule selects by the float32 scores, index by index, on the picture's part of it, and which mask would be
selected.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from trt_sam._lazy import require
from trt_sam.accuracy.metrics import mask_iou, selection_scores
from trt_sam.accuracy.summary import CLEAR_MARGIN
from trt_sam.errors import CalibrationError, InferenceError, first_line
from trt_sam.feeds.realistic import picture_part
from trt_sam.runtime.session import session_options

__all__ = [
    "HELD_OUT",
    "SMALL",
    "TRIAL_IMAGES",
    "KeptMasks",
    "Score",
    "SizedFeed",
    "Trials",
    "score_masks",
    "trial_feeds",
    "trial_session",
]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
SizedFeed = tuple[Feed, tuple[int, int]]
"""A feed of one image, and (height, width) of its photo."""

_OUTPUTS = ("low_res_masks", "iou_predictions")
HELD_OUT = 0.25
"""Share of the images that "auto" judges by and does not calibrate with, at most TRIAL_IMAGES."""
TRIAL_IMAGES = 8
"""To hold out more than are tried would waste them, and let their order decide which are."""
_PROMPTS_AT_ONCE = 4
EDGE = 3.0
"""Logits this near to 0 are at a mask's edge."""
SMALL = 0.005
"""A mask below this share of the picture is small."""


@dataclass(frozen=True)
class Score:
    """How near a graph's masks are to float32's."""

    mean_iou: float
    p5_iou: float
    """5th percentile over prompts."""
    flips: int
    """Prompts for which another mask is selected."""
    clear_flips: int
    """Of these, the ones whose mask float32 itself scores lower by more than `accuracy_summary.CLEAR_MARGIN`."""
    prompts: int
    small_iou: float | None = None
    """Mean IoU of the masks that are small in float32; None where there are none."""
    noise: float | None = None
    """How far logits move near the masks' edges: root mean square difference where float32's are within EDGE of 0, as a
    geometric mean over prompts. An unstable mask moves a mean IoU of 32 prompts by .002, and this by as little as any
    other."""

    @property
    def quality(self) -> float:
        """What a choice goes by: mean, 5th percentile and small masks together, 1 at best.

        The mean alone forgives a few lost masks; the others hang on a few prompts, and count a quarter of it each.
        """
        small = self.mean_iou if self.small_iou is None else self.small_iou
        return (self.mean_iou + 0.25 * self.p5_iou + 0.25 * small) / 1.5

    def __str__(self) -> str:
        share = 100 * self.clear_flips / self.prompts
        return f"IoU {self.mean_iou:.4f}, 5 % {self.p5_iou:.4f}, flips {self.flips} ({share:.1f} % clear)"


class Trials:
    """Float32's masks on some prompts, and the comparison with them."""

    def __init__(self, model: onnx.ModelProto, feeds: Iterable[SizedFeed]) -> None:
        """Run the float32 graph `model` once on `feeds`, each read once and kept, its embedding in a temporary file.

        Raises:
            CalibrationError: there is no feed, the graph selects the best mask itself, or the file cannot be written.
            InferenceError: ONNX Runtime cannot run the graph.
        """
        sized = list(_stored(feeds))
        self._feeds, self._parts = [feed for feed, _ in sized], [picture_part(size) for _, size in sized]
        runs = zip(_run(model, self._feeds), self._parts, strict=True)
        self._kept = [KeptMasks(masks[..., part[0], part[1]], ranked) for (masks, ranked), part in runs]
        if not self._kept:
            raise CalibrationError("there is no held-out feed to try quantization on; give more images")
        self.prompts = sum(len(kept.best) for kept in self._kept)
        self.runs = 0
        """Trials so far."""

    def score(self, model: onnx.ModelProto) -> Score:
        """Run `model`, a quantized form of the float32 graph; raises InferenceError where ONNX Runtime cannot."""
        runs = zip(_run(model, self._feeds), self._parts, strict=True)
        shown = ((masks[..., part[0], part[1]], ranked) for (masks, ranked), part in runs)
        self.runs += 1
        return score_masks(self._kept, shown)


def score_masks(kept: Sequence[KeptMasks], runs: Iterable[tuple[Array, Array]]) -> Score:
    """Compare other masks of the same prompts, feed by feed.

    Args:
        kept: float32's.
        runs: (masks [n, 4, height, width] of the picture's part, scores as SAM's rule ranks them [n, 4]) of each feed.
    """
    ious, areas, flips, costs, noises = [], [], [], [], []
    for held, (masks, ranked) in zip(kept, runs, strict=True):
        rows, expected = np.arange(len(held.best)), held.masks()
        seen = masks[rows, held.best]
        ious.append(mask_iou(expected, seen > 0, 0.5))
        noises += held.noise(seen)
        areas.append(expected.mean(axis=(1, 2)))
        best = ranked.argmax(axis=1)
        flips.append(best != held.best)
        costs.append(held.ranked[rows, held.best] - held.ranked[rows, best])
    iou, flipped, cost = np.concatenate(ious), np.concatenate(flips), np.concatenate(costs)
    clear = int((cost > CLEAR_MARGIN).sum())
    small = iou[np.concatenate(areas) < SMALL]
    small_iou = float(small.mean()) if len(small) else None
    p5, noise = float(np.percentile(iou, 5)), float(np.exp(np.mean(np.log(noises)))) if noises else None
    return Score(float(iou.mean()), p5, int(flipped.sum()), clear, len(iou), small_iou, noise)


def trial_feeds(feeds: Iterable[SizedFeed], *, images: int = TRIAL_IMAGES, prompts: int = 8) -> list[SizedFeed]:
    """A few prompts of the first images of `feeds`, of every feed of an image in turn, so that kinds stay mixed.

    Args:
        feeds: held out from calibration (`CalibrationFeeds.split`, `with_sizes`); all feeds of one image lie side by side.
        images: at most.
        prompts: of each image, at most.
    """
    kept: list[SizedFeed] = []
    for _, same in itertools.islice(itertools.groupby(feeds, key=lambda each: _image_mark(each[0])), images):
        held = list(same)
        parts, size = [part for part, _ in held], held[0][1]
        counts = [0] * len(parts)
        sizes = [len(part["point_labels"]) for part in parts]
        for _ in range(min(prompts, sum(sizes))):
            room = [place for place in range(len(parts)) if counts[place] < sizes[place]]
            counts[min(room, key=lambda place: counts[place])] += 1
        kept += [(_first_prompts(part, count), size) for part, count in zip(parts, counts, strict=True) if count]
    return kept


@dataclass(frozen=True)
class KeptMasks:
    """The float32 masks of one feed that SAM's rule selects: bits, and the logits at their edges."""

    best: Array
    ranked: Array
    bits: Array = field(repr=False)
    shape: tuple[int, ...]
    edges: tuple[tuple[Array, Array], ...] = field(repr=False)
    """Of each prompt the places where logits are within EDGE of 0, as bits, and these logits."""

    def __init__(self, masks: Array, ranked: Array) -> None:
        best = ranked.argmax(axis=1)
        logits = masks[np.arange(len(best)), best]
        selected = logits > 0
        near = np.abs(logits) < EDGE
        edges = tuple((np.packbits(place), each[place]) for place, each in zip(near, logits, strict=True))
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "best", best)
        object.__setattr__(self, "ranked", ranked)
        object.__setattr__(self, "bits", np.packbits(selected))
        object.__setattr__(self, "shape", selected.shape)

    def noise(self, logits: Array) -> list[float]:
        """Root mean square difference of `logits` at the edges, of every prompt that has any; never quite 0."""
        places = [np.unpackbits(bits, count=logits[0].size).astype(np.bool_) for bits, _ in self.edges]
        pairs = zip(places, logits.reshape(len(logits), -1), self.edges, strict=True)
        found = [each[place] - held for place, each, (_, held) in pairs if len(held)]
        return [max(float(np.sqrt(np.mean(np.square(each, dtype=np.float64)))), 1e-9) for each in found]

    def masks(self) -> Array:
        return np.unpackbits(self.bits, count=int(np.prod(self.shape))).reshape(self.shape).astype(np.bool_)


def _stored(feeds: Iterable[SizedFeed]) -> Iterator[SizedFeed]:
    """The feeds with embeddings that the system may drop from memory; feeds of one image, side by side, share theirs."""
    held: Array | None = None
    for feed, size in feeds:
        given = feed["image_embeddings"]
        if held is None or not np.array_equal(held, given):
            held = _mapped(given)
        yield {**feed, "image_embeddings": held}, size


def _mapped(array: Array) -> Array:
    # Written, not mapped for writing: a full disk is an error then, and no crash. The nameless file goes with the array.
    try:
        with tempfile.TemporaryFile() as file:
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            return np.memmap(file, array.dtype, "r", shape=array.shape)
    except OSError as error:
        raise CalibrationError(f"cannot keep embeddings in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR") from error


def trial_session(model: onnx.ModelProto, what: str) -> Any:
    """A session of a quantized `model`, called `what` in errors; raises InferenceError where ONNX Runtime cannot load it."""
    ort = require("onnxruntime", "to try a quantized graph")
    try:
        # Pairs in floating point, so that a verdict does not depend on the CPU's integer instructions.
        settings = session_options(emulate_quantization=True)
        return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class per status, all directly under Exception
        raise InferenceError(f"ONNX Runtime cannot load the {what} to try ({first_line(error)})") from error


def _run(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Iterator[tuple[Array, Array]]:
    """(masks [n, 4, 256, 256], scores as SAM's rule ranks them [n, 4]) of each feed."""
    session = trial_session(model, "graph")
    names = {value.name for value in model.graph.input}
    for feed in feeds:
        parts = []
        for start in range(0, len(feed["point_labels"]), _PROMPTS_AT_ONCE):
            given = {name: array for name, array in _rows(feed, start).items() if name in names}
            try:
                parts.append(session.run(list(_OUTPUTS), given))
            except Exception as error:
                raise InferenceError(f"the graph to try failed in ONNX Runtime ({first_line(error)})") from error
        masks, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if scores.shape[1] == 1:
            raise CalibrationError("the graph gives the selected mask only; try quantization on one without --best-mask")
        yield masks, selection_scores(scores, feed["point_labels"])


def _rows(feed: Feed, start: int) -> dict[str, Array]:
    return {name: _sliced(name, array, slice(start, start + _PROMPTS_AT_ONCE)) for name, array in feed.items()}


def _first_prompts(feed: Feed, count: int) -> Feed:
    # Copies: a slice would hold the whole feed.
    return {name: np.array(_sliced(name, array, slice(count))) for name, array in feed.items()}


def _sliced(name: str, array: Array, rows: slice) -> Array:
    return array if name in ("image_embeddings", "orig_im_size") else array[rows]


def _image_mark(feed: Feed) -> bytes:
    """Tells images apart without keeping them: a thin sample of the embedding."""
    return np.ascontiguousarray(feed["image_embeddings"].reshape(-1)[::997]).tobytes()
