"""`make test-gpu` and `make bench-gpu` on machines that this one is not: which TensorRT they take for which GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_bench, gpu_runs, gpu_tests

RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
Called = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    """Commands and environments, on a machine with an H100; the first command that is not pip's ends with 3."""
    seen: Called = []

    def run(command: list[str], **options: Any) -> Any:
        seen.append((command, options.get("env") or {}))
        ended = [each for each, _ in seen if "pip" not in each]
        return type("Done", (), {"returncode": 3 if "pip" not in command and len(ended) == 1 else 0})

    monkeypatch.setattr(gpu_runs, "runs_here", lambda: gpu_runs.runs("9.0", RTX, "12.4"))
    for script in (gpu_tests, gpu_bench):
        monkeypatch.setattr(script, "runs_here", gpu_runs.runs_here)
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("TRT_SAM_GPU_BACKEND", raising=False)
    return seen


def test_each_gpu_is_tested_with_all_that_take_it() -> None:
    hopper, ada = gpu_runs.runs("9.0", RTX, "12.4"), gpu_runs.runs("8.9", RTX, "13.0")
    assert [(run.backend, run.requirement) for run in hopper] == [
        ("tensorrt", "tensorrt-cu12==10.16.*"),
        ("tensorrt", "tensorrt-cu12==11.4.*"),
    ]
    assert [run.requirement for run in ada] == ["", "tensorrt-cu13==10.16.*", "tensorrt-cu13==11.4.*"]
    assert [run.backend for run in ada] == ["rtx", "tensorrt", "tensorrt"]
    assert len({run.folder for run in (*hopper, *ada)}) == 5


def test_a_failing_run_fails_the_whole_and_the_rest_still_run(called: Called) -> None:
    assert gpu_tests.main([]) == 3
    ran = [env for command, env in called if "pip" not in command]
    assert [env["TRT_SAM_GPU_BACKEND"] for env in ran] == ["tensorrt", "tensorrt"]
    assert "tensorrt-10.16" in ran[0]["PYTHONPATH"]
    assert "tensorrt-11.4" in ran[1]["PYTHONPATH"]


def test_the_benchmark_has_a_tensorrt_that_takes_the_gpu(called: Called) -> None:
    """On an H100 `make install` alone leaves TensorRT-RTX, which builds nothing for it."""
    assert gpu_bench.main(["--output", "there"]) == 3
    (pip, _), (command, env) = called
    assert pip[-1] == "tensorrt-cu12==10.16.*"
    assert command[1:] == ["benchmarks/gpu.py", "--output", "there"]
    assert env["TRT_SAM_GPU_BACKEND"] == "tensorrt"
    assert "tensorrt-10.16" in env["PYTHONPATH"]


def test_what_was_installed_whole_is_not_installed_again(called: Called) -> None:
    gpu_bench.main([])
    gpu_tests.main([])
    assert [command[-1] for command, _ in called if "pip" in command] == ["tensorrt-cu12==10.16.*", "tensorrt-cu12==11.4.*"]


def test_an_installation_that_broke_off_is_done_again(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    (run, *_) = gpu_runs.runs_here()
    Path(sys.prefix, run.folder).mkdir()  # as pip leaves it
    gpu_runs.environment(run)
    assert [command[-1] for command, _ in called] == ["tensorrt-cu12==10.16.*"]


def test_without_a_gpu_the_scripts_leave_the_reason_to_what_they_run(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (gpu_tests, gpu_bench):
        monkeypatch.setattr(script, "runs_here", list)
        script.main([])
    assert [env for _, env in called] == [{}, {}]
    assert [command[1] for command, _ in called] == ["-m", "benchmarks/gpu.py"]


def test_where_pythons_headers_are_missing_the_line_says_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")  # neither PyCUDA nor Python.h
    python.chmod(0o755)
    command = ["bash", "scripts/install_pycuda.sh", str(python)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"install_pycuda: no Python.h for {python}; install its headers, Ubuntu: apt-get install python3-dev\n"
    )
