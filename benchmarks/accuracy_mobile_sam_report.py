"""The tables of accuracy_mobile_sam.py: JSON and Markdown, with paired differences and the photographs."""

from __future__ import annotations

import argparse
import dataclasses
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

    sizes = sorted({len(each["kinds"]) for each in rows.values()}, reverse=True)
    tables = {size: _cut(rows, size) for size in sizes}
    first = next(iter(tables[sizes[0]].values()))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "torch", "onnx", "numpy"))
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in shares(first["kinds"].tolist()).items())
    calibrated = next((each["feeds"] for each in facts.values() if "feeds" in each), {})
    conditions = {
        "checkpoint": f"{args.checkpoint}; its decoder is SAM ViT-H's weight for weight",
        "judged on": f"{len(uses['judging'])} photographs that neither calibration nor tuning saw, {sizes[0]} prompts "
        f"({kinds}); where fewer, the first of each photograph; seed {args.seed}, split {args.split}",
        **({"note": args.note} if args.note else {}),
        "calibrated on": f"{calibrated.get('images', 0)} other photographs, {calibrated.get('prompts', 0)} prompts; "
        "auto first holds a quarter of them back to judge by, and then measures its ranges on all",
        "reference": "PyTorch, FP32, on the CPU",
        "executed by": "ONNX Runtime on the CPU: graphs as delivered, Q/DQ pairs in floating point, their float16 parts "
        "computed in float32; FP16 in the emulation that rounds every float16 tensor",
        "versions": f"{versions}, {platform.machine()}",
    }
    reports = []
    for size, held in tables.items():
        some = next(iter(held.values()))
        unknown = np.full(size, np.nan)
        measurement = Measurement(
            some["kinds"],
            some["areas"],
            {"truth_selected": unknown, "truth_oracle": unknown},
            {name: _columns(each) for name, each in held.items()},
            dict.fromkeys(held, ()),
        )
        fewer = f": {size} prompts" if len(sizes) > 1 else ""
        report = make_report(
            measurement,
            title=f"Accuracy of MobileSAM's decoder on real photographs{fewer}",
            conditions=conditions
            if size == sizes[0]
            else {"prompts": f"the first {size // len(uses['judging'])} of each photograph"},
            descriptions={name: str(facts[name].get("description", "")) for name in held},
            facts={name: facts[name] for name in held},
        )
        # The method is told once, at the end.
        reports.append(report if size == sizes[-1] else dataclasses.replace(report, method=()))
    paired = _paired({name: _columns(each) for name, each in rows.items()})
    parts = {str(size): report.to_dict() for size, report in zip(sizes[1:], reports[1:], strict=True)}
    data = {**reports[0].to_dict(), "fewer_prompts": parts, "paired": paired, "photographs": _photographs(uses)}
    write_atomically(args.output, json.dumps(strict(data), indent=1) + "\n")
    pages = [markdown(report) for report in reports]
    pages = [page.partition("## Method")[0] if page is not pages[-1] else page for page in pages]
    pages = [pages[0], *(page.replace("\n# ", "\n## ").replace("# Acc", "## Acc", 1) for page in pages[1:])]
    text = "\n".join([*pages, *_differences(paired), *_described(facts), *_licences(uses)])
    write_atomically(args.output.with_suffix(".md"), text + "\n")


def _cut(rows: Mapping[str, Rows], size: int) -> dict[str, Rows]:
    """The variants that were judged by at least `size` prompts, cut to the first of each photograph."""
    found = {}
    for name, each in rows.items():
        images = each[f"{_COLUMN}image"]
        if len(images) >= size:
            per_image = size // len(np.unique(images))
            place = np.concatenate([np.arange(count) for count in np.unique(images, return_counts=True)[1]])
            found[name] = {key: array[place < per_image] for key, array in each.items()}
    return found


def _columns(rows: Rows) -> dict[str, np.ndarray]:
    return {name.removeprefix(_COLUMN): array for name, array in rows.items() if name.startswith(_COLUMN)}


def _paired(columns: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Ours against every other variant of the same tiers, on the prompts of both: difference of mean IoU, and its interval."""
    from trt_sam.accuracy.bootstrap import paired_interval

    found = []
    for first in (name for name in columns if name.startswith("int8-") and name.split("-")[1] in ("auto", "max", "entropy")):
        tiers = first.rpartition("-")[2]
        rivals = [name for name in columns if name.rpartition("-")[2] == tiers and not name.startswith("fp8-")]
        if "-auto-" not in first:
            rivals = [name for name in rivals if name.startswith("modelopt-")]
        for second in (name for name in rivals if name != first):
            size = min(len(columns[name]["iou"]) for name in (first, second))
            held = _cut({n: {f"{_COLUMN}{k}": v for k, v in columns[n].items()} for n in (first, second)}, size)
            one, two = (_columns(held[name]) for name in (first, second))
            found.append(
                {
                    "first": first,
                    "second": second,
                    "prompts": size,
                    "mean": float((one["iou"] - two["iou"]).mean()),
                    "interval": paired_interval(one["iou"], two["iou"], one["image"]),
                    "p5": float(np.percentile(one["iou"], 5) - np.percentile(two["iou"], 5)),
                }
            )
    return found


def _differences(paired: Sequence[Mapping[str, Any]]) -> list[str]:
    if not paired:
        return []
    lines = [
        *("## Ours against others on the same products", ""),
        "Mean IoU of the first less that of the second, with its 95 % interval (paired bootstrap over images), and the same of",
        "the 5th percentiles.",
        "",
        "| first | second | prompts | difference | interval | of the 5th percentiles |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in paired:
        low, high = row["interval"]
        lines.append(
            f"| {row['first']} | {row['second']} | {row['prompts']} | {row['mean']:+.5f} | {low:+.5f} to {high:+.5f} | "
            f"{row['p5']:+.4f} |"
        )
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
