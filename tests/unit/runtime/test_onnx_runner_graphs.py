"""Files that the runner refuses, and in which words."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import save_with_options

from trt_sam.errors import GraphError, InputError
from trt_sam.runtime.onnx_runner import OnnxRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def other_graph(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["pixels"], ["classes"])],
        "classifier",
        [value("pixels", 1, [1, 3])],
        [value("classes", 1, [1, 3])],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "garbage", "truncated", "classifier"])
def test_a_file_that_is_no_decoder(kind: str, graphs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.onnx"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "garbage":
            path.write_bytes(b"\x89PNG and so on" * 50)
        case "truncated":
            path.write_bytes(graphs["plain"].read_bytes()[:-4000])
        case "classifier":
            other_graph(path)
    message = {
        "missing": "graph not found",
        "folder": r"is no set with a manifest: it has no manifest\.json; .* trt-sam export --checkpoint mobile_sam --encoder",
        "empty": "is empty",
        "classifier": r"is not a SAM decoder \(inputs pixels; outputs classes\)",
    }.get(kind, "cannot|can be loaded|not a SAM decoder")
    with pytest.raises(InputError, match=message) as caught:
        OnnxRunner(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_decoder_of_another_exporter(graphs: dict[str, Path]) -> None:
    with pytest.raises(GraphError, match=r"another exporter, such as Meta's .*point_labels.* trt-sam export"):
        OnnxRunner(graphs["meta"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32", "target": "cpu", "mask_input": True}, "missing, expected mask_input"),
        ({"precision": "fp16", "target": "cpu"}, "low_res_masks: float32 .* expected low_res_masks: float16"),
        ({"precision": "int2"}, "options unknown here"),
        ({"colour": "red"}, "options unknown here"),
    ],
)
def test_metadata_that_does_not_fit(options: dict[str, object], message: str, graphs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "changed.onnx"
    save_with_options(onnx.load(graphs["plain"]), options, path)
    with pytest.raises(GraphError, match=message):
        OnnxRunner(path)


def test_an_input_that_the_options_do_not_tell_of(graphs: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(graphs["mask"])
    save_with_options(model, {"precision": "fp32", "target": "cpu"}, tmp_path / "more.onnx")
    with pytest.raises(GraphError, match="has the tensor mask_input"):
        OnnxRunner(tmp_path / "more.onnx")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ir_version": 99}, r"Unsupported model IR version: 99, max supported IR version: \d+"),
        ({"opset": 99}, "ONNX Runtime only .*guarantees"),
    ],
)
def test_a_graph_that_is_too_new_says_what_to_update(
    change: dict[str, int], reason: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    """As every graph is to ONNX Runtime 1.17, whose reason stands behind a long signature."""
    model = onnx.load(graphs["plain"])
    model.ir_version = change.get("ir_version", model.ir_version)
    model.opset_import[0].version = change.get("opset", model.opset_import[0].version)
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(GraphError, match=rf"too new for onnxruntime \S+ \({reason}.*pip install --upgrade 'onnxruntime>=1.20'"):
        OnnxRunner(tmp_path / "new.onnx")
