"""`trt_sam.engine.flavour` on the real RTX, and on real bindings of TensorRT 10 and 11 over stub libraries where installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from trt_sam import _lazy
from trt_sam.engine.callbacks import make_logger
from trt_sam.engine.flavour import Flavour, available_flavours, choose_flavour, load_flavour
from trt_sam.engine.tuning import apply_tuning
from trt_sam.errors import BuildError, InputError, ManifestError, MissingDependencyError
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.recipe import TuningOptions

ROOT = Path(__file__).resolve().parents[3]
BINDINGS = Path(sys.prefix) / "trt-bindings"

PRELUDE = """
import sys
sys.path[:0] = [{root!r}, {bindings!r}]
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from trt_sam.engine.flavour import load_flavour
flavour = load_flavour("tensorrt")
trt = flavour.trt
"""


def in_bindings(major: str, code: str) -> str:
    """Run `code` where TensorRT `major` is installed, in a process of its own: two of them do not load into one."""
    folder = BINDINGS / major
    if not list(folder.glob("*.complete")):
        pytest.skip(f"the TensorRT {major} bindings are not installed; run scripts/install_gpu_fixtures.sh")
    prelude = PRELUDE.format(root=str(ROOT), bindings=str(folder))
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rtx_says_what_it_can_do() -> None:
    rtx = load_flavour("rtx")
    assert (rtx.name, rtx.backend, rtx.version) == ("tensorrt_rtx", "rtx", rtx.trt.__version__)
    assert rtx.title == f"TensorRT-RTX {rtx.version}"
    assert not any((rtx.has_weak_typing, rtx.has_implicit_int8, rtx.has_timing_cache, rtx.needs_gpu_to_build))
    assert {"8.6", "8.9", "12.0"} <= set(rtx.compute_capabilities)
    assert rtx.compute_capability("12.0") == rtx.trt.ComputeCapability.SM120
    assert rtx in available_flavours()


def test_rtx_takes_the_knobs_of_a_recipe_but_for_timing() -> None:
    rtx = load_flavour("rtx")
    config = rtx.trt.Builder(make_logger(rtx.trt)).create_builder_config()
    assert config.get_flag(rtx.trt.BuilderFlag.TF32)
    apply_tuning(config, TuningOptions(5, "full", 256, tf32=False), rtx)
    assert config.builder_optimization_level == 5
    assert config.tiling_optimization_level == rtx.trt.TilingOptimizationLevel.FULL
    assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 256 << 20
    assert not config.get_flag(rtx.trt.BuilderFlag.TF32)
    with pytest.raises(BuildError, match="times no kernels; take timing_iterations out of the recipe"):
        apply_tuning(config, TuningOptions(timing_iterations=8), rtx)


@pytest.mark.parametrize("value", ["9.0", "8.60", "86", "", "CURRENT"])
def test_a_compute_capability_that_rtx_lacks_is_refused_with_the_list(value: str) -> None:
    with pytest.raises(BuildError, match=r"allowed are .*8\.9, 12\.0"):
        load_flavour("rtx").compute_capability(value)


@pytest.mark.parametrize(("major", "weak"), [("10", True), ("11", False)])
def test_tensorrt_10_and_11_say_what_they_can_do(major: str, weak: bool) -> None:
    out = in_bindings(
        major,
        "print(flavour.name, flavour.version, flavour.has_weak_typing, flavour.has_implicit_int8, flavour.has_timing_cache,"
        "flavour.needs_gpu_to_build, flavour.compute_capabilities, flavour.network_flags)",
    )
    name, version, *capabilities, flags = out.split()
    assert (name, version.partition(".")[0]) == ("tensorrt", major)
    assert capabilities == [str(weak), str(weak), "True", "True", "()"]
    assert flags == ("2" if major == "10" else "1")


@pytest.mark.parametrize("major", ["10", "11"])
def test_what_the_builder_touches_exists_in_tensorrt_10_and_11(major: str) -> None:
    in_bindings(
        major,
        """
import threading
from pathlib import Path
from trt_sam.engine.job import BuildJob
from trt_sam.engine.callbacks import make_logger, make_monitor
from trt_sam.engine.builder import _configure
from trt_sam.recipe import EngineRecipe, TuningOptions

class Config:
    flags = []
    def __setattr__(self, name, value):
        assert isinstance(getattr(trt.IBuilderConfig, name), property), name
        object.__setattr__(self, name, value)
    def set_flag(self, flag):
        self.flags.append(flag)
    def clear_flag(self, flag):
        self.flags.append(("off", flag))
    def set_memory_pool_limit(self, pool, size):
        assert callable(trt.IBuilderConfig.set_memory_pool_limit)
        self.flags.append((pool, size))

logger, config = make_logger(trt), Config()
logger.log(trt.ILogger.ERROR, "Error Code 1: Myelin (broken In f at /_src/a.cpp:1)")
assert logger.errors == ["broken"], logger.errors
config.progress_monitor = make_monitor(trt, None, threading.Event())
def configure(**asked):
    recipe = EngineRecipe(max_aux_streams=2, **asked)
    _configure(config, BuildJob(Path("g"), recipe, flavour, (), None, None, None, threading.Event()))

configure(any_model=True)
assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
configure(version_compatible=True, hardware_compatible=True)
assert config.flags == [trt.BuilderFlag.VERSION_COMPATIBLE]
assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
config.flags.clear()
configure(tuning=TuningOptions(5, "full", 256, tf32=False, timing_iterations=8))
assert config.flags == [(trt.MemoryPoolType.WORKSPACE, 256 << 20), ("off", trt.BuilderFlag.TF32)], config.flags
assert (config.builder_optimization_level, config.avg_timing_iterations) == (5, 8)
assert config.tiling_optimization_level == trt.TilingOptimizationLevel.FULL
assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED and config.max_aux_streams == 2
for name in ("set_timing_cache", "create_timing_cache", "get_timing_cache", "set_flag", "add_optimization_profile"):
    assert callable(getattr(trt.IBuilderConfig, name)), name
for name in ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"):
    assert callable(getattr(trt.Builder, name)), name
for name in ("parse_from_file", "get_error"):
    assert callable(getattr(trt.OnnxParser, name)), name
for name in ("node", "node_name", "node_operator", "desc"):
    assert callable(getattr(trt.ParserError, name)), name
assert callable(trt.ITensor.get_dimension_name) and callable(trt.IOptimizationProfile.set_shape_input)
assert callable(trt.ITimingCache.serialize)
assert callable(trt.ICudaEngine.create_engine_inspector) and callable(trt.EngineInspector.get_engine_information)
assert trt.LayerInformationFormat.JSON is not None and callable(trt.Runtime.deserialize_cuda_engine)
""",
    )


def test_building_with_tensorrt_without_a_gpu_says_so(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"anything")
    in_bindings(
        "10",
        f"""
from trt_sam.engine.builder import build_engine
from trt_sam.errors import BuildError
from trt_sam.recipe import EngineRecipe
one_gpu = EngineRecipe(compute_capabilities=("8.9",))
for recipe, words in ((EngineRecipe(), "needs an NVIDIA GPU"), (one_gpu, "of this machine")):
    try:
        build_engine({str(graph)!r}, recipe, flavour=flavour)
    except BuildError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
""",
    )


@pytest.mark.parametrize("major", ["10", "11"])
def test_implicit_is_refused_by_tensorrt_11_in_favour_of_explicit(major: str, tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"anything")
    out = in_bindings(
        major,
        f"""
import threading
from calibrators.implicit import ImplicitCalibration, make_calibrator
from trt_sam.engine.implicit import check_method
from trt_sam.engine.builder import build_engine
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.errors import BuildError, InputError
from trt_sam.recipe import EngineRecipe, GraphOptions, QuantizationOptions

recipe = EngineRecipe(graph=GraphOptions(precision="int8"), quantization=QuantizationOptions(method="implicit"))
make = ImplicitCalibration(scales={{"x": 1.0}})
for name, ask in {{
    "method": lambda: check_method(recipe, make, flavour),
    "engine": lambda: build_engine({str(graph)!r}, recipe, flavour=flavour, make_calibrator=make),
    "no data": lambda: build_engine({str(graph)!r}, recipe, flavour=flavour),
    "set": lambda: build_set([GraphSource(lambda target: None, make)], recipe, {str(tmp_path / "set")!r}, flavour=flavour),
    "calibrator": lambda: make_calibrator(trt, None, shapes={{}}, cache=b"x", stop=threading.Event()),
}}.items():
    try:
        ask()
    except (BuildError, InputError) as error:
        print(f"{{name}}: {{error}}")
    else:
        print(f"{{name}}: taken")
""",
    )
    said = dict(line.split(": ", 1) for line in out.splitlines())
    if major == "11":
        version = said["method"].split(" has no calibrator")[0]
        assert version.startswith("TensorRT 11.")
        for name in ("method", "engine", "no data", "set"):
            assert said[name] == (
                f'{version} has no calibrator of its own, only TensorRT 10 has; quantization.method = "implicit" cannot be '
                'built: use "explicit", which calibrate writes into the graph'
            )
        assert said["calibrator"] == f'{version} has no calibrators; use quantization.method = "explicit"'
        assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]
    else:
        # Where it is known, what is missing is the GPU, or the data.
        assert (said["method"], said["calibrator"]) == ("taken", "taken")
        assert "needs an NVIDIA GPU" in said["engine"]
        assert "needs calibration data" in said["no data"]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="must be one of rtx, tensorrt"):
        load_flavour("openvino")


@pytest.mark.parametrize(("backend", "package"), [("rtx", "tensorrt-rtx-cu13"), ("tensorrt", "tensorrt")])
def test_a_missing_tensorrt_names_the_pip_command(backend: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(_lazy.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=rf"pip install -e '\S+\[{backend}\]' \(or pip install {package}\)"):
        load_flavour(backend)
    assert available_flavours() == ()


def test_a_tensorrt_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(_lazy.importlib, "import_module", broken)
    with pytest.raises(MissingDependencyError, match=r"does not load \(libnvinfer.so.11"):
        load_flavour("tensorrt")


def test_without_a_gpu_rtx_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.engine.flavour.gpu_compute_capability", lambda: None)
    assert choose_flavour(None).backend == "rtx"


def test_with_a_gpu_tensorrt_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = load_flavour("rtx")
    fake = Flavour("tensorrt", "11.4", rtx.trt)
    monkeypatch.setattr("trt_sam.engine.flavour.gpu_compute_capability", lambda: "9.0")
    monkeypatch.setattr("trt_sam.engine.flavour.available_flavours", lambda: (rtx, fake))
    assert choose_flavour(None) is fake
    assert choose_flavour("rtx").backend == "rtx"


@pytest.mark.parametrize(
    ("bits", "words"), [(2, "not built for this GPU"), (1 | 32, "another version.*damaged"), (0, "no usable GPU")]
)
def test_an_engine_that_rtx_cannot_run_is_refused_in_words(bits: int, words: str) -> None:
    rtx = load_flavour("rtx")
    runtime = SimpleNamespace(get_engine_validity=lambda engine: (rtx.trt.EngineValidity.INVALID, bits))
    with pytest.raises(ManifestError, match=words):
        rtx.check_engine(runtime, b"engine")


def test_a_suboptimal_engine_and_an_older_api_pass() -> None:
    rtx = load_flavour("rtx")
    rtx.check_engine(SimpleNamespace(get_engine_validity=lambda engine: (rtx.trt.EngineValidity.SUBOPTIMAL, 0)), b"engine")
    rtx.check_engine(SimpleNamespace(), b"engine")


def test_the_driver_is_asked_for_the_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(out: object, number: int, device: object) -> int:
        out._obj.value = {75: 8, 76: 9}[number]  # type: ignore[attr-defined]
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda out, number: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    assert gpu_compute_capability() == "8.9"
    driver.cuInit = lambda flags: 100
    assert gpu_compute_capability() is None
