"""Implicit INT8, a road of TensorRT 10 alone: it calibrates a weakly typed float32 network itself and picks what runs in INT8.

Unproven on a GPU here. TensorRT decides, and may leave all of a transformer in FP16; `quantization.method = "explicit"` does
not depend on that. The calibrator comes from the caller (`calibrators.implicit` makes one); here is only what is asked of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from trt_sam.engine.flavour import Flavour
from trt_sam.engine.job import BuildJob, Calibrator, MakeCalibrator
from trt_sam.engine.profiles import input_shapes, make_profile
from trt_sam.errors import BuildError
from trt_sam.recipe import EngineRecipe, ShapeProfile

__all__ = ["add_calibrator", "check_method", "position_layers"]


def check_method(recipe: EngineRecipe, make_calibrator: MakeCalibrator | None, flavour: Flavour) -> bool:
    """Whether the build is an implicit one.

    Raises:
        BuildError: it is, and this flavour cannot, or the calibrator is missing; or it is not, and there is one.
    """
    implicit = recipe.quantization.method == "implicit"
    if implicit and not flavour.has_implicit_int8:
        raise BuildError(
            f'{flavour.title} has no calibrator of its own, only TensorRT 10 has; quantization.method = "implicit" cannot be '
            'built: use "explicit", which calibrate writes into the graph'
        )
    if implicit and make_calibrator is None:
        raise BuildError(
            'quantization.method = "implicit" needs calibration data: give embeddings or photos, or use "explicit" on a graph '
            "of trt-sam calibrate"
        )
    if make_calibrator is not None and not implicit:
        raise BuildError(
            f'a calibrator is of use with quantization.method = "implicit" alone, and it is {recipe.quantization.method!r}; '
            "leave it out"
        )
    return implicit


def add_calibrator(builder: Any, config: Any, network: Any, job: BuildJob, make_calibrator: MakeCalibrator) -> Calibrator:
    """Set `config` up for implicit INT8 with FP16 elsewhere; the caller closes what comes back, after the build.

    Batches have the first profile's least num_prompts, so that no row is made up, and its greatest num_points, so that every
    prompt fits.

    Raises:
        BuildError: the graph has Q/DQ pairs, float16 tensors or an input that is not float32.
        TrtSamError: what `make_calibrator` raises.
    """
    flavour, path, trt = job.flavour, job.path, job.flavour.trt
    _check_network(network, trt, path)
    first = job.recipe.profiles[0]
    prompts, points = first.num_prompts[0], first.num_points[2]
    shape = dataclasses.replace(first, num_prompts=(prompts,) * 3, num_points=(points,) * 3)
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.INT8)
    _keep_positions_float32(config, network, trt)
    _set_calibration_profile(builder, config, network, shape, path)
    calibrator = make_calibrator(
        flavour, input_shapes(network, shape, path), _tensor_names(network), job.stop, device=job.device
    )
    config.int8_calibrator = calibrator
    return calibrator


def position_layers(network: Any, trt: Any) -> list[Any]:
    """The layers of the position encoding: sine and cosine and all they come from. FP16 is too coarse for the angles."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found: dict[str, Any] = {}
    waiting = [layer for layer in layers if _is_wave(layer, trt)]
    while waiting:
        layer = waiting.pop()
        if layer.name in found:
            continue
        found[layer.name] = layer
        sources = [layer.get_input(i) for i in range(layer.num_inputs)]
        waiting += [maker[tensor.name] for tensor in sources if tensor is not None and tensor.name in maker]
    return list(found.values())


def _is_wave(layer: Any, trt: Any) -> bool:
    if layer.type != trt.LayerType.UNARY:
        return False
    layer.__class__ = trt.IUnaryLayer  # get_layer gives the base class; NVIDIA's own tools turn it so
    return layer.op in (trt.UnaryOperation.SIN, trt.UnaryOperation.COS)


def _keep_positions_float32(config: Any, network: Any, trt: Any) -> None:
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for layer in position_layers(network, trt):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        # Shapes and indices are integers; constants have the type of their weights.
        if layer.type == trt.LayerType.CONSTANT or any(tensor.dtype != trt.DataType.FLOAT for tensor in outputs):
            continue
        layer.precision = trt.DataType.FLOAT
        for index in range(len(outputs)):
            layer.set_output_type(index, trt.DataType.FLOAT)


def _set_calibration_profile(builder: Any, config: Any, network: Any, shape: ShapeProfile, path: Path) -> None:
    profile = make_profile(builder, network, shape, path)
    if profile is not None and not config.set_calibration_profile(profile):
        raise BuildError(f"the calibration profile does not fit {path}: {shape}; give the recipe's first profile another range")


def _check_network(network: Any, trt: Any, path: Path) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.dtype != trt.DataType.FLOAT or tensor.is_shape_tensor:
            raise BuildError(
                f"input {tensor.name!r} of {path} is {tensor.dtype.name}, and TensorRT calibrates with float32 inputs alone; "
                'export it without --full-resolution, or use quantization.method = "explicit"'
            )
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE):
            raise BuildError(
                f'{path} has Q/DQ pairs already, at {layer.name!r}; build it with quantization.method = "explicit", or give a '
                "graph of --precision fp32"
            )
        if any(layer.get_output(i).dtype == trt.DataType.HALF for i in range(layer.num_outputs)):
            raise BuildError(f"{path} is a float16 graph, seen at {layer.name!r}; implicit INT8 wants one of --precision fp32")


def _tensor_names(network: Any) -> list[str]:
    names = [network.get_input(i).name for i in range(network.num_inputs)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        names += [layer.get_output(i).name for i in range(layer.num_outputs)]
    return list(dict.fromkeys(names))
