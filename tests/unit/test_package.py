"""The package as a whole: cheap to import, arrows in one direction, public names that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import trt_sam
from trt_sam import _lazy, errors
from trt_sam._lazy import require, require_all
from trt_sam._toml import tomllib
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


@pytest.mark.parametrize(("words", "message"), [(["fly"], "no command is called 'fly'"), (["export"], "--output")])
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
            assert not _imports_at_once(path) & set(HEAVY), inside


def test_all_errors_are_ours() -> None:
    for name in errors.__all__:
        assert not isinstance(getattr(errors, name), type) or issubclass(getattr(errors, name), TrtSamError)


def test_a_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.chdir(PACKAGE.parent)
    with pytest.raises(MissingDependencyError, match=r"pip install -e '\.\[rtx\]'$"):
        require("tensorrt_rtx", "to build")
    with pytest.raises(
        MissingDependencyError, match=r"torch, onnx, onnxscript are not .*whl/cpu && pip install -e '\.\[export\]'$"
    ):
        require_all(("torch", "onnx", "onnxscript"), "to export")
    monkeypatch.chdir("/")
    with pytest.raises(MissingDependencyError, match=rf": pip install -e '{PACKAGE.parent}\[onnx\]'$"):
        require("onnx", "to build from a graph")
    # an installed wheel has no checkout beside it
    monkeypatch.setattr(_lazy, "_CHECKOUT", PACKAGE)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy>=1", 'onnx>=1.19; extra == "onnx"'])
    with pytest.raises(MissingDependencyError, match=r": pip install 'onnx>=1.19'$"):
        require("onnx", "to build from a graph")


def test_the_install_hints_know_the_extras_of_the_project() -> None:
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"pillow": "PIL", "tensorrt_rtx_cu13": "tensorrt_rtx", "cuda_bindings": "cuda"}
    for extra, brings in _lazy.EXTRAS.items():
        names = {re.split(r"[\[>=]", requirement)[0].replace("-", "_") for requirement in extras[extra]}
        found = {modules.get(name, name) for name in names}
        assert set(brings) - {"urllib3"} <= found, extra  # urllib3 comes with requests
        assert extra == "dev" or found <= set(brings), extra


def _imports_at_once(path: Path) -> set[str]:
    """What loading the module imports: no import of a function or for type checking."""
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return _names(top)


def _imports(path: Path) -> set[str]:
    return _names(ast.walk(ast.parse(path.read_text())))


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            names |= {str(a.value).partition(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names
