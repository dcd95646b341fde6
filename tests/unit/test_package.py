"""The package as a whole: cheap to import, arrows in one direction, public names that exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trt_sam
from trt_sam import errors
from trt_sam._lazy import require
from trt_sam.errors import MissingDependencyError, TrtSamError

PACKAGE = Path(trt_sam.__file__).parent
_LIGHT = (
    "contract.py",
    "recipe.py",
    "errors.py",
    "engine/manifest.py",
    "runtime/predictor.py",
    "imaging/resize.py",
    "accuracy/metrics.py",
)
HEAVY = (
    "torch",
    "pooch",
    "requests",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "onnxruntime",
    "onnx",
    "transformers",
    "polygraphy",
)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, trt_sam; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom trt_sam.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "[]"


def test_public_names_exist() -> None:
    assert len(trt_sam.__all__) <= 12
    for name in trt_sam.__all__:
        assert getattr(trt_sam, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trt_sam.nothing  # noqa: B018


def test_every_command_shows_an_example() -> None:
    from trt_sam.cli import COMMANDS

    for command in COMMANDS:
        done = subprocess.run([sys.executable, "-m", "trt_sam", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert f"trt-sam {command}" in done.stdout.split("example", 1)[-1].split("Example", 1)[-1]


@pytest.mark.parametrize(("words", "message"), [(["fly"], "invalid choice"), (["export"], "--output")])
def test_wrong_words_are_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "trt_sam", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_word_at_all_shows_the_help() -> None:
    done = subprocess.run([sys.executable, "-m", "trt_sam"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "segment" in done.stdout


def test_only_cuda_imports_pycuda_and_models_know_nothing_of_onnx() -> None:
    for path in PACKAGE.rglob("*.py"):
        imported = _imports(path)
        inside = path.relative_to(PACKAGE).as_posix()
        if not inside.startswith("cuda/"):
            assert "pycuda" not in imported, inside
        if inside.startswith("model/"):
            assert not imported & {"onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"}, inside
        if inside in _LIGHT:
            assert not imported & set(HEAVY), inside


def test_all_errors_are_ours() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), TrtSamError)


def test_a_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-sam\[rtx\]'"):
        require("tensorrt_rtx", "to build")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            names |= {str(a.value).partition(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names
