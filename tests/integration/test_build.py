"""Real TensorRT-RTX builds, ahead of time and without a GPU, through the library and the command line."""

from __future__ import annotations

import dataclasses
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
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import Flavour, load_flavour
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import InputError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile
from trt_sam.recipe_toml import list_recipes, load_recipe

ROOT = Path(__file__).resolve().parents[2]
GPUS = ("8.6", "8.9", "12.0")
ONE_CLICK = ShapeProfile(num_prompts=(1, 1, 1), num_points=(2, 2, 2), height=(1080, 1080, 1080), width=(1920, 1920, 1920))

GRAPHS = {
    "fp16": GraphOptions(precision="fp16"),
    "fp32": GraphOptions(precision="fp32"),
    "fp16 with mask, size and bits": GraphOptions(precision="fp16", mask_input=True, full_resolution=True, mask_bits=True),
    "fp32 with mask and size": GraphOptions(precision="fp32", mask_input=True, full_resolution=True),
}


@pytest.fixture(scope="session")
def graph() -> Path:
    """The FP16 graph, for tests that any graph will do."""
    return random_graph(GRAPHS["fp16"])


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    return load_flavour("rtx")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command line, expect exit code 2 and one error on stderr, and return its line."""
    assert main([str(argument) for argument in arguments]) == 2
    return error_line(capsys.readouterr().err)


FULL = [pytest.param(name, marks=() if name == "fp16 with mask, size and bits" else pytest.mark.slow) for name in GRAPHS]
"""That with every output and input builds in `make test`."""


@pytest.mark.parametrize("name", FULL)
def test_every_graph_builds_dynamic_and_static_for_every_gpu(name: str, rtx: Flavour) -> None:
    path, attentions = random_graph(GRAPHS[name]), 7 if GRAPHS[name].precision == "fp16" else 0
    dynamic = build_engine(path, EngineRecipe(compute_capabilities=GPUS), flavour=rtx)
    static = build_engine(path, EngineRecipe(profiles=(ONE_CLICK,), compute_capabilities=("8.9",)), flavour=rtx)
    for build, sizes in ((dynamic, -1), (static, 1)):
        (summary,) = build.kernels
        assert summary.fused_attentions == attentions
        assert 20 <= summary.matrix_products <= summary.kernels <= 200
        assert len(build.engine) > 5_000_000
        labels = next(t for layer in build.layers for t in layer.inputs if t.name == "point_labels")
        assert labels.dims[0] == sizes
    assert (dynamic.compute_capabilities, static.compute_capabilities) == (GPUS, ("8.9",))
    assert dynamic.warnings == static.warnings == ()


@pytest.mark.parametrize("gpu", GPUS)
def test_a_single_gpu_can_be_built_for(gpu: str, graph: Path, rtx: Flavour) -> None:
    build = build_engine(graph, EngineRecipe(compute_capabilities=(gpu, gpu)), flavour=rtx)
    assert build.compute_capabilities == (gpu,)
    assert build.kernels[0].fused_attentions == 7


def test_profiles_are_built_and_counted_one_by_one(graph: Path, rtx: Flavour) -> None:
    recipe = EngineRecipe(profiles=(ShapeProfile(), ONE_CLICK), compute_capabilities=("8.9",))
    dynamic, static = build_engine(graph, recipe, flavour=rtx).kernels
    assert dynamic.fused_attentions == static.fused_attentions == 7
    assert dynamic != static
    alone = build_engine(graph, dataclasses.replace(recipe, profiles=(ONE_CLICK,)), flavour=rtx)
    assert alone.kernels == (static,)


def test_progress_rises_to_one(graph: Path, rtx: Flavour) -> None:
    seen: list[float] = []
    recipe = EngineRecipe(profiles=(ONE_CLICK,), compute_capabilities=("8.9",))
    build_engine(graph, recipe, flavour=rtx, progress=lambda fraction, phase: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_what_progress_raises_stops_the_build(graph: Path, rtx: Flavour) -> None:
    calls = []

    def fail(fraction: float, phase: str) -> None:
        calls.append(phase)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build_engine(graph, EngineRecipe(), flavour=rtx, progress=fail)
    assert len(calls) == 1


def test_ctrl_c_in_the_library_is_a_keyboard_interrupt(graph: Path, rtx: Flavour) -> None:
    calls = []

    def press(fraction: float, phase: str) -> None:
        calls.append(phase)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # the main thread has to wake up

    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, EngineRecipe(), flavour=rtx, progress=press)
    assert len(calls) == 3


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


def test_inspect_compiles_a_graph_at_fixed_sizes(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    arguments = ["--shape", "num_prompts=1,num_points=2", "--compute-capability", "8.9", "--json", str(report_path)]
    assert main(["inspect", str(graph), *arguments]) == 0
    text = capsys.readouterr().out
    assert "input  point_coords: float32 [num_prompts, num_points, 2]" in text
    assert "7 fused attentions" in text
    report = json.loads(report_path.read_text())
    assert report["shapes"] == {"num_prompts": [1, 1, 1], "num_points": [2, 2, 2]}
    assert json.loads(report["metadata"]["trt_sam.options"])["precision"] == "fp16"
    assert sum(report["nodes"].values()) == len(onnx.load(graph, load_external_data=False).graph.node)
    (kernels,) = report["kernels"]
    assert len(report["layers"]) == kernels["kernels"] + kernels["waits"] + kernels["host_calls"]


def test_inspect_refuses_in_one_line(graph: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for shape in ("points=2", "num_points", "num_points=0", "num_points=two", ""):
        assert "must be NAME=SIZE" in refused(capsys, "inspect", graph, "--shape", shape)
    engine = tmp_path / "decoder.engine"
    assert "engine not found" in refused(capsys, "inspect", engine)
    engine.write_bytes(b"engine")
    assert "is no engine set" in refused(capsys, "inspect", engine)
    assert "built already" in refused(capsys, "inspect", engine, "--shape", "num_points=2")
    assert "is not an ONNX file" in refused(capsys, "inspect", Path(__file__))


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


def test_recipes_of_real_models_take_twenty_clicks_and_a_box() -> None:
    for name in list_recipes():
        if name != "many_prompts":
            assert max(profile.num_points[2] for profile in load_recipe(name).profiles) >= 22
