"""The cpu form beside Meta's graph by processor time of one thread, which also says something on a machine that others use.

python benchmarks/cpu_form.py --checkpoint mobile_sam --output benchmarks/results/cpu_form.json [--prompts 1,16,64]
    [--openvino PYTHON]

A process per side; one works, the others wait, in an order that is drawn anew each round. "ours" is a set, whose decoder is in
two graphs: what depends on the image alone is computed before, and is the side "prepare"; "one-graph" is its decoder in one.
`--openvino` names the Python of an environment with openvino and numpy, which then runs our graphs and Meta's as well. Beside
FILE.json there is FILE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = {1: 24, 16: 6, 64: 4}
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mobile_sam")
    parser.add_argument("--prompts", default="1,16,64")
    parser.add_argument("--openvino", metavar="PYTHON")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(*args.side)
        return 0
    sys.path.insert(0, str(ROOT))
    from benchmarks.peers import NOTES
    from trt_sam.bench.profile import profile_graph
    from trt_sam.machine.load import clocks, describe_machine

    counts = [int(each) for each in args.prompts.split(",")]
    before = clocks()["load_average"]
    with tempfile.TemporaryDirectory(prefix="trt-sam-cpu-form-") as scratch:
        graphs = write_graphs(Path(scratch), args.checkpoint)
        sides = {
            "ours": ("ours", graphs["set"]),
            "one-graph": ("ours", graphs["ours"]),
            "prepare": ("prepare", graphs["prepare"]),
        }
        sides |= {"meta": ("ort", graphs["meta"]), "meta-best": ("ort", graphs["lean"])}
        if args.openvino:
            sides |= {f"openvino-{name}": ("openvino", graphs[name]) for name in ("prepared", "ours", "lean")}
        results = [measured(sides, count, args.openvino, Path(scratch), graphs["prepare"]) for count in counts]
        two = {"graph": "decoder_prepared.onnx, of two", "path": graphs["prepared"], "prepare": graphs["prepare"]}
        one = {"graph": "decoder.onnx, in one", "path": graphs["ours"], "prepare": None}
        profiles = [
            {"graph": each["graph"], **profile_graph(each["path"], count, threads=1, prepare=each["prepare"])}
            for count in counts
            for each in (one, two)
            if count <= 16
        ]
    machine = {**describe_machine(), "load_before": before, "load_after": clocks()["load_average"]}
    report = {"checkpoint": args.checkpoint, "results": results, "profiles": profiles, "machine": machine, "notes": NOTES[:2]}
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(page(report))
    errors = [side["logits_error"] for result in results for side in result["sides"] if side["logits_error"] is not None]
    wrong = [error for error in errors if not error <= TOLERANCE]
    return 1 if wrong else 0


def write_graphs(folder: Path, source: str) -> dict[str, Path]:
    from benchmarks.peer_sides import export_meta, export_set
    from trt_sam.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(source)
    decoder = checkpoint.decoder
    graphs = {name: folder / f"{name}.onnx" for name in ("meta", "lean")}
    files = export_set(checkpoint, folder / "set")
    graphs |= {
        "set": folder / "set",
        "ours": files["decode"],
        "prepare": files["prepare"],
        "prepared": files["decode_prepared"],
    }
    export_meta(decoder, graphs["meta"], mask_branch=True)
    export_meta(decoder, graphs["lean"], mask_branch=False)
    return graphs


def measured(
    sides: dict[str, tuple[str, Path]], count: int, openvino: str | None, scratch: Path, prepare: Path
) -> dict[str, Any]:
    """Milliseconds of processor time of each side, and its ratio to Meta's in the same rounds."""
    import numpy as np

    from trt_sam.bench.feed import make_feed
    from trt_sam.contract import term_specs
    from trt_sam.graph.parity import cpu_session

    feed = scratch / "feed.npz"
    masks = {"mask_input": np.zeros((1, 1, 256, 256), np.float32), "has_mask_input": np.zeros(1, np.float32)}
    terms = cpu_session(prepare).run(None, {"image_embeddings": make_feed(count)["image_embeddings"]})
    given = {**make_feed(count), **masks, **dict(zip([spec.name for spec in term_specs()], terms, strict=True))}
    np.savez(feed, **given)  # type: ignore[arg-type]
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, (kind, graph) in sides.items():
            python = openvino if kind == "openvino" else sys.executable
            assert python is not None
            command = [python, __file__, "--output", "-", "--side", kind, str(graph), str(feed)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            workers[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch, env=environment
            )
            ask(workers[name], f"save {scratch / name}.npy")  # the first call allocates
        spent: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS.get(count, 4)):
            for name in random.sample(list(sides), len(sides)):
                spent[name].append(ask(workers[name], "run"))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    expected = np.load(scratch / "ours.npy")
    rows = []
    for name, seconds in spent.items():
        ratios = [meta / mine for meta, mine in zip(spent["meta"], seconds, strict=True)]
        error = None
        if name != "prepare":
            error = float(np.abs(np.load(scratch / f"{name}.npy") - expected).max() / np.abs(expected).max())
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "side": name,
                "ms": statistics.median(seconds) * 1e3,
                "least_ms": min(seconds) * 1e3,
                "times_meta": middle,
                "quartiles": [low, high],
                "times_meta_of_least": min(spent["meta"]) / min(seconds),
                "calls": len(seconds),
                "logits_error": error,
            }
        )
        print(count, rows[-1], file=sys.stderr, flush=True)
    return {"prompts": count, "sides": rows}


def ask(worker: subprocess.Popen[str], what: str) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(what, file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def serve(kind: str, graph: str, feed: str) -> None:
    """Answer each line with the processor seconds of a call; "save FILE" also keeps its logits."""
    import numpy as np

    given = dict(np.load(feed))
    run = {"ours": open_ours, "prepare": open_prepare, "ort": open_ort, "openvino": open_openvino}[kind](graph, given)
    for line in sys.stdin:
        started = time.process_time()
        logits = run()
        print(time.process_time() - started, flush=True)
        if line.startswith("save "):
            np.save(line.split()[1], logits)


def open_ours(graph: str, feed: dict[str, Any]) -> Any:
    from trt_sam.runtime.onnx_runner import OnnxRunner

    runner = OnnxRunner(graph, threads=1)
    runner.set_image(feed["image_embeddings"])
    prompts = {name: feed[name] for name in ("point_coords", "point_labels")}
    runner.run(prompts)  # the image's terms are there from the second call on, or for many prompts
    return lambda: runner.run(prompts)["low_res_masks"]


def open_prepare(graph: str, feed: dict[str, Any]) -> Any:
    import onnxruntime as ort

    from trt_sam.runtime.session import session_options

    session = ort.InferenceSession(graph, session_options(1), providers=["CPUExecutionProvider"])
    taken = {"image_embeddings": ort.OrtValue.ortvalue_from_numpy(feed["image_embeddings"])}
    names = [each.name for each in session.get_outputs()]

    def run() -> Any:
        return session.run_with_ort_values(names, taken)[0].numpy()

    return run


def open_ort(graph: str, feed: dict[str, Any]) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    # Meta's graph at its best is without the rewrites that OnnxRunner leaves out; the other is as its users run it.
    left_out = ["SkipLayerNormFusion", "BiasGeluFusion"] if "lean" in graph else []
    session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    taken = {each.name: feed[each.name] for each in session.get_inputs()}
    return lambda: session.run(["low_res_masks", "iou_predictions"], taken)[0]


def open_openvino(graph: str, feed: dict[str, Any]) -> Any:
    import openvino

    # float32, as the others: its default on some processors is bfloat16.
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(graph, "CPU", settings)
    taken = {each.get_any_name(): feed[each.get_any_name()] for each in model.inputs}
    return lambda: model(taken)["low_res_masks"]


def page(report: dict[str, Any]) -> str:
    """The report to read."""
    machine = report["machine"]
    lines = [
        f"# The cpu form beside Meta's graph, by processor time: {report['checkpoint']}",
        "",
        "One thread a side, the sides by turns in an order drawn each round. The machine was shared: processor time leaves the "
        "waiting out, not what others do to caches and clocks. Ratios are of two calls of one round; the last is of the "
        "least times. ours: the decoder in two graphs, of which prepare runs once an image and not in these calls; one-graph: "
        "the same in one.",
        "",
        "| prompts | side | ms, median | least | times Meta's graph | quartiles | of the least | calls | logits differ by |",
        "|---:|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for result in report["results"]:
        for row in result["sides"]:
            low, high = row["quartiles"]
            error = "" if row["logits_error"] is None else f"{row['logits_error']:.1e}"
            lines.append(
                f"| {result['prompts']} | {row['side']} | {row['ms']:.1f} | {row['least_ms']:.1f} | {row['times_meta']:.2f} | "
                f"{low:.2f} to {high:.2f} | {row['times_meta_of_least']:.2f} | {row['calls']} | {error} |"
            )
    for profile in report["profiles"]:
        title = f"{profile['graph']}: {profile['node_ms']:.1f} ms in nodes, {profile['prompts']} prompts, one thread"
        lines += ["", f"## Where ONNX Runtime's time goes: {title}", ""]
        lines += ["By the wall clock, waiting for others included: shares of a shared machine say little.", ""]
        lines += [f"- {k['kind']}: {k['count']} nodes, {k['ms']:.2f} ms, {k['share']:.1%}" for k in profile["by_kind"][:9]]
    lines += ["", "## Machine", "", *(f"- {name}: {value}" for name, value in machine.items() if name != "versions")]
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    return "\n".join([*lines, *(f"- {note}" for note in report["notes"])]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
