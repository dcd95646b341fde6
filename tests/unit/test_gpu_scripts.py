"""`make test-gpu` on machines that this one is not: which TensorRT it takes for which GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_tests.py"
RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_tests"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_each_gpu_is_tested_with_all_that_take_it(script: Any) -> None:
    hopper, ada = script.runs("9.0", RTX, "12.4"), script.runs("8.9", RTX, "13.0")
    assert [(run.backend, run.requirement) for run in hopper] == [
        ("tensorrt", "tensorrt-cu12==10.16.*"),
        ("tensorrt", "tensorrt-cu12==11.4.*"),
    ]
    assert [run.requirement for run in ada] == ["", "tensorrt-cu13==10.16.*", "tensorrt-cu13==11.4.*"]
    assert [run.backend for run in ada] == ["rtx", "tensorrt", "tensorrt"]
    assert len({run.folder for run in (*hopper, *ada)}) == 5


def test_a_failing_run_fails_the_whole_and_the_rest_still_run(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, str]] = []

    def run(command: list[str], **options: Any) -> Any:
        if "pip" not in command:
            seen.append((options["env"]["TRT_SAM_GPU_BACKEND"], options["env"].get("PYTHONPATH", "")))
        return type("Done", (), {"returncode": 3 if len(seen) == 1 else 0})

    monkeypatch.setattr(script, "gpu_compute_capability", lambda: "9.0")
    monkeypatch.setattr(script, "subprocess", type("Subprocess", (), {"run": staticmethod(run)}))
    assert script.main([]) == 3
    assert [backend for backend, _ in seen] == ["tensorrt", "tensorrt"]
    assert "tensorrt-10.16" in seen[0][1]
    assert "tensorrt-11.4" in seen[1][1]
