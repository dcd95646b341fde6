"""The limits on what `trt-sam accuracy` measures."""

from __future__ import annotations

import numpy as np

from trt_sam.accuracy.measurement import Measurement
from trt_sam.gate.limits import DEFAULTS
from trt_sam.gate.of_accuracy import judge_variants, verdict_lines


def test_a_variant_fails_by_its_own_precisions_limits() -> None:
    count = 256
    rng = np.random.default_rng(0)
    columns = {
        "image": np.repeat(np.arange(16), 16),
        "iou": 1.0 - rng.uniform(0.003, 0.007, count),
        "all_masks": 1.0 - rng.uniform(0.003, 0.007, count),
        "flip_cost": np.zeros(count),
        "flip": np.zeros(count, np.bool_),
        "signal": np.full(count, 1e4),
        "noise": np.full(count, 0.1),
    }
    areas = np.full(count, 0.1)
    broken = {**columns, "noise": np.where(np.arange(count) == 7, np.inf, 0.1)}
    variants = {"fp16": columns, "int8-max-A": columns, "broken": broken}
    measurement = Measurement(np.array(["click"] * count), areas, {}, variants, {})
    kinds = {"fp16": "fp16", "int8-max-A": "quantized", "broken": "quantized"}
    verdicts = judge_variants(measurement, kinds, DEFAULTS)
    assert {name: verdict.status for name, verdict in verdicts.items()} == {
        "fp16": "fail",
        "int8-max-A": "pass",
        "broken": "fail",
    }
    assert [check.name for check in verdicts["broken"].missed] == ["min_sqnr_db"]
    assert "FAIL  fp16" in verdict_lines(verdicts)
