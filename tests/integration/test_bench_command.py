"""`trt-sam bench` and `benchmarks/peers.py` with few samples: structure, agreement and errors, never a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from trt_sam import cli
from trt_sam.bench.feed import make_feed
from trt_sam.bench.profile import profile_graph
from trt_sam.engine.manifest import MANIFEST_NAME
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.model.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
QUICK = ["--prompts", "1,3", "--seconds", "0", "--rounds", "1", "--warmup", "0", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", tuple(dict.fromkeys((*cli.COMMANDS, "bench"))))


def test_a_graph_and_a_checkpoint_are_measured_and_the_rest_has_its_reason(
    graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "out"
    args = ["bench", "--onnx", str(graphs["plain"]), "--checkpoint", "standin", "--sides", "torch,onnxruntime,engine"]
    assert cli.main([*args, *QUICK, "--profile", "--output", str(folder), "--json", str(tmp_path / "copy.json")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["latency.svg", "report.json", "report.md"]
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    torch_side, graph_side, engine = report["sides"]
    for side in (torch_side, graph_side):
        assert [result["prompts"] for result in side["results"]] == [1, 3]
        for result in side["results"]:
            assert result["host_to_host"]["samples"] == 1
            assert result["host_to_host"]["p99"] is None
            assert result["device"] is None
            assert "not measured here" in result["device_not_measured"]
    # The graph has random weights, so agreement with the stand-in would be a fault of the harness.
    assert graph_side["results"][0]["logits_error"] > 1e-2
    assert "no engine was given" in engine["not_measured"]
    assert engine["results"] == []
    assert [profile["prompts"] for profile in report["profiles"]] == [1, 3]
    assert {"torch", "onnxruntime", "numpy"} <= set(report["machine"]["versions"])
    assert report["clocks_idle"]["load_average"]
    assert [each["round"] for each in report["clocks_at_work"]] == [1]
    assert "gpu" not in report["machine"]  # --device cpu
    assert torch_side["about"]["float32 products"] == "matmul precision highest"
    assert "new arrays" in torch_side["about"]["call"]
    assert "OnnxRunner.run" in graph_side["about"]["call"]
    out = capsys.readouterr()
    assert "engine**: not measured here" in out.out
    assert "round 1 of 1" in out.err


def test_json_alone_goes_to_stdout(graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "--onnx", str(graphs["plain"]), "--sides", "onnxruntime", *QUICK, "--no-plot", "--output", str(tmp_path)]
    assert cli.main([*args, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["sides"][0]["name"] == "onnxruntime"
    assert not (tmp_path / "latency.svg").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sides", "torch,tpu"], "--sides has 'tpu'"),
        (["--sides", "torch,torch"], "twice"),
        (["--prompts", "0"], "--prompts"),
        (["--prompts", "1,1"], "--prompts"),
        (["--prompts", ""], "--prompts"),
        (["--seconds", "-1"], "seconds is -1"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "cuda:7"], "no such GPU"),
        (["--device", "tpu"], "--device"),
        (["--precision", "fp16", "--device", "cpu"], "needs a GPU"),
        (["--onnx", "absent.onnx"], "graph not found"),
        (["--engine", "absent"], "absent"),
        (["--checkpoint", "absent.pth"], "checkpoint not found"),
        (["--output", __file__], "is a file"),
        (["--sides", "engine"], "nothing could be measured (engine: no engine was given"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--no-plot", "--output", str(tmp_path / "out"), *args]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("trt-sam: error: ")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_graph_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    args = [
        "--onnx",
        str(tmp_path / "bad.onnx"),
        "--sides",
        "onnxruntime",
        *QUICK,
        "--no-plot",
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli.main(["bench", *args]) == 2
    assert "not an ONNX graph" in capsys.readouterr().err


def test_a_folder_that_is_no_engine_set_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--engine", str(tmp_path), "--no-plot", "--output", str(tmp_path / "o")]) == 2
    assert MANIFEST_NAME in capsys.readouterr().err


def test_the_profile_accounts_for_the_whole_graph(graphs: dict[str, Path]) -> None:
    profile = profile_graph(graphs["plain"], 2, threads=1)
    assert sum(row["share"] for row in profile["by_kind"]) == pytest.approx(1.0)
    assert sum(row["ms"] for row in profile["by_kind"]) == pytest.approx(profile["node_ms"])
    kinds = {row["kind"] for row in profile["by_kind"]}
    assert "LayerNormalization" in kinds
    # The fused node is several times slower on the CPU; OnnxRunner leaves it out.
    assert "SkipLayerNormalization" not in kinds


@pytest.fixture(scope="module")
def metas(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    from benchmarks.peer_sides import export_meta

    folder = tmp_path_factory.mktemp("meta")
    paths = {branch: folder / f"{branch}.onnx" for branch in (True, False)}
    for branch, path in paths.items():
        export_meta(load_checkpoint("standin").decoder, path, mask_branch=branch)
    return paths


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    import torch

    feed = make_feed(3)
    with torch.no_grad():
        masks, _ = load_checkpoint("standin").decoder(*(torch.from_numpy(array) for array in feed.values()))
    return masks.numpy()


@pytest.mark.parametrize(
    ("branch", "one", "ours"), [(True, False, False), (True, True, False), (False, False, True), (False, True, True)]
)
def test_metas_graph_gives_our_logits(
    metas: dict[bool, Path], expected: np.ndarray, branch: bool, one: bool, ours: bool
) -> None:
    from benchmarks.peer_sides import open_meta

    side = open_meta(str(metas[branch]), 1, one_at_a_time=one, our_optimizers=ours)
    side.load(make_feed(3))
    masks, iou = side.call()
    # Two float32 orders of the same sums.
    assert np.abs(masks - expected).max() <= 1e-4 * np.abs(expected).max()
    assert iou.shape == (3, 4)


def test_metas_graph_is_that_of_meta(metas: dict[bool, Path]) -> None:
    inputs = {each.name: each.shape for each in ort.InferenceSession(str(metas[True])).get_inputs()}
    assert inputs["mask_input"] == [1, 1, 256, 256]
    assert inputs["point_coords"] == ["num_prompts", "num_points", 2]
    import onnx

    kinds = [node.op_type for node in onnx.load(metas[True]).graph.node]
    assert kinds.count("ConvTranspose") == 2
    assert kinds.count("Conv") == 3
    assert kinds.count("Equal") >= 5  # one comparison per label
    assert kinds.count("Softmax") == 7


def test_transformers_gives_our_logits(expected: np.ndarray) -> None:
    from benchmarks.peer_sides import open_transformers

    side = open_transformers(1, compiled=False)
    side.load(make_feed(3))
    masks, _ = side.call()
    assert np.abs(masks - expected[:, 1:]).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_the_script_runs_as_a_whole(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--output", str(tmp_path), "--prompts", "2"]
    done = subprocess.run(
        [*command, "--sides", "ours,meta,meta-one,meta-best,eager", "--seconds", "0", "--rounds", "2", "--warmup", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "peers.json").read_text())
    assert len(report["sides"]) == 5
    assert len(report["ratios"]) == 4
    assert all(r["baseline"] == "Meta's graph, prompts batched" for r in report["ratios"])
    errors = [result["logits_error"] for side in report["sides"][1:] for result in side["results"]]
    assert max(errors) <= 1e-4
    assert (tmp_path / "peers.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("args", [["--sides", "ours,tpu"], ["--prompts", "x"], ["--rounds", "0"]])
def test_bad_input_of_the_script_is_one_line(args: list[str], tmp_path: Path) -> None:
    from benchmarks.peers import main

    assert main(["--output", str(tmp_path / "out"), *args]) == 2
    assert not (tmp_path / "out").exists()


def test_metas_graph_can_be_built_like_ours(tmp_path: Path) -> None:
    from benchmarks.peer_sides import export_meta_as_ours
    from trt_sam.graph.metadata import check_decoder, read_graph

    export_meta_as_ours(tmp_path / "meta.onnx")
    graph = read_graph(tmp_path / "meta.onnx")
    assert check_decoder(graph).precision == "fp32"
    assert graph.nodes["ConvTranspose"] == 2
    export_meta_as_ours(tmp_path / "half.onnx", half=True)
    half = read_graph(tmp_path / "half.onnx")
    assert check_decoder(half).precision == "fp16"
    assert [spec.dtype for spec in half.outputs] == ["float16", "float32"]
    # Another arithmetic, not another graph.
    assert half.nodes["MatMul"] == graph.nodes["MatMul"]


@pytest.mark.skipif(gpu_compute_capability() is not None, reason="here it would run")
def test_the_gpu_benchmark_leaves_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu import main

    assert main(["--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("bench-gpu: skipped: ")
    assert not (tmp_path / "out").exists()
