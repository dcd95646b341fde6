"""INT8 of the real decoder without any photo: the ranges that come with the package, through the RTX builder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from trt_sam.cli import main
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import GraphError
from trt_sam.quantize.share import find_products


@pytest.mark.slow
def test_mobile_sam_is_built_in_int8_without_photos(mobile_sam: Path, tmp_path: Path) -> None:
    flags = ["--recipe", "mobile_sam_int8", "--checkpoint", str(mobile_sam), "--backend", "rtx", "--compute-capability", "8.9"]
    assert main(["build", *flags, "--output", str(tmp_path / "set")]) == 0
    (graph,) = open_manifest(tmp_path / "set").graphs
    assert graph.options.precision == "int8"
    # Every product of tier A is an INT8 kernel, and every attention is fused.
    assert graph.kernels[0].int8_products == 5
    assert graph.kernels[0].fused_attentions == 7
    (report,) = (tmp_path / "set" / "calibration").glob("int8-*.json")
    facts = json.loads(report.read_text())
    assert (facts["shipped"], facts["calibrator"], len(facts["ranges"])) == ("mobile_sam", "max", 5)
    model = onnx.load(tmp_path / "set" / "decoder.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}["trt_sam.calibration"]
    assert json.loads(about)["made_from"]["images"] == 16
    with pytest.raises(GraphError, match="quantized already"):
        find_products(model)
