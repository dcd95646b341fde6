"""INT8 graphs of MobileSAM's decoder on embeddings of SAM ViT-H's own encoder: that nothing was tuned to MobileSAM's.

The two decoders are equal weight for weight. Two embeddings of ViT-H are in the source package sam-serve 1.1.0
(tests/data/*_embeds.npz, satellite pictures); unpack them into --embeddings. Graphs are those of accuracy_mobile_sam.py,
calibrated on MobileSAM's embeddings.

Example:
  python benchmarks/vit_h_embeddings.py --embeddings sam_serve/ --prompts 64 int8-auto-A=work/graphs-0-0/int8-auto-A.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from script import finish

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", metavar="NAME=F.onnx")
    parser.add_argument("--embeddings", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="of each picture (default: %(default)s)")
    parser.add_argument("--checkpoint", default="mobile_sam", metavar="C", help="default: %(default)s")
    return finish("vit_h_embeddings", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    from trt_sam.accuracy.examples import make_examples, stored
    from trt_sam.accuracy.measurement import Variant, measure
    from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE
    from trt_sam.errors import InputError
    from trt_sam.feeds.feeds import Image
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.runtime.onnx_runner import OnnxRunner
    from trt_sam.runtime.torch_runner import TorchRunner

    files = sorted(args.embeddings.glob("*_embeds.npz"))
    if not files:
        raise InputError(f"--embeddings {args.embeddings} holds no *_embeds.npz; unpack sam-serve's tests/data there")
    images = []
    for path in files:
        with np.load(path, allow_pickle=False) as held:
            (name,) = held.files
            images.append((path.stem, Image(held[name].reshape(EMBEDDING_SHAPE), (FRAME_SIZE, FRAME_SIZE))))
    reference = TorchRunner(load_checkpoint(args.checkpoint).decoder)
    given = dict(text.split("=", 1) for text in args.graphs)

    def variant(name: str) -> Variant:
        return Variant(name, lambda: OnnxRunner(Path(given[name]), emulate_quantization=True))

    # Drawn once: several times as many calls as the measurement has.
    examples = make_examples(stored(images), args.prompts, prompts_per_call=4, decode=reference.run, earlier_masks=True)
    seen = measure(reference, [variant(name) for name in given], examples, keep_worst=0)
    print(
        "| graph | prompts | mean | 5 % | least | boxes | refinements | clear flips |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, columns in seen.variants.items():
        iou, clear = columns["iou"], columns["flip_cost"] > 0.01
        boxes, refinements = (iou[seen.kinds == kind].mean() for kind in ("box", "refinement"))
        print(
            f"| {name} | {len(iou)} | {iou.mean():.4f} | {np.percentile(iou, 5):.4f} | {iou.min():.3f} | {boxes:.4f} | "
            f"{refinements:.4f} | {int(clear.sum())} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
