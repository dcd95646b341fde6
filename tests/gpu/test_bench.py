"""The benchmark on a real GPU: that it runs and says what it must. Run with `make test-gpu`; it judges no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fixtures.gpu import backend, needs_gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytestmark = needs_gpu


def test_engines_are_timed_on_the_device_and_agree(tmp_path: Path) -> None:
    backend()
    pytest.importorskip("matplotlib")
    from benchmarks.gpu import main

    assert main(["--output", str(tmp_path), "--prompts", "1,5", "--seconds", "2", "--rounds", "2"]) == 0
    (path,) = tmp_path.glob("*.json")
    report = json.loads(path.read_text())
    assert report["machine"]["gpu"]["name"]
    assert report["clocks_idle"]["gpu"]
    assert all(each["gpu"]["clocks.sm"] for each in report["clocks_at_work"])
    engines = {side["name"]: side for side in report["sides"] if "TensorRT" in side["name"]}
    assert len(engines) == 5
    for name, side in engines.items():
        assert not side["not_measured"], name
        for result in side["results"]:
            assert not result["not_measured"], name
            assert 0 < result["device"]["p50"] < result["host_to_host"]["p50"], name
            assert result["best_mask"]["samples"], name
            assert result["best_bits"]["samples"], name
    assert {ratio["baseline"] for ratio in report["bits_ratios"]} == {"Meta's graph, TensorRT FP16"}
    errors = [result["logits_error"] for side in engines.values() for result in side["results"]]
    # TF32 and FP16 have 10 bits of mantissa.
    assert max(error for error in errors if error is not None) <= 3e-2
