"""Layers and the blamed node of candidates in a comparison: the float32 graph to hold them against, made where it must be."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from trt_sam.accuracy.examples import first_prompts
from trt_sam.accuracy.sides import Side
from trt_sam.errors import InputError
from trt_sam.gate.comparison import Candidate, Comparison
from trt_sam.gate.graphs import check_common, group_of_node
from trt_sam.gate.layers import LayerRow, layer_rows
from trt_sam.gate.pairs import activation_pairs, without_pairs, worst_pair
from trt_sam.gate.search import Blame, blamed_node
from trt_sam.gate.verdict import FAIL
from trt_sam.graph.metadata import read_graph

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["check_layers", "with_layers"]

_ROW_CALLS = _ROW_PROMPTS = 2
"""Tensors are compared on the first prompts of so many calls: they are large, and every prompt is much like the next."""


def with_layers(
    comparison: Comparison,
    reference: Side | None,
    sides: Sequence[Side],
    *,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """The comparison with `layers` of every candidate, and `blame` of those that miss a limit.

    Raises:
        InputError: a side is no ONNX graph, or the graphs are of other forms.
    """
    check_layers(reference, sides)
    with tempfile.TemporaryDirectory() as folder:
        judged = [
            _candidate(each, side, _reference(reference, side, Path(folder) / f"{number}.onnx"), progress)
            for number, (each, side) in enumerate(zip(comparison.candidates, sides, strict=True))
        ]
    return dataclasses.replace(comparison, candidates=tuple(judged))


def check_layers(reference: Side | None, sides: Sequence[Side]) -> None:
    """Raise InputError where `with_layers` would, before anything is compared."""
    if reference is None or (reference.checkpoint is None and not reference.source.endswith(".onnx")):
        raise InputError("--layers need the reference's own tensors: name a checkpoint or a float32 graph as REFERENCE")
    if reference.arithmetic != "fp32":
        raise InputError(
            f"--layers need a float32 reference, and {reference.source} is {reference.arithmetic}; name the checkpoint or its "
            "float32 graph as REFERENCE"
        )
    for side in sides:
        if not side.source.endswith(".onnx"):
            instead = f"{' or '.join(map(str, side.graphs))}, which it was built from"
            instead = instead if side.graphs else "a graph of it that was exported"
            raise InputError(f"--layers compares ONNX graphs, and {side.source} is none; name {instead}")
        if reference.source.endswith(".onnx"):
            check_common(onnx.load(reference.source), onnx.load(side.source))


def _candidate(
    candidate: Candidate, side: Side, reference: onnx.ModelProto, progress: Callable[[int], None] | None
) -> Candidate:
    model = onnx.load(side.source)
    half = candidate.arithmetic == "fp16"
    hard = list(candidate.figures.hardest)
    rows = layer_rows(reference, model, [first_prompts(each, _ROW_PROMPTS) for each in hard[:_ROW_CALLS]], half=half)
    failed = [check for check in candidate.verdict.checks if check.status == FAIL]
    blame = _blame(reference, model, rows, candidate, half=half, progress=progress) if failed else None
    return dataclasses.replace(candidate, layers=tuple(rows), blame=blame)


def _blame(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    rows: Sequence[LayerRow],
    candidate: Candidate,
    *,
    half: bool,
    progress: Callable[[int], None] | None,
) -> Blame | None:
    """The rounding that breaks a limit, else the first node whose tensor does, with no activation rounded."""
    hard, pairs = list(candidate.figures.hardest), activation_pairs(model)
    if pairs and (found := worst_pair(reference, model, hard, candidate.limits, progress=progress)) is not None:
        return found
    for check in candidate.verdict.checks:
        pair = next((each for each in pairs if check.name == f"min_levels {each.name}"), None)
        if check.status == FAIL and pair is not None:
            group = group_of_node(reference).get(pair.reader, "")
            return Blame(pair.reader, "MatMul", pair.reader.rpartition("/")[0], group, "", check.sentence, 0)
    bare, passed_over = without_pairs(model, pairs), {row.tensor for row in rows if row.rescaled}
    return blamed_node(reference, bare, passed_over, hard, candidate.limits, half=half, progress=progress)


def _reference(reference: Side | None, side: Side, path: Path) -> onnx.ModelProto:
    assert reference is not None, "checked before"
    if reference.source.endswith(".onnx"):
        return onnx.load(reference.source)
    assert reference.checkpoint is not None, "checked before"
    return _export(reference.checkpoint, side.source, path)


def _export(checkpoint: Checkpoint, candidate: str, path: Path) -> onnx.ModelProto:
    from trt_sam.graph.export import export_decoder

    options = read_graph(candidate).options
    if options is None:
        raise InputError(f"{candidate} does not say how it was exported; give a float32 graph of it as REFERENCE")
    export_decoder(
        checkpoint.decoder, path, dataclasses.replace(options, precision="fp32"), checkpoint_sha256=checkpoint.sha256
    )
    return onnx.load(path)
