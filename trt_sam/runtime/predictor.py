"""`Predictor`: set an image, then ask for masks; call-compatible with Meta's `SamPredictor`.

A prompt is treated as in Meta's code (see `runtime.prompt_tokens`): coordinates go from the original image to the 1024 frame,
and the masks come back at the original size. Needs numpy alone; torch only for what takes or gives tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import LOW_RES_SIZE, NUM_MASKS, check_scores
from trt_sam.errors import InputError
from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame, postprocess_masks
from trt_sam.runtime.image_holder import ImageHolder, ImageNotSetError, ImageReplacedError, SetImage, SupportsEmbed
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.prompt_tokens import (
    Prompt,
    as_array,
    as_boxes,
    as_masks,
    batch_size,
    padded,
    prompt_tokens,
)

if TYPE_CHECKING:
    import torch

__all__ = ["ImageNotSetError", "ImageReplacedError", "Predictor", "SupportsEmbed"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class Predictor(ImageHolder):
    """Masks of one image after another. Keeps the runner, does not close it.

    The methods and attributes are `SamPredictor`'s. Different are: `get_image_embedding` gives numpy, tensors are given on the
    CPU, `model` has no weights, and there are no `orig_h`, `orig_w`, `input_h`, `input_w`, which Meta's code never uses.

    Threads. A call is whole: its masks are of one image, the last that was set. But `set_image` and `predict` are two calls,
    so a thread whose image another thread has replaced gets an ImageReplacedError, never masks of the other's image. Give each
    thread or request a Predictor of its own over the same runner: it holds nothing but its image, inferences take turns, and an
    image that the runner holds no more is brought to it again. Where one image is meant for all threads, as in a tool for one
    user, `shared=True` takes the last one without a question. For calls side by side, use `DecoderRunner.decode(image=...)` or
    `RunnerPool`.
    """

    def __init__(self, runner: Runner, image_encoder: SupportsEmbed | None = None, *, shared: bool = False) -> None:
        """Use `runner` for prompts and `image_encoder` for `set_image`; without one, `set_image_embedding` gives the image.

        Args:
            runner: of any kind; several predictors may have the same.
            image_encoder: what embeds photos.
            shared: whether the image that one thread sets is meant for all threads.

        Raises:
            InputError: the runner's graph selects the best mask itself, so that the others cannot be had; or `image_encoder` is
                known to be of another checkpoint than the runner's decoder.
        """
        for spec in runner.outputs:
            if spec.name == "iou_predictions" and spec.dims[-1] == 1:
                raise InputError("this graph gives only its best mask, Predictor needs all four: export without --best-mask")
        super().__init__(runner, image_encoder, shared=shared)
        self._names = {spec.name for spec in runner.inputs}

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
            point_labels: [N], 1 foreground or 0 background; also 2 and 3, the first and second corner of a box.
            box: [4] (or [1, 4]), (x0, y0, x1, y1) in pixels of the original image.
            mask_input: [1, 256, 256], low-resolution logits of an earlier call.
            multimask_output: three masks for an ambiguous prompt, else the single one.
            return_logits: give masks as logits.

        Arrays may be lists or tensors as well.

        Returns:
            masks bool [C, height, width] (float32 with `return_logits`), iou_predictions float32 [C] and low_res_masks
            float32 [C, 256, 256]; C is 3 or 1.

        Raises:
            InputError: no image, another thread's image, or a prompt that cannot be used.
        """
        if point_coords is None and point_labels is not None:
            raise InputError("point_labels came without point_coords; give both or none")
        masks, iou, low_res = self.predict_batch(
            None if point_coords is None else [point_coords],
            None if point_labels is None else [point_labels],
            None if box is None else _single_box(as_array("box", box)),
            None if mask_input is None else as_array("mask_input", mask_input)[None],
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

        As many as the runner takes are computed at once: beside the results, memory does not grow with B.

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
            InputError: no image, another thread's image, or a prompt that cannot be used.
        """
        image = self._require_image()
        count = batch_size(point_coords=point_coords, boxes=boxes, mask_input=mask_input)
        corners = None if boxes is None else boxes_to_frame(as_boxes(boxes, count), image.size)
        prompts = prompt_tokens(count, point_coords, point_labels, corners, lambda points: coords_to_frame(points, image.size))
        return self._decode(image, prompts, mask_input, multimask_output, return_logits)

    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `predict_batch`, for tensors whose coordinates `transform` has brought to the 1024 frame.

        Args:
            point_coords: [B, N, 2] in the frame, of any type and on any device, like all that follow.
            point_labels: [B, N].
            boxes: [B, 4] in the frame.
            mask_input: [B, 1, 256, 256], or [1, 1, 256, 256] for all.
            multimask_output: three masks for each prompt, else one.
            return_logits: give masks as logits.

        Returns:
            What `predict_batch` does, as tensors on the CPU.

        Raises:
            InputError: no image, another thread's image, or a prompt that cannot be used.
            MissingDependencyError: torch is not installed.
        """
        torch = require("torch", "to give tensors")
        image = self._require_image()
        if point_coords is None and point_labels is not None:
            raise InputError("point_labels came without point_coords; give both or none")
        rows = None if boxes is None else as_array("boxes", boxes)
        if rows is not None and rows.shape[-1:] == (4,):
            rows = rows.reshape(-1, 4)
        masks = None if mask_input is None else as_array("mask_input", mask_input)
        count = batch_size(point_coords=point_coords, boxes=rows, mask_input=masks if masks is None or len(masks) > 1 else None)
        if masks is not None and len(masks) == 1:
            masks = np.broadcast_to(masks, (count, *masks.shape[1:]))
        corners = None if rows is None else _to_float32(as_boxes(rows, count)).reshape(-1, 2, 2)
        prompts = prompt_tokens(count, point_coords, point_labels, corners, _to_float32)
        results = self._decode(image, prompts, masks, multimask_output, return_logits)
        found, iou, low_res = (torch.from_numpy(array) for array in results)
        return found, iou, low_res

    def _decode(
        self, image: SetImage, prompts: Sequence[Prompt], mask_input: Any, multimask_output: bool, return_logits: bool
    ) -> tuple[Array, FloatArray, FloatArray]:
        """Run the prompts, as many at a time as the runner takes, and make masks at the image's size."""
        count = len(prompts)
        if mask_input is not None and "mask_input" not in self._names:
            raise InputError(
                "this graph takes no mask_input; export it with --mask-input, or its set with --decode-mask "
                "(export --encoder --decode-mask, or build --decode-mask for engines)"
            )
        hints = None if mask_input is None else as_masks(mask_input, count)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        each = NUM_MASKS - 1 if multimask_output else 1
        masks: Array = np.empty((count, each, *image.size), np.float32 if return_logits else np.bool_)
        iou = np.empty((count, each), np.float32)
        low_res = np.empty((count, each, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
        step = self._most_prompts(image, prompts, with_mask=hints is not None)
        threshold = self.model.mask_threshold
        for start in range(0, count, step):
            part = slice(start, start + step)
            results = self._run(image, prompts[part], None if hints is None else hints[part])
            iou[part], low_res[part] = results["iou_predictions"][:, chosen], results["low_res_masks"][:, chosen]
            for offset, row in enumerate(range(start, min(start + step, count))):
                full = results["masks"][offset, chosen] if "masks" in results else postprocess_masks(low_res[row], image.size)
                masks[row] = full if return_logits else full > threshold
        return masks, iou, low_res

    def _run(self, image: SetImage, prompts: Sequence[Prompt], hints: FloatArray | None) -> dict[str, Array]:
        coords, labels = padded(prompts, self._runner.limits.get("num_points", (1, 0))[0])
        feed: dict[str, Array] = {"point_coords": coords, "point_labels": labels}
        if "mask_input" in self._names:
            shape = (len(prompts), 1, LOW_RES_SIZE, LOW_RES_SIZE)
            feed["mask_input"] = np.zeros(shape, np.float32) if hints is None else hints
            feed["has_mask_input"] = np.full(len(prompts), hints is not None, np.float32)
        if "orig_im_size" in self._names:
            feed["orig_im_size"] = np.array(image.size, np.int64)
        with self._turn:
            self._bring_back(image)
            results = self._runner.run(feed)
        check_scores(results["iou_predictions"])
        return results

    def _most_prompts(self, image: SetImage, prompts: Sequence[Prompt], *, with_mask: bool) -> int:
        """How many prompts one call takes: of a runner of several profiles, it depends on their length."""
        ask = getattr(self._runner, "most_prompts", None)
        if ask is None:
            return self._runner.limits.get("num_prompts", (1, 1))[1]
        size = image.size if "orig_im_size" in self._names else None
        return int(ask(max(len(kinds) for _, kinds in prompts), with_mask=with_mask, image_size=size))


def _single_box(box: Array) -> Array:
    """The box of one prompt as [1, 4]."""
    if box.shape not in ((4,), (1, 4)):
        raise InputError(f"box has shape {list(box.shape)}, must be [4], (x0, y0, x1, y1); predict_batch takes [B, 4]")
    return box.reshape(1, 4)


def _to_float32(coords: Array) -> FloatArray:
    with np.errstate(over="ignore"):
        return coords.astype(np.float32)
