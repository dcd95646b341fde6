"""The decoder in two graphs: exported, in a set, and taken by `OnnxRunner` where that is quicker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.runtime.test_onnx_runner import memory_of
from trt_sam.bench.profile import profile_graph
from trt_sam.cli import main
from trt_sam.commands._click_cache import ClickCache
from trt_sam.commands._encoder_set import write_decoder_set
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.engine.manifest import open_manifest
from trt_sam.engine.set_folder import writing
from trt_sam.errors import ExportError, GraphError, ManifestError
from trt_sam.graph.prepared import export_prepare, export_prepared_decoder
from trt_sam.model.checkpoint import Checkpoint, load_checkpoint
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.runtime.decoders.graph import OnnxDecoder
from trt_sam.runtime.decoders.prepared import OnnxPrepared
from trt_sam.runtime.onnx_runner import OnnxRunner

ROOT = Path(__file__).parents[2]
CPU = GraphOptions(precision="fp32", target="cpu")
TOLERANCE = 1e-4
"""Of logits, relative to the largest: what `export` allows a float32 graph."""

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in's decoder as a set of three graphs."""
    output = tmp_path_factory.mktemp("prepared") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2), (3, 5)))
        write_decoder_set(load_checkpoint("standin"), EngineRecipe(graph=CPU), output)
    return output


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images' tensors of each pass, in order: an embedding, or terms."""
    seen: list[str] = []
    execute = OnnxDecoder.execute

    def spy(self: OnnxDecoder, feed: Any, rows: slice, image: Any, outputs: Any) -> None:
        seen.append("terms" if "pixels" in image else "embedding")
        execute(self, feed, rows, image, outputs)

    monkeypatch.setattr(OnnxDecoder, "execute", spy)
    return seen


@pytest.fixture
def runners(folder: Path) -> Iterator[tuple[OnnxRunner, OnnxRunner]]:
    """The set, and its decoder in one graph."""
    with OnnxRunner(folder, threads=1) as of_set, OnnxRunner(folder / "decoder.onnx", threads=1) as alone:
        yield of_set, alone


def embedding(seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32)


def prompts(count: int, seed: int = 0) -> dict[str, Array]:
    """Clicks, boxes, absent points, and rows of no point at all."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-2, -1, 0, 1, 2, 3], (count, 3)).astype(np.float32)
    labels[-1] = -2
    return {"point_coords": rng.uniform(0, 1024, (count, 3, 2)).astype(np.float32), "point_labels": labels}


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=TOLERANCE * np.abs(array).max(), err_msg=name)


def test_the_set_holds_the_decoder_twice(folder: Path) -> None:
    manifest = open_manifest(folder)
    assert [graph.role for graph in manifest.graphs] == ["decode", "prepare", "decode_prepared"]
    assert {graph.options for graph in manifest.graphs} == {CPU}
    assert len({graph.checkpoint_sha256 for graph in manifest.graphs}) == 1


def test_from_the_second_call_on_and_for_many_prompts(runners: tuple[OnnxRunner, OnnxRunner], executed: list[str]) -> None:
    of_set, alone = runners
    for runner in runners:
        runner.set_image(embedding(1))
    for call in range(3):
        found, expected = of_set.run(prompts(2, call)), alone.run(prompts(2, call))
        assert_same(found, expected)
    assert executed[::2] == ["embedding", "terms", "terms"]
    assert set(executed[1::2]) == {"embedding"}
    executed.clear()
    for runner in runners:
        runner.set_image(embedding(2))
    assert_same(of_set.run(prompts(20)), alone.run(prompts(20)))
    assert executed == ["terms"] * 5 + ["embedding"] * 3, "in passes, as ever"


def test_terms_are_of_the_image_that_was_asked_for(runners: tuple[OnnxRunner, OnnxRunner], executed: list[str]) -> None:
    of_set, alone = runners
    numbers = [[runner.add_image(embedding(seed)) for seed in (3, 4)] for runner in runners]
    points, labels = np.random.default_rng(5).uniform(0, 1024, (4, 2, 2)), np.ones((4, 2))
    for mine, other in (*zip(*numbers, strict=True), *reversed(list(zip(*numbers, strict=True)))):
        found = of_set.decode(points, labels, masks="all", image=mine)
        expected = alone.decode(points, labels, masks="all", image=other)
        np.testing.assert_allclose(found.iou_predictions, expected.iou_predictions, atol=1e-5)
    assert executed[::2] == ["terms"] * 4
    # An embedding that comes with the feed counts for this call only, whatever is set.
    of_set.use_image(numbers[0][0])
    for count, kind in ((2, "embedding"), (5, "terms"), (5, "terms")):
        executed.clear()
        feed = {**prompts(count), "image_embeddings": embedding(6)}
        assert_same(of_set.run(feed), alone.run(feed))
        assert executed[0] == kind
    alone.use_image(numbers[1][0])
    assert_same(of_set.run(prompts(5)), alone.run(prompts(5)))


def test_an_embedding_in_the_feed_is_known_by_what_it_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everything in a photo brings it: its terms were made for every eight prompts. And the array may change between."""
    made: list[object] = []
    make = OnnxPrepared._make
    monkeypatch.setattr(OnnxPrepared, "_make", lambda self, image: made.append(image) or make(self, image))
    image = embedding(9)
    with OnnxRunner(folder, threads=1) as of_set, OnnxRunner(folder / "decoder.onnx", threads=1) as alone:
        for number, seen in enumerate((1, 1, 2, 2)):
            if number == 2:
                image[0, 0, 0, 0] += 1
            feed = {**prompts(5, number), "image_embeddings": image if number != 1 else image.copy()}
            assert_same(of_set.run(feed), alone.run(feed))
            assert len(made) == seen


def test_the_second_half_by_name_takes_every_call(folder: Path, executed: list[str]) -> None:
    with OnnxRunner(folder / "decoder_prepared.onnx", threads=1) as prepared:
        prepared.set_image(embedding(7))
        prepared.run(prompts(1))
        prepared.run({**prompts(1), "image_embeddings": embedding(8)})
    assert executed == ["terms", "terms"]


@pytest.mark.parametrize("boxes", [64, pytest.param(300, marks=pytest.mark.slow)])
def test_many_boxes_take_no_more_memory_than_with_one_graph(boxes: int, folder: Path) -> None:
    """The image's terms are 26 MiB; eight prompts at once took 1,070 MB for 300 boxes, where less than 1,000 are promised."""
    results, peak = memory_of(folder, boxes)
    assert peak < {64: 600, 300: 1000}[boxes], results


def test_everything_in_a_photo_writes_the_graphs_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a checkpoint and an empty cache it ran in PyTorch."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRT_SAM_CACHE", str(cache))
    written: list[Path] = []

    def write(checkpoint: Checkpoint, recipe: EngineRecipe, output: Path) -> None:
        assert (checkpoint.source, recipe.graph) == ("standin", CPU)
        with writing(output):  # as the real one, which needs the set for itself
            shutil.copytree(folder, output, dirs_exist_ok=True)  # half a minute of torch
        written.append(output)

    monkeypatch.setattr("trt_sam.commands._decoder.write_decoder_set", write)
    monkeypatch.setattr("trt_sam.commands._decoder._MANY_PROMPTS", 9)
    photo = shutil.copy(ROOT / "samples/scene.png", tmp_path)
    start = ["segment", str(photo), "--checkpoint", "standin", "--everything", "--points-per-side"]
    output = ["--output", str(tmp_path / "m.json"), "--json", str(tmp_path / "report.json")]
    kept = (["embedding"], ["graph", "embedding"])
    for call in range(4):
        if call == 2:
            (written[0] / "prepare.onnx").write_bytes(b"cut")
        assert main([*start, "3", *output]) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["executed"] == "ONNX Runtime (fp32 graph, CPU)"
        assert sorted(report["from_cache"]) == sorted(([], kept[1], kept[0], kept[1])[call])
        assert len(written) == (1, 1, 2, 2)[call], "made again where it is damaged"
    monkeypatch.setattr(ClickCache, "keep_graph", lambda self, checkpoint: None)
    assert main([*start, "2", *output, "--no-cache"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["executed"].startswith("PyTorch"), "few prompts"
    said = capsys.readouterr().err
    assert "writing the decoder's graphs into the cache" in said
    assert "a set in the cache was damaged; it is made again" in said
    monkeypatch.setenv("TRT_SAM_CACHE", str(photo))
    assert main([*start, "3", *output]) == 0
    said = capsys.readouterr().err
    assert f"are not kept, so PyTorch runs it: cannot write {photo}/sets" in said
    assert "name another folder with --cache" in said
    assert "--output" not in said
    assert "kept in" not in said


def test_the_profile_of_two_graphs_is_of_the_second(folder: Path) -> None:
    profile = profile_graph(folder / "decoder_prepared.onnx", 2, threads=1, prepare=folder / "prepare.onnx")
    assert sum(row["share"] for row in profile["by_kind"]) == pytest.approx(1.0)
    one = profile_graph(folder / "decoder.onnx", 2, threads=1)
    matmuls = [next(row["count"] for row in each["by_kind"] if row["kind"] == "MatMul") for each in (profile, one)]
    assert matmuls[0] > matmuls[1]


def test_half_a_decoder_is_of_no_use_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("prepare.onnx", "decoder_prepared.onnx"):
        shutil.copy(folder / name, tmp_path)
        with pytest.raises(
            GraphError, match=r"is a half of a set's decoder .* give the folder of the set, or its decoder\.onnx"
        ):
            OnnxRunner(tmp_path / name)
        assert main(["build", "--onnx", str(tmp_path / name), "--output", str(tmp_path / "engine")]) == 2
        assert "is a half of a set's decoder" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()


def test_damaged_halves_are_refused(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "set"))
    data = bytearray((damaged / "prepare.onnx").read_bytes())
    data[len(data) // 2] ^= 0x40
    (damaged / "prepare.onnx").write_bytes(data)
    with pytest.raises(ManifestError, match="not the graph that the set was written with"):
        OnnxRunner(damaged)


def test_other_outputs_are_exported_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((2, 3),))
    decoder = load_checkpoint("standin").decoder
    options = GraphOptions(precision="fp32", target="cpu", best_mask=True, full_resolution=True, mask_bits=True)
    report = export_prepared_decoder(decoder, tmp_path / "decoder.onnx", options)
    assert report.parity[0].error < 1e-5
    for wrong in (
        GraphOptions(precision="fp16", target="cpu"),
        GraphOptions(precision="fp32"),
        GraphOptions("fp32", "cpu", True),
    ):
        with pytest.raises(ExportError, match="only a decoder in fp32 for the CPU"):
            export_prepared_decoder(decoder, tmp_path / "wrong.onnx", wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.onnx"]


def test_terms_that_are_not_pytorchs_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.graph.prepared.PARITY_TOLERANCE", {"fp32": 1e-9})
    with pytest.raises(ExportError, match="of the graph prepare is not PyTorch's"):
        export_prepare(load_checkpoint("standin").decoder, tmp_path / "prepare.onnx")
    assert not list(tmp_path.iterdir())
