"""`trt-sam build` and `build_engine.py` with TensorRT-RTX, without a GPU: what is written, what is refused or broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from tests.engine_sets import FILES, names, write_tiny_graph
from tests.fixtures.exports import random_graph
from tests.helpers import error_line, refused
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import InputError
from trt_sam.recipe import EngineRecipe, GraphOptions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def graph() -> Path:
    return random_graph(GraphOptions(precision="fp16"))


def test_build_from_onnx_imports_no_torch(graph: Path, tmp_path: Path) -> None:
    code = "import sys; from trt_sam.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"
    arguments = ["build", "--onnx", str(graph), "--json", "--output", str(tmp_path / "set")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition("] ")[2].partition(" with ")[0] for line in done.stderr.splitlines()] == [
        "building",
        "modelling the time of one click",
        "done",
    ]
    report, end, torch_came = done.stdout.rpartition("}\n")
    assert torch_came == "False\n"
    assert json.loads(report + end)["tensorrt"]["flavour"] == "tensorrt_rtx"
    assert names(tmp_path / "set") == sorted([*FILES, "decoder.layers.json"])
    assert (tmp_path / "set" / "decoder.onnx").read_bytes() == graph.read_bytes()


LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background would hand down that it is ignored
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run_build(graph: Path, output: Path, file_size: int = 0) -> subprocess.Popen[str]:
    """Start `python build_engine.py` from another folder; `file_size` limits each file that it writes, like a full disk."""
    build = [str(ROOT / "build_engine.py"), "--onnx", str(graph), "--output", str(output)]
    command = [sys.executable, "-c", LIMITED, str(file_size), *build]
    return subprocess.Popen(command, cwd=graph.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_build_engine_from_a_bare_checkout(graph: Path, tmp_path: Path) -> None:
    process = run_build(graph, tmp_path / "set")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.endswith("] done\n")
    assert "7 fused attentions" in out
    open_manifest(tmp_path / "set")


def test_a_full_disk_is_one_line_and_leaves_nothing(graph: Path, tmp_path: Path) -> None:
    process = run_build(graph, tmp_path / "set", file_size=1_000_000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    wanted = f"trt-sam: error: cannot write {tmp_path / 'set'}: File too large; choose another --output\n"
    assert error_line(err) == wanted
    assert names(tmp_path) == []


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_ctrl_c_during_a_build_leaves_nothing(delay: float, graph: Path, tmp_path: Path) -> None:
    process = run_build(graph, tmp_path / "set")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.trt-sam-build-*/decoder.onnx")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "trt-sam: interrupted; nothing was left half-written"
    assert names(tmp_path) == []


def test_an_output_that_cannot_be_written(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    # Root may write anywhere but into /proc.
    output = Path("/proc/trt-sam") if os.geteuid() == 0 else locked / "set"
    assert "choose another --output" in refused(capsys, "build", "--onnx", graph, "--output", output)


def test_bad_options_are_one_line(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "set"
    build = ("build", "--output", out, "--onnx", graph)
    assert "allowed are 7.5, 8.0, 8.6" in refused(capsys, *build, "--compute-capability", "9.0")
    assert 'write it as "8.9"' in refused(capsys, *build, "--compute-capability", "ada")
    assert "precision = 'fp16', not 'fp32'" in refused(capsys, *build, "--precision", "fp32")
    assert "has no timing cache" in refused(capsys, *build, "--timing-cache", tmp_path / "cache")
    assert "no checkpoint" in refused(capsys, "build", "--output", out)
    assert "ONNX graph not found" in refused(capsys, "build", "--output", out, "--onnx", tmp_path / "missing.onnx")
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[[profiles]]\nnum_points = [4, 2, 8]\n")
    assert "must be 1 <= min <= opt <= max" in refused(capsys, *build, "--recipe", recipe)
    recipe.write_text("version_compatible = true\n[graph]\nprecision = 'fp16'\n")
    assert "compatible out of the recipe" in refused(capsys, *build, "--recipe", recipe)
    assert not out.exists()


def test_an_onnx_that_cannot_be_parsed_is_one_line(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, wrong = tmp_path / "set", tmp_path / "wrong.onnx"
    build = ("build", "--output", out, "--onnx", wrong)
    wrong.write_bytes(b"this is no graph")
    assert "is not an ONNX file or is cut short" in refused(capsys, *build)
    wrong.write_bytes(graph.read_bytes()[:3_000_000])
    assert "is not an ONNX file or is cut short" in refused(capsys, *build)
    model = onnx.load(graph)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "Frobnicate"
    onnx.save(model, wrong)
    assert f"at node '{node.name}' (Frobnicate): it has no operation" in refused(capsys, *build)
    del model.metadata_props[:]
    onnx.save(model, wrong)
    assert "is not a decoder that trt-sam exported" in refused(capsys, *build)
    assert not out.exists()


def test_max_points_widens_every_profile_and_keeps_what_it_is_tuned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[EngineRecipe] = []

    def build_nothing(sources: object, recipe: EngineRecipe, *rest: object, **options: object) -> None:
        asked.append(recipe)
        raise InputError("far enough")

    monkeypatch.setattr("trt_sam.commands.build.build_set", build_nothing)
    write_tiny_graph(tmp_path / "tiny.onnx")
    arguments = ["build", "--onnx", tmp_path / "tiny.onnx", "--output", tmp_path / "set", "--max-points"]
    for most, recipe, expected in (
        (40, "mobile_sam", [(1, 2, 40)]),
        (1, "mobile_sam", [(1, 1, 1)]),
        (21, "many_prompts", [(1, 2, 21), (1, 2, 21)]),
    ):
        assert "far enough" in refused(capsys, *arguments, most, "--recipe", recipe)
        assert [profile.num_points for profile in asked[-1].profiles] == expected
    assert "--max-points is 0, must be at least 1" in refused(capsys, *arguments, 0)
