"""The table of accuracy_mobile_sam.py: JSON and Markdown, with paired differences from the default and the photographs."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from mobile_sam_photos import PHOTOS

Rows = Mapping[str, np.ndarray]
_COLUMN = "column "


def write_report(
    rows: Mapping[str, Rows],
    facts: Mapping[str, Mapping[str, Any]],
    uses: Mapping[str, Sequence[str]],
    args: argparse.Namespace,
) -> None:
    """Write `args.output` and the Markdown beside it.

    Args:
        rows: by variant, `kinds`, `areas` and the columns of `measure`, each name behind "column ".
        facts: by variant, what its calibration says.
        uses: photographs by use.
        args: of the script.
    """
    from trt_sam._files import write_atomically
    from trt_sam._json import strict
    from trt_sam.accuracy.measurement import Measurement
    from trt_sam.accuracy.report import make_report, markdown
    from trt_sam.feeds.realistic import shares

    columns = {name: _columns(each) for name, each in rows.items()}
    first = next(iter(rows.values()))
    unknown = np.full(len(first["kinds"]), np.nan)
    truth = {"truth_selected": unknown, "truth_oracle": unknown}
    measurement = Measurement(first["kinds"], first["areas"], truth, columns, dict.fromkeys(rows, ()))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "torch", "onnx", "numpy"))
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in shares(first["kinds"].tolist()).items())
    calibrated = next((each["feeds"] for each in facts.values() if "feeds" in each), {})
    conditions = {
        "checkpoint": f"{args.checkpoint}; its decoder is SAM ViT-H's weight for weight",
        "judged on": f"{len(uses['judging'])} photographs that neither calibration nor tuning saw, {len(unknown)} prompts "
        f"({kinds}), seed {args.seed}, split {args.split}",
        **({"note": args.note} if args.note else {}),
        "calibrated on": f"{calibrated.get('images', 0)} other photographs, {calibrated.get('prompts', 0)} prompts; auto holds "
        "a quarter of them back to judge by",
        "reference": "PyTorch, FP32, on the CPU",
        "executed by": "ONNX Runtime on the CPU: graphs as delivered, Q/DQ pairs in floating point, their float16 parts "
        "computed in float32; FP16 in the emulation that rounds every float16 tensor",
        "versions": f"{versions}, {platform.machine()}",
    }
    report = make_report(
        measurement,
        title="Accuracy of MobileSAM's decoder on real photographs",
        conditions=conditions,
        descriptions={name: str(each.get("description", "")) for name, each in facts.items()},
        facts=facts,
    )
    paired = _paired(columns)
    data = {**report.to_dict(), "paired": paired, "photographs": _photographs(uses)}
    write_atomically(args.output, json.dumps(strict(data), indent=1) + "\n")
    text = "\n".join([markdown(report), *_differences(paired), *_described(facts), *_licences(uses)])
    write_atomically(args.output.with_suffix(".md"), text + "\n")


def _columns(rows: Rows) -> dict[str, np.ndarray]:
    return {name.removeprefix(_COLUMN): array for name, array in rows.items() if name.startswith(_COLUMN)}


def _paired(columns: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The default against every other INT8 variant of the same tiers: difference of mean IoU, and its interval."""
    from trt_sam.accuracy.bootstrap import paired_interval

    found = []
    for auto in (name for name in columns if "-auto-" in name):
        tiers = auto.rpartition("-")[2]
        for other in (name for name in columns if name != auto and name.startswith("int8-") and name.endswith(f"-{tiers}")):
            first, second = columns[auto]["iou"], columns[other]["iou"]
            interval = paired_interval(first, second, columns[auto]["image"])
            found.append({"first": auto, "second": other, "mean": float((first - second).mean()), "interval": interval})
    return found


def _differences(paired: Sequence[Mapping[str, Any]]) -> list[str]:
    if not paired:
        return []
    lines = ["## The default against single calibrators", "", "Mean IoU of the first less that of the second, with its 95 %"]
    lines += [
        "interval (paired bootstrap over images).",
        "",
        "| first | second | difference | interval |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in paired:
        low, high = row["interval"]
        lines.append(f"| {row['first']} | {row['second']} | {row['mean']:+.5f} | {low:+.5f} to {high:+.5f} |")
    return [*lines, ""]


def _described(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [f"- {name}: {each['description']}" for name, each in facts.items() if each.get("description")]
    return ["## Variants", "", *rows, ""] if rows else []


def _photographs(uses: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    use = {name: what for what, names in uses.items() for name in names}
    return [{"name": p.name, "use": use[p.name], "package": p.package, "path": p.path, "licence": p.licence} for p in PHOTOS]


def _licences(uses: Mapping[str, Sequence[str]]) -> list[str]:
    lines = ["## Photographs", "", "| photograph | use | package | licence |", "| --- | --- | --- | --- |"]
    return [*lines, *(f"| {p['name']} | {p['use']} | {p['package']} | {p['licence']} |" for p in _photographs(uses))]
