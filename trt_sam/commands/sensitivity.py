"""Which products cost the masks most when they are quantized: each group alone, and each left out of the rest.

Groups are ranked by the mask IoU that they cost against FP32, on other images than those that the ranges come from. The last
line is what a recipe takes to reach the goal: keep_fp16 = [...]. It is empty where the goal is reached with every group.

Example:
  trt-sam sensitivity --checkpoint standin --tiers A,B
  trt-sam sensitivity --checkpoint sam_vit_b_01ec64.pth --embeddings embeddings/ --precision fp8 --json sensitivity.json

Graphs run in ONNX Runtime on the CPU, float32 outside the quantized products, so that nothing but quantization is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam._files import write_atomically
from trt_sam._lazy import require_all
from trt_sam.commands._accuracy_images import add_image_arguments, open_images
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_json_argument,
    check_images_given,
    decoder_for_prompts,
    write_json,
)
from trt_sam.commands._outputs import check_output_file
from trt_sam.errors import InputError
from trt_sam.progress import Stages, counted
from trt_sam.recipe import CALIBRATORS, TIERS, GraphOptions, QuantizationOptions

if TYPE_CHECKING:
    from calibrators.sensitivity import SensitivityReport

HELP = "rank the products by what quantizing them costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `sensitivity`."""
    add_checkpoint_argument(parser, required=True)
    add_image_arguments(parser, images=8, prompts=8, calibration=8)
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8", help="(default: %(default)s)")
    fixed = [calibrator for calibrator in CALIBRATORS if calibrator != "auto"]
    parser.add_argument("--calibrator", choices=fixed, help="how ranges are chosen (default: max)")
    parser.add_argument("--tiers", metavar="LIST", default=",".join(TIERS), help="products to rank (default: %(default)s)")
    goal = parser.add_argument_group("what keep_fp16 is to reach")
    goal.add_argument("--mean-iou", metavar="X", type=float, default=0.99, help="(default: %(default)s)")
    goal.add_argument("--p5-iou", metavar="X", type=float, default=0.97, help="5th percentile (default: %(default)s)")
    goal.add_argument("--clear-flips", metavar="X", type=float, default=0.01, help="share of prompts (default: %(default)s)")
    parser.add_argument("--report", metavar="F.html", type=Path, help="write the ranking with its nodes as a page")
    parser.add_argument("--force", action="store_true", help="replace a page that is there")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Rank; 0 when the goal can be reached, 1 when no list reaches it."""
    for name in ("mean_iou", "p5_iou", "clear_flips"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be from 0 to 1")
    calibrator = args.calibrator or "max"
    tiers = tuple(part.strip() for part in args.tiers.split(","))
    quantization = QuantizationOptions(calibrator=calibrator, tiers=tiers, seed=args.seed)
    check_output_file(args.json)
    check_images_given(args)
    check_output_file(args.report)
    if args.report is not None and args.report.exists() and not args.force:
        raise InputError(f"{args.report} exists; give --force to replace it, or another --report")
    with Stages({"load": 1, "images": 5, "calibrate": 5, "judge": 2, "rank": 20}) as stages, contextlib.ExitStack() as stack:
        stages.begin("load", f"loading {args.checkpoint}")
        require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to rank products")
        import onnx

        from calibrators.calibration import Calibration
        from calibrators.feeds import FeedOptions, calibration_feeds
        from calibrators.sensitivity import Goal, rank_groups
        from calibrators.trials import Trials
        from trt_sam.accuracy.examples import make_examples
        from trt_sam.graph.export import export_decoder
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(args.checkpoint)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "calibration").mkdir()
        images = open_images(
            args, checkpoint, folder / "calibration", calibrate=True, progress=stages.begin("images", "images")
        )
        assert images.calibration is not None
        options = FeedOptions(prompts_per_image=args.calibration_prompts, seed=args.seed, mask_input=True)
        decode = decoder_for_prompts(args, checkpoint)
        feeds = calibration_feeds(images.calibration, options, encoder_sha256=images.encoder_sha256, decode=decode)
        calibrating = stages.begin("calibrate", f"calibrating on {feeds.num_images} images", phases=True)
        path = folder / "decoder.onnx"
        plain = GraphOptions(precision="fp32", target="gpu", mask_input=True)
        export_decoder(checkpoint.decoder, path, plain, checkpoint_sha256=checkpoint.sha256)
        calibration = Calibration(onnx.load(path), feeds, quantization, args.precision, progress=counted(calibrating))
        stages.begin("judge", f"judging {args.images} other images in float32")
        examples = make_examples(images.evaluation(), args.prompts_per_image, seed=args.seed, decode=decode, earlier_masks=True)
        trials = Trials(calibration.plain, ((example.feed, example.image.original_size) for example in examples))
        goal = Goal(args.mean_iou, args.p5_iou, args.clear_flips)
        report = rank_groups(
            calibration.model,
            calibration.products,
            calibration.ranges(calibration.calibrators()),
            trials,
            moments=calibration.moments,
            precision=args.precision,
            goal=goal,
            progress=counted(stages.begin("rank", "trying each group of products")),
        )
    head = {
        "checkpoint": args.checkpoint,
        "checkpoint_sha256": checkpoint.sha256,
        "calibrator": calibrator,
        "judged_on": images.description,
        "calibration": feeds.to_dict(),
    }
    if args.report is not None:
        from trt_sam.gate.report.sensitivity_page import sensitivity_page

        write_atomically(args.report, sensitivity_page({**head, **report.to_dict()}))
    if args.json:
        write_json(args.json, {**head, **report.to_dict()})
    if args.json != "-":
        print("\n".join(table(report, calibrator)))
    return 0 if report.goal_reached else 1


def table(report: SensitivityReport, calibrator: str) -> list[str]:
    """The ranking as lines for people."""
    lines = [
        f"{report.precision} with {calibrator} ranges, {report.all_groups.prompts} prompts; mask IoU against FP32",
        f"all groups quantized: {report.all_groups}",
        "",
        f"{'group':<18} {'tier':<5} {'cost':>8} {'alone: IoU':>14} {'5 %':>7} {'flips':>6} "
        f"{'left out: IoU':>14} {'5 %':>7} {'flips':>6}",
    ]
    for row in report.groups:
        line = f"{row.group:<18} {row.tier:<5} {row.cost:>8.5f}"
        for score in (row.alone, row.left_out):
            line += "" if score is None else f" {score.mean_iou:>14.4f} {score.p5_iou:>7.4f} {score.flips:>6}"
        lines.append(f"{line}  {', '.join(row.nodes)}")
    goal = f"mean {report.goal.mean_iou:g}, 5 % {report.goal.p5_iou:g}, clear flips {report.goal.clear_flips:.1%}"
    kept = "nothing stays quantized" if report.kept is None else str(report.kept)
    verdict = "reached" if report.goal_reached else "NOT REACHED"
    names = ", ".join(f'"{name}"' for name in report.keep_fp16)
    return [*lines, "", f"goal ({goal}) {verdict}: {kept}", f"keep_fp16 = [{names}]"]
