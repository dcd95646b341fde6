"""Make the ranges that the package ships for a checkpoint (trt_sam/data/ranges/NAME.json), from embeddings of photographs.

Example, with the photographs of benchmarks/mobile_sam_photos.py that are for calibration:
  python scripts/ship_ranges.py --checkpoint mobile_sam --name mobile_sam --embeddings work/graphs-0-0/calibration
    --fp32 work/fp32.onnx --output trt_sam/data/ranges/mobile_sam.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="C")
    parser.add_argument("--name", required=True, help="of the checkpoint in the catalogue")
    parser.add_argument("--embeddings", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--fp32", required=True, type=Path, metavar="F.onnx", help="export --precision fp32 --target gpu --mask-input"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="F.json")
    args = parser.parse_args(argv)

    import onnx

    import trt_sam
    from calibrators.calibration import MARGIN, Calibration
    from calibrators.feeds import FeedOptions, calibration_feeds
    from calibrators.shipped import ranges_of
    from trt_sam._files import write_atomically
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.recipe import QuantizationOptions
    from trt_sam.runtime.torch_runner import TorchRunner

    checkpoint = load_checkpoint(args.checkpoint)
    feeds = calibration_feeds(args.embeddings, FeedOptions(mask_input=True), decode=TorchRunner(checkpoint.decoder).run)
    calibration = Calibration(onnx.load(args.fp32), feeds, QuantizationOptions(tiers=("A", "B")), "int8")
    versions = {"trt_sam": trt_sam.__version__, **{name: metadata.version(name) for name in ("onnx", "onnxruntime", "torch")}}
    made_from = {
        **feeds.to_dict(),
        "photographs": [Path(name).stem for name in feeds.names],
        "script": "scripts/ship_ranges.py",
        "margin": MARGIN,
        "versions": versions,
    }
    ranges = ranges_of(calibration, checkpoint, args.name, made_from)
    write_atomically(args.output, json.dumps(ranges.to_dict(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
