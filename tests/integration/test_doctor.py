"""`trt-sam doctor` on this machine, on one with planted broken packages, and on the host-memory driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_sam._lazy import install_command
from trt_sam.machine.driver import Driver, Gpu, examine_driver
from trt_sam.machine.report import Package, abilities


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trt_sam", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_broken_packages_are_lines_of_the_report_and_the_rest_is_found(tmp_path: Path) -> None:
    planted = {
        "polygraphy": "raise RuntimeError('planted: bad install')",
        "tensorrt": "import os; os.abort()",
        "onnxscript": "import sys; print('chatter'); sys.exit(0)",
        "huggingface_hub": "import no_such_module_of_anyone",
    }
    for name, code in planted.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    done = doctor("--json", str(tmp_path / "report.json"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "BROKEN: RuntimeError: planted: bad install" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    packages = {package["module"]: package for package in report["packages"]}
    assert {name: packages[name]["status"] for name in planted} == dict.fromkeys(planted, "broken")
    assert "signal" in packages["tensorrt"]["error"] or "Aborted" in packages["tensorrt"]["error"]
    assert "no_such_module_of_anyone" in packages["huggingface_hub"]["error"]
    assert packages["polygraphy"]["pip"] == "pip install --force-reinstall polygraphy"
    assert packages["onnxruntime"]["status"] == "ok"
    assert "CPUExecutionProvider" in packages["onnxruntime"]["details"]["providers"]
    able = {ability["name"]: ability for ability in report["abilities"]}
    assert not able["judge with Polygraphy"]["able"]
    assert "force-reinstall polygraphy" in able["judge with Polygraphy"]["pip"]
    assert able["run a graph on the CPU"]["able"]


def test_an_unwritable_report_is_one_line(tmp_path: Path) -> None:
    done = doctor("--json", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is a folder" in done.stderr


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_without_a_driver_the_reason_is_said() -> None:
    driver = examine_driver()
    assert driver.gpus == ()
    assert "libcuda" in driver.error or "cuInit" in driver.error or "no GPU" in driver.error


FAKE_DRIVER = Path(sys.prefix) / "gpu-fixtures"


def test_doctor_imports_nothing_heavy_itself_and_asks_a_driver_for_its_gpus() -> None:
    code = (
        "import sys; from trt_sam.cli import main; main(['doctor', '--json']); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'onnxruntime', 'tensorrt_rtx', 'pycuda', 'transformers')))"
    )
    # Over the host-memory driver where it was built (it needs a C++ compiler); elsewhere the machine as it is.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(FAKE_DRIVER)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    packages = {package["module"]: package for package in report["packages"]}
    assert packages["torch"]["version"]
    assert packages["onnx"]["version"]
    if (FAKE_DRIVER / "libcuda.so.1").exists():
        driver = report["driver"]
        assert driver["error"] == ""
        assert driver["cuda"]
        assert driver["gpus"][0]["name"]
        assert driver["gpus"][0]["memory_bytes"] > 0
        assert float(driver["gpus"][0]["compute_capability"]) > 0
        # PyCUDA loads where there is a libcuda.
        assert packages["pycuda.driver"]["status"] != "no driver"
        if packages["pycuda.driver"]["status"] == "ok":
            major, minor = packages["pycuda.driver"]["details"]["for CUDA"].split(".")
            assert (int(major), int(minor)) < (12, 8), "it would need driver R570"


ALL_OK = tuple(
    Package(name, "ok", "1", "", "")
    for name in (
        *(
            "torch",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "huggingface_hub",
            "safetensors",
            "PIL",
            "pooch",
            "pypi_simple",
            "polygraphy",
        ),
        *("tensorrt_rtx", "tensorrt", "pycuda.driver", "cuda.bindings.driver"),
    )
)


def without(name: str) -> tuple[Package, ...]:
    lost = Package(name, "missing", "", "", install_command([name.partition(".")[0]]))
    return tuple(lost if package.module == name else package for package in ALL_OK)


def able(driver: Driver, packages: tuple[Package, ...], name: str) -> tuple[bool, str]:
    found = next(ability for ability in abilities(driver, packages) if ability.name == name)
    assert found.able == (not found.needs)
    return found.able, found.pip


def test_engines_run_where_gpu_flavour_and_pycuda_come_together() -> None:
    ada = Driver("13.0", (Gpu("NVIDIA L4", "8.9", 24 << 30),))
    hopper = Driver("13.0", (Gpu("NVIDIA H100", "9.0", 80 << 30),))
    nothing = Driver("", (), "no NVIDIA driver")
    assert able(ada, ALL_OK, "run engines") == (True, "")
    assert able(ada, without("tensorrt"), "run engines") == (True, "")
    assert able(hopper, ALL_OK, "run engines") == (True, "")
    # TensorRT for RTX does not run on Hopper: TensorRT itself is what helps there.
    assert able(hopper, without("tensorrt"), "run engines") == (False, install_command(["tensorrt"]))
    assert able(ada, without("pycuda.driver"), "run engines") == (False, install_command(["pycuda"]))
    assert able(ada, without("cuda.bindings.driver"), "run engines") == (True, "")
    assert able(ada, without("cuda.bindings.driver"), "capture CUDA graphs")[0] is False
    assert able(nothing, ALL_OK, "run engines") == (False, "")
    assert able(nothing, ALL_OK, "build engines ahead of time (TensorRT for RTX, no GPU needed)") == (True, "")
    assert able(nothing, ALL_OK, "build engines with TensorRT 10 or 11") == (False, "")
