"""Masks at the original image's size, as nodes after a decoder graph. onnx only.

`orig_im_size` is an int64 shape tensor, which TensorRT accepts where Meta's float one fails to parse, so every size is
computed in whole numbers.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_sam.contract import FRAME_SIZE

__all__ = ["append_full_resolution"]


def append_full_resolution(model: onnx.ModelProto) -> None:
    """Add input `orig_im_size` and output `masks` (same type as `low_res_masks`) to `model` in place.

    Follows Meta's `postprocess_masks`: bilinear to 1024 x 1024, crop of the padding, bilinear to (height, width). The unpadded
    size int(height * 1024 / long_side + 0.5) is (2048 * height + long_side) // (2 * long_side), exactly.
    """
    graph = model.graph
    element = next(o for o in graph.output if o.name == "low_res_masks").type.tensor_type.elem_type
    constants = {
        "frame": [FRAME_SIZE, FRAME_SIZE],
        "two": [2],
        "twice_frame": [2 * FRAME_SIZE],
        "start": [0, 0],
        "axes": [2, 3],
    }
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"full_resolution.{name}"))

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        names = [i if i == "" or i in _OUTSIDE else f"full_resolution.{i}" for i in inputs]
        target = output if output in _OUTSIDE else f"full_resolution.{output}"
        graph.node.append(helper.make_node(op, names, [target], name=f"full_resolution/{output}", **attributes))
        return output

    resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    add("ReduceMax", ["orig_im_size"], "long_side", keepdims=1)
    add("Mul", ["orig_im_size", "twice_frame"], "scaled")
    add("Add", ["scaled", "long_side"], "rounded")
    add("Mul", ["long_side", "two"], "twice_long_side")
    add("Div", ["rounded", "twice_long_side"], "unpadded")
    # Resize could name its axes instead, but TensorRT-RTX 1.7 does not parse that: sizes must have all four numbers.
    add("Shape", ["low_res_masks"], "outer", start=0, end=2)
    add("Concat", ["outer", "frame"], "frame_shape", axis=0)
    add("Concat", ["outer", "orig_im_size"], "full_shape", axis=0)
    add("Resize", ["low_res_masks", "", "", "frame_shape"], "in_frame", **resize)
    add("Slice", ["in_frame", "start", "unpadded", "axes"], "cropped")
    add("Resize", ["cropped", "", "", "full_shape"], "masks", **resize)
    graph.input.append(helper.make_tensor_value_info("orig_im_size", TensorProto.INT64, [2]))
    graph.output.append(helper.make_tensor_value_info("masks", element, None))


_OUTSIDE = ("low_res_masks", "orig_im_size", "masks")
