"""`config.pbtxt` of the three models, as text in protobuf's own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trt_sam.contract import TensorSpec, encoder_input_specs, encoder_output_specs

__all__ = ["DECODER", "ENCODER", "SAM", "ModelConfig", "decoder_config", "encoder_config", "sam_config"]

ENCODER, DECODER, SAM = "sam_encoder", "sam_decoder", "sam"
_TYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "int32": "INT32", "int64": "INT64", "bytes": "STRING"}

_SAM_INPUTS = (
    TensorSpec("image", "bytes", (1,)),
    TensorSpec("image_id", "bytes", (1,)),
    TensorSpec("point_coords", "float32", ("num_prompts", "num_points", 2)),
    TensorSpec("point_labels", "float32", ("num_prompts", "num_points")),
    TensorSpec("boxes", "float32", ("num_prompts", 4)),
)
"""Each may be left out, but for one of the first two and one of the others."""
_SAM_OUTPUTS = (
    TensorSpec("rle", "bytes", ("num_prompts",)),
    TensorSpec("iou_predictions", "float32", ("num_prompts",)),
    TensorSpec("low_res_masks", "float32", ("num_prompts", 1, 256, 256)),
    TensorSpec("image_id", "bytes", (1,)),
)


@dataclass(frozen=True)
class ModelConfig:
    """One model."""

    name: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    plan: bool = False
    """Whether it is an engine, else a model.py."""
    on_gpu: bool = False
    optional: bool = False
    """Whether inputs may be left out."""
    profiles: int = 1
    """Of an engine; Triton takes for each request the one that fits."""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The file."""
        backend = 'platform: "tensorrt_plan"' if self.plan else 'backend: "python"'
        # Embedding and prompts have different leading dimensions, so there is none that Triton could batch along.
        parts = [f'name: "{self.name}"', backend, "max_batch_size: 0"]
        parts += [self._tensor("input", spec) for spec in self.inputs] + [self._tensor("output", spec) for spec in self.outputs]
        parts.append(_block("instance_group", self._instance()))
        parts += [_parameter(key, value) for key, value in self.parameters.items()]
        return "\n".join(parts) + "\n"

    def _tensor(self, kind: str, spec: TensorSpec) -> str:
        dims = ", ".join("-1" if isinstance(dim, str) else str(dim) for dim in spec.dims)
        lines = [f'name: "{spec.name}"', f"data_type: TYPE_{_TYPES[spec.dtype]}", f"dims: [ {dims} ]"]
        if kind == "input" and self.optional:
            lines.append("optional: true")
        return _block(kind, lines)

    def _instance(self) -> list[str]:
        lines = ["kind: KIND_GPU", "count: 1", "gpus: [ 0 ]"] if self.on_gpu else ["kind: KIND_CPU", "count: 1"]
        if self.plan and self.profiles > 1:
            lines.append(f"profile: [ {', '.join(f'{chr(34)}{number}{chr(34)}' for number in range(self.profiles))} ]")
        return lines


def encoder_config(*, dtype: str, plan: bool) -> ModelConfig:
    """The image encoder: a picture in the frame to its embedding in `dtype`."""
    return ModelConfig(ENCODER, encoder_input_specs(), encoder_output_specs(dtype=dtype), plan=plan, on_gpu=plan)


def decoder_config(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, plan: bool, profiles: int) -> ModelConfig:
    """The mask decoder of a graph with these tensors. The Python model gives all but bits as float32."""
    if not plan:
        outputs = [TensorSpec(each.name, "float32" if each.dtype == "float16" else each.dtype, each.dims) for each in outputs]
    return ModelConfig(DECODER, inputs, outputs, plan=plan, on_gpu=plan, profiles=profiles)


def sam_config(*, takes_masks: bool, on_gpu: bool, images: int) -> ModelConfig:
    """What clients ask: pictures and prompts to masks."""
    earlier = (TensorSpec("mask_input", "float32", ("num_prompts", 1, 256, 256)),) if takes_masks else ()
    # Else Triton copies what the other models put on the GPU to the host before this one sees it.
    parameters = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no", "images": str(images)}
    return ModelConfig(SAM, (*_SAM_INPUTS, *earlier), _SAM_OUTPUTS, on_gpu=on_gpu, optional=True, parameters=parameters)


def _block(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{name} {{", *(f"  {line}" for line in lines), "}"])


def _parameter(key: str, value: str) -> str:
    return _block("parameters", [f'key: "{key}"', f'value: {{ string_value: "{value}" }}'])
