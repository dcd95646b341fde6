"""`trt-sam compare` and `trt-sam golden`: a real graph of the stand-in, golden data, reports."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from tests.fixtures.exports import standin_graph
from tests.fixtures.planted import PLANTS, planted
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.feeds.feeds import random_images
from trt_sam.gate.golden import digest_of_embedding, load_golden
from trt_sam.imaging.embeddings import Embedding, save_embedding
from trt_sam.recipe import GraphOptions

FEW = ("--prompts", "8", "--min-prompts", "8")


@pytest.fixture(scope="module")
def graph() -> Path:
    return standin_graph(GraphOptions(precision="fp32", target="gpu", mask_input=True, full_resolution=True))


@pytest.fixture(scope="module")
def broken(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The largest weight 5 % too large."""
    model = onnx.load(graph)
    weight = max((i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT), key=lambda i: np.prod(i.dims))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    path = tmp_path_factory.mktemp("broken") / "broken.onnx"
    onnx.save(model, path)
    return path


def test_a_graph_passes_and_a_broken_one_does_not(
    graph: Path, broken: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    assert main(["compare", "--golden", str(golden), str(graph), str(broken), *FEW, "--report", str(report)]) == 1
    printed = capsys.readouterr().out
    assert f"what {graph} makes of mask_input was NOT JUDGED" in printed
    assert f"PASS  {graph}" in printed
    assert f"FAIL  {broken}" in printed
    data = json.loads((report / "report.json").read_text())
    assert [each["verdict"] for each in data["candidates"]] == ["pass", "fail"]
    assert data["prompts"] == 8
    assert "PyTorch in float64" in data["executed_by"]
    assert {"masks", "low_res_masks", "iou_predictions"} == set(data["candidates"][0]["figures"]["outputs"]) | {"masks"}
    assert data["candidates"][1]["worst"][0]["points"]
    assert f"SHA-256 of {graph}" in data["environment"]
    suites = ElementTree.parse(report / "junit.xml").getroot().findall("testsuite")
    assert [suite.get("failures") == "0" for suite in suites] == [True, False]
    assert "| 0.0 % |" in (report / "report.md").read_text()
    assert "NOT JUDGED" in (report / "report.md").read_text()
    page = (report / "report.html").read_text()
    table = page.index("<h2>Figures")
    for start in (0, table):
        assert page.index(str(broken), start) < page.index(str(graph), start), "what failed comes first, in cards and in tables"
    assert ">fp32: 0.999</text>" in page, "the limit's line has its name beside it"
    assert 'src="http' not in page
    assert "@import" not in page
    assert main(["compare", "--golden", str(golden), str(graph), *FEW, "--report", str(report)]) == 2
    assert "exists; give --force to replace it" in capsys.readouterr().err


def test_the_checkpoint_is_a_reference_with_its_noise_floor(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # PyTorch's float16 on the CPU is slow.
    few = ["--prompts", "4", "--min-prompts", "4"]
    assert main(["compare", "standin", str(graph), *few, "--json", str(tmp_path / "report.json")]) == 0
    data = json.loads((tmp_path / "report.json").read_text())
    assert "scenes" in data["data"]
    floor = data["noise_floor"]
    half, last = floor["the reference in FP16"], floor["one unit of the last place of every logit"]
    assert 0.9 < half["iou_mean"] < 1.0
    assert last["iou_mean"] > 0.9999
    assert "floor: the reference in FP16" in capsys.readouterr().out


def test_too_few_prompts_fail(graph: Path, golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So many are judged as were asked for, and what can be done is said."""
    command = ["compare", "--golden", str(golden), str(graph), "--prompts", "5"]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "\n5 prompts on golden data" in out
    assert "TOO FEW PROMPTS TO TELL" in out
    assert "\n  prompts 5, must be at least 256\n  judge it by more prompts (--prompts N;" in out
    assert main([*command, "--min-prompts", "5"]) == 0


def test_limits_come_from_flags_and_files(
    graph: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "limits.toml").write_text("[fp32.tolerances]\nlow_res_masks = 1e-12\n")
    compare = ["compare", "--golden", str(golden), str(graph), *FEW]
    assert main([*compare, "--limits", str(tmp_path / "limits.toml")]) == 1
    assert "low_res_masks: largest relative error" in capsys.readouterr().out
    assert main([*compare, "--limits", str(tmp_path / "limits.toml"), "--tolerance", "low_res_masks=0.1"]) == 0
    assert main([*compare, "--min-sqnr-db", "300"]) == 1
    assert "SQNR of the logits" in capsys.readouterr().out


def test_a_graph_is_not_judged_on_what_it_was_calibrated_with(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor where golden data hold the embedding rounded."""
    model = onnx.load(graph)
    embedding, golden = random_images(1)[0].embedding, tmp_path / "golden.npz"
    save_embedding(tmp_path / "embeddings" / "scene.npz", Embedding(embedding, (300, 201), "scene.png"))
    write = ["golden", "--checkpoint", "standin", "--embeddings", str(tmp_path / "embeddings"), "--half"]
    assert main([*write, "--prompts", "8", "--output", str(golden)]) == 0
    digest = digest_of_embedding(embedding)
    assert digest != digest_of_embedding(load_golden(golden).images[0].embedding)
    for entry in model.metadata_props:
        if entry.key == "trt_sam.options":
            entry.value = json.dumps({**json.loads(entry.value), "precision": "int8"})
    entry = model.metadata_props.add()
    entry.key, entry.value = "trt_sam.calibration", json.dumps({"fingerprint": "x", "image_sha256": [digest]})
    # An INT8 graph has float16 masks.
    for output in model.graph.output[:2]:
        node = next(n for n in model.graph.node if output.name in n.output)
        node.output[list(node.output).index(output.name)] = f"wide {output.name}"
        cast = onnx.helper.make_node("Cast", [f"wide {output.name}"], [output.name], to=onnx.TensorProto.FLOAT16)
        model.graph.node.append(cast)
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "int8.onnx")
    compare = ["compare", "--golden", str(golden), str(tmp_path / "int8.onnx"), *FEW]
    assert main(compare) == 2
    assert "was calibrated with scene.png" in capsys.readouterr().err
    assert main([*compare, "--allow-calibration-images"]) == 0
    assert main([*compare, "--allow-calibration-images", "--precision", "fp16"]) == 1
    assert "fp16 was asked for, the candidate is quantized" in capsys.readouterr().out


def test_one_pixel_of_nan_is_a_failure_with_its_place(
    graph: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not bad input: the candidate is judged, fails by name, and the report is whole."""
    onnx.save(planted(onnx.load(graph), PLANTS["NaN in one pixel"]), tmp_path / "nan.onnx")
    compare = ["compare", "--golden", str(golden), str(tmp_path / "nan.onnx"), *FEW, "--report", str(tmp_path / "report")]
    assert main(compare) == 1
    wanted = "low_res_masks: values that are NaN or infinite 8, must be at most 0; the first at [0, 2, 10, 20] of a feed on"
    assert f"fail: {wanted} scene.png" in capsys.readouterr().out
    assert wanted in (tmp_path / "report" / "junit.xml").read_text()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["candidates"][0]["verdict"] == "fail"


def fixed_size(graph: Path, points: int, path: Path) -> Path:
    """The graph for one prompt of so many points."""
    model = onnx.load(graph)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            size = {"num_prompts": 1, "num_points": points}.get(dim.dim_param)
            if size is not None:
                dim.dim_value = size
    onnx.save(model, path)
    return path


def test_a_graph_of_one_size_is_asked_in_that_size(
    graph: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = fixed_size(graph, 4, tmp_path / "fixed.onnx")
    assert main(["compare", "--golden", str(golden), str(fixed), "--prompts", "8", "--min-prompts", "4"]) == 0
    assert "PASS" in capsys.readouterr().out


def test_graphs_without_a_size_in_common_are_one_line(
    graph: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [str(fixed_size(graph, points, tmp_path / f"{points}.onnx")) for points in (4, 2)]
    for compare in (sides, ["--golden", str(golden), *sides]):
        assert main(["compare", *compare, *FEW, "--report", str(tmp_path / "report")]) == 2
        assert "one side takes num_points 2 to 2, the other 4 to 4: nothing fits both" in error_line(capsys.readouterr().err)
        assert not (tmp_path / "report").exists()


def test_golden_data_are_written_and_belong_to_their_checkpoint(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings = tmp_path / "embeddings"
    image = random_images(1)[0]
    save_embedding(embeddings / "photo.npz", Embedding(image.embedding, (300, 201), "photo.jpg"))
    path = tmp_path / "golden.npz"
    write = ["golden", "--checkpoint", "standin", "--embeddings", str(embeddings), "--prompts", "4", "--output", str(path)]
    assert main(write) == 0
    assert load_golden(path).answers[0].step == 1
    assert main(["compare", "--golden", str(path), str(graph), "--min-prompts", "4"]) == 0
    assert main(write) == 2
    assert "exists; give --force" in capsys.readouterr().err
    save_embedding(embeddings / "other.npz", Embedding(image.embedding, (300, 201), "other.jpg", "ab" * 32))
    for judge in ([*write, "--force"], ["compare", "standin", str(graph), "--embeddings", str(embeddings)]):
        assert main(judge) == 2
        assert "other.npz was made by another image encoder (abababababab)" in capsys.readouterr().err
    assert load_golden(path).prompts == 4, "it is kept"
    model = onnx.load(graph)
    for entry in model.metadata_props:
        if entry.key == "trt_sam.checkpoint_sha256":
            entry.value = "0" * 64
    onnx.save(model, tmp_path / "other.onnx")
    assert main(["compare", "--golden", str(path), str(tmp_path / "other.onnx")]) == 2
    assert "write those of its checkpoint with trt-sam golden" in capsys.readouterr().err


def test_there_is_no_verdict_on_noise_unless_asked(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(graph)
    for entry in model.metadata_props:
        if entry.key == "trt_sam.checkpoint_sha256":
            entry.value = "0" * 64
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    assert main(["compare", str(other), str(other), *FEW]) == 2
    assert "there is nothing to judge by" in capsys.readouterr().err
    assert main(["compare", str(other), str(other), *FEW, "--random-embeddings"]) == 0
    assert "whose masks mean nothing" in capsys.readouterr().out
