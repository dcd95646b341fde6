"""Held-out figures of the stand-in at 1024 px, as its model card shows them.

    python scripts/evaluate_standin.py --scenes 40 --output trt_sam/data/standin/held_out.json

Prompts are one click and one jittered box for every object of scenes that were never trained on; masks are compared at
1024 x 1024 px with the exact ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trt_sam.feeds.scenes import HELD_OUT_SEED, make_scene, sample_prompt
from trt_sam.model.checkpoint import load_checkpoint

FIRST = 1000
"""Scenes before this one were looked at during training, to choose when to stop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="standin")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = measure(args.checkpoint, args.scenes)
    report = {"scenes": args.scenes, "size": 1024, "kinds": {kind: summary(values) for kind, values in rows.items()}}
    everything = np.concatenate([np.array(values) for values in rows.values()])
    report["best of three, boxes and single clicks"] = round(float(everything[:, 0].mean()), 4)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


@torch.no_grad()
def measure(source: str, num_scenes: int) -> dict[str, list[list[float]]]:
    """For each prompt kind, rows of (best of three, top scored of three, single mask) IoU and the object's area."""
    checkpoint = load_checkpoint(source)
    encoder = checkpoint.image_encoder()
    rng = np.random.default_rng(7)
    rows: dict[str, list[list[float]]] = {"click": [], "box": []}
    for index in range(FIRST, FIRST + num_scenes):
        scene = make_scene(HELD_OUT_SEED + index)
        embedding = torch.from_numpy(encoder.embed(scene.image))
        for kind, kept in rows.items():
            for mask in scene.masks:
                coords, labels = sample_prompt(rng, mask, kind)
                logits, scores = checkpoint.decoder(embedding, torch.from_numpy(coords[None]), torch.from_numpy(labels[None]))
                full = torch.nn.functional.interpolate(logits, (1024, 1024), mode="bilinear")[0].numpy() > 0
                iou = (full & mask).sum((1, 2)) / np.maximum((full | mask).sum((1, 2)), 1)
                kept.append([iou[1:].max(), iou[1 + int(scores[0, 1:].argmax())], iou[0], mask.mean()])
    return rows


def summary(values: list[list[float]]) -> dict[str, float]:
    best, top, single, area = np.array(values).T
    return {
        "prompts": len(values),
        "best of three": round(float(best.mean()), 4),
        "top scored": round(float(top.mean()), 4),
        "single mask": round(float(single.mean()), 4),
        "best of three, objects over 2 % of the image": round(float(best[area > 0.02].mean()), 4),
    }


if __name__ == "__main__":
    main()
