"""The main job on real SAM: masks of a photograph, engines in FP16 and INT8, both compared with PyTorch. Run by `make demo`.

python scripts/demo.py FOLDER

Where nobody gives MobileSAM's weights, it says so and does the same on the stand-in that comes with the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trt_sam.cli import main as trt_sam

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
JUDGED = ("astronaut.png", "chelsea.png", "coffee.png")
"""Of scikit-image; none of them went into the ranges that come with `mobile_sam`."""


@dataclass(frozen=True)
class Subject:
    """What is shown: a checkpoint, its recipes, and a picture with a click and a box, in its pixels."""

    checkpoint: str
    fp16: str
    int8: str
    picture: str
    click: str
    box: str


REAL = Subject("mobile_sam", "mobile_sam", "mobile_sam_int8", "astronaut.jpg", "220,400", "20,10,370,510")
STANDIN = Subject("standin", "standin", "standin_int8", "scene.png", "300,270", "565,165,980,585")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is written")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    subject = REAL
    if trt_sam(["download", REAL.checkpoint]):
        print(
            f"No source gives {REAL.checkpoint} here: the same on the stand-in, whose masks say nothing about SAM.", flush=True
        )
        subject = STANDIN
    overlays = [segment(folder, subject, kind) for kind in ("click", "box")]
    fp16, int8 = folder / "engine_fp16", folder / "engine_int8"
    data = judged_photos(folder) if subject is REAL else embedded_scenes(folder)
    source = ["--checkpoint", subject.checkpoint]
    step("build the FP16 engine", "build", *source, "--recipe", subject.fp16, "--output", fp16, "--json", folder / "fp16.json")
    own = [] if subject is REAL else [*data, "--prompts-per-image", 8]
    step(
        "build the INT8 engine",
        "build",
        *source,
        "--recipe",
        subject.int8,
        *own,
        "--output",
        int8,
        "--json",
        folder / "int8.json",
    )
    graphs = [fp16 / "decoder.onnx", int8 / "decoder.onnx"]
    on = data if subject is REAL else []
    report = ["--prompts", 96, "--min-prompts", 96, "--report", folder / "report", "--force", "--json", folder / "compare.json"]
    code = step("compare both with PyTorch", "compare", subject.checkpoint, *graphs, *on, *report, may_fail=True)
    print_table(folder, subject, overlays)
    return code


def step(title: str, *arguments: object, may_fail: bool = False) -> int:
    """Run one command as a user would, or stop with its exit code; where it `may_fail`, 1 is a result."""
    words = [str(argument) for argument in arguments]
    print(f"\n# {title}\n$ trt-sam {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = trt_sam(words)
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if code and not (may_fail and code == 1):
        sys.exit(code)
    return code


def segment(folder: Path, subject: Subject, kind: str) -> Path:
    overlay = folder / f"{Path(subject.picture).stem}_{kind}.png"
    prompt = ["--point", subject.click] if kind == "click" else ["--box", subject.box]
    outputs = ["--output", folder / f"mask_{kind}.png", "--overlay", overlay]
    what = ["segment", SAMPLES / subject.picture, "--checkpoint", subject.checkpoint]
    step(f"segment {subject.picture} by a {kind}", *what, *prompt, *outputs)
    return overlay


def judged_photos(folder: Path) -> list[object]:
    """Photographs that the ranges were not made from, copied out of scikit-image."""
    import skimage

    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for name in JUDGED:
        shutil.copyfile(Path(skimage.__file__).parent / "data" / name, photos / name)
    return ["--photos", photos]


def embedded_scenes(folder: Path) -> list[object]:
    step("embed the samples", "embed", SAMPLES, "--checkpoint", "standin", "--output", folder / "embeddings")
    return ["--embeddings", folder / "embeddings"]


def print_table(folder: Path, subject: Subject, overlays: list[Path]) -> None:
    built = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("fp16", "int8")}
    tensorrt = built["fp16"]["tensorrt"]
    rows = [("checkpoint", subject.checkpoint), ("built by", f"{tensorrt['flavour']} {tensorrt['version']}, without a GPU")]
    for kind, report in built.items():
        kernels = report["graphs"][0]["kernels"][0]
        rows.append((f"{kind.upper()} engine", f"{kernels['kernels']} kernels, {kernels['fused_attentions']} fused attentions"))
    rows += verdicts(json.loads((folder / "compare.json").read_text()))
    rows += [("report", str(folder / "report" / "report.html")), *(("overlay", str(path)) for path in overlays)]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))


def verdicts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for each candidate of `compare --json`."""
    rows = []
    for candidate in report["candidates"]:
        figures = candidate["figures"]
        text = f"{candidate['verdict']}: mask IoU mean {figures['iou_mean']:.4f}, 5th percentile {figures['iou_p5']:.4f}"
        rows.append(
            (Path(candidate["name"]).parent.name, f"{text}, {figures['prompts']} prompts on {figures['images']} images")
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
