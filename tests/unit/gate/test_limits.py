"""Limits: defaults, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_sam.errors import InputError
from trt_sam.gate.limits import DEFAULTS, limits_for, read_limits


def test_a_coarser_arithmetic_has_wider_limits() -> None:
    fine, coarse = DEFAULTS["fp16"], DEFAULTS["quantized"]
    assert fine.min_mean_iou > coarse.min_mean_iou
    assert fine.min_sqnr_db > coarse.min_sqnr_db
    assert fine.tolerances["low_res_masks"] < coarse.tolerances["low_res_masks"]


def test_a_file_changes_all_and_single_ones(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("min_mean_iou = 0.5\n[quantized]\nmin_iou = 0.25\n[quantized.tolerances]\nmasks = 0.125\n")
    tables = read_limits(path)
    assert tables[""] == {"min_mean_iou": 0.5}
    changed = limits_for("quantized", tables["quantized"])
    assert (changed.min_iou, changed.tolerances["masks"]) == (0.25, 0.125)
    assert changed.tolerances["iou_predictions"] == DEFAULTS["quantized"].tolerances["iou_predictions"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_mean_iou = 1.5", "min_mean_iou is 1.5, must be from 0 to 1"),
        ("min_mean_iou = 'high'", "must be a number"),
        ("min_mean_iuo = 0.5", "no limit 'min_mean_iuo'; limits are"),
        ("[int4]\nmin_iou = 0.5", r"there is no table \[int4\]; tables are"),
        ("tolerances = 3", "tolerances is 3, must be a table"),
        ("min_sqnr_db = nan", "limits.toml: limit min_sqnr_db is nan"),
        ("[fp16.tolerances]\nlogits = 0.5", "the output 'logits'; outputs are"),
        ("fp16 = 3", "fp16 must be a table"),
        ("min_prompts = 0", "min_prompts is 0"),
        ("min_mean_iou = ", "is not TOML"),
    ],
)
def test_what_is_no_limit_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read_limits(path)
