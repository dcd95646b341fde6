"""Whether an ONNX graph is a decoder of this package: its metadata, and the tensors that they tell of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_sam.contract import TensorSpec, input_specs, output_specs, term_specs
from trt_sam.errors import GraphError
from trt_sam.graph.advice import EXPORT_DECODER
from trt_sam.graph.metadata import check_is_whole, recorded_options
from trt_sam.recipe import GraphOptions

__all__ = ["checked_options"]


def checked_options(
    path: object,
    metadata: Mapping[str, str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    prepared: bool = False,
) -> GraphOptions:
    """The options in a graph's metadata, once its tensors are found to be those of such a graph.

    A `prepared` one takes the image's terms for its embedding.

    Raises:
        GraphError: it is another graph, or its tensors are others.
    """
    if not prepared:
        check_is_whole(path, metadata)
    names = [spec.name for spec in inputs]
    held = f"inputs {', '.join(names[:6]) or 'none'}; outputs {', '.join(s.name for s in outputs[:4]) or 'none'}"
    options = recorded_options(metadata, path)
    if options is None:
        if {"image_embeddings", "point_coords", "point_labels"} <= set(names):
            raise GraphError(
                f"{path} is a SAM decoder of another exporter, such as Meta's ({held}); it does not know label -2 and TensorRT "
                f"cannot build it: write one from the checkpoint with {EXPORT_DECODER}"
            )
        raise GraphError(f"{path} is not a SAM decoder ({held}); write one with {EXPORT_DECODER}")
    version = metadata.get("trt_sam.version", "unknown")
    expected = input_specs(mask_input=options.mask_input, full_resolution=options.full_resolution, images=options.images)
    if prepared:
        expected = (*term_specs(), *expected[1:])
    dtype = "float32" if options.precision == "fp32" else "float16"
    expected += output_specs(
        full_resolution=options.full_resolution, best_mask=options.best_mask, mask_bits=options.mask_bits, dtype=dtype
    )
    found = {spec.name: spec for spec in (*inputs, *outputs)}
    for spec in expected:
        if spec.name not in found or not _fits(found[spec.name], spec):
            seen = str(found.get(spec.name, "missing"))
            raise GraphError(f"{path} is a damaged or changed graph: {seen}, expected {spec}; export it again")
    for name in found:
        if name not in {spec.name for spec in expected}:
            raise GraphError(
                f"{path} has the tensor {name}, which its options do not tell of (trt_sam {version}); export it again"
            )
    return options


def _fits(seen: TensorSpec, expected: TensorSpec) -> bool:
    """Whether a graph's tensor is the expected one; a dynamic dimension may have been made a fixed one."""
    return (
        seen.dtype == expected.dtype
        and len(seen.dims) == len(expected.dims)
        and all(s == e or (isinstance(s, int) and isinstance(e, str)) for s, e in zip(seen.dims, expected.dims, strict=True))
    )
