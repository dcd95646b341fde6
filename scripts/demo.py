"""The whole main job on the embedded stand-in: export, build, calibrate, segment, compare. Run by `make demo`; takes minutes.

python scripts/demo.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trt_sam.cli import main as trt_sam
from trt_sam.imaging.embeddings import load_embedding
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.predictor import Predictor

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
PLACES = {
    "scene.png": {"click": (300, 270), "box": (565, 165, 980, 585)},
    "astronaut.jpg": {"click": (220, 120), "box": (90, 20, 330, 500)},
}
"""In image pixels: (x, y), and (x0, y0, x1, y1)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is written")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    graph, engine, int8 = folder / "decoder_cpu.onnx", folder / "engine", folder / "engine_int8"
    step("export the decoder for the CPU", "export", "--checkpoint", "standin", "--precision", "fp32", "--output", graph)
    step("build the FP16 engine", "build", "--recipe", "standin", "--output", engine, "--json", folder / "build.json")
    step("embed the samples", "embed", SAMPLES, "--checkpoint", "standin", "--output", folder / "embeddings")
    data = ["--embeddings", folder / "embeddings", "--prompts-per-image", 8]
    step("calibrate and build the INT8 engine", "build", "--recipe", "standin_int8", *data, "--output", int8)
    overlays = [segment(folder, graph, name, kind) for name in PLACES for kind in ("click", "box")]
    graphs = [graph, engine / "decoder.onnx", int8 / "decoder.onnx"]
    few = ["--prompts", 48, "--min-prompts", 48, "--report", folder / "report", "--force", "--json", folder / "compare.json"]
    # Calibrated on two pictures, the INT8 graph need not pass; the report says whether it does.
    step("judge the graphs by PyTorch", "compare", "standin", *graphs, *few, allowed=(0, 1))
    built = json.loads((folder / "build.json").read_text())
    runner, executed = open_runner(engine, graph)
    with runner:
        click_ms = time_clicks(runner, folder / "embeddings" / "scene.npz")
    print_table(folder, built, executed, click_ms, overlays)
    return 0


def step(title: str, *arguments: object, allowed: tuple[int, ...] = (0,)) -> None:
    """Run one command as a user would, or stop with its exit code where that is not `allowed`."""
    words = [str(argument) for argument in arguments]
    print(f"\n# {title}\n$ trt-sam {' '.join(words)}", flush=True)
    code = trt_sam(words)
    if code not in allowed:
        sys.exit(code)


def segment(folder: Path, graph: Path, name: str, kind: str) -> Path:
    place = ",".join(str(value) for value in PLACES[name][kind])
    stem = f"{Path(name).stem}_{kind}"
    overlay = folder / f"{stem}_overlay.png"
    flag = "--point" if kind == "click" else "--box"
    outputs = ["--output", folder / f"{stem}_mask.png", "--overlay", overlay]
    step(
        f"segment {name} from a {kind}",
        "segment", SAMPLES / name, "--checkpoint", "standin", "--onnx", graph, flag, place, *outputs,
    )  # fmt: skip
    return overlay


def open_runner(engine: Path, graph: Path) -> tuple[Runner, str]:
    """The engine where there is a GPU, else the CPU graph in ONNX Runtime."""
    from trt_sam.machine.driver import gpu_compute_capability
    from trt_sam.runtime.onnx_runner import OnnxRunner

    capability = gpu_compute_capability()
    if capability is None:
        return OnnxRunner(graph), "ONNX Runtime on the CPU, FP32 (no GPU here: the engine was built, not run)"
    from trt_sam.runner.decoder_runner import DecoderRunner

    return DecoderRunner.open(engine), f"the engine, on a GPU of compute capability {capability}"


def time_clicks(runner: Runner, embedding: Path) -> float:
    """Median milliseconds of `Predictor.predict` for one click, after three calls to warm up."""
    predictor = Predictor(runner)
    loaded = load_embedding(embedding)
    predictor.set_image_embedding(loaded.image_embeddings, loaded.original_size)
    samples = []
    for _ in range(23):
        start = time.perf_counter()
        predictor.predict(np.array([[300.0, 300.0]]), np.array([1]))
        samples.append(1000 * (time.perf_counter() - start))
    return statistics.median(samples[3:])


def print_table(folder: Path, built: dict[str, Any], executed: str, click_ms: float, overlays: list[Path]) -> None:
    judged = json.loads((folder / "compare.json").read_text())["candidates"]
    files = {path: path.stat().st_size / 1e6 for path in sorted(folder.glob("**/decoder*")) if path.is_file()}
    entry, tensorrt = built["graphs"][0], built["tensorrt"]
    rows = [
        (
            "built by",
            f"{tensorrt['flavour']} {tensorrt['version']}, FP16, in {built['created']['build_seconds']:.1f} s",
        ),
        ("executed by", executed),
        *((str(path), f"{size:.1f} MB") for path, size in files.items()),
        ("kernels", f"{entry['kernels'][0]['kernels']} ({entry['kernels'][0]['fused_attentions']} fused attentions)"),
        *(
            (f"{kind} graph by {each['executed_by']}", summary(each))
            for kind, each in zip(("FP32", "FP16", "INT8"), judged, strict=True)
        ),
        ("verdicts, worst masks", str(folder / "report" / "report.html")),
        ("one click, host to host", f"{click_ms:.1f} ms with the mask at full size (median of 20)"),
        *(("overlay", str(path)) for path in overlays),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))
    print("\nThe stand-in has only learned synthetic scenes: its mask of the photograph says nothing about SAM.")


def summary(report: dict[str, Any]) -> str:
    figures = report["figures"]
    error = figures["outputs"]["low_res_masks"]["error"]
    return (
        f"{report['verdict']}; mask IoU mean {figures['iou_mean']:.5f}, lowest {figures['iou_least']:.4f}; "
        f"logit error {error:.1e} of the largest"
    )


if __name__ == "__main__":
    sys.exit(main())
