"""Optimization profiles: the shapes that an engine takes, from the recipe's ranges and the network's dynamic inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trt_sam.errors import BuildError
from trt_sam.recipe import ShapeProfile

__all__ = ["add_profiles", "input_shapes", "make_profile"]


def add_profiles(builder: Any, config: Any, network: Any, profiles: tuple[ShapeProfile, ...], path: Path) -> None:
    """Give `config` one profile for each of `profiles`; none where all shapes are fixed.

    Raises:
        BuildError: a dynamic dimension that profiles do not know, or ranges that TensorRT refuses.
    """
    for number, ranges in enumerate(profiles, start=1):
        profile = make_profile(builder, network, ranges, path)
        if profile is not None and config.add_optimization_profile(profile) < 0:
            raise BuildError(f"profile {number} does not fit {path}: {ranges}; each range must be min <= opt <= max")


def make_profile(builder: Any, network: Any, ranges: ShapeProfile, path: Path) -> Any:
    """The profile of `ranges`, or None where `network` has no dynamic input; raises BuildError as `add_profiles`."""
    dynamic = [tensor for tensor in _inputs(network) if tensor.is_shape_tensor or -1 in tuple(tensor.shape)]
    if not dynamic:
        return None
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        bounds = _value_bounds(tensor, ranges, path) if tensor.is_shape_tensor else _shape_bounds(tensor, ranges, path)
        setter = profile.set_shape_input if tensor.is_shape_tensor else profile.set_shape
        setter(tensor.name, *bounds)
    return profile


def input_shapes(network: Any, ranges: ShapeProfile, path: Path) -> dict[str, tuple[int, ...]]:
    """The opt shape of every input; raises BuildError as `add_profiles`."""
    return {tensor.name: tuple(_shape_bounds(tensor, ranges, path)[1]) for tensor in _inputs(network)}


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(i) for i in range(network.num_inputs)]


def _shape_bounds(tensor: Any, ranges: ShapeProfile, path: Path) -> list[list[int]]:
    bounds: list[list[int]] = [[], [], []]
    for index, size in enumerate(tuple(tensor.shape)):
        if size >= 0:
            triple = (size, size, size)
        else:
            name = tensor.get_dimension_name(index)
            known = vars(ranges)
            if name not in known:
                raise BuildError(
                    f"input {tensor.name!r} of {path} has the dynamic dimension {name!r}; profiles know {', '.join(known)}; "
                    "name it so, or make it static"
                )
            triple = known[name]
        for bound, value in zip(bounds, triple, strict=True):
            bound.append(value)
    return bounds


def _value_bounds(tensor: Any, ranges: ShapeProfile, path: Path) -> list[list[int]]:
    if tensor.name != "orig_im_size":
        raise BuildError(f"input {tensor.name!r} of {path} decides shapes; only orig_im_size may, so make it a constant")
    return [[height, width] for height, width in zip(ranges.height, ranges.width, strict=True)]
