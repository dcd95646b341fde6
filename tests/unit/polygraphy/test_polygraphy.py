"""The scripts for Polygraphy's command line, and golden data in its files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.made_answers import answer, example, outputs
from trt_sam.errors import InputError
from trt_sam.gate.by_golden import about_golden
from trt_sam.gate.golden import Golden, save_golden
from trt_sam.polygraphy.compare_func import compare_outputs
from trt_sam.polygraphy.data_loader import load_data
from trt_sam.polygraphy.exchange import read_polygraphy, write_polygraphy


@pytest.fixture
def golden() -> Golden:
    pairs = [(example(3, seed=0), answer(3)), (example(2, seed=1, size=(300, 200)), answer(2, seed=1))]
    examples, answers = zip(*pairs, strict=True)
    return Golden("made up", "ab" * 32, examples, answers, {})


def test_feeds_come_from_golden_data(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_golden(tmp_path / "golden.npz", golden)
    monkeypatch.setenv("TRT_SAM_GOLDEN", str(tmp_path / "golden.npz"))
    monkeypatch.setenv("TRT_SAM_PROMPTS", "4")
    monkeypatch.delenv("TRT_SAM_GRAPH", raising=False)
    feeds = list(load_data())
    assert [len(feed["point_labels"]) for feed in feeds] == [3, 1]
    assert set(feeds[0]) == {"image_embeddings", "point_coords", "point_labels"}
    assert np.array_equal(feeds[1]["image_embeddings"], golden.examples[1].feed["image_embeddings"])


def test_without_data_there_are_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRT_SAM_GOLDEN", "TRT_SAM_EMBEDDINGS", "TRT_SAM_GRAPH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="set TRT_SAM_GOLDEN"):
        load_data()


def test_masks_decide() -> None:
    first, second = OrderedDict(outputs()), OrderedDict(outputs())
    assert compare_outputs(first, second) == {"low_res_masks": True, "iou_predictions": True}
    second["low_res_masks"] = second["low_res_masks"] - 3.0
    assert compare_outputs(first, second) == {"low_res_masks": False, "iou_predictions": True}
    second["iou_predictions"] = np.full_like(second["iou_predictions"], np.nan)
    assert compare_outputs(first, second)["iou_predictions"] is False


def test_one_pixel_of_nan_on_either_side_and_what_one_side_lacks() -> None:
    """What `--load-outputs` brings is the second side: a candidate's own NaN is in the first."""
    good = OrderedDict(outputs())
    good["mask_bits"] = np.packbits(good["low_res_masks"] > 0, axis=-1)
    bad = OrderedDict(good, low_res_masks=good["low_res_masks"].copy())
    bad["low_res_masks"][1, 2, 10, 20] = np.nan
    assert compare_outputs(good, good) == {"low_res_masks": True, "iou_predictions": True, "mask_bits": True}
    for pair in ((good, bad), (bad, good)):
        assert compare_outputs(*pair) == {"low_res_masks": False, "iou_predictions": True, "mask_bits": True}
    inverted = OrderedDict(good, mask_bits=~good["mask_bits"])
    assert compare_outputs(inverted, good)["mask_bits"] is False
    without = OrderedDict((name, good[name]) for name in ("low_res_masks", "mask_bits"))
    for pair in ((good, without), (without, good)):
        assert compare_outputs(*pair)["iou_predictions"] is False
    one = OrderedDict(good, low_res_masks=good["low_res_masks"][:, :1])
    assert compare_outputs(one, good)["low_res_masks"] is False


def test_golden_data_go_to_polygraphy_and_back(golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_polygraphy(golden, tmp_path / "inputs.json", tmp_path / "outputs.json")
    back = read_polygraphy(tmp_path / "inputs.json", tmp_path / "outputs.json")
    assert capsys.readouterr() == ("", "")
    assert back.checkpoint_sha256 == ""
    assert about_golden(back)[1] == "run and saved by Polygraphy"
    for ours, theirs in zip(golden.answers, back.answers, strict=True):
        assert np.array_equal(ours.logits, theirs.logits)
        assert np.array_equal(ours.scores, theirs.scores)
    for mine, other in zip(golden.examples, back.examples, strict=True):
        assert np.array_equal(mine.feed["point_coords"], other.feed["point_coords"])
    (tmp_path / "cut.json").write_bytes((tmp_path / "outputs.json").read_bytes()[:1000])
    with pytest.raises(InputError, match="are not what polygraphy run"):
        read_polygraphy(tmp_path / "inputs.json", tmp_path / "cut.json")
    assert capsys.readouterr() == ("", "")
