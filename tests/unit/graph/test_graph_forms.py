"""The report of benchmarks/graph_forms.py, from made-up results."""

from __future__ import annotations

from types import ModuleType

import pytest
from helpers import load_benchmark

from trt_sam.engine.kernel_cost import GPUS
from trt_sam.engine.layers import KernelSummary
from trt_sam.graph.arithmetic import Arithmetic, KindCount


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("graph_forms")


def test_forms_are_distinct_and_name_their_switch(script: ModuleType) -> None:
    forms = script.forms()
    assert len(set(forms.values())) == len(forms) == 14
    assert not forms["gpu, no batched_heads"].batched_heads
    assert forms["cpu, no shared_image"].attention == "absorbed"
    assert set(script.TIMED_AT_64) <= set(forms)


def test_the_report_holds_every_number_and_the_winners(script: ModuleType) -> None:
    results = script.Results()
    for number, name in enumerate(script.forms()):
        for precision in ("fp32", "fp16", "int8"):
            for prompts in script.PROMPTS:
                arithmetic = Arithmetic({}, {"MatMul": KindCount(1, 1_500_000_000, 25_000_000)})
                kernels = KernelSummary(kernels=50 + number, fused_attentions=7, by_type={"deconv": 2} if number == 0 else {})
                modelled = dict.fromkeys([gpu.name for gpu in GPUS], 100.0 + number * (1 if precision == "fp32" else -1))
                results.counted[name, precision, prompts] = script.Counted(arithmetic, kernels, modelled)
    without = script.report(results, threads=2)
    assert "ORT ms" not in without
    assert "| gpu | 3.00 | 25 | 58 | 7 | 0 | 0 | 108 | 108 |" in without
    assert "| plain | 3.00 | 25 | 50 | 7 | 2 | 0 | 100 | 100 |" in without
    assert "| fp32 | 1 | plain: 100 | plain: 100 | 108, 108 |  |  |" in without
    assert "| fp16 | 64 | gpu, no shared_image: 87 |" in without
    results.ratios = {("cpu", 1): (1.5, 1.75, 2.0), ("gpu", 1): (0.9, 1.0, 1.125)}
    results.milliseconds = {("cpu", 1): 40.0, ("gpu", 1): 70.0, ("plain", 1): 70.4}
    timed = script.report(results, threads=2)
    assert "| cpu | 3.00 | 25 | 52 | 7 | 0 | 0 | 102 | 102 | 40 | 1.75 [1.50, 2.00] |" in timed
    assert "| plain | 3.00 | 25 | 50 | 7 | 2 | 0 | 100 | 100 | 70 |  |" in timed
    assert "| fp32 | 1 | plain: 100 | plain: 100 | 108, 108 | cpu: 1.75 | 1.75 |" in timed
