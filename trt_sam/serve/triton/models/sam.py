"""`SamModel`: pictures and prompts to the best masks, as COCO RLE."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trt_sam.contract import LABEL_ABSENT
from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame
from trt_sam.runtime.call.decoded import chosen_mask
from trt_sam.runtime.prompt_tokens import as_boxes, as_masks, batch_size, prompt_tokens
from trt_sam.serve.faults import Refusal, bad_prompt, image_unknown
from trt_sam.serve.model import Model
from trt_sam.serve.pictures import picture_of
from trt_sam.serve.requests import check_boxes, check_inside
from trt_sam.serve.segmentations import runs_at_size
from trt_sam.serve.settings import ServeSettings
from trt_sam.serve.triton.models.backend import Array, answered, input_array, parameter, response, version_folder
from trt_sam.serve.triton.models.calls import CallsDecoder

__all__ = ["SamModel"]


class SamModel:
    """`sam` of a repository. A picture's id is the hash of its bytes: who sends them again has it embedded once."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what the decoder takes; the other two models are called when they are needed."""
        self._most_images = parameter(args, "images", 64)
        self._model = Model(CallsDecoder(version_folder(args) / "contract.json", self._most_images), "sam")
        self._bounds = ServeSettings()
        self._images: OrderedDict[str, tuple[int, tuple[int, int]]] = OrderedDict()
        """Number and (height, width) by id, the least recently used first."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return answered(requests, self._answer)

    def finalize(self) -> None:
        """Forget all images."""
        self._model.close()

    def _answer(self, request: Any) -> Any:
        coords, labels, boxes, masks = (
            input_array(request, each) for each in ("point_coords", "point_labels", "boxes", "mask_input")
        )
        if coords is None and boxes is None and masks is None:
            raise bad_prompt("there is no prompt; give point_coords with point_labels, boxes, or mask_input")
        count = batch_size(point_coords=coords, boxes=boxes, mask_input=masks)
        points, kinds = _unpadded(coords, labels)
        self._check_bounds(count, points)
        image, size, name = self._image(input_array(request, "image"), input_array(request, "image_id"))
        wanted, named = request.requested_output_names(), np.array([name.encode()], object)
        for each in points or ():
            check_inside("point_coords", each, size)
        corners = None
        if boxes is not None:
            check_boxes(given := as_boxes(boxes, count), size)
            corners = boxes_to_frame(given, size)
        prompts = prompt_tokens(count, points, kinds, corners, lambda places: coords_to_frame(places, size))
        low_res, scores = self._model.decode(image, prompts, size, None if masks is None else as_masks(masks, count))
        rows = np.arange(count)
        best = np.array([chosen_mask(row.tolist(), kinds.tolist()) for row, (_, kinds) in zip(scores, prompts, strict=True)])
        low_res, scores = low_res[rows, best][:, None], scores[rows, best]
        found: dict[str, Array] = {"iou_predictions": scores, "low_res_masks": low_res, "image_id": named}
        if "rle" in wanted:
            runs = [runs_at_size(logits, size).compressed() for logits in low_res[:, 0]]
            found["rle"] = np.array([json.dumps(each).encode() for each in runs], object)
        return response(found, wanted)

    def _check_bounds(self, count: int, points: list[Array] | None) -> None:
        """Refuse what would take the decoder's memory: its process, once killed for it, is not started again."""
        if count > self._bounds.boxes:
            raise bad_prompt(f"there are {count} prompts, at most {self._bounds.boxes} go into a request")
        longest = max(map(len, points or ()), default=0)
        if longest > self._bounds.points:
            raise bad_prompt(f"a prompt has {longest} points, at most {self._bounds.points} go into one")

    def _image(self, picture: Array | None, name: Array | None) -> tuple[int, tuple[int, int], str]:
        """Number, size and id of the picture that a request is about."""
        if picture is None and name is None:
            raise Refusal(400, "bad_picture", "there is no picture; give image, the bytes of a JPEG or PNG, or image_id")
        data = b"" if picture is None else _only(picture)
        asked = hashlib.sha256(data).hexdigest()[:32] if picture is not None else _only(name).decode("ascii", "replace")
        held = self._images.get(asked)
        if held is not None:
            self._images.move_to_end(asked)
            return *held, asked
        if picture is None:
            raise image_unknown()
        rgb = picture_of(data, self._bounds.pixels)
        size = (rgb.shape[0], rgb.shape[1])
        while len(self._images) >= self._most_images:
            _, (oldest, _) = self._images.popitem(last=False)
            self._model.drop(oldest)
        number = self._model.add(rgb)
        self._images[asked] = (number, size)
        return number, size, asked


def _only(value: Any) -> bytes:
    """The one text of a tensor of type BYTES."""
    each = value.ravel()[0] if value is not None and value.size == 1 else b""
    return each if isinstance(each, bytes) else str(each).encode()


def _unpadded(coords: Array | None, labels: Array | None) -> tuple[list[Array] | None, list[Array] | None]:
    """Points and labels of each prompt without those that only fill a row up (label -2)."""
    if coords is None:
        return None, None
    if labels is None or labels.shape != coords.shape[:2]:
        raise bad_prompt(f"point_labels must be [{', '.join(map(str, coords.shape[:2]))}]: 1 to add, 0 to remove, -2 for none")
    kept = [row != LABEL_ABSENT for row in labels]
    if not np.isin(labels, (LABEL_ABSENT, 0, 1)).all() or not np.isfinite(coords).all():
        raise bad_prompt("point_labels must be 1 to add, 0 to remove, or -2 for none, and point_coords finite")
    return [points[keep] for points, keep in zip(coords, kept, strict=True)], [
        row[keep] for row, keep in zip(labels, kept, strict=True)
    ]
