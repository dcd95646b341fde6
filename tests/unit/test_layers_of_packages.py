"""Who may import whom: packages only import what lies below them, and no two modules import each other, however far around.

`docs/architecture.md` draws the layers. Imports inside functions and those for type checking count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import trt_sam

ROOT = Path(trt_sam.__file__).parents[1]
LAYERS = (
    ("trt_sam.__main__",),
    ("trt_sam.cli",),
    ("trt_sam.commands",),
    ("trt_sam.selftest", "trt_sam.bench", "trt_sam.serve", "trt_sam.cluster", "calibrators", "trt_sam.polygraphy"),
    ("trt_sam.gate",),
    ("trt_sam.accuracy",),
    ("trt_sam.masks",),
    ("trt_sam.formats", "trt_sam.runner", "trt_sam.feeds"),
    ("trt_sam.engine", "trt_sam.runtime", "trt_sam.quantize"),
    ("trt_sam.graph",),
    ("trt_sam.model",),
    ("trt_sam.imaging", "trt_sam.machine", "trt_sam.cuda", "trt_sam.download"),
    ("trt_sam.recipe_toml",),
    ("trt_sam.recipe", "trt_sam.progress"),
    ("trt_sam.contract",),
    ("trt_sam._cache",),
    ("trt_sam._child", "trt_sam._files", "trt_sam._json", "trt_sam._lazy", "trt_sam._toml", "trt_sam._version"),
    ("trt_sam.errors",),
)
"""Top first. Those of one layer do not know each other; the two public addresses of moved modules are below nobody."""
ADDRESSES = ("trt_sam.embeddings", "trt_sam.runner_pool")
FOR_ALL = ("_cache", "_child", "_files", "_json", "_lazy", "_toml", "_version")
MOST_MODULES = 16

Imports = Mapping[str, set[str]]


def test_no_package_imports_one_above_it() -> None:
    assert upward(imports_of(ROOT)) == []


def test_no_modules_import_each_other() -> None:
    assert circles(imports_of(ROOT)) == []


def test_no_command_imports_another() -> None:
    imports = {module: targets for module, targets in imports_of(ROOT).items() if module.startswith("trt_sam.commands.")}
    commands = {module for module in imports if "._" not in module}
    assert len(commands) >= 13
    assert [f"{module} -> {target}" for module in imports for target in imports[module] & commands] == []


def test_a_folder_is_one_concept() -> None:
    for folder in (ROOT / "trt_sam").rglob("*"):
        if folder.is_dir() and folder.name not in ("commands", "__pycache__", "data", "recipes"):
            assert len(list(folder.glob("[!_]*.py"))) <= MOST_MODULES, folder


def test_an_underscore_stays_at_home() -> None:
    assert [
        f"{module} imports {name} of {source}"
        for module, source, name in underscores(ROOT)
        if not _at_home(module, source, name)
    ] == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        (
            "trt_sam/model/planted.py",
            "from trt_sam.engine.builder import build",
            "trt_sam.engine.builder",
        ),
        (
            "trt_sam/feeds/planted.py",
            "def f():\n    import trt_sam.runner.slot",
            "trt_sam.runner.slot",
        ),
        ("trt_sam/planted.py", "", ""),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, line: str, target: str) -> None:
    for name in ("trt_sam/engine/builder.py", "trt_sam/runner/slot.py", module):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(line if name == module else "")
    name = module.removesuffix(".py").replace("/", ".")
    assert upward(imports_of(tmp_path)) == [f"{name} -> {target}" if target else f"{name} has no layer"]


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def upward(imports: Imports) -> list[str]:
    found = []
    for module, targets in sorted(imports.items()):
        if module == "trt_sam" or module in ADDRESSES:
            continue
        if _layer(module) is None:
            found.append(f"{module} has no layer")
            continue
        for target in sorted(targets - {"trt_sam"}):
            if target in ADDRESSES or not _may(module, target):
                found.append(f"{module} -> {target}")
    return found


def circles(imports: Imports) -> list[list[str]]:
    """Strongly connected modules, by whom each can reach."""
    reach = {module: _reached(module, imports) for module in imports}
    groups = {tuple(sorted(m for m in reach[module] if module in reach.get(m, ()))) for module in imports}
    return sorted(list(group) for group in groups if group)


def imports_of(root: Path) -> dict[str, set[str]]:
    """Modules of the project, with the modules of the project that each imports."""
    files = {_name(path, root): path for top in ("trt_sam", "calibrators") for path in (root / top).rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # A name may be a module of the package or something in it.
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {name if name in files else node.module for name in inner}
        found[module] = {target for target in targets if target in files and target != module}
    return found


def underscores(root: Path) -> Iterable[tuple[str, str, str]]:
    for top in ("trt_sam", "calibrators"):
        for path in (root / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("trt_sam", "calibrators"):
                    for alias in node.names:
                        private = [part for part in (*node.module.split("."), alias.name) if _private(part)]
                        if private:
                            yield _name(path, root), node.module, alias.name


def _at_home(module: str, source: str, name: str) -> bool:
    parts = [*source.split("."), name]
    first = next(index for index, part in enumerate(parts) if _private(part))
    return parts[first] in FOR_ALL or module.split(".")[:first] == parts[:first]


def _private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def _may(module: str, target: str) -> bool:
    own, other = _layer(module), _layer(target)
    if own is None or other is None:
        return False
    return own[1] == other[1] or own[0] < other[0]


def _layer(module: str) -> tuple[int, str] | None:
    for number, layer in enumerate(LAYERS):
        for name in layer:
            if module == name or module.startswith(name + "."):
                return number, name
    return None


def _reached(module: str, imports: Imports) -> set[str]:
    seen: set[str] = set()
    todo = list(imports[module])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(imports.get(name, ()))
    return seen


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
