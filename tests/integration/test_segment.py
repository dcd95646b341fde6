"""`trt-sam segment`: masks and overlays on disk, and every bad input as one line with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import CHECKPOINT_SHA256, make_decoder, make_embedding
from PIL import Image

from trt_sam.cli import main
from trt_sam.imaging.embeddings import Embedding, save_embedding
from trt_sam.imaging.overlay import draw_overlay
from trt_sam.runtime.predictor import Predictor
from trt_sam.runtime.torch_runner import TorchRunner

ROOT = Path(__file__).parents[2]
SIZE = (120, 160)
"""(height, width) of the test image."""

pytestmark = pytest.mark.usefixtures("one_torch_thread", "empty_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and its embedding, and files that are not what they should be."""
    folder = tmp_path_factory.mktemp("inputs")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(folder / "photo.png")
    save_embedding(folder / "photo.npz", Embedding(make_embedding(), SIZE, "photo.png"))
    save_embedding(folder / "other.npz", Embedding(make_embedding(), (120, 161), "other.png"))
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:3000])
    (folder / "cut.npz").write_bytes((folder / "photo.npz").read_bytes()[:3000])
    return folder


def ready(inputs: Path, graphs: dict[str, Path]) -> list[str]:
    """The flags that need neither a checkpoint nor torch."""
    return [str(inputs / "photo.png"), "--embedding", str(inputs / "photo.npz"), "--onnx", str(graphs["plain"])]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_mask_overlay_and_report(
    inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("mask.png", "overlay.png", "report.json")]
    prompt = ["--point", "40,30", "--point", "100.5,90,0", "--box", "10,10,150,110"]
    outputs = ["--output", names[0], "--overlay", names[1], "--json", names[2]]
    assert main(["segment", *ready(inputs, graphs), *prompt, *outputs]) == 0
    captured = capsys.readouterr()
    assert "ONNX Runtime (fp32 graph, CPU)" in captured.out
    assert captured.err == ""
    assert files(tmp_path) == ["mask.png", "overlay.png", "report.json"]

    predictor = Predictor(TorchRunner(make_decoder()))
    predictor.set_image_embedding(make_embedding(), SIZE)
    logits, iou, _ = predictor.predict(
        np.array([[40, 30], [100.5, 90]]), np.array([1, 0]), np.array([10, 10, 150, 110]), return_logits=True
    )
    best = int(iou.argmax())
    with Image.open(names[0]) as mask:
        assert mask.mode == "L"
        pixels = np.asarray(mask)
    assert set(np.unique(pixels)) <= {0, 255}
    sure = np.abs(logits[best]) > 1e-3 * np.abs(logits).max()
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(pixels[sure] > 0, logits[best][sure] > 0)

    with Image.open(inputs / "photo.png") as photo, Image.open(names[1]) as overlay:
        expected = draw_overlay(np.asarray(photo), pixels > 0, [(40, 30, 1), (100.5, 90, 0)], (10, 10, 150, 110))
        np.testing.assert_array_equal(np.asarray(overlay), expected)
    report = json.loads(Path(names[2]).read_text())
    assert report["mask"] == best
    assert report["original_size"] == list(SIZE)
    assert report["points"] == [[40, 30, 1], [100.5, 90, 0]]
    assert report["area"] == int((pixels > 0).sum())
    np.testing.assert_allclose(report["iou_predictions"], iou, atol=1e-3)


def test_json_to_stdout_is_all_that_is_printed(
    inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "mask.png"), "--json"]
    assert main(["segment", *ready(inputs, graphs), "--point", "1,1", *output]) == 0
    assert json.loads(capsys.readouterr().out)["executed"].startswith("ONNX Runtime")


def test_the_stand_in_from_photo_to_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main job on the sample: image encoder, PyTorch decoder; the mask is the polygon that was clicked."""
    arguments = ["segment", str(ROOT / "samples/scene.png"), "--checkpoint", "standin", "--box", "565,163,980,583"]
    outputs = ["--output", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "overlay.jpg")]
    assert main([*arguments, *outputs, "--no-cache"]) == 0
    assert "decoder in PyTorch (float32, CPU)" in capsys.readouterr().out
    with Image.open(tmp_path / "mask.png") as mask, Image.open(tmp_path / "overlay.jpg") as overlay:
        assert mask.size == overlay.size == (1024, 768)
        pixels = np.asarray(mask) > 0
    # The heptagon fills 12 % of the picture and most of its box.
    inside = np.zeros_like(pixels)
    inside[163:583, 565:980] = True
    assert (pixels & inside).sum() / pixels.sum() > 0.9
    assert (pixels & inside).sum() / inside.sum() > 0.5


BAD = {
    "no prompt": ([], "no prompt: give --point X,Y or --box X0,Y0,X1,Y1"),
    "right of the image": (["--point", "160,50"], "--point 160,50 is outside the image of 160x120: 0 <= X < 160, 0 <= Y < 120"),
    "above the image": (["--point=5,-1"], "--point 5,-1 is outside the image"),
    "label": (["--point", "5,5,2"], "the label is '2', must be 1 (on the object) or 0 (off it)"),
    "NaN point": (["--point", "nan,5"], "nan is not finite"),
    "infinite box": (["--box", "0,0,inf,5"], "inf is not finite"),
    "words": (["--point", "a,b"], "'a' is not a number"),
    "one number": (["--point", "5"], "must be X,Y or X,Y,LABEL"),
    "three numbers": (["--box", "5,6,7"], "must be X0,Y0,X1,Y1"),
    "turned box": (["--box", "50,5,40,60"], "is empty: X1 must be above X0"),
    "flat box": (["--box", "5,5,40,5"], "is empty"),
    "box that begins outside": (["--box", "-1,0,40,50"], "--box -1,0,40,50 is outside the image of 160x120: X from 0 to 160"),
    "left of the image": (["--point", "-2.5,7"], "--point -2.5,7 is outside the image"),
    "large box": (["--box", "5,5,161,50"], "--box 5,5,161,50 is outside the image of 160x120"),
}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *, before: str = "") -> str:
    """Run, expect exit code 2 and one line on stderr after the progress line `before`, and return the one."""
    assert main(["segment", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said, line = captured.err.splitlines(keepends=True) if before else ("", captured.err)
    assert re.sub(r"^\[ *\d+\.\d s\] ", "", said) == before
    assert line.startswith("trt-sam: error: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("kind", BAD)
def test_bad_prompts(
    kind: str, inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[kind]
    assert message in refused(capsys, [*ready(inputs, graphs), *arguments, "--output", str(tmp_path / "mask.png")])
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "image not found"),
        ("empty.png", "is empty"),
        ("text.png", "is not an image"),
        ("cut.png", "damaged or truncated"),
        ("", "several photos or prompts: give either --everything or --prompts"),
    ],
)
def test_bad_images(
    name: str, message: str, inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(inputs / name), *ready(inputs, graphs)[1:], "--point", "5,5", "--output", str(tmp_path / "mask.png")]
    assert message in refused(capsys, arguments)
    assert files(tmp_path) == []


def test_bad_embeddings_graphs_and_checkpoints(
    inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, graph = str(inputs / "photo.png"), str(graphs["plain"])
    rest = ["--point", "5,5", "--output", str(tmp_path / "mask.png")]
    for embedding, message in (
        ("missing.npz", "not found"),
        ("cut.npz", "cannot be read as .npz"),
        ("photo.png", "must be .npz"),
        ("other.npz", "is the embedding of an image of 161x120, this one is 160x120"),
    ):
        assert message in refused(capsys, [image, "--embedding", str(inputs / embedding), "--onnx", graph, *rest])
    foreign = str(tmp_path.parent / "foreign.npz")
    save_embedding(foreign, Embedding(make_embedding(), SIZE, "photo.png", "12" * 32, "34" * 32))
    message = f"was made by another image encoder than the decoder's (checkpoint {'34' * 6}, not {CHECKPOINT_SHA256[:12]})"
    assert message in refused(capsys, [image, "--embedding", foreign, "--onnx", graph, *rest])
    photo = ["--embedding", str(inputs / "photo.npz")]
    for onnx_file, message in (
        (inputs / "missing.onnx", "graph not found"),
        (inputs / "text.png", "is not an ONNX graph"),
        (graphs["meta"], "another exporter, such as Meta's"),
        (graphs["best"], "export without --best-mask"),
    ):
        assert message in refused(capsys, [image, *photo, "--onnx", str(onnx_file), *rest])
    for flags, message in (
        ([], "no checkpoint"),
        (["--onnx", graph], "no checkpoint"),
        (photo, "no checkpoint"),
        (["--checkpoint", str(inputs / "none.pth")], "checkpoint not found"),
    ):
        assert message in refused(capsys, [image, *flags, *rest])
    message = "was exported from another checkpoint than standin"
    assert message in refused(capsys, [image, "--checkpoint", "standin", "--onnx", graph, *rest], before="loading standin\n")
    assert files(tmp_path) == []


def test_an_embedding_of_a_photo_of_another_name_is_told(
    inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "copy.png").write_bytes((inputs / "photo.png").read_bytes())
    arguments = [*ready(inputs, graphs)[1:], "--point", "5,5", "--output", str(tmp_path / "mask.png")]
    save_embedding(tmp_path / "e.npz", Embedding(make_embedding(), SIZE, "photo.png", "12" * 32, CHECKPOINT_SHA256))
    arguments[1] = str(tmp_path / "e.npz")
    assert main(["segment", str(inputs / "photo.png"), *arguments]) == 0
    assert capsys.readouterr().err == ""
    assert main(["segment", str(tmp_path / "copy.png"), *arguments]) == 0
    assert "e.npz was made of photo.png, not of copy.png" in capsys.readouterr().err


def test_impossible_outputs(inputs: Path, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = [*ready(inputs, graphs), "--point", "5,5"]
    mask = str(tmp_path / "mask.png")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    before = files(tmp_path)
    for flags, message in (
        (["--output", str(tmp_path / "mask.jpg")], "must end in .png"),
        (["--output", mask, "--overlay", str(tmp_path / "overlay.gif")], "must end in .png or .jpg"),
        (["--output", mask, "--overlay", mask], "are both"),
        (["--output", str(inputs / "photo.png")], "--output and IMAGE are both"),
        (["--output", str(tmp_path / "folder.png")], "it is a folder"),
        (["--output", str(tmp_path / "file" / "mask.png")], "cannot write"),
        (["--output", "/proc/mask.png"], "cannot write /proc/mask.png"),
        # The mask could be written, but a result without its overlay or report is half of one.
        (["--output", mask, "--overlay", "/proc/overlay.png"], "cannot write /proc/overlay.png"),
        (["--output", mask, "--json", str(tmp_path / "file" / "report.json")], "cannot write"),
    ):
        assert message in refused(capsys, [*start, *flags])
        assert files(tmp_path) == before
    with Image.open(inputs / "photo.png") as photo:
        assert photo.size == SIZE[::-1]


def test_flags_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["segment"], ["segment", "a.png", "--output", "m.png", "--colour", "red"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def command(arguments: list[str], patch: str = "") -> list[str]:
    """`trt-sam segment` in a process of its own, after the code `patch`."""
    code = f"import sys; from trt_sam.cli import main; import trt_sam.commands.segment as segment\n{patch}\nsys.exit(main())"
    return [sys.executable, "-c", code, "segment", *arguments]


def test_a_full_disk(inputs: Path, graphs: dict[str, Path], tmp_path: Path) -> None:
    """A limit of 200 bytes a file fails a write in the middle, as a full disk does."""
    arguments = [*ready(inputs, graphs), "--point", "5,5"]
    outputs = ["--output", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "overlay.png")]
    done = subprocess.run(
        command([*arguments, *outputs]),
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert "choose another output path" in done.stderr
    assert files(tmp_path) == []


HANG_BEFORE_THE_END = """
import time
def hang(*arguments):
    print("writing", flush=True)
    time.sleep(100)
segment.write_json = hang
"""


def test_ctrl_c_while_the_files_are_written(inputs: Path, graphs: dict[str, Path], tmp_path: Path) -> None:
    arguments = [*ready(inputs, graphs), "--point", "5,5", "--json"]
    outputs = ["--output", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "overlay.png")]
    process = subprocess.Popen(
        command([*arguments, *outputs], HANG_BEFORE_THE_END),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(files(tmp_path)) == 2, "both temporary files are there, so there is something to clean up"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "trt-sam: interrupted; nothing was left half-written\n"
    assert files(tmp_path) == []
