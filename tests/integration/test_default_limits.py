"""The default limits on the real decoder: FP16 and INT8 by the shipped ranges pass, a calibration on hardly anything fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from calibrators.shipped import quantize_by_ranges, shipped_ranges
from tests.fixtures.real import photo_file
from trt_sam.cli import main
from trt_sam.gate.golden import shipped_golden
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.recipe import GraphOptions, QuantizationOptions


@pytest.mark.slow
def test_correct_graphs_pass_and_one_calibrated_on_one_image_with_two_prompts_fails(
    mobile_sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(str(mobile_sam))
    ranges, golden = shipped_ranges(checkpoint), shipped_golden(checkpoint.sha256)
    assert ranges is not None
    assert golden is not None
    half, int8, few = (tmp_path / f"{name}.onnx" for name in ("fp16", "int8", "few"))
    assert main(["export", "--checkpoint", str(mobile_sam), "--precision", "fp16", "--output", str(half)]) == 0
    quantize_by_ranges(checkpoint, ranges, GraphOptions(precision="int8", target="gpu"), QuantizationOptions(), int8)
    (tmp_path / "photos").mkdir()
    shutil.copy(photo_file("chelsea.png"), tmp_path / "photos")
    calibrate = ["calibrate", "--checkpoint", str(mobile_sam), "--photos", str(tmp_path / "photos"), "--calibrator", "max"]
    assert main([*calibrate, "--prompts-per-image", "2", "--output", str(few)]) == 0
    report = tmp_path / "report.json"
    assert main(["compare", "--golden", str(golden), *map(str, (half, int8, few)), "--json", str(report)]) == 1
    data = json.loads(report.read_text())
    assert data["prompts"] == 256
    assert [each["verdict"] for each in data["candidates"]] == ["pass", "pass", "fail"]
    missed = {check["name"] for check in data["candidates"][2]["checks"] if check["status"] == "fail"}
    assert {"min_mean_iou", "min_iou", "min_mean_iou_four", "min_sqnr_db"} <= missed
