"""An INT8 image encoder (MobileSAM's) judged end to end: which of its layers cost masks, and what calibrators make of it.

Photographs and their split are those of benchmarks/mobile_sam_photos.py: ranges come from some of "calibration", verdicts from
some of "judging", which nothing was tuned on. Masks are the float32 decoder's, of embeddings of a quantized and of the float32
encoder, for prompts as people give them; nothing else is rounded, so that only quantization is seen. Rows of FP16 stand beside
them: every float16 tensor of the encoder rounded (emulated), and of the decoder too. A row takes about 4 s of one core for each
photograph. Finished rows are kept in --work; --earlier takes them from a report.

Example:
  python benchmarks/encoder_int8.py --work /tmp/encoder_int8 --output benchmarks/results/encoder_int8.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_sam_photos import PHOTOS, fetch, split
from script import finish, say

if TYPE_CHECKING:
    import onnx

    from calibrators.calibration import Calibration
    from calibrators.encoder_trials import EncoderTrials
    from calibrators.pictures import PictureFeeds
    from trt_sam.model.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("qkv", "attn_out", "mlp_in", "mlp_out")
NOT_TIER_A = "mlp_out"


def _in_tier_a(group: str) -> bool:
    return not group.endswith(NOT_TIER_A)


def _of_kind(kind: str) -> Callable[[str], bool]:
    return lambda group: group.endswith(kind)


def _of_stage(stage: int) -> Callable[[str], bool]:
    return lambda group: group.startswith(f"stage{stage}") and group.endswith(NOT_TIER_A)


ROWS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "tier A (default), max": ("max", _in_tier_a),
    "tiers A and B, max": ("max", lambda group: True),
    "mlp_out alone, max": ("max", _of_kind("mlp_out")),
    "qkv alone, max": ("max", _of_kind("qkv")),
    "attn_out alone, max": ("max", _of_kind("attn_out")),
    "mlp_in alone, max": ("max", _of_kind("mlp_in")),
    "tier A, percentile": ("percentile", _in_tier_a),
    "tier A, mse": ("mse", _in_tier_a),
    "tier A, entropy": ("entropy", _in_tier_a),
    **{f"mlp_out of stage {stage} alone, max": ("max", _of_stage(stage)) for stage in (3, 2, 1)},
}
"""By name: the calibrator, and which groups are quantized."""
FP16_ENCODER, FP16_BOTH = "nothing: FP16 encoder (emulated)", "nothing: FP16 end to end (encoder and decoder emulated)"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when the table was written."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps photographs, the graph and rows")
    parser.add_argument("--output", type=Path, required=True, metavar="F.json", help="F.md is written beside it")
    parser.add_argument("--checkpoint", default="mobile_sam", metavar="C", help="default: %(default)s")
    parser.add_argument("--calibration", type=int, default=8, metavar="N", help="photographs to calibrate on (default: 8)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="photographs to judge by (default: 8)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="of each (default: 8)")
    parser.add_argument("--rows", type=int, default=len(ROWS), metavar="N", help="only the first N (default: all), and FP16")
    parser.add_argument("--earlier", type=Path, metavar="F.json", help="a report of the same photographs: its rows are done")
    parser.add_argument("--note", default="", metavar="TEXT", help="stands in the head of the report")
    return finish("encoder_int8", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Every row that is not there yet, then the report."""
    import onnx

    from calibrators.encoder_trials import EncoderTrials
    from trt_sam.graph.encoder import export_encoder
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.runtime.torch_runner import TorchRunner

    args.work.mkdir(parents=True, exist_ok=True)
    names = split(PHOTOS)
    used, judged = names["calibration"][: args.calibration], names["judging"][: args.images]
    checkpoint = load_checkpoint(args.checkpoint)
    graph = args.work / "fp32.onnx"
    if not graph.exists():
        say("exporting the encoder")
        export_encoder(checkpoint.image_encoder(), graph, checkpoint_sha256=checkpoint.sha256)
    quantized = [*ROWS][: args.rows]
    names_of_rows = (FP16_ENCODER, FP16_BOTH, *quantized)
    if args.earlier is not None:
        _take_rows(args, {"calibration": used, "judging": judged})
    missing = [name for name in names_of_rows if not _row_file(args, name).exists()]
    if missing:
        plain = onnx.load(graph)
        calibration = _calibrated(args, plain, used) if set(missing) & set(quantized) else None
        say("drawing prompts")
        decode = TorchRunner(checkpoint.decoder).run
        trials = EncoderTrials(plain, decode, _feeds(args.work, judged).pictures, prompts=args.prompts)
        _judge_fp16(args, checkpoint, trials)
        for name in quantized:
            _judge(args, name, calibration, trials)
    rows = {name: json.loads(_row_file(args, name).read_text()) for name in names_of_rows}
    _report(args, rows, {"calibration": used, "judging": judged})
    return 0


def _feeds(work: Path, names: Sequence[str]) -> PictureFeeds:
    from calibrators.pictures import picture_feeds

    fetch(tuple(photo for photo in PHOTOS if photo.name in names), work / "photos")
    folder = work / f"photos-{len(names)}-{names[0]}"
    folder.mkdir(exist_ok=True)
    for name in names:
        if not (folder / f"{name}.png").exists():
            shutil.copyfile(work / "photos" / f"{name}.png", folder / f"{name}.png")
    return picture_feeds(folder)


def _calibrated(args: argparse.Namespace, plain: onnx.ModelProto, used: Sequence[str]) -> Calibration:
    from calibrators.calibration import Calibration
    from trt_sam.recipe import ENCODER_QUANTIZATION

    kept = args.work / f"calibration-{len(used)}.pickle"
    if not kept.exists():
        say(f"calibrating on {len(used)} photographs")
        options = dataclasses.replace(ENCODER_QUANTIZATION, tiers=("A", "B"))
        made = Calibration(plain, _feeds(args.work, used), options, "int8")
        made.ranges(made.calibrators())
        kept.write_bytes(pickle.dumps(made))
    calibration: Calibration = pickle.loads(kept.read_bytes())
    return calibration


def _row_file(args: argparse.Namespace, name: str) -> Path:
    file: Path = args.work / f"row-{args.calibration}-{args.images}-{args.prompts}-{name.replace(' ', '_')}.json"
    return file


def _take_rows(args: argparse.Namespace, names: dict[str, list[str]]) -> None:
    """Rows of an earlier report as finished ones; raises InputError where it is of something else."""
    from trt_sam.errors import InputError

    earlier = json.loads(args.earlier.read_text())
    asked = {"checkpoint": args.checkpoint, "photographs": names, "prompts_per_image": args.prompts}
    for key, value in asked.items():
        if earlier[key] != value:
            raise InputError(f"{args.earlier} has {key} {earlier[key]}, must be {value}; give a report of the same, or none")
    for name, row in earlier["rows"].items():
        _row_file(args, name).write_text(json.dumps(row) + "\n")


def _judge(args: argparse.Namespace, name: str, calibration: Calibration | None, trials: EncoderTrials) -> None:
    from trt_sam.quantize.share import insert_qdq, quantization_share

    path = _row_file(args, name)
    if path.exists():
        return
    assert calibration is not None
    say(name)
    calibrator, wanted = ROWS[name]
    products = [product for product in calibration.products if wanted(product.group)]
    amax = calibration.ranges(dict.fromkeys((product.activation for product in products), calibrator))
    model = insert_qdq(calibration.model, products, amax, "int8", moments=calibration.moments)
    found = [product for product in calibration.found if wanted(product.group)]
    share = quantization_share(calibration.plain, found)
    path.write_text(json.dumps({**dataclasses.asdict(trials.score(model)), "share": share}) + "\n")


def _judge_fp16(args: argparse.Namespace, checkpoint: Checkpoint, trials: EncoderTrials) -> None:
    from trt_sam.graph.encoder import export_encoder
    from trt_sam.graph.export import export_decoder
    from trt_sam.graph.float16 import Float16Emulation
    from trt_sam.recipe import GraphOptions

    if all(_row_file(args, name).exists() for name in (FP16_ENCODER, FP16_BOTH)):
        return
    encoder, decoder = args.work / "fp16.onnx", args.work / "decoder-fp16.onnx"
    if not encoder.exists():
        say("exporting in FP16")
        export_encoder(checkpoint.image_encoder(), encoder, precision="fp16", checkpoint_sha256=checkpoint.sha256)
    if not decoder.exists():
        options = GraphOptions(precision="fp16", target="gpu", mask_input=True)
        export_decoder(checkpoint.decoder, decoder, options, checkpoint_sha256=checkpoint.sha256)
    say(FP16_ENCODER)
    half = Float16Emulation(encoder)
    embeddings = [half.run(picture.feed())["image_embeddings"] for picture in trials.pictures]
    for name, decode in ((FP16_ENCODER, None), (FP16_BOTH, Float16Emulation(decoder).run)):
        row = dataclasses.asdict(trials.score_embeddings(embeddings, decode=decode))
        _row_file(args, name).write_text(json.dumps({**row, "share": 0.0}) + "\n")


def _report(args: argparse.Namespace, rows: dict[str, dict[str, Any]], names: dict[str, list[str]]) -> None:
    versions = {name: metadata.version(name) for name in ("onnxruntime", "torch", "onnx", "numpy")}
    facts = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs",
        "versions": versions,
        "checkpoint": args.checkpoint,
        "photographs": names,
        "prompts_per_image": args.prompts,
        "note": args.note,
    }
    args.output.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    lines = [
        "# INT8 image encoder of MobileSAM, end to end",
        "",
        "Made by `benchmarks/encoder_int8.py`; see there what is compared. Masks of the float32 decoder, of embeddings by the",
        "quantized and by the float32 encoder; noise is the root mean square difference of the logits near the masks' edges.",
        "In the rows of FP16 every float16 tensor is rounded; in those of INT8 nothing is but what is quantized.",
        "",
        f"{facts['machine']}; {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        *(["", args.note] if args.note else []),
        "",
        "| quantized | share of multiply-adds | mean IoU | 5 % | small masks | other mask chosen | clearly | noise |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in rows.items()),
        "",
        f"Calibrated on {len(names['calibration'])} photographs: {', '.join(names['calibration'])}.",
        "",
        f"Judged by {args.prompts} prompts on each of {len(names['judging'])} others: {', '.join(names['judging'])}.",
    ]
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _line(name: str, row: dict[str, Any]) -> str:
    small = "-" if row["small_iou"] is None else f"{row['small_iou']:.4f}"
    flips = f"{row['flips']} of {row['prompts']} | {row['clear_flips']}"
    masks = f"{row['mean_iou']:.4f} | {row['p5_iou']:.4f} | {small}"
    return f"| {name} | {row['share']:.0%} | {masks} | {flips} | {row['noise']:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
