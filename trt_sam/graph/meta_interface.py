"""A decoder graph with the tensors of Meta's own ONNX export, for programs that were written for that one. onnx only."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from trt_sam.contract import LOW_RES_SIZE, NUM_MASKS
from trt_sam.errors import InputError
from trt_sam.graph.metadata import INTERFACE_KEY
from trt_sam.recipe import GraphOptions

__all__ = ["check_for_meta", "to_metas_interface"]


def check_for_meta(options: GraphOptions) -> None:
    """Raise InputError where a graph with these options cannot have Meta's interface."""
    if options.precision != "fp32":
        raise InputError(
            f"Meta's interface is float32 throughout, precision is {options.precision}; export with --precision fp32"
        )
    if options.mask_bits:
        raise InputError("Meta's interface has no mask_bits; leave --mask-bits out")
    if options.images > 1:
        raise InputError("Meta's interface takes one image; leave --images out")
    if not (options.mask_input and options.full_resolution):
        raise InputError("Meta's interface has mask_input and orig_im_size; export with --mask-input --full-resolution")


def to_metas_interface(model: onnx.ModelProto) -> None:
    """Give a graph of ours, of options that `check_for_meta` takes, the inputs and outputs of Meta's export, in place.

    Names, order and types are those of `scripts/export_onnx_model.py` of Segment Anything: one prompt a call, `orig_im_size`
    float32, and the outputs masks, iou_predictions, low_res_masks; four masks, or one as with its `--return-single-mask`.
    """
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["whole_im_size" if name == "orig_im_size" else name for name in node.input]
    cast = helper.make_node("Cast", ["orig_im_size"], ["whole_im_size"], name="full_resolution/Cast", to=TensorProto.INT64)
    graph.node.insert(0, cast)
    next(value for value in graph.input if value.name == "orig_im_size").type.tensor_type.elem_type = TensorProto.FLOAT
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "num_prompts":
                dim.dim_value = 1
    iou = next(value for value in graph.output if value.name == "iou_predictions")
    kept = iou.type.tensor_type.shape.dim[1].dim_value or NUM_MASKS
    shapes = {
        "masks": [1, kept, "height", "width"],
        "iou_predictions": [1, kept],
        "low_res_masks": [1, kept, LOW_RES_SIZE, LOW_RES_SIZE],
    }
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items())
    # What was inferred for any number of prompts no longer holds.
    del graph.value_info[:]
    kept_entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "trt_sam.options"}
    del model.metadata_props[:]
    helper.set_model_props(model, kept_entries | {INTERFACE_KEY: "meta"})
