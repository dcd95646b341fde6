"""What a calibration reports of single tensors: far values that leave the others too few steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from calibrators.calibration import MARGIN, Calibration, _Prepared
from calibrators.histogram import Histogram, histogram_of
from calibrators.report import CalibrationReport
from trt_sam.commands._calibration import warn_of_coarse
from trt_sam.quantize.share import Product
from trt_sam.recipe import GraphOptions


def reported(histogram: Histogram, calibrator: str, precision: str) -> CalibrationReport:
    """The report of a calibration of one tensor with this histogram."""
    calibration = Calibration.__new__(Calibration)
    calibration._precision = precision
    calibration.alpha = None
    product = Product("product", "A", "block0.image", "x", "w", None, 1)
    calibration._prepared = _Prepared({}, onnx.ModelProto(), (product,), {}, {"x": histogram.amax})
    calibration._histograms = {None: {"x": histogram}}
    left_out: dict[str, Any] = dict.fromkeys(CalibrationReport.__dataclass_fields__)
    given = {"options": GraphOptions(precision=precision), "tensors": calibration.rows({"x": calibrator})}
    return CalibrationReport(**{**left_out, **given})


def with_outlier(value: float) -> Histogram:
    bulk = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    return histogram_of([bulk, np.array([value], np.float32)])


@pytest.mark.parametrize("calibrator", ["entropy", "percentile", "max"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_one_value_that_takes_all_bins_is_told(calibrator: str, precision: str, caplog: pytest.LogCaptureFixture) -> None:
    histogram = with_outlier(1e5)
    assert histogram.counts[0] == histogram.total - 1
    report = reported(histogram, calibrator, precision)
    if calibrator == "percentile":
        # Its range is the first bin's edge, and the bin hides what lies below.
        assert report.tensors[0].bulk == histogram.width
        assert report.tensors[0].amax == MARGIN * histogram.width
    warn_of_coarse(report)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("x: its largest value is 1e+05, but 99.99 % are within ")
    assert "put block0.image into keep_fp16" in record.getMessage()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("calibrator", ["entropy", "percentile", "mse", "max"])
@pytest.mark.parametrize("value", [4.0, 20.0])
def test_ordinary_outliers_are_no_warning(value: float, calibrator: str, precision: str) -> None:
    assert reported(with_outlier(value), calibrator, precision).coarse == ()
