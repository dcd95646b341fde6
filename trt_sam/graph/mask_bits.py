"""Thresholded masks, packed eight pixels to a byte, as nodes after a decoder graph. onnx only.

They read the very tensor that is the graph's output, so bits and logits agree in every precision. TensorRT-RTX 1.7 makes no
kernel for low-resolution bits (they join the one that writes the masks), and at most one for those at full resolution.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_sam.contract import LOW_RES_SIZE

__all__ = ["append_mask_bits"]


def append_mask_bits(model: onnx.ModelProto) -> None:
    """Add output `mask_bits` (see `contract.output_specs`) to `model` in place: of `masks` where it gives them.

    A pixel is inside where its logit is above 0: neither 0 nor NaN is.
    """
    graph = model.graph
    elements = {output.name: output.type.tensor_type.elem_type for output in graph.output}
    full = "masks" in elements
    masks = "masks" if full else "low_res_masks"
    half_or_single = helper.tensor_dtype_to_np_dtype(elements[masks])
    constants = {
        "threshold": np.array(0, half_or_single),
        "weights": np.array([128, 64, 32, 16, 8, 4, 2, 1], np.float32),
        "nothing": np.array(0, np.float32),
        "last": np.array([-1]),
        "by_eight": np.array([0, 0, 0, -1, 8] if full else [0, 0, LOW_RES_SIZE, LOW_RES_SIZE // 8, 8]),
    }
    if full:
        constants |= {
            "seven": np.array([7]),
            "eight": np.array([8]),
            "one": np.array([1]),
            "two": np.array([2]),
            "start": np.array([0]),
            "width_axis": np.array([3]),
            "seven_columns": np.array([0, 0, 0, 0, 0, 0, 0, 7]),
        }
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, f"mask_bits.{name}"))

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> None:
        names = [i if i in _OUTSIDE else f"mask_bits.{i}" for i in inputs]
        target = output if output in _OUTSIDE else f"mask_bits.{output}"
        graph.node.append(helper.make_node(op, names, [target], name=f"mask_bits/{output}", **attributes))

    pixels = masks
    if full:
        # Seven columns are added and those after the last byte cut off, so that no tensor is ever empty.
        add("Slice", ["orig_im_size", "one", "two", "start"], "width")
        add("Add", ["width", "seven"], "at_most")
        add("Div", ["at_most", "eight"], "bytes")
        add("Mul", ["bytes", "eight"], "whole_width")
        add("Pad", ["masks", "seven_columns", "threshold"], "wider", mode="constant")
        add("Slice", ["wider", "start", "whole_width", "width_axis"], "whole_bytes")
        pixels = "whole_bytes"
    add("Reshape", [pixels, "by_eight"], "eights")
    add("Greater", ["eights", "threshold"], "is_inside")
    add("Where", ["is_inside", "weights", "nothing"], "weighted")
    add("ReduceSum", ["weighted", "last"], "sums", keepdims=0)
    # TensorRT makes bytes of floating point only; sums up to 255 are exact in it.
    add("Cast", ["sums"], "mask_bits", to=TensorProto.UINT8)
    graph.output.append(helper.make_tensor_value_info("mask_bits", TensorProto.UINT8, [None] * 4))


_OUTSIDE = ("low_res_masks", "masks", "orig_im_size", "mask_bits")
