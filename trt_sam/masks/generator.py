"""`AutomaticMaskGenerator`: everything in a picture; call-compatible with Meta's `SamAutomaticMaskGenerator`. numpy only.

As in Meta's code, a grid of clicks goes over the image and over crops of it, each click gives three masks, and what the decoder
or the steadiness of its logits speaks against goes, and so does what overlaps better masks. Different is how: logits at full
size exist for one mask at a time, within its box, and masks are kept as runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from trt_sam.contract import LABEL_ABSENT, LABEL_FOREGROUND, LABEL_NOT_A_POINT, LOW_RES_SIZE, check_scores
from trt_sam.errors import InputError
from trt_sam.formats.runs import Runs
from trt_sam.imaging.origin import check_encoder_of_runner
from trt_sam.imaging.photos import frame_shape
from trt_sam.imaging.resize import coords_to_frame
from trt_sam.masks.candidates import Candidates, Thresholds, candidates_of
from trt_sam.masks.crops import Crop, crops_of
from trt_sam.masks.overlaps import without_overlaps
from trt_sam.masks.regions import without_small_regions
from trt_sam.masks.settings import check_settings, grids_left_over, point_grids_of
from trt_sam.progress import Progress
from trt_sam.runtime.interface import Runner, checked_embedding
from trt_sam.runtime.predictor import SupportsEmbed

__all__ = ["AutomaticMaskGenerator"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)

_TOKENS = 2
"""Of a click: the point, and SAM's "not a point"."""
_PROMPTS_PER_CALL = 8
"""Where a runner does not tell how many it takes: on a CPU more are no faster, and take 36 MB each."""
_FULL_SIZE_BYTES = 256 << 20
"""Bound of the masks at full size that a full-resolution graph gives in one call, whether they are wanted or not."""


class AutomaticMaskGenerator:
    """Masks of everything in an image. Keeps the runner, does not close it.

    The image is brought to the runner with every call, so the image of a `Predictor` over the same runner stays set. One thread
    at a time, as the runner's interface says.
    """

    def __init__(
        self,
        model: Runner,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Array] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        *,
        image_encoder: SupportsEmbed | None = None,
    ) -> None:
        """Take the decoder of `model`, any runner, and the settings of Meta's generator, with its defaults.

        Args:
            model: what runs the decoder.
            points_per_side: of the grid of clicks, at most 1024; None where `point_grids` gives the clicks.
            points_per_batch: most clicks of one call; fewer where the runner takes fewer.
            pred_iou_thresh: a mask's predicted IoU must be above this, 0 to 1; 0 takes all.
            stability_score_thresh: its stability score must be at least this, 0 to 1; 0 takes all.
            stability_score_offset: the score is the IoU of the masks whose logits are above this, and above minus this;
                0 or more.
            box_nms_thresh: of the masks of one crop whose boxes have a larger IoU, the one with the best predicted IoU stays;
                0 to 1, and 1 keeps all.
            crop_n_layers: layers of crops beside the whole image, at most 6; layer n has 4^n crops, each of which is embedded.
            crop_nms_thresh: as `box_nms_thresh`, between crops; the mask of the smaller crop stays.
            crop_overlap_ratio: of neighbouring crops of layer 1, as a part of the image's short side.
            crop_n_points_downscale_factor: layer n has `points_per_side` divided by this to the n clicks a side.
            point_grids: clicks [k, 2] of each layer, (x, y) from 0 to 1, in place of `points_per_side`. Grids of layers that
                there are not are passed over, as Meta's generator does, and warned of in the log.
            min_mask_region_area: holes and islands of fewer pixels go; 0 leaves all. Needs SciPy.
            output_mode: what `segmentation` is: "binary_mask" bool [height, width], "uncompressed_rle" or "coco_rle".
            image_encoder: what embeds photos and crops, such as `Checkpoint.image_encoder()`. None: `model`, where it was
                opened on a set with an image encoder; else there is only `generate_from_embedding`.

        Raises:
            InputError: an impossible setting, a graph that gives only its best mask, or an `image_encoder` that is known to be
                of another checkpoint than the decoder.
        """
        for spec in model.outputs:
            if spec.name == "iou_predictions" and spec.dims[-1] == 1:
                raise InputError("this graph gives only its best mask, all are needed: export without --best-mask")
        check_settings(
            output_mode,
            points_per_batch=points_per_batch,
            crop_n_layers=crop_n_layers,
            crop_overlap_ratio=crop_overlap_ratio,
            min_mask_region_area=min_mask_region_area,
            thresholds={
                "pred_iou_thresh": pred_iou_thresh,
                "stability_score_thresh": stability_score_thresh,
                "stability_score_offset": stability_score_offset,
                "box_nms_thresh": box_nms_thresh,
                "crop_nms_thresh": crop_nms_thresh,
            },
        )
        self.point_grids = point_grids_of(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        if left_over := grids_left_over(len(self.point_grids), crop_n_layers):
            # Refused it is not, as this is called like Meta's: the grids for all layers may serve generators of several depths.
            _log.warning("%s", left_over)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self._runner = model
        check_encoder_of_runner(image_encoder, model)
        # A runner of a set with an image encoder embeds by itself.
        own = cast(SupportsEmbed, model) if getattr(model, "takes_photos", False) else None
        self._encoder = own if image_encoder is None else image_encoder
        self._names = {spec.name for spec in model.inputs}

    def generate(self, image: npt.NDArray[np.uint8], progress: Progress | None = None) -> list[dict[str, Any]]:
        """Find the masks of `image`, uint8 [height, width, 3], RGB.

        Returns:
            A record for each mask, empty where there is none: `segmentation` (see `output_mode`), `area` in pixels, `bbox`
            [x, y, x1 - x, y1 - y] of its first and last pixels, `predicted_iou`, `stability_score`, `point_coords` [[x, y]]
            and `crop_box` [x, y, width, height]; all in pixels of the image.

        Raises:
            InputError: there is no image encoder, or not such an image.
            InferenceError: the runner failed.
            MissingDependencyError: SciPy is needed and not installed.
        """
        if self._encoder is None:
            raise InputError("there is no image encoder: pass image_encoder, or give an embedding to generate_from_embedding")
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"image is {image.dtype} {list(image.shape)}, must be uint8 [height, width, 3]")
        size = (image.shape[0], image.shape[1])
        encoder = self._encoder
        parts = []
        crops = crops_of(size, self.crop_n_layers, self.crop_overlap_ratio)
        for crop in crops:
            frame_shape(*crop.size)
        for number, crop in enumerate(crops):
            told = _part_of(progress, number, len(crops))
            told(0.0, "image encoder")
            embedding = encoder.embed(np.ascontiguousarray(image[crop.y0 : crop.y1, crop.x0 : crop.x1]))
            parts.append(self._in_crop(embedding, crop, size, told))
        return self._records(parts)

    def generate_from_embedding(
        self, embedding: FloatArray, original_size: tuple[int, int], progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """As `generate`, for an image of `original_size` (height, width) whose `embedding` float32 [1, 256, 64, 64] is there.

        Raises:
            InputError: not such an embedding, an impossible size, or crops are wanted, which need the image.
        """
        if self.crop_n_layers:
            raise InputError(f"crop_n_layers is {self.crop_n_layers}, but crops need the image: give it to generate")
        height, width = (int(side) for side in original_size)
        if min(height, width) < 1:
            raise InputError(f"original_size is ({height}, {width}), must be (height, width), both at least 1")
        whole = Crop(0, 0, 0, width, height)
        frame_shape(height, width)
        found = self._in_crop(checked_embedding(embedding), whole, (height, width), _part_of(progress, 0, 1))
        return self._records([found])

    def _in_crop(self, embedding: FloatArray, crop: Crop, image_size: tuple[int, int], told: Progress) -> Candidates:
        """The masks of one crop, without those that overlap better ones."""
        height, width = crop.size
        points = self.point_grids[crop.layer] * (width, height)
        thresholds = Thresholds(self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset)
        step = self._most_prompts(crop.size)
        parts = []
        chunks = [points[start : start + step] for start in range(0, len(points), step)]
        for number, (chunk, low_res, iou) in enumerate(self._decoded(embedding, chunks, crop.size)):
            told((number + 1) / len(chunks), "masks")
            parts.append(candidates_of(low_res, iou, chunk, crop, image_size, thresholds))
        found = Candidates.joined(parts)
        return found.chosen(without_overlaps(found.boxes, found.predicted_iou, self.box_nms_thresh))

    def _decoded(
        self, embedding: FloatArray, chunks: Sequence[Points], size: tuple[int, int]
    ) -> Iterator[tuple[Points, FloatArray, FloatArray]]:
        """Each chunk of points with its three masks' logits and scores; the next is computed while one is in use."""
        with ThreadPoolExecutor(1, thread_name_prefix="decoder") as worker:
            ahead = worker.submit(self._run, embedding, chunks[0], size)
            for number, chunk in enumerate(chunks):
                results = ahead.result()
                if number + 1 < len(chunks):
                    ahead = worker.submit(self._run, embedding, chunks[number + 1], size)
                yield chunk, results["low_res_masks"][:, 1:], results["iou_predictions"][:, 1:]

    def _run(self, embedding: FloatArray, points: Points, size: tuple[int, int]) -> dict[str, Array]:
        length = max(_TOKENS, self._runner.limits.get("num_points", (1, 0))[0])
        coords = np.zeros((len(points), length, 2), np.float32)
        labels = np.full((len(points), length), LABEL_ABSENT, np.float32)
        coords[:, 0] = coords_to_frame(points, size)
        labels[:, :_TOKENS] = LABEL_FOREGROUND, LABEL_NOT_A_POINT
        feed: dict[str, Array] = {"image_embeddings": embedding, "point_coords": coords, "point_labels": labels}
        if "mask_input" in self._names:
            feed["mask_input"] = np.zeros((len(points), 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32)
            feed["has_mask_input"] = np.zeros(len(points), np.float32)
        if "orig_im_size" in self._names:
            feed["orig_im_size"] = np.array(size, np.int64)
        results = self._runner.run(feed)
        check_scores(results["iou_predictions"])
        return results

    def _most_prompts(self, size: tuple[int, int]) -> int:
        """How many clicks on an image of `size` go into one call."""
        full = "orig_im_size" in self._names
        ask = getattr(self._runner, "most_prompts", None)
        if ask is not None:
            most = int(ask(_TOKENS, with_mask=False, image_size=size if full else None))
        else:
            most = min(_PROMPTS_PER_CALL, self._runner.limits.get("num_prompts", (1, 1))[1])
        if full:
            most = min(most, _FULL_SIZE_BYTES // (16 * size[0] * size[1]))
        return max(1, min(most, self.points_per_batch))

    def _records(self, parts: Sequence[Candidates]) -> list[dict[str, Any]]:
        found = Candidates.joined(parts)
        if len(parts) > 1:
            areas = np.array([crop.size[0] * crop.size[1] for crop in found.crops], np.float32)
            found = found.chosen(without_overlaps(found.boxes, 1 / areas, self.crop_nms_thresh))
        if self.min_mask_region_area > 0:
            found = self._without_small_regions(found)
        return [
            {
                "segmentation": self._segmentation(runs),
                "area": runs.area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": float(found.predicted_iou[row]),
                "point_coords": [found.points[row].tolist()],
                "stability_score": float(found.stability[row]),
                "crop_box": [crop.x0, crop.y0, crop.size[1], crop.size[0]],
            }
            for row, (runs, (x0, y0, x1, y1), crop) in enumerate(
                zip(found.runs, found.boxes.tolist(), found.crops, strict=True)
            )
        ]

    def _segmentation(self, runs: Runs) -> Any:
        if self.output_mode == "binary_mask":
            return runs.mask()
        return runs.compressed() if self.output_mode == "coco_rle" else runs.uncompressed()

    def _without_small_regions(self, found: Candidates) -> Candidates:
        """Smooth the masks, and drop those that overlap others by it, the changed ones first."""
        runs, changed = [], []
        for each in found.runs:
            mask, differs = without_small_regions(each.mask(), self.min_mask_region_area)
            runs.append(Runs.of(mask) if differs else each)
            changed.append(differs)
        boxes = np.array([each.box for each in runs], np.int64).reshape(-1, 4)
        smooth = Candidates(runs, boxes, found.predicted_iou, found.stability, found.points, found.crops)
        threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
        return smooth.chosen(without_overlaps(boxes, 1.0 - np.array(changed, np.float32), threshold))


def _part_of(progress: Progress | None, number: int, count: int) -> Progress:
    """The progress of one of `count` equal parts."""
    if progress is None:
        return lambda fraction, phase: None
    return lambda fraction, phase: progress((number + fraction) / count, phase)
