"""`Predictor`: set an image, then ask for masks; call-compatible with Meta's `SamPredictor`. numpy only.

A prompt is treated as in Meta's code: coordinates go from the original image to the 1024 frame, one "not a point" (-1) follows
the points where there is no box, a box becomes two corners after the points, and the masks come back at the original size.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT, LABEL_BOX_END, LABEL_BOX_START, LABEL_NOT_A_POINT, LOW_RES_SIZE
from trt_sam.errors import ContractError, InputError
from trt_sam.imaging.photos import frame_shape
from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame, postprocess_masks
from trt_sam.runtime.interface import Runner, checked_embedding

__all__ = ["ImageNotSetError", "Predictor", "SupportsEmbed"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Prompt = tuple[FloatArray, FloatArray]
"""Points float32 [n, 2] in the 1024 frame and their labels float32 [n]; n may be 0."""

MASK_THRESHOLD = 0.0
"""A pixel belongs to the mask where its logit is above this, as in SAM."""


class ImageNotSetError(InputError, RuntimeError):
    """A prediction was asked for before there is an image; a RuntimeError too, as in Meta's predictor."""


_turns: WeakKeyDictionary[Runner, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def _turn_of(runner: Runner) -> threading.Lock:
    """The lock that all predictors of a runner share: setting an image and running belong together."""
    with _turns_lock:
        return _turns.setdefault(runner, threading.Lock())


class SupportsEmbed(Protocol):
    """An image encoder, such as `Checkpoint.image_encoder()` gives."""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> FloatArray:
        """Embed uint8 [height, width, 3] RGB to float32 [1, 256, 64, 64]."""


class Predictor:
    """Masks of one image after another. Keeps the runner, does not close it.

    Several predictors may share one runner, also from several threads: their inferences then take turns, and an image that the
    runner holds no more is brought to it again. For calls side by side, use `DecoderRunner.decode(image=...)` or `RunnerPool`.
    """

    def __init__(self, runner: Runner, image_encoder: SupportsEmbed | None = None) -> None:
        """Use `runner` for prompts and `image_encoder` for `set_image`; without one, `set_image_embedding` gives the image.

        Raises:
            InputError: the runner's graph selects the best mask itself, so that the others cannot be had.
        """
        self._runner = runner
        self._turn = _turn_of(runner)
        self._encoder = image_encoder
        self._names = {spec.name for spec in runner.inputs}
        self.is_image_set = False
        self.original_size: tuple[int, int] = (0, 0)
        self._embedding: FloatArray | None = None
        self._image_id = 0
        for spec in runner.outputs:
            if spec.name == "iou_predictions" and spec.dims[-1] == 1:
                raise InputError("this graph gives only its best mask, Predictor needs all four: export without --best-mask")

    def set_image(self, image: npt.NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed `image`, uint8 [height, width, 3] in `image_format` ("RGB" or "BGR"), for the predictions that follow.

        Raises:
            InputError: there is no image encoder, or not such an image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}, must be RGB or BGR")
        if self._encoder is None:
            raise InputError("this Predictor has no image encoder: pass one, or give the embedding to set_image_embedding")
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image is {image.dtype} {list(image.shape)}, must be uint8 [height, width, 3]")
        rgb = image if image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
        self.set_image_embedding(self._encoder.embed(rgb), (image.shape[0], image.shape[1]))

    def set_image_embedding(self, embedding: FloatArray, original_size: tuple[int, int]) -> None:
        """Take `embedding` float32 [1, 256, 64, 64] of an image of `original_size` (height, width); a copy is kept on the host.

        Raises:
            InputError: not such an embedding, one on a GPU, or an impossible size.
        """
        height, width = (int(v) for v in original_size)
        if min(height, width) < 1:
            raise InputError(f"original_size is ({height}, {width}), must be (height, width), both at least 1")
        frame_shape(height, width)
        self.reset_image()
        kept = _on_host(embedding)
        with self._turn:
            self._runner.set_image(kept)
            self._image_id = self._runner.image_id
        self._embedding = kept
        self.original_size = (height, width)
        self.is_image_set = True

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.original_size = (0, 0)
        self._embedding = None

    def get_image_embedding(self) -> FloatArray:
        """A copy of the embedding that is set, float32 [1, 256, 64, 64]; ImageNotSetError where there is none."""
        return self._require_image().copy()

    def predict(
        self,
        point_coords: Array | None = None,
        point_labels: Array | None = None,
        box: Array | None = None,
        mask_input: Array | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Array, FloatArray, FloatArray]:
        """Predict the masks of one prompt.

        Args:
            point_coords: [N, 2], (x, y) in pixels of the original image; any finite number.
            point_labels: [N], 1 foreground or 0 background.
            box: [4] (or [1, 4]), (x0, y0, x1, y1) in pixels of the original image.
            mask_input: [1, 256, 256], low-resolution logits of an earlier call.
            multimask_output: three masks for an ambiguous prompt, else the single one.
            return_logits: give masks as logits.

        Returns:
            masks bool [C, height, width] (float32 with `return_logits`), iou_predictions float32 [C] and low_res_masks
            float32 [C, 256, 256]; C is 3 or 1.

        Raises:
            InputError: no image, or a prompt that cannot be used.
        """
        if point_coords is None and point_labels is not None:
            raise InputError("point_labels came without point_coords; give both or none")
        masks, iou, low_res = self.predict_batch(
            None if point_coords is None else [point_coords],
            None if point_labels is None else [point_labels],
            None if box is None else _single_box(np.asarray(box)),
            None if mask_input is None else np.asarray(mask_input)[None],
            multimask_output,
            return_logits,
        )
        return masks[0], iou[0], low_res[0]

    def predict_batch(
        self,
        point_coords: Sequence[Array | None] | None = None,
        point_labels: Sequence[Array | None] | None = None,
        boxes: Array | None = None,
        mask_input: Array | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Array, FloatArray, FloatArray]:
        """Predict the masks of B prompts on the image, each as `predict` would alone.

        Args:
            point_coords: B arrays [N, 2] of any N each (an array [B, N, 2] too); None for a prompt without points.
            point_labels: B arrays [N] to match.
            boxes: [B, 4].
            mask_input: [B, 1, 256, 256].
            multimask_output: three masks for each prompt, else one.
            return_logits: give masks as logits.

        Returns:
            masks bool [B, C, height, width] (float32 with `return_logits`), iou_predictions float32 [B, C] and low_res_masks
            float32 [B, C, 256, 256].

        Raises:
            InputError: no image, or a prompt that cannot be used.
        """
        self._require_image()
        count = _batch_size(point_coords, boxes, mask_input)
        prompts = self._prompts(count, point_coords, point_labels, boxes)
        hints = self._mask_hints(count, mask_input)
        step = min(count, self._most_prompts(prompts, with_mask=hints is not None))
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        parts = []
        for start in range(0, count, step):
            part = slice(start, start + step)
            parts.append(self._run(prompts[part], None if hints is None else hints[part], chosen, return_logits))
        masks, iou, low_res = (np.concatenate(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
        return masks, iou, low_res

    def _run(
        self, prompts: Sequence[Prompt], hints: FloatArray | None, chosen: slice, return_logits: bool
    ) -> tuple[Array, FloatArray, FloatArray]:
        feed: dict[str, Array] = dict(
            zip(
                ("point_coords", "point_labels"),
                _padded(prompts, self._runner.limits.get("num_points", (1, 0))[0]),
                strict=True,
            )
        )
        if "mask_input" in self._names:
            shape = (len(prompts), 1, LOW_RES_SIZE, LOW_RES_SIZE)
            feed["mask_input"] = np.zeros(shape, np.float32) if hints is None else hints
            feed["has_mask_input"] = np.full(len(prompts), hints is not None, np.float32)
        if "orig_im_size" in self._names:
            feed["orig_im_size"] = np.array(self.original_size, np.int64)
        with self._turn:
            self._bring_back()
            results = self._runner.run(feed)
        low_res = np.ascontiguousarray(results["low_res_masks"][:, chosen])
        iou = np.ascontiguousarray(results["iou_predictions"][:, chosen])
        shape = (*low_res.shape[:2], *self.original_size)
        masks: Array = np.empty(shape, np.float32 if return_logits else np.bool_)
        for row in range(len(masks)):
            logits = (
                results["masks"][row, chosen] if "masks" in results else postprocess_masks(low_res[row], self.original_size)
            )
            masks[row] = logits if return_logits else logits > MASK_THRESHOLD
        return masks, iou, low_res

    def _most_prompts(self, prompts: Sequence[Prompt], *, with_mask: bool) -> int:
        """How many prompts one call takes: of a runner of several profiles, it depends on their length."""
        ask = getattr(self._runner, "most_prompts", None)
        if ask is None:
            return self._runner.limits.get("num_prompts", (1, 1))[1]
        size = self.original_size if "orig_im_size" in self._names else None
        return int(ask(max(len(kinds) for _, kinds in prompts), with_mask=with_mask, image_size=size))

    def _bring_back(self) -> None:
        """Make our image the runner's current one, where another's is, or where it has gone for others' images."""
        use = getattr(self._runner, "use_image", None)
        if use is not None:
            with contextlib.suppress(ContractError):
                use(self._image_id)
                return
        elif self._runner.image_id == self._image_id:
            return
        self._runner.set_image(self._require_image())
        self._image_id = self._runner.image_id

    def _prompts(
        self,
        count: int,
        point_coords: Sequence[Array | None] | None,
        point_labels: Sequence[Array | None] | None,
        boxes: Array | None,
    ) -> list[Prompt]:
        """The tokens of each prompt, Meta's "not a point" included."""
        if point_coords is not None and point_labels is None:
            raise InputError("point_coords came without point_labels; give a label to each point, 1 foreground or 0 background")
        if point_labels is not None and len(point_labels) != count:
            raise InputError(f"point_labels has {len(point_labels)} prompts, but there are {count}; they must agree")
        corners = None if boxes is None else self._corners(boxes, count)
        prompts = []
        for row in range(count):
            points = None if point_coords is None else point_coords[row]
            labels = None if point_labels is None else point_labels[row]
            coords, kinds = np.empty((0, 2), np.float32), np.empty(0, np.float32)
            if points is not None:
                coords, kinds = self._points(np.asarray(points), labels)
            if corners is not None:
                coords = np.concatenate([coords, corners[row]])
                kinds = np.append(kinds, [LABEL_BOX_START, LABEL_BOX_END])
            elif points is not None:
                coords, kinds = np.append(coords, np.zeros((1, 2), np.float32), axis=0), np.append(kinds, LABEL_NOT_A_POINT)
            prompts.append((coords, kinds.astype(np.float32)))
        return prompts

    def _points(self, points: Array, labels: Array | None) -> Prompt:
        kinds = np.asarray([] if labels is None else labels)
        if points.ndim != 2 or points.shape[1] != 2:
            raise InputError(f"point_coords has shape {list(points.shape)}, must be [N, 2]")
        if kinds.shape != points.shape[:1]:
            raise InputError(f"point_labels has shape {list(kinds.shape)}, must be [{len(points)}]: a label to each point")
        return coords_to_frame(points, self.original_size), kinds.astype(np.float32)

    def _corners(self, boxes: Array, count: int) -> FloatArray:
        boxes = np.asarray(boxes)
        if boxes.shape != (count, 4):
            raise InputError(f"box has shape {list(boxes.shape)}, must be [{count}, 4], (x0, y0, x1, y1) for each prompt")
        return boxes_to_frame(boxes, self.original_size)

    def _mask_hints(self, count: int, mask_input: Array | None) -> FloatArray | None:
        if mask_input is None:
            return None
        if "mask_input" not in self._names:
            raise InputError("this graph takes no mask_input; export it with --mask-input, or build the set with --decode-mask")
        if mask_input.shape != (count, 1, LOW_RES_SIZE, LOW_RES_SIZE):
            expected = f"[1, {LOW_RES_SIZE}, {LOW_RES_SIZE}] for each prompt: low_res_masks of an earlier call"
            raise InputError(f"mask_input has shape {list(mask_input.shape[1:])}, must be {expected}")
        return mask_input.astype(np.float32)

    def _require_image(self) -> FloatArray:
        if self._embedding is None:
            raise ImageNotSetError("no image is set; call set_image or set_image_embedding before predict")
        return self._embedding


def _on_host(embedding: Any) -> FloatArray:
    try:
        found = np.array(embedding)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ContractError(f"image_embeddings: Predictor keeps a copy on the host, torch: .cpu().numpy() ({error})") from error
    return checked_embedding(found)


def _batch_size(point_coords: Sequence[Array | None] | None, boxes: Array | None, mask_input: Array | None) -> int:
    """How many prompts there are: one where nothing says it, as in Meta's code."""
    sizes = {
        name: len(value)
        for name, value in (("point_coords", point_coords), ("boxes", boxes), ("mask_input", mask_input))
        if value is not None
    }
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"prompts by input: {found}; each must have the same number, at least 1")
    return next(iter(sizes.values()), 1)


def _single_box(box: Array) -> Array:
    """The box of one prompt as [1, 4]."""
    if box.shape not in ((4,), (1, 4)):
        raise InputError(f"box has shape {list(box.shape)}, must be [4], (x0, y0, x1, y1); predict_batch takes [B, 4]")
    return box.reshape(1, 4)


def _padded(prompts: Sequence[Prompt], least: int) -> tuple[FloatArray, FloatArray]:
    """Prompts of unequal length as point_coords [B, P, 2] and point_labels [B, P], filled up with absent points."""
    length = max(least, 1, *(len(kinds) for _, kinds in prompts))
    coords = np.zeros((len(prompts), length, 2), np.float32)
    labels = np.full((len(prompts), length), LABEL_ABSENT, np.float32)
    for row, (points, kinds) in enumerate(prompts):
        coords[row, : len(kinds)] = points
        labels[row, : len(kinds)] = kinds
    return coords, labels
