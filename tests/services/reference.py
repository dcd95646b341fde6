"""The masks of `OnnxRunner` itself, for the services to be compared with: JSON prompts on stdin, JSON masks on stdout.

Run by the environment of the package: python tests/services/reference.py SET PHOTO. Each prompt has `points` with `labels`,
`boxes`, both in pixels, and gives `rle` and `score` of the best mask, as SAM's rule has it.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from trt_sam.imaging.photos import read_image
from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.serve.segmentations import runs_at_size


def main() -> None:
    photo = read_image(sys.argv[2])
    size = (photo.shape[0], photo.shape[1])
    answers = []
    with OnnxRunner(sys.argv[1], threads=1) as runner:
        runner.set_image(photo)
        for prompt in json.load(sys.stdin):
            points, boxes = prompt.get("points"), prompt.get("boxes")
            decoded = runner.decode(
                None if points is None else coords_to_frame(np.array([points]), size),
                None if points is None else np.array([prompt["labels"]]),
                None if boxes is None else boxes_to_frame(np.array(boxes), size).reshape(-1, 4),
            )
            low_res = np.asarray(decoded.masks, np.float32)[:, 0]
            answers.append(
                [
                    {"rle": runs_at_size(logits, size).compressed(), "score": float(score)}
                    for logits, score in zip(low_res, decoded.iou_predictions[:, 0], strict=True)
                ]
            )
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
