"""Which drivers the installed PyCUDA loads with, and what is said where it does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trt_sam.cuda import device
from trt_sam.errors import InferenceError, MissingDependencyError

SPEC = importlib.util.find_spec("pycuda")


@pytest.mark.skipif(SPEC is None, reason="PyCUDA is not installed")
def test_it_asks_for_nothing_that_drivers_before_r570_lack() -> None:
    assert SPEC is not None
    assert SPEC.origin is not None
    (library,) = Path(SPEC.origin).parent.glob("_driver*.so")
    content = library.read_bytes()
    assert b"cuCtxCreate" in content
    for symbol in (b"cuCtxCreate_v4", b"cuEventElapsedTime_v2"):
        assert symbol not in content, (
            f"built against CUDA 12.8 or newer; scripts/install_pycuda.sh builds it again ({symbol!r})"
        )


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (ImportError("_driver.so: undefined symbol: cuCtxCreate_v4"), InferenceError, r"newer driver.*install_pycuda\.sh"),
        (ImportError("libcuda.so.1: cannot open shared object file"), InferenceError, "is an NVIDIA driver installed"),
        (
            ModuleNotFoundError("No module named 'pycuda'", name="pycuda"),
            MissingDependencyError,
            r"bash scripts/install_pycuda\.sh",
        ),
    ],
)
def test_why_it_does_not_load_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, raised: ImportError, expected: type[Exception], words: str
) -> None:
    def refuse(name: str) -> None:
        raise raised

    monkeypatch.setattr("trt_sam._lazy.importlib.import_module", refuse)
    device._driver.cache_clear()
    with pytest.raises(expected, match=words):
        device._driver()
