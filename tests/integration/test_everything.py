"""Everything in a photograph with MobileSAM's official weights: the records of its own generator, stored and live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.fixtures.real import mobile_sam_generator, photo
from trt_sam.formats.records import runs_of
from trt_sam.graph.export import export_decoder
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.model.checkpoint import Checkpoint, load_checkpoint
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.torch_runner import TorchRunner

pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.timeout(1800)]

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_everything.json").read_text())["runs"]
LIVE_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")

Record = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoint(mobile_sam: Path) -> Checkpoint:
    return load_checkpoint(mobile_sam)


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("everything") / "decoder.onnx"
    with pytest.MonkeyPatch.context() as patch:
        # What these tests do takes less time than the exporter's own comparison on random feeds.
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
        export_decoder(checkpoint.decoder, path, GraphOptions(precision="fp32", target="cpu"))
    return path


def found(runner: Runner, checkpoint: Checkpoint, name: str, **settings: Any) -> list[Record]:
    generator = AutomaticMaskGenerator(runner, **settings, output_mode="coco_rle", image_encoder=checkpoint.image_encoder())
    return generator.generate(photo(name))


def check(ours: Sequence[Record], theirs: Sequence[Record], size: tuple[int, int]) -> None:
    """One to one at IoU .99 for at least 98 %, with the same fields."""
    assert len(theirs) >= 7
    a, b = (
        np.stack([runs_of(record["segmentation"], size).mask().ravel() for record in side]).astype(np.float32)
        for side in (ours, theirs)
    )
    shared = a @ b.T
    iou = shared / (a.sum(1)[:, None] + b.sum(1) - shared)
    rows, columns = linear_sum_assignment(-iou)
    matched = iou[rows, columns] >= 0.99
    print(f"{len(ours)} masks, {len(theirs)} of theirs, {matched.sum()} matched, least IoU {iou[rows, columns].min():.6f}")
    assert matched.sum() >= 0.98 * max(len(ours), len(theirs))
    for row, column in zip(rows[matched], columns[matched], strict=True):
        one, other = ours[row], theirs[column]
        assert one.keys() == other.keys()
        assert one["crop_box"] == other["crop_box"]
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)
        assert one["stability_score"] == pytest.approx(other["stability_score"], abs=1e-2)
        np.testing.assert_allclose(one["point_coords"], other["point_coords"])
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=3)
        assert one["area"] == pytest.approx(other["area"], rel=0.01)


RUNS = [pytest.param(run, id=run["photo"], marks=() if number == 0 else pytest.mark.slow) for number, run in enumerate(GOLDEN)]


@pytest.mark.parametrize("run", RUNS)
def test_stored_records_of_mobile_sam(run: dict[str, Any], checkpoint: Checkpoint) -> None:
    with TorchRunner(checkpoint.decoder) as runner:
        ours = found(runner, checkpoint, run["photo"], **run["settings"])
    check(ours, run["records"], photo(run["photo"]).shape[:2])


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_stored_records_in_onnx_runtime(run: dict[str, Any], checkpoint: Checkpoint, graph: Path) -> None:
    with OnnxRunner(graph, threads=1) as runner:
        ours = found(runner, checkpoint, run["photo"], **run["settings"])
    check(ours, run["records"], photo(run["photo"]).shape[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVE_PHOTOS)
def test_live_records_of_mobile_sam(name: str, checkpoint: Checkpoint, graph: Path) -> None:
    """All defaults, 32 clicks a side; the oracle takes minutes."""
    with OnnxRunner(graph) as runner:
        ours = found(runner, checkpoint, name)
    check(ours, mobile_sam_generator(points_per_batch=16, output_mode="coco_rle").generate(photo(name)), photo(name).shape[:2])
