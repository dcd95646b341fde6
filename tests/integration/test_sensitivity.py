"""`trt-sam sensitivity` and `auto` on real graphs of the stand-in."""

from __future__ import annotations

import argparse
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_embedding

from calibrators.trials import EDGE, Trials, trial_feeds
from trt_sam.accuracy.examples import make_examples, scenes
from trt_sam.commands import sensitivity
from trt_sam.errors import CalibrationError, InferenceError, InputError, RecipeError
from trt_sam.model.checkpoint import load_checkpoint


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    sensitivity.add_arguments(parser)
    return sensitivity.run(parser.parse_args([str(each) for each in arguments]))


@pytest.mark.slow
def test_ranking_the_upscaling_of_the_standin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_torch_thread: None
) -> None:
    few = ("--images", 1, "--prompts-per-image", 3, "--calibration-images", 2, "--calibration-prompts", 2)
    report = tmp_path / "report.json"
    arguments = ("--checkpoint", "standin", "--tiers", "B", *few, "--mean-iou", 0, "--p5-iou", 0, "--clear-flips", 1)
    assert run(*arguments, "--json", report, "--report", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "upscaling.second/MatMul" in page
    assert "<svg" in page
    data = json.loads(report.read_text())
    assert {row["group"] for row in data["groups"]} == {"upscale0", "upscale1"}
    costs = [row["cost"] for row in data["groups"]]
    assert costs == sorted(costs, reverse=True)
    for row in data["groups"]:
        assert 0.9 < row["alone"]["mean_iou"] < 1.0
        # Of two groups, leaving one out is the other alone.
        other = next(each for each in data["groups"] if each is not row)
        assert row["left_out"] == other["alone"]
    assert data["keep_fp16"] == []
    assert capsys.readouterr().out.rstrip().endswith("keep_fp16 = []")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--mean-iou", 1.5), InputError, "--mean-iou is 1.5"),
        (("--tiers", "A,D"), RecipeError, "tiers is A,D, must name each of A, B, C"),
        (("--prompts-per-image", 0), InputError, "--prompts-per-image is 0"),
    ],
)
def test_flags_that_cannot_be(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run("--checkpoint", "standin", *arguments)


def test_a_report_that_cannot_be_written_is_seen_first(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("here")
    with pytest.raises(InputError, match="here is a file"):
        run("--checkpoint", "standin", "--json", tmp_path / "here" / "report.json")


def test_trials_of_a_graph_against_itself_and_a_damaged_one(graphs: dict[str, Path], one_torch_thread: None) -> None:
    embed = load_checkpoint("standin").image_encoder().embed
    feeds = [(each.feed, each.image.original_size) for each in make_examples(scenes(embed, 1), 5, prompts_per_call=3)]
    model = onnx.load(graphs["plain"])
    trials = Trials(model, trial_feeds(feeds, prompts=4))
    assert trials.prompts == 4
    same = trials.score(model)
    assert (same.mean_iou, same.p5_iou, same.flips, same.prompts) == (1.0, 1.0, 0, 4)
    assert same.noise == pytest.approx(1e-9)
    # Every mask inside out: the worst that can be.
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    node = next(node for node in damaged.graph.node if "low_res_masks" in node.output)
    node.output[list(node.output).index("low_res_masks")] = "upright"
    damaged.graph.node.append(onnx.helper.make_node("Neg", ["upright"], ["low_res_masks"]))
    inverted = trials.score(damaged)
    assert inverted.mean_iou == 0.0
    # Twice what is within EDGE of 0.
    assert inverted.noise is not None
    assert 0.01 < inverted.noise < 2 * EDGE
    assert trials.runs == 2
    with pytest.raises(CalibrationError, match="no held-out feed"):
        Trials(model, [])
    del damaged.graph.initializer[:]
    with pytest.raises(InferenceError, match="cannot load the graph to try"):
        trials.score(damaged)


def test_judged_embeddings_are_in_memory_one_at_a_time(graphs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def feeds() -> Iterator[tuple[dict[str, np.ndarray], tuple[int, int]]]:
        for seed in range(16):
            prompt = {"point_coords": np.full((1, 2, 2), 500, np.float32), "point_labels": np.array([[1, -1]], np.float32)}
            for _ in range(2):
                yield {"image_embeddings": make_embedding(seed), **prompt}, (768, 1024)

    model = onnx.load(graphs["plain"])
    tracemalloc.start()
    trials = Trials(model, feeds())
    score = trials.score(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (score.mean_iou, score.prompts) == (1.0, 32)
    # Of 64 MiB: one that comes and its neighbour, masks of 1 MiB, and the serialized graph.
    assert peak < 40 << 20
    # Two feeds of an image share its file.
    arrays = {id(feed["image_embeddings"]) for feed in trials._feeds}
    assert len(arrays) == 16
    monkeypatch.setattr("calibrators.trials.tempfile.TemporaryFile", Path("/nowhere").open)
    with pytest.raises(CalibrationError, match=r"cannot keep embeddings in .*set TMPDIR"):
        Trials(model, feeds())
