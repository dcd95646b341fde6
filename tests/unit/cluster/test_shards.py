"""Plans and shards: what is done, tried again, merged, and left as it was; a cluster is in `tests/services`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from trt_sam.cli import main
from trt_sam.cluster import folder as folder_module
from trt_sam.cluster import shard as shard_module
from trt_sam.cluster.folder import Report
from trt_sam.cluster.photo import Everything, Prompts, asks_of
from trt_sam.cluster.plan import Plan, Shard, open_plan
from trt_sam.cluster.pool import WorkerDiedError
from trt_sam.cluster.rows import read_rows, write_rows
from trt_sam.cluster.shard import do_shard, give_up
from trt_sam.errors import InputError
from trt_sam.formats.coco import sa1b_data
from trt_sam.formats.records import Photo

SETTINGS = {"model": {"set": {}}, "everything": {"points_per_side": 4}}
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
RECORD = {"segmentation": np.eye(4, dtype=np.bool_), "predicted_iou": 0.9}


@pytest.fixture(autouse=True)
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of photos that cannot be read; every other has a mask."""
    names: set[str] = set()

    def segmented(runner: Any, embed: Any, path: Path, task: Any) -> tuple[Photo, list[dict[str, Any]]]:
        if path.name in names:
            raise InputError(f"{path.name} is\nbroken")
        return Photo(path.name, (4, 4)), [dict(RECORD)]

    monkeypatch.setattr(shard_module, "segmented", segmented)
    monkeypatch.setattr(shard_module, "settings_of_photo", lambda path, task: {"photo": path.name, "prompts": None})
    return names


def do(shard: Shard) -> tuple[int, int, int]:
    runner: Any = None
    return do_shard(runner, runner, Path("photos"), shard, Everything())


def left(plan: Plan, names: list[str] = NAMES) -> list[Shard]:
    """What is to be done of `names`."""
    done = {row["image"]["file_name"] for _, rows in plan.written() for row in rows}
    return list(plan.todo(names, done))


def names_in(shard: Shard) -> list[str]:
    return [json.loads(line)["image"]["file_name"] for line in shard.part.read_text().splitlines()]


def test_a_plan_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    plan = open_plan(tmp_path / "out", NAMES, SETTINGS, 2)
    plan.save()
    assert [shard.names for shard in left(plan)] == [("a.jpg", "b.jpg"), ("c.jpg", "d.jpg"), ("e.jpg",)]
    assert do(plan.shard(1)) == (2, 2, 0)
    again = open_plan(tmp_path / "out", [*NAMES, "aa.jpg"], SETTINGS, 3)
    assert [shard.names for shard in left(again, [*NAMES, "aa.jpg"])] == [("a.jpg", "b.jpg"), ("e.jpg",), ("aa.jpg",)]
    assert names_in(plan.shard(1)) == ["c.jpg", "d.jpg"]


def test_what_failed_is_named_and_tried_again(tmp_path: Path, broken: set[str]) -> None:
    broken |= {"b.jpg"}
    plan = open_plan(tmp_path / "out", NAMES, SETTINGS, 5)
    (shard,) = left(plan)
    assert do(shard) == (4, 4, 1)
    assert list(plan.failures(NAMES)) == [{"file_name": "b.jpg", "error": "b.jpg is broken"}]
    (rest,) = left(plan)
    assert rest.names == ("b.jpg",)
    broken.clear()
    assert do(rest) == (1, 1, 0)
    assert sorted(names_in(shard)) == NAMES
    assert left(plan) == []
    assert not rest.side.exists()


def test_a_run_stopped_between_both_files_does_nothing_twice(tmp_path: Path, broken: set[str]) -> None:
    plan = open_plan(tmp_path / "out", NAMES[:2], SETTINGS, 2)
    broken |= {"b.jpg"}
    do(plan.shard(0))
    side = plan.shard(0).side.read_bytes()
    broken.clear()
    do(left(plan)[0])
    plan.shard(0).side.write_bytes(side)  # as if it had been stopped before the side file went
    assert do(left(plan)[0]) == (0, 0, 0)
    assert names_in(plan.shard(0)) == NAMES[:2]
    assert left(plan) == []


def test_a_full_disk_leaves_the_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: set[str]) -> None:
    plan = open_plan(tmp_path / "out", NAMES, SETTINGS, 2)
    plan.save()
    do(plan.shard(0))

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left on device"):
            do(plan.shard(1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part-000000.jsonl", "plan.json"]
    assert [shard.number for shard in left(plan)] == [1, 2]


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    open_plan(tmp_path / "out", NAMES, SETTINGS, 2).save()
    with pytest.raises(InputError, match="is of other settings: --everything was given, now not given"):
        open_plan(tmp_path / "out", NAMES, {**SETTINGS, "everything": None}, 2)
    (tmp_path / "out" / "plan.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        open_plan(tmp_path / "out", NAMES, SETTINGS, 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    with pytest.raises(InputError, match="holds other files"):
        open_plan(tmp_path / "mine", NAMES, SETTINGS, 2)


class FakePool:
    """Does what it is given when it is asked for what is done; a worker dies of each photo in `deadly`."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly, self.seen, self.given = deadly, {"here"}, deque[Shard]()
        self.tries: list[int] = []

    def fill(self, shards: int) -> None:
        pass

    def idle(self) -> Any:
        return object() if not self.given else None

    def give(self, worker: Any, shard: Shard, photos: str, task: Any) -> None:
        self.given.append(shard)

    def done(self) -> list[tuple[Shard, Any]]:
        shard = self.given.popleft()
        self.tries.append(shard.number)
        return [(shard, WorkerDiedError("killed") if self.deadly & set(shard.names) else do(shard))]


def share_out(plan: Plan, pool: FakePool) -> Report:
    report, told = Report(), []
    of_ray: Any = pool
    folder_module._share_out(of_ray, plan, left(plan), Path("photos"), Everything(), report, lambda *args: told.append(args))
    assert told[-1][0] == 1.0
    return report


def test_a_cluster_that_is_not_there_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def connected(address: str) -> Iterator[None]:
        raise InputError(f"no cluster of Ray at {address}")
        yield

    monkeypatch.setattr(folder_module, "connected", connected)
    monkeypatch.setattr(folder_module, "check_reachable", lambda address: None)
    monkeypatch.setattr(folder_module, "files_of_set", lambda folder: {})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    photos, output = tmp_path / "photos", tmp_path / "out"
    with pytest.raises(InputError, match="no cluster of Ray at auto"):
        folder_module.segment_folder(photos, output, tmp_path, Everything(), model={}, address="auto")
    assert not output.exists()


def test_the_plan_is_there_from_the_first_photos_on_and_not_before(tmp_path: Path) -> None:
    """A cluster that cannot be reached, or has no room, leaves no folder; a run that is stopped goes on."""
    plan, seen = open_plan(tmp_path / "out", NAMES, SETTINGS, 2), []

    class Watched(FakePool):
        def fill(self, shards: int) -> None:
            seen.append((tmp_path / "out").exists())

        def give(self, *shard: Any) -> None:
            seen.append((tmp_path / "out" / "plan.json").exists())
            raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        share_out(plan, Watched(set()))
    assert seen == [False, True]
    assert open_plan(tmp_path / "out", NAMES, SETTINGS, 1) == plan


def test_photos_that_workers_die_of_are_given_up(tmp_path: Path) -> None:
    plan = open_plan(tmp_path / "out", NAMES, SETTINGS, 2)
    pool = FakePool({"c.jpg"})
    report = share_out(plan, pool)
    assert sorted(pool.tries) == [0, 1, 1, 1, 2]
    assert (report.photos, report.masks) == (3, 3)
    assert [line["file_name"] for line in plan.failures(NAMES)] == ["c.jpg", "d.jpg"]
    assert "3 workers died" in next(plan.failures(NAMES))["error"]
    pool.deadly.clear()
    assert share_out(plan, pool).photos == 2
    assert list(plan.failures(NAMES)) == []


def test_giving_up_keeps_what_was_done(tmp_path: Path, broken: set[str]) -> None:
    broken |= {"b.jpg"}
    plan = open_plan(tmp_path / "out", NAMES[:2], SETTINGS, 2)
    do(plan.shard(0))
    assert give_up(left(plan)[0], "it is too large") == (0, 0, 1)
    assert names_in(plan.shard(0)) == ["a.jpg"]
    assert list(plan.failures(NAMES)) == [{"file_name": "b.jpg", "error": "it is too large"}]


def test_a_shard_in_parquet_is_the_one_in_json_lines(tmp_path: Path, broken: set[str]) -> None:
    broken |= {"b.jpg"}
    lines, table = (open_plan(tmp_path / suffix, NAMES[:3], SETTINGS, 3, suffix) for suffix in (".jsonl", ".parquet"))
    for plan in (lines, table):
        assert do(plan.shard(0)) == (2, 2, 1)
        assert list(plan.failures(NAMES)) == [{"file_name": "b.jpg", "error": "b.jpg is broken"}]
    broken.clear()
    for plan in (lines, table):
        assert do(left(plan)[0]) == (1, 1, 0)
        assert left(plan) == []
    known = read_rows(lines.shard(0).part)
    found = read_rows(table.shard(0).part)
    assert [row["image"] for row in found] == [row["image"] for row in known]
    for row, expected in zip(found, known, strict=True):
        (mask,), (same,) = row["annotations"], expected["annotations"]
        assert {name: value for name, value in mask.items() if value is not None} == same
    # A file without a mask has the same types, so that a folder is one data set.
    write_rows(tmp_path / "none.parquet", [])
    assert pyarrow.parquet.read_schema(tmp_path / "none.parquet") == pyarrow.parquet.read_schema(table.shard(0).part)


def test_everything_that_a_record_may_hold_is_in_parquet(tmp_path: Path) -> None:
    """A column that the schema lacked would be left out in silence."""
    generated = {**RECORD, "stability_score": 0.97, "point_coords": [[1.5, 2.0]], "crop_box": [0, 0, 4, 4]}
    prompted = {**RECORD, "prompt": {"points": [(1.0, 2.0)], "labels": [1], "box": (0.5, 1.0, 2.0, 3.0)}}
    line = {**sa1b_data(Photo("a.jpg", (4, 4)), [generated, prompted]), "settings": SETTINGS}
    write_rows(tmp_path / "a.parquet", [line])
    ((row),) = read_rows(tmp_path / "a.parquet")
    plain = [{name: value for name, value in mask.items() if value is not None} for mask in row["annotations"]]
    assert plain == json.loads(json.dumps(line))["annotations"]
    assert row["settings"] == SETTINGS


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match=r"part\.parquet is no whole Parquet file"):
        read_rows(tmp_path / "part.parquet")


def test_prompts_go_with_their_photos() -> None:
    prompts = Prompts(dict.fromkeys(NAMES, ()), "prompts.json")
    assert dataclasses.asdict(prompts.of(["b.jpg", "z.jpg"])) == {"by_photo": {"b.jpg": ()}, "source": "prompts.json"}
    assert [asks_of(task, name) for task in (prompts, Everything()) for name in ("b.jpg", "z.jpg")] == [True, False, True, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--output", "out"], "give either --everything or --prompts"),
        (["photos", "--everything", "--output", "out.jsonl", "--set", "set"], "give --output a folder"),
        (["photos", "--everything", "--output", "out"], "give either --set DIR or --checkpoint"),
        (["photos", "--everything", "--output", "out", "--set", "photos"], "is no set with a manifest"),
        (
            ["photos", "--everything", "--output", "out", "--checkpoint", "standin", "--shard-size", "0"],
            "--shard-size is 0, must be",
        ),
        (["photos/a.jpg", "--everything", "--output", "out", "--set", "set"], "is for a folder of photos"),
        (["photos", "--everything", "--output", "photos/a.jpg/out", "--set", "set"], "cannot write into photos/a.jpg/out: "),
    ],
    ids=["no-task", "a-file", "no-set", "not-a-set", "no-photos", "a-photo", "no-folder"],
)
def test_bad_flags(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["segment", *words, "--ray", "auto"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
