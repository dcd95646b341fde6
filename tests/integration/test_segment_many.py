"""`trt-sam segment` over a folder and with a file of prompts: lines of JSON that grow photo by photo."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.many_photos import EVERYTHING, SIZES, command, write_many
from trt_sam.cli import main
from trt_sam.formats.lines import LinesFile, read_lines
from trt_sam.formats.records import runs_of

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("many"))


def masks_of(line: dict[str, Any]) -> list[Any]:
    size = (line["image"]["height"], line["image"]["width"])
    return [runs_of(annotation["segmentation"], size).mask() for annotation in line["annotations"]]


def test_crops_are_embedded_and_not_kept(inputs: Path, tmp_path: Path) -> None:
    photo = str(inputs / "photos" / "a.png")
    start = ["segment", photo, "--checkpoint", "standin", "--onnx", str(inputs / "toy.onnx"), *EVERYTHING]
    crops = ["--crop-n-layers", "1", "--crop-nms-thresh", "1", "--crop-overlap-ratio", "0", "--box-nms-thresh", "1"]
    files = {name: tmp_path / f"{name}.json" for name in ("before", "crops", "after")}
    for name, path in files.items():
        assert main([*start, *(crops if name == "crops" else []), "--output", str(path)]) == 0
    assert json.loads(files["crops"].read_text())
    assert files["before"].read_text() == files["after"].read_text(), "the embedding of a crop stands for no photo"


def test_impossible_settings_before_any_photo(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "masks.jsonl"
    assert main(command(inputs, output, "--everything", "--crop-n-layers", "6", "--crop-n-points-downscale-factor", "2")) == 2
    assert "layer 6 has no clicks" in capsys.readouterr().err
    assert main(command(inputs, output, "--everything", "--points-per-side", "0")) == 2
    assert "--points-per-side is 0" in capsys.readouterr().err
    prompts = ["--prompts", str(inputs / "prompts.json")]
    assert main(command(inputs, output, *prompts, "--crop-n-layers", "1")) == 2
    assert "--crop-n-layers goes with --everything" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_broken_file_among_many(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "masks.jsonl"
    assert main(command(inputs, output, *EVERYTHING)) == 1
    said = capsys.readouterr()
    assert "3 photos" in said.out
    assert "1 could not be done" in said.out
    assert "c.png" in said.err
    assert "damaged or truncated" in said.err
    assert "Traceback" not in said.err
    lines = read_lines(output)
    assert {line["image"]["file_name"]: (line["image"]["height"], line["image"]["width"]) for line in lines} == SIZES
    assert all(masks_of(line) for line in lines)


def test_it_goes_on_where_it_was_stopped(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "masks.jsonl"
    main(command(inputs, output, *EVERYTHING))
    whole = output.read_bytes()
    first, second = whole.splitlines(keepends=True)[:2]
    output.write_bytes(first + second[:50])  # as after a power cut
    capsys.readouterr()
    assert main(command(inputs, output, *EVERYTHING)) == 1
    assert "2 photos" in capsys.readouterr().out
    assert output.read_bytes() == whole
    assert main(command(inputs, output, *EVERYTHING)) == 1
    assert "0 photos, 0 masks, 3 were there" in capsys.readouterr().out
    assert output.read_bytes() == whole
    assert main([*command(inputs, output, *EVERYTHING), "--least-iou", "0.5"]) == 2
    said = capsys.readouterr().err
    assert f"{output} is of other settings: --least-iou was 0.0, now 0.5; name another --output" in said
    assert "{" not in said
    assert main(command(inputs, output, "--prompts", str(inputs / "prompts.json"))) == 2
    assert "--everything was given, now not given" in capsys.readouterr().err
    assert output.read_bytes() == whole


def test_prompts_from_a_file(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "masks.jsonl"
    assert main(command(inputs, output, "--prompts", str(inputs / "prompts.json"))) == 1
    said = capsys.readouterr()
    place = f'prompt file {inputs / "prompts.json"}: image "d.jpg", prompt 1'
    assert f"{inputs / 'photos' / 'd.jpg'}: {place}: (600, 50) is outside the image of 90x90; give pixels" in said.err
    assert "--box" not in said.err
    assert "for the prompts of 1 images: gone.jpg; check their names" in said.err
    assert "prompts on 3 photos" in said.err
    assert "2 photos, 4 masks, 1 without prompts left out, 1 could not be done" in said.out
    lines = {line["image"]["file_name"]: line for line in read_lines(output)}
    assert set(lines) == {"a.png", "b.png"}
    assert [len(line["annotations"]) for line in lines.values()] == [3, 1]
    box = lines["a.png"]["annotations"][1]
    assert box["prompt"] == {"points": [], "labels": [], "box": [10.0, 10.0, 60.0, 50.0]}
    # Each is what the command gives for it alone.
    for number, prompt in enumerate((["--point", "10,10"], ["--box", "10,10,60,50"], ["--point", "5,9,0", "--box", "1,1,9,9"])):
        single = [
            word if word != str(inputs / "photos") else str(inputs / "photos" / "a.png")
            for word in command(inputs, tmp_path / "m.png")
        ]
        assert main([*single, *prompt]) == 0
        with Image.open(tmp_path / "m.png") as picture:
            np.testing.assert_array_equal(np.array(picture) > 0, masks_of(lines["a.png"])[number])


def test_boxes_of_coco_over_the_edge(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that reaches over it by rounding is taken, as calibrate takes it; another is named by its number."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.png", "b.png"))]
    boxes = {0: [[10, 20, 150.4, 40]], 1: [[1, 1, 9, 0], [1, 1, 9, 9], [30, 50, 12, 9]]}  # the one without an area is no prompt
    annotations = [{"image_id": number, "bbox": box} for number, rows in boxes.items() for box in rows]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    output = tmp_path / "masks.jsonl"
    assert main(command(inputs, output, "--prompts", str(tmp_path / "coco.json"))) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert 'coco.json: COCO annotation 4 (of "b.png"): (42, 59) is outside the image of 40x60; give pixels' in error
    (line,) = read_lines(output)
    assert line["annotations"][0]["prompt"]["box"] == [10.0, 20.0, 160.4, 60.0]


def test_a_photo_that_nobody_asked_of_is_no_failure(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({"images": {"b.png": [{"points": [[1, 1]], "labels": [1]}]}}))
    output = tmp_path / "masks.jsonl"
    assert main(command(inputs, output, "--prompts", str(tmp_path / "prompts.json"))) == 0
    assert "1 photo, 1 mask, 3 without prompts left out" in capsys.readouterr().out
    assert [line["image"]["file_name"] for line in read_lines(output)] == ["b.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--everything", "--prompts", "p.json"], "give either --everything or --prompts"),
        ([], "give either --everything or --prompts"),
        ([*EVERYTHING, "--point", "5,5"], "--point is for one photo"),
        ([*EVERYTHING, "--overlay", "o.png"], "--overlay is for one photo"),
        ([*EVERYTHING, "--output", "m.json"], "give --output F.jsonl"),
        (["--prompts", "cut.json"], "it is not JSON"),
        (["--prompts", "none.json"], "prompt file not found"),
        (["--prompts", "others.json"], "others.json has no prompts of any photo in "),
        ([*EVERYTHING, "--output", "old.jsonl"], "line 1 is not a JSON object"),
    ],
)
def test_refused_in_one_line(
    more: list[str],
    message: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.json").write_bytes((inputs / "prompts.json").read_bytes()[:60])
    (tmp_path / "old.jsonl").write_text("[1, 2]\n")
    (tmp_path / "others.json").write_text('{"images": {"gone.jpg": [{"points": [[1, 1]], "labels": [1]}]}}')
    assert main([*command(inputs, tmp_path / "masks.jsonl"), *more]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert message in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "old.jsonl", "others.json"]
    assert (tmp_path / "old.jsonl").read_text() == "[1, 2]\n"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit of 3000 bytes a file fails a write in the middle, as a full disk does."""
    code = (
        "from trt_sam.errors import InputError\nfrom trt_sam.formats.lines import LinesFile\n"
        "with LinesFile('m.jsonl') as lines:\n    try:\n        for number in range(10):\n"
        "            lines.append({'number': number, 'text': 'x' * 800})\n"
        "    except InputError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "cannot write m.jsonl any further" in done.stdout, done.stderr
    assert [line["number"] for line in read_lines(tmp_path / "m.jsonl")] == [0, 1, 2]
    with LinesFile(tmp_path / "m.jsonl") as lines:
        lines.append({"number": 3})
    assert (tmp_path / "m.jsonl").read_bytes().count(b"\n") == 4
