"""Builds with implicit INT8: flags, calibration profile, float32 positions, failing calibrators, and who refuses it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibrators.cache import map_names
from calibrators.implicit import ImplicitCalibration
from tests.engine_sets import write_tiny_graph
from tests.fixtures.calibrator_calls import tensorrt_10
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.tensorrt_10 import CACHE, TIMINGS, FakeTensorrt10
from trt_sam.cuda import accounts
from trt_sam.cuda import device as cuda
from trt_sam.engine.builder import build_engine
from trt_sam.engine.callbacks import make_logger
from trt_sam.engine.engine_set import GraphSource, build_set
from trt_sam.engine.flavour import Flavour, load_flavour
from trt_sam.engine.implicit import position_layers
from trt_sam.errors import BuildError, InputError
from trt_sam.machine.driver import current_gpu
from trt_sam.recipe import EngineRecipe, GraphOptions, QuantizationOptions, ShapeProfile

PROFILE = ShapeProfile(num_prompts=(1, 2, 4), num_points=(1, 2, 3))
IMPLICIT = EngineRecipe(profiles=(PROFILE,), quantization=QuantizationOptions(method="implicit"))


@pytest.fixture(scope="module")
def real() -> ModuleType:
    return tensorrt_10()


@pytest.fixture
def trt(real: ModuleType) -> FakeTensorrt10:
    return FakeTensorrt10(real)


def flavour_of(trt: FakeTensorrt10) -> Flavour:
    return Flavour("tensorrt", trt.__version__, trt)


def write_graph(path: Path, tail: str = "Exp", dtype: int = TensorProto.FLOAT) -> Path:
    """The decoder's inputs; coords -> Mul -> Sin -> `tail`, and Identity for the other two."""
    shapes = {
        "image_embeddings": [1, 256, 64, 64],
        "point_coords": ["num_prompts", "num_points", 2],
        "point_labels": ["num_prompts", "num_points"],
    }
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Mul", ["point_coords", "point_coords"], ["angles"], "Mul"),
        helper.make_node("Sin", ["angles"], ["waves"], "Sin"),
        helper.make_node("Identity", ["image_embeddings"], ["e"], "e"),
        helper.make_node("Identity", ["point_labels"], ["l"], "l"),
    ]
    constants = []
    if tail == "QuantizeLinear":
        nodes.append(helper.make_node(tail, ["waves", "scale", "zero"], ["y"], tail))
        constants = [helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0])]
        constants.append(helper.make_tensor("zero", TensorProto.INT8, [], [0]))
        dtype = TensorProto.INT8
    elif tail == "Cast":
        nodes.append(helper.make_node(tail, ["waves"], ["y"], tail, to=dtype))
    else:
        nodes.append(helper.make_node(tail, ["waves"], ["y"], tail))
    outputs = [helper.make_tensor_value_info("y", dtype, shapes["point_coords"])]
    outputs += [helper.make_tensor_value_info("e", TensorProto.FLOAT, shapes["image_embeddings"])]
    outputs += [helper.make_tensor_value_info("l", TensorProto.FLOAT, shapes["point_labels"])]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), path)
    return path


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [
        {
            "image_embeddings": rng.standard_normal((1, 256, 64, 64), np.float32),
            "point_coords": rng.uniform(0, 1024, (2, 2, 2)).astype(np.float32),
            "point_labels": np.ones((2, 2), np.float32),
        }
        for _ in range(count)
    ]


@pytest.mark.hostcuda
def test_a_build_calibrates_and_hands_out_the_cache(trt: FakeTensorrt10, host_cuda: HostCuda, tmp_path: Path) -> None:
    result = build_engine(
        write_graph(tmp_path / "g.onnx"), IMPLICIT, flavour=flavour_of(trt), make_calibrator=ImplicitCalibration(feeds())
    )
    assert result.engine == b"engine"
    assert result.calibration_cache == CACHE
    assert trt.network_flags == 0
    assert {trt.BuilderFlag.INT8, trt.BuilderFlag.FP16, trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS} == set(trt.flags)
    assert trt.calibration_shapes == {"point_coords": ([1, 3, 2],) * 3, "point_labels": ([1, 3],) * 3}
    assert len(trt.batches) == 6  # three feeds of two prompts, one prompt each
    pinned = {layer.name: vars(layer).get("pinned") for layer in trt.layers}
    assert {name for name, value in pinned.items() if value} == {"Mul", "Sin"}
    assert all(layer.precision == trt.DataType.FLOAT for layer in trt.layers if layer.name in {"Mul", "Sin"})
    gc.collect()
    assert not accounts.outstanding()


@pytest.mark.hostcuda
def test_the_cache_of_one_build_feeds_the_next(trt: FakeTensorrt10, host_cuda: HostCuda, tmp_path: Path) -> None:
    make = ImplicitCalibration(scales={"waves": 0.5, "gone": 1.0})
    result = build_engine(write_graph(tmp_path / "g.onnx"), IMPLICIT, flavour=flavour_of(trt), make_calibrator=make)
    assert trt.read == b"TRT-101601-EntropyCalibration2\nwaves: 3f000000\n"
    assert not trt.batches
    assert result.calibration_cache is None
    assert "1 scales found their tensor, 1 did not (gone)" in result.warnings[0]


@pytest.mark.hostcuda
def test_the_gpu_that_builds_is_the_one_that_calibrates(
    trt: FakeTensorrt10, host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, make = write_graph(tmp_path / "g.onnx"), ImplicitCalibration(feeds())
    with pytest.raises(InputError, match="no usable GPU number 1"):
        build_engine(graph, IMPLICIT, flavour=flavour_of(trt), make_calibrator=make, device=1)
    assert not trt.batches
    with pytest.raises(BuildError, match="builds on no GPU"):
        build_engine(graph, EngineRecipe(), flavour=load_flavour("rtx"), device=1)
    seen: list[int] = []
    device = cuda.Device

    def opened(index: int) -> cuda.Device:
        seen.append(index)
        return device(0)  # the driver of the tests has one

    # As if the driver had more: number 2 is the one it has.
    monkeypatch.setattr("calibrators.implicit.Device", opened)
    monkeypatch.setattr("trt_sam.engine.builder.current_gpu", lambda index: current_gpu(index - 2))
    build_engine(graph, IMPLICIT, flavour=flavour_of(trt), make_calibrator=make, device=2)
    assert seen == [2]
    assert host_cuda.count("cuDevicePrimaryCtxRetain") >= 1
    assert host_cuda.count("context_depth") == 0


@pytest.mark.hostcuda
@pytest.mark.parametrize("kept", [None, b"of a program that is not TensorRT", TIMINGS])
def test_timings_that_are_none_are_begun_anew(
    trt: FakeTensorrt10, host_cuda: HostCuda, tmp_path: Path, kept: bytes | None
) -> None:
    path = tmp_path / "timings"
    if kept is not None:
        path.write_bytes(kept)
    make = ImplicitCalibration(scales={"waves": 0.5})
    result = build_engine(
        write_graph(tmp_path / "g.onnx"), IMPLICIT, flavour=flavour_of(trt), make_calibrator=make, timing_cache=path
    )
    assert result.engine == b"engine"
    assert path.read_bytes() == TIMINGS


@pytest.mark.hostcuda
def test_what_a_feed_raises_comes_out_of_the_build(trt: FakeTensorrt10, host_cuda: HostCuda, tmp_path: Path) -> None:
    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield feeds()[0]
        raise InputError("photo7.npz has changed")

    with pytest.raises(InputError, match=r"photo7\.npz has changed"):
        build_engine(
            write_graph(tmp_path / "g.onnx"), IMPLICIT, flavour=flavour_of(trt), make_calibrator=ImplicitCalibration(failing())
        )
    gc.collect()
    assert not accounts.outstanding()


@pytest.mark.hostcuda
def test_a_set_says_that_it_is_int8(trt: FakeTensorrt10, host_cuda: HostCuda, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        write_tiny_graph(path, GraphOptions(precision="fp32"))

    made: dict[str, Any] = {}

    def builder(path: Path, recipe: EngineRecipe, **options: Any) -> Any:
        made.update(options)
        return build_engine(write_graph(path.with_name("other.onnx")), recipe, **options)

    make = ImplicitCalibration(feeds())
    built = build_set([GraphSource(write, make)], IMPLICIT, tmp_path / "set", flavour=flavour_of(trt), engine_builder=builder)
    assert made["make_calibrator"] is make
    assert built.manifest.recipe.graph.precision == "int8"
    assert built.manifest.recipe.quantization.method == "implicit"
    assert built.manifest.graphs[0].options.precision == "fp32"
    assert built.builds[0].calibration_cache == CACHE


@pytest.mark.parametrize(
    ("tail", "dtype", "words"),
    [
        ("QuantizeLinear", TensorProto.INT8, "has Q/DQ pairs already, at 'QuantizeLinear'"),
        ("Cast", TensorProto.FLOAT16, "float16 graph, seen at 'Cast'"),
    ],
)
def test_a_graph_whose_types_are_decided_is_refused(
    trt: FakeTensorrt10, tmp_path: Path, tail: str, dtype: int, words: str
) -> None:
    path = write_graph(tmp_path / "g.onnx", tail, dtype)
    with pytest.raises(BuildError, match=words):
        build_engine(path, IMPLICIT, flavour=flavour_of(trt), make_calibrator=ImplicitCalibration(scales={"waves": 1.0}))


def test_a_graph_with_qdq_pairs_still_builds_strongly_typed(trt: FakeTensorrt10, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx", "QuantizeLinear")
    result = build_engine(path, EngineRecipe(profiles=(PROFILE,)), flavour=flavour_of(trt))
    assert result.engine == b"engine"
    assert trt.network_flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.flags == []


@pytest.mark.parametrize("make", [None, ImplicitCalibration(scales={"waves": 1.0})])
def test_rtx_refuses_implicit_and_names_explicit(tmp_path: Path, make: ImplicitCalibration | None) -> None:
    path = write_graph(tmp_path / "g.onnx")
    refused = r'TensorRT-RTX .* "implicit" cannot be built: use "explicit"'
    with pytest.raises(BuildError, match=refused):
        build_engine(path, IMPLICIT, flavour=load_flavour("rtx"), make_calibrator=make)
    with pytest.raises(BuildError, match=refused):
        build_set([GraphSource(lambda target: None, make)], IMPLICIT, tmp_path / "set", flavour=load_flavour("rtx"))
    assert not (tmp_path / "set").exists()


def test_a_calibrator_and_the_method_must_agree(trt: FakeTensorrt10, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx")
    with pytest.raises(BuildError, match="needs calibration data"):
        build_engine(path, IMPLICIT, flavour=flavour_of(trt))
    with pytest.raises(BuildError, match="leave it out"):
        build_engine(path, EngineRecipe(), flavour=flavour_of(trt), make_calibrator=ImplicitCalibration(feeds()))


@pytest.mark.slow  # exports a decoder
def test_a_real_parser_keeps_the_names_and_shows_the_position_encoding() -> None:
    from tests.quantize_graphs import gpu_graph
    from trt_sam.quantize.share import find_products

    model = gpu_graph("fp32")
    rtx = load_flavour("rtx")
    logger = make_logger(rtx.trt)
    builder = rtx.trt.Builder(logger)
    network = builder.create_network(rtx.network_flags)
    parser = rtx.trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    tensors = [layer.get_output(i).name for layer in layers for i in range(layer.num_outputs)]
    tensors += [network.get_input(i).name for i in range(network.num_inputs)]
    wanted = {product.activation: 1.0 for product in find_products(model, ("A", "B", "C"))}
    assert wanted
    assert not map_names(wanted, tensors).unmatched
    found = position_layers(network, rtx.trt)
    waves = [layer for layer in found if layer.type == rtx.trt.LayerType.UNARY]
    assert sorted(str(layer.op) for layer in waves) == ["UnaryOperation.COS", "UnaryOperation.SIN"]
    ours = {node.output[0] for node in model.graph.node if node.op_type in {"Sin", "Cos"}}
    assert {layer.get_output(0).name for layer in waves} == ours
    # The products come after the encoding, none is before it.
    assert not any(layer.type == rtx.trt.LayerType.MATRIX_MULTIPLY for layer in found)
    assert "point_coords" in {layer.get_input(0).name for layer in found if layer.num_inputs and layer.get_input(0)}
