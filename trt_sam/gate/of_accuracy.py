"""Variants of `trt-sam accuracy` held against the limits: its measurement as the figures that a verdict is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from trt_sam.accuracy.measurement import Measurement
from trt_sam.contract import LOW_RES_SIZE
from trt_sam.gate.limits import Limits
from trt_sam.gate.tally import Figures, OutputError
from trt_sam.gate.verdict import Verdict, judge

__all__ = ["judge_variants", "verdict_lines"]


def judge_variants(
    measurement: Measurement, arithmetics: Mapping[str, str], limits: Mapping[str, Limits]
) -> dict[str, Verdict]:
    """A verdict on each variant.

    Tolerances of single outputs take no part, for the measurement keeps powers, not errors; and of all masks the mean of a
    prompt counts, not each.

    Args:
        measurement: of `accuracy.measure`.
        arithmetics: of each variant, one of `limits.ARITHMETICS`.
        limits: by arithmetic.
    """
    verdicts = {}
    for name in measurement.variants:
        own = dataclasses.replace(limits[arithmetics[name]], tolerances={})
        verdicts[name] = judge(_figures(measurement, name), own)
    return verdicts


def verdict_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    """For a terminal."""
    lines = []
    for name, verdict in verdicts.items():
        lines.append(f"{verdict.status.upper()}  {name}")
        lines += [f"  {check.status}: {check.sentence}" for check in verdict.missed]
    return lines


def _figures(measurement: Measurement, name: str) -> Figures:
    columns = measurement.variants[name]
    images = np.asarray(columns["image"], np.int64)
    logits = OutputError(signal=float(columns["signal"].sum()), noise=float(columns["noise"].sum()))
    area = measurement.areas * LOW_RES_SIZE * LOW_RES_SIZE
    names: Sequence[str] = [str(number) for number in dict.fromkeys(images.tolist())]
    return Figures(
        images=images,
        names=tuple(names),
        kinds=tuple(measurement.kinds.tolist()),
        iou=columns["iou"],
        area=area,
        iou_four=columns["all_masks"][:, None],
        area_four=area[:, None],
        flip_cost=columns["flip_cost"],
        flip=columns["flip"],
        unstable=np.zeros(len(images), np.bool_),
        outputs={"low_res_masks": logits},
        worst=(),
    )
