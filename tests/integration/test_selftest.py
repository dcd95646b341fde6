"""`trt-sam selftest`: a real run in one precision, a planted failure, and bad input."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import trt_sam.graph.export
import trt_sam.selftest
from trt_sam.cli import main
from trt_sam.engine.flavour import available_flavours
from trt_sam.errors import BuildError
from trt_sam.machine.driver import Driver
from trt_sam.machine.report import MachineReport
from trt_sam.recipe import EngineRecipe


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the real run leaves a copy of its graph for the planted one."""
    return tmp_path_factory.mktemp("kept") / "fp16.onnx"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of our own, to see that nothing stays in it; one precision, which is the half of the work."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    # An export earlier in this process has set it; a fresh process has not.
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(trt_sam.selftest, "EXPORT_PRECISIONS", ("fp16",))
    return folder


def test_the_real_run_passes_and_leaves_nothing(
    temporary: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = trt_sam.graph.export.export_decoder

    def export_and_keep(decoder: Any, path: Path, *rest: Any, **named: Any) -> Any:
        report = export(decoder, path, *rest, **named)
        shutil.copyfile(path, kept)
        return report

    monkeypatch.setattr(trt_sam.graph.export, "export_decoder", export_and_keep)
    assert main(["selftest", "--device", "cpu", "--json", str(tmp_path / "report.json")]) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("PASSED: ")
    assert "engine execution was NOT tested" in verdict
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert report["engines_executed"] is False
    assert report["device"] == "cpu"
    steps = {step["name"]: step for step in report["steps"]}
    comparison = steps["compare fp16 graph with PyTorch"]["comparison"]
    (judged,) = comparison["candidates"]
    assert judged["figures"]["iou_mean"] > 0.99
    assert not [check["sentence"] for check in judged["checks"] if check["status"] == "fail"]
    assert "emulation" in judged["notes"][0]
    for flavour in available_flavours():
        built = steps[f"build fp16 engine, {flavour.title}"]
        assert built["status"] == ("not run" if flavour.needs_gpu_to_build else "passed")
        assert steps[f"execute fp16 engine, {flavour.title}"]["status"] == "not run"
    assert {package["module"] for package in report["machine"]["packages"]} >= {"torch", "tensorrt_rtx"}
    assert list(temporary.iterdir()) == []


def test_planted_failures_fail_and_the_other_steps_go_on(
    temporary: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.exists(), "the real run comes first"
    model = onnx.load(kept)
    weight = max(model.graph.initializer, key=lambda i: np.prod(i.dims))
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array((array * 1.5).astype(array.dtype), weight.name))

    class Parity:
        parity = (type("Row", (), {"error": 0.0}),)

    def export_planted(decoder: Any, path: Path, *rest: Any, **named: Any) -> Parity:
        onnx.save(model, path)
        return Parity()

    def no_build(*_: Any, **__: Any) -> None:
        raise BuildError("planted:\n  out of memory")

    monkeypatch.setattr(trt_sam.graph.export, "export_decoder", export_planted)
    monkeypatch.setattr(trt_sam.selftest, "build_set", no_build)
    monkeypatch.setattr(trt_sam.selftest, "PROMPTS", 1)
    # Looking at the machine is the real run's part.
    machine = MachineReport("0", "3", "none", 1, Driver("", ()), (), ())
    monkeypatch.setattr(trt_sam.selftest, "examine", lambda: machine)
    assert main(["selftest", "--device", "cpu", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    statuses = {step["name"]: (step["status"], step["detail"]) for step in report["steps"]}
    assert statuses["export fp16"][0] == "passed"
    assert statuses["compare fp16 graph with PyTorch"][0] == "failed"
    for flavour in available_flavours():
        if not flavour.needs_gpu_to_build:
            assert statuses[f"build fp16 engine, {flavour.title}"] == ("failed", "planted: out of memory")
    assert report["passed"] is False
    assert report["verdict"].startswith("FAILED (compare fp16 graph with PyTorch")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "must be cpu or cuda:N"), ("cuda:", "must be cpu or cuda:N"), ("cuda:63", "no such GPU")]
)
def test_an_impossible_device_is_one_line(device: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", device]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("needs_gpu", "builds_on"), [(True, 1), (False, 0)], ids=["tensorrt", "rtx"])
def test_it_builds_and_runs_on_the_gpu_that_is_asked(
    needs_gpu: bool, builds_on: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    def build(sources: object, recipe: object, output: Path, *, flavour: object, device: int) -> Any:
        seen.append(("built", device))
        output.mkdir()
        return SimpleNamespace(builds=(SimpleNamespace(kernels=(), engine=b"", seconds=0.0),))

    def open_side(source: str, *, device: int) -> Any:
        seen.append(("opened", device))
        raise BuildError("enough is seen")

    monkeypatch.setattr(trt_sam.selftest, "build_set", build)
    monkeypatch.setattr(trt_sam.selftest, "open_side", open_side)
    monkeypatch.setattr(trt_sam.selftest, "gpu_compute_capability", lambda device: f"8.{device}")
    fits = SimpleNamespace(check_fits=lambda flavour, capability: seen.append(("fits", capability)))
    monkeypatch.setattr(trt_sam.selftest, "open_manifest", lambda folder: fits)
    flavour: Any = SimpleNamespace(title="TensorRT", name="tensorrt", needs_gpu_to_build=needs_gpu)
    golden: Any = None
    graph = tmp_path / "fp16.onnx"
    graph.write_bytes(b"a graph")
    trial = trt_sam.selftest._Trial(tmp_path, 1, lambda step: None)
    trial._try_flavour(golden, graph, EngineRecipe(), flavour)
    assert seen == [("built", builds_on), ("fits", "8.1"), ("opened", 1)]
