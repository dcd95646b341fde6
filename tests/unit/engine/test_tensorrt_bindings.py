"""What our sources touch of TensorRT exists in the real bindings of 10.3, 10.16 and 11.4, over stub libraries, and in RTX's.

The names are read out of the sources, so a new call is checked without anybody thinking of it. Methods are called on objects
whose types a syntax tree does not tell: such a name has to be a member of some TensorRT class, with a signature that takes the
call's arguments where the binding shows one.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BINDINGS = Path(sys.prefix) / "trt-bindings"
SOURCES = [
    ROOT / "trt_sam" / name
    for name in (
        "engine/flavour.py",
        "engine/builder.py",
        "engine/profiles.py",
        "engine/implicit.py",
        "engine/callbacks.py",
        "engine/tuning.py",
        "engine/inspector.py",
        "runner/engine.py",
        "runner/open.py",
    )
]
MODULES = {"10.3": "tensorrt_bindings", "10": "tensorrt_bindings", "11": "tensorrt_bindings", "rtx": "tensorrt_rtx"}

# Asked for with hasattr first, or used in one flavour only: (name, the flavours that have it).
ONLY = {
    "BuilderFlag.FP16": {"10.3", "10"},
    "BuilderFlag.INT8": {"10.3", "10"},
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": {"10.3", "10"},
    "BuilderFlag.REQUIRE_USER_ALLOCATION": {"rtx"},
    "IInt8EntropyCalibrator2": {"10.3", "10"},
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": {"10", "11", "rtx"},
    "ComputeCapability": {"rtx"},
    "EngineValidity": {"rtx"},
    "EngineValidity.INVALID": {"rtx"},
    "EngineInvalidityDiagnostics": {"rtx"},
    "CudaGraphStrategy": {"rtx"},
    "DynamicShapesKernelSpecializationStrategy": {"rtx"},
    "DynamicShapesKernelSpecializationStrategy.EAGER": {"rtx"},
}
MEMBERS_OF_10_ONLY = {"int8_calibrator", "set_calibration_profile", "precision", "set_output_type"}
MEMBERS_THAT_10_3_LACKS = {
    "create_runtime_config",
    "set_execution_context_allocation_strategy",
    "tiling_optimization_level",
}
"""The runner calls the first two of TensorRT-RTX alone; the last is asked for as a capability first."""
MEMBERS_OF_RTX_ONLY = {
    "get_engine_validity",
    "num_compute_capabilities",
    "set_compute_capability",
    "create_runtime_cache",
    "set_runtime_cache",
    "cuda_graph_strategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
}

# What the execution path calls, with its arguments: the part that no test without a GPU ever runs on a real binding.
EXECUTION = {
    "Runtime": ["__init__(logger)", "deserialize_cuda_engine(serialized_engine)"],
    "ICudaEngine": [
        "num_io_tensors",
        "num_optimization_profiles",
        "get_tensor_name(index)",
        "get_tensor_dtype(name)",
        "get_tensor_mode(name)",
        "get_tensor_location(name)",
        "create_execution_context(strategy)",
        "create_runtime_config()",
        "get_device_memory_size_for_profile_v2(profile_index)",
    ],
    "IExecutionContext": [
        "set_optimization_profile_async(profile_index, stream_handle)",
        "set_input_shape(name, shape)",
        "set_tensor_address(name, memory)",
        "execute_async_v3(stream_handle)",
        "set_device_memory(memory, size)",
    ],
}
# The same, of TensorRT-RTX alone.
EXECUTION_OF_RTX = {
    "ICudaEngine": ["create_execution_context(runtime_config)"],
    "IExecutionContext": ["is_stream_capturable(stream)"],
    "IRuntimeConfig": [
        "set_execution_context_allocation_strategy(strategy)",
        "create_runtime_cache()",
        "set_runtime_cache(cache)",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    ],
    "IRuntimeCache": ["serialize()", "deserialize(blob)"],
}

DUMP = """
import importlib, json, sys, warnings
trt = importlib.import_module(sys.argv[1])
out = {"version": trt.__version__, "names": {}}
for name in dir(trt):
    thing = getattr(trt, name)
    members = {}
    if isinstance(thing, type):
        for member in dir(thing):
            members[member] = (getattr(getattr(thing, member, None), "__doc__", None) or "")
    out["names"][name] = members
json.dump(out, sys.stdout)
"""


@cache
def dump(flavour: str) -> dict[str, dict[str, str]]:
    """Every name of the bindings with its members and their docstrings, read in a process of its own: versions clash."""
    env = dict(os.environ)
    if flavour != "rtx":
        folder = BINDINGS / flavour
        if not (folder / "tensorrt_bindings").is_dir():
            pytest.skip(f"no TensorRT {flavour} bindings (scripts/install_gpu_fixtures.sh gets them, and needs a C++ compiler)")
        env["PYTHONPATH"] = str(folder)
    command = [sys.executable, "-c", DUMP, MODULES[flavour]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if flavour == "rtx" and "ModuleNotFoundError" in done.stderr:
        pytest.skip("tensorrt_rtx is not installed")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert flavour == "rtx" or found["version"].startswith(flavour), found["version"]
    return found["names"]


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else None
    return None


@cache
def touched() -> tuple[frozenset[str], frozenset[str]]:
    """Names below the module (`trt.X.Y`), and attributes of anything else that some TensorRT class has."""
    names, members = set(), set()
    known = {member for classes in (dump(flavour) for flavour in ("10", "11")) for c in classes.values() for member in c}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            path = dotted(node)
            below = re.search(r"(?:^|\.)trt\.(.+)$", path or "")
            if below:
                names.add(below[1].removesuffix(".__members__"))
            elif node.attr in known | MEMBERS_OF_RTX_ONLY and not node.attr.startswith("__"):
                members.add(node.attr)
    return frozenset(names), frozenset(members)


@pytest.mark.parametrize("flavour", ["10.3", "10", "11", "rtx"])
def test_every_name_that_we_touch_exists(flavour: str) -> None:
    names, _ = touched()
    assert {"Runtime", "Builder", "OnnxParser", "TensorIOMode.INPUT", "TensorLocation.HOST"} <= names, sorted(names)
    classes = dump(flavour)
    for path in sorted(names):
        if path in ONLY and flavour not in ONLY[path]:
            continue
        name, _, member = path.partition(".")
        assert name in classes, f"trt.{name} is not in the bindings of {flavour}"
        assert not member or member in classes[name], f"trt.{path} is not in the bindings of {flavour}"


@pytest.mark.parametrize("path", ONLY)
def test_what_we_say_one_flavour_alone_has_is_so(path: str) -> None:
    name, _, member = path.partition(".")
    having = {f for f in MODULES if name in dump(f) and (not member or member in dump(f)[name])}
    assert having == ONLY[path]


@pytest.mark.parametrize("flavour", ["10.3", "10", "11", "rtx"])
def test_every_method_that_we_call_is_one_of_some_class(flavour: str) -> None:
    _, members = touched()
    assert {"execute_async_v3", "set_tensor_address", "add_optimization_profile", "create_network"} <= members, sorted(members)
    known = {member for c in dump(flavour).values() for member in c}
    theirs = MEMBERS_OF_RTX_ONLY if flavour != "rtx" else set()
    theirs = theirs | (MEMBERS_THAT_10_3_LACKS if flavour == "10.3" else set())
    missing = members - known - theirs - (MEMBERS_OF_10_ONLY if not flavour.startswith("10") else set())
    assert not missing


@pytest.mark.parametrize("flavour", ["10.3", "10", "11", "rtx"])
@pytest.mark.parametrize("kind", sorted({*EXECUTION, *EXECUTION_OF_RTX}))
def test_the_execution_path_has_the_signatures_that_we_use(flavour: str, kind: str) -> None:
    calls = EXECUTION.get(kind, []) + (EXECUTION_OF_RTX.get(kind, []) if flavour == "rtx" else [])
    members = dump(flavour).get(kind, {})
    for call in calls:
        name, _, arguments = call.rstrip(")").partition("(")
        if flavour == "10.3" and name in MEMBERS_THAT_10_3_LACKS:
            continue
        assert name in members, f"{kind}.{name} is not in the bindings of {flavour}"
        if "(" not in call:
            continue
        overloads = re.findall(rf"{re.escape(name)}\(self: [^,)]+(?:, )?(.*?)\) ->", members[name])
        taken = []
        for overload in overloads:
            parts = re.findall(r"(\w+): (?:[^,\[\]]|\[[^\]]*\])+", overload)
            required = [p for p in parts if not re.search(rf"{p}: [^,]*=", overload)]
            taken.append((parts, required))
        wanted = [argument for argument in arguments.split(", ") if argument]
        assert any(parts[: len(wanted)] == wanted and required == wanted[: len(required)] for parts, required in taken), (
            f"{kind}.{call} does not fit {members[name]!r} of {flavour}"
        )


def test_the_fake_engine_has_no_call_that_the_real_ones_lack() -> None:
    tree = ast.parse((ROOT / "tests" / "fixtures" / "ort_engine.py").read_text())
    fakes = {"OrtEngine": "ICudaEngine", "OrtContext": "IExecutionContext"}
    ours = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in fakes}
    assert set(ours) == set(fakes)
    for fake, real in fakes.items():
        methods = {n.name for n in ours[fake].body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
        real_calls = EXECUTION[real] + EXECUTION_OF_RTX[real]
        assert methods == {call.partition("(")[0] for call in real_calls}, fake


def test_strongly_typed_is_a_different_number_in_10_and_11() -> None:
    code = "import tensorrt_bindings as t; print(int(t.NetworkDefinitionCreationFlag.STRONGLY_TYPED))"
    numbers = []
    for flavour in ("10", "11"):
        dump(flavour)
        env = {**os.environ, "PYTHONPATH": str(BINDINGS / flavour)}
        numbers.append(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout)
    assert [int(n) for n in numbers] == [1, 0]


OF_10_3 = """
import sys
from types import SimpleNamespace
import tensorrt_bindings as trt
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.tuning import apply_tuning
from trt_sam.errors import BuildError
from trt_sam.recipe import TuningOptions
flavour = Flavour("tensorrt", trt.__version__, trt)
assert flavour.has_weak_typing and flavour.has_implicit_int8 and flavour.needs_gpu_to_build
assert not flavour.has_any_model_mode and not flavour.needs_user_allocation
apply_tuning(SimpleNamespace(), TuningOptions(optimization_level=5), flavour)
try:
    apply_tuning(SimpleNamespace(), TuningOptions(tiling="full"), flavour)
except BuildError as error:
    print(error)
"""


def test_what_tensorrt_10_3_cannot_do_is_refused_in_one_line() -> None:
    dump("10.3")
    env = {**os.environ, "PYTHONPATH": f"{BINDINGS / '10.3'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", OF_10_3], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "TensorRT 10.3.0 has no tiling levels; take tiling out of the recipe\n"
