"""`segment --ray` into a folder that is there: what counts as the same run, and what is refused because it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.no_cluster import without_ray, write_toy_graphs
from trt_sam.cli import main
from trt_sam.cluster.plan import PLAN_NAME
from trt_sam.cluster.rows import read_rows

pytestmark = pytest.mark.usefixtures("own")

Clicks = dict[str, tuple[int, int]]
EVERYTHING = ("--everything", "--points-per-side", "2", "--least-iou", "0", "--least-stability", "0")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_graphs(tmp_path_factory.mktemp("toy") / "set")


@pytest.fixture(params=["lines", "parquet"])
def more(request: pytest.FixtureRequest) -> list[str]:
    return ["--parquet"] if request.param == "parquet" else []


@pytest.fixture
def own(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos a.png, b.png and c.png in a folder of their own, a click on the first two, and a set."""
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        write_photo(Path("photos", name), number)
    write_clicks({"a.png": (10, 10), "b.png": (5, 5)})
    shutil.copytree(toy, "set")
    return tmp_path


def write_photo(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)


def write_clicks(clicks: Clicks) -> None:
    images = {name: [{"points": [list(click)], "labels": [1]}] for name, click in clicks.items()}
    Path("prompts.json").write_text(json.dumps({"images": images}))


def prompted(*more: str) -> list[str]:
    start = ["segment", "photos", "--ray", "--set", "set", "--output", "masks", "--shard-size", "1"]
    return [*start, "--prompts", "prompts.json", *more]


def rows() -> list[dict[str, Any]]:
    return [row for part in sorted(Path("masks").glob("part-*.*")) if ".failed" not in part.name for row in read_rows(part)]


def clicks_in_rows() -> Clicks:
    return {row["image"]["file_name"]: tuple(map(int, row["annotations"][0]["prompt"]["points"][0])) for row in rows()}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal that leaves the output as it was."""
    before = {path.name: path.read_bytes() for path in Path("masks").iterdir()}
    capsys.readouterr()
    assert main(words) == 2
    assert {path.name: path.read_bytes() for path in Path("masks").iterdir()} == before
    (said,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    return said


def test_prompts_of_more_photos_go_on(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(prompted(*more)) == 0
    assert "2 photos, 2 masks, 1 without prompts left out" in capsys.readouterr().out
    write_clicks({"c.png": (9, 9), "b.png": (5, 5), "a.png": (10, 10)})
    assert main(prompted(*more)) == 0
    assert "1 photo, 1 mask, 2 were there" in capsys.readouterr().out
    assert clicks_in_rows() == {"a.png": (10, 10), "b.png": (5, 5), "c.png": (9, 9)}


def test_changed_prompts_of_a_photo_are_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(prompted(*more)) == 0
    write_clicks({"a.png": (10, 10), "b.png": (50, 30)})
    said = refused(prompted(*more), capsys)
    part = next(Path("masks").glob("part-000001.*"))
    assert f"has lines of what has changed since: b.png (its prompts, in {part.name}); name another --output, or remove" in said
    # What the message says works: without them the photo is done again, the other one is not.
    (part.unlink if more else lambda: part.write_text(""))()
    assert main(prompted(*more)) == 0
    assert "1 photo, 1 mask, 1 were there" in capsys.readouterr().out
    assert clicks_in_rows() == {"a.png": (10, 10), "b.png": (50, 30)}


def test_a_photo_replaced_under_its_name_is_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in prompted(*EVERYTHING, *more) if word not in ("--prompts", "prompts.json")]
    assert main(words) == 0
    write_photo(Path("photos/b.png"), 7)
    assert "changed since: b.png (its file, in part-000001." in refused(words, capsys)
    Path("photos/b.png").unlink()
    assert main(words) == 0
    assert "0 photos, 0 masks, 2 were there" in capsys.readouterr().out
    write_photo(Path("photos/b.png"), 1)
    assert main(words) == 0
    assert "0 photos, 0 masks, 3 were there" in capsys.readouterr().out


def test_other_weights_and_settings_are_named_by_their_flags(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in prompted(*EVERYTHING, *more) if word not in ("--prompts", "prompts.json")]
    assert main(words) == 0
    assert "masks is of other settings: --least-iou was 0.0, now 0.5; name another --output" in refused(
        [*words, "--least-iou", "0.5"], capsys
    )
    other = refused([word for word in words if word != "--parquet"] if more else [*words, "--parquet"], capsys)
    assert f"--parquet was {'given, now not given' if more else 'not given, now given'}; name another --output" in other
    assert "--everything was given, now not given" in refused(prompted(*more), capsys)
    Path("set").rename("moved")
    assert main([word if word != "set" else "moved" for word in words]) == 0
    assert "0 photos, 0 masks, 3 were there" in capsys.readouterr().out
    write_toy_graphs(Path("set"), 0.002)
    said = refused(words, capsys)
    assert "--set (decode) was SHA-256 " in said
    assert "(encode)" not in said


def test_what_failed_and_is_gone_now_is_no_failure(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_clicks({"a.png": (10, 10), "b.png": (500, 5), "c.png": (9, 9)})
    Path("photos/c.png").write_bytes(b"no image")
    assert main(prompted(*more)) == 1
    assert "1 photo, 1 mask, 2 could not be done" in capsys.readouterr().out
    write_clicks({"a.png": (10, 10), "c.png": (9, 9)})
    Path("photos/c.png").unlink()
    assert main(prompted(*more)) == 0
    assert "0 photos, 0 masks, 1 were there, 1 without prompts left out" in capsys.readouterr().out
    assert not Path("masks/failed.jsonl").exists()
    write_photo(Path("photos/c.png"), 2)
    write_clicks({"a.png": (10, 10), "b.png": (5, 5), "c.png": (9, 9)})
    assert main(prompted(*more)) == 0
    assert clicks_in_rows() == {"a.png": (10, 10), "b.png": (5, 5), "c.png": (9, 9)}


def test_subfolders_that_are_not_looked_into_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The command lists the folder twice."""
    Path("photos/more").mkdir()
    write_photo(Path("photos/more/d.png"), 3)
    assert main(prompted()) == 0
    said = capsys.readouterr().err
    assert said.count("photos: images of the folder itself are taken, not of its 1 subfolder\n") == 1
    assert said.count("subfolder") == 1


def test_lines_are_those_of_the_command_on_one_machine() -> None:
    assert main(prompted()) == 0
    words = ["segment", "photos", "--set", "set", "--prompts", "prompts.json", "--output", "masks.jsonl"]
    assert main(words) == 0
    assert read_rows(Path("masks.jsonl")) == rows()


def test_a_plan_of_before_is_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("masks").mkdir()
    settings = {"set": {"decode": "ab" * 32}, "prompts": "cd" * 32, "everything": None}
    Path("masks", PLAN_NAME).write_text(json.dumps({"settings": settings, "shards": [["a.png"]]}))
    assert "is of an older version, which did not write down" in refused(prompted(*more), capsys)
