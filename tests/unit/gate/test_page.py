"""The report page: verdict first, self-contained, no sideways scrolling on a phone (in headless Chromium, where it is)."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.made_answers import answer, example, outputs
from trt_sam.gate.answers import answer_of
from trt_sam.gate.comparison import Candidate, Comparison, Floor
from trt_sam.gate.layers import LayerRow
from trt_sam.gate.limits import limits_for
from trt_sam.gate.report.page import comparison_page
from trt_sam.gate.report.sensitivity_page import sensitivity_page
from trt_sam.gate.report.text import junit, markdown, to_dict
from trt_sam.gate.search import Blame
from trt_sam.gate.tally import Figures, Tally
from trt_sam.gate.verdict import judge

ASTRONAUT = Path(__file__).parents[3] / "samples" / "astronaut.jpg"


def figures(shift: float) -> Figures:
    picture = np.asarray(Image.open(ASTRONAUT).convert("RGB").resize((256, 256)))
    tally = Tally(keep_worst=2)
    for seed in range(6):
        made = example(seed=seed)
        seen = outputs(seed=seed)
        seen["low_res_masks"] -= np.float32(shift)
        made = dataclasses.replace(made, image=dataclasses.replace(made.image, picture=picture))
        tally.add(made, answer(seed=seed), answer_of(seen))
    return tally.figures()


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    rows = tuple(
        LayerRow(
            f"transformer/a_long_name_of_a_node_{i}/MatMul", "MatMul", "transformer", "", f"t{i}", 90.0 - i, 0.0, 0.0, i < 3
        )
        for i in range(40)
    )
    blame = Blame(rows[20].node, "MatMul", "transformer", "block0.image", rows[19].node, "SQNR of the logits, dB 20", 5)
    limits = limits_for("fp16", {"min_prompts": 1})
    made = []
    for name, shift in (("engines/good/decoder.onnx", 0.0), ("engines/a/very/long/path/to/another/decoder.onnx", 3.0)):
        seen = figures(shift)
        verdict = judge(seen, limits)
        bad = dataclasses.replace
        one = Candidate(name, "ONNX Runtime on the CPU", "fp16", "fp16", limits, seen, verdict, checkpoint_sha256="ab" * 32)
        made.append(one if verdict.passed else bad(one, layers=rows, blame=blame))
    floors = (Floor("the reference in FP16", figures(0.01)),)
    return Comparison("mobile_sam", "PyTorch on the CPU", "ab" * 32, "6 photos", 24, tuple(made), floors)


def test_the_page_begins_with_the_verdict_and_needs_nothing_else(comparison: Comparison) -> None:
    page = comparison_page(comparison, {"numpy": "2"})
    body = page[page.index("<body>") :]
    assert body.index("Not passed") < body.index('class="card fail"') < body.index('class="card pass"') < body.index("<table")
    assert "first node to blame: transformer/a_long_name_of_a_node_20/MatMul" in body
    assert "3 of 40 tensors of engines/a/very/long/path/to/another/decoder.onnx are shifted and scaled by calibration" in body
    assert body.count("data:image/jpeg;base64,") == 2 * 2 * 3
    assert "(100, 100) label 1 in the 1024 frame" in body
    outside = [u for u in re.findall(r'(?:src|href)="([^"]*)"', body) if not u.startswith(("data:", "#"))]
    assert outside == []
    HTMLParser().feed(page)


def test_the_other_forms_say_the_same(comparison: Comparison) -> None:
    assert "**fail**: `engines/a/very/long/path/to/another/decoder.onnx`" in markdown(comparison)
    assert 'failures="0"' in junit(comparison)
    data = to_dict(comparison)
    assert [each["passed"] for each in data["candidates"]] == [True, False]
    assert data["candidates"][1]["blame"]["group"] == "block0.image"


SENSITIVITY = {
    "checkpoint": "a/very/long/path/to/a/checkpoint_of_somebody.pth",
    "precision": "int8",
    "calibrator": "max",
    "judged_on": "8 photos",
    "goal": {"mean_iou": 0.99, "p5_iou": 0.97, "clear_flips": 0.01},
    "goal_reached": False,
    "keep_fp16": ["block0.image"],
    "all_groups": {"mean_iou": 0.98, "p5_iou": 0.9, "prompts": 64},
    "groups": [
        {
            "group": f"block{i}.image",
            "tier": "A",
            "cost": 0.01 / (i + 1),
            "alone": {"mean_iou": 0.99, "p5_iou": 0.95},
            "left_out": None,
            "nodes": [f"transformer.image_layers.{i}.product/MatMul"] * 2,
        }
        for i in range(3)
    ],
}


@pytest.mark.parametrize("width", [390, 910, 1280])
@pytest.mark.parametrize("kind", ["comparison", "sensitivity"])
def test_nothing_scrolls_sideways(comparison: Comparison, kind: str, width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    page = comparison_page(comparison, {"numpy": "2"}) if kind == "comparison" else sensitivity_page(SENSITIVITY)
    # Headless Chromium has no narrower window than 500 pixels: the page is looked at in a frame of the width.
    (tmp_path / "page.html").write_text(page)
    script = (
        "const f = document.querySelector('iframe'); f.onload = () => {"
        " const d = f.contentDocument.documentElement;"
        " document.title = d.scrollWidth + ' of ' + d.clientWidth; };"
    )
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>{script}</script>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=200)
    seen = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert seen is not None, done.stderr[-500:]
    assert int(seen[2]) == width
    assert int(seen[1]) <= width
