"""A folder over a real cluster of Ray, a worker of which is killed: nothing lost, nothing twice."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.services.process import ROOT, python, run, served_set
from tests.services.ray_cluster import Cluster, command_line, descendants

PHOTO = ROOT / "samples" / "astronaut.jpg"
PHOTOS = 6
LATE = "photo9.jpg"
CLICK = {"points": [[220, 400]], "labels": [1]}


@pytest.fixture(scope="module")
def folder() -> str:
    return served_set()


@pytest.fixture(scope="module")
def cluster(ray_head: Cluster) -> Cluster:
    ray_head.have_workers(2)
    return ray_head


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, one of them broken, and a click on each, and on one that comes later."""
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "photos").mkdir()
    names = [f"photo{number}.jpg" for number in range(PHOTOS)]
    for name in names:
        (inputs / "photos" / name).write_bytes(PHOTO.read_bytes())
    (inputs / "photos" / "photo3.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    (inputs / "prompts.json").write_text(json.dumps({"images": {name: [CLICK] for name in [*names, LATE]}}))
    return inputs


def words_of(inputs: Path, folder: str, address: str, output: Path) -> list[str]:
    prompts = ["--prompts", str(inputs / "prompts.json"), "--set", folder]
    return ["segment", str(inputs / "photos"), "--ray", address, "--output", str(output), "--shard-size", "1", *prompts]


def lines_in(output: Path) -> list[dict[str, Any]]:
    parts = [part for part in sorted(output.glob("part-*.jsonl")) if ".failed." not in part.name]
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def wait_for(output: Path, parts: int, process: subprocess.Popen[str]) -> None:
    while len(list(output.glob("part-*.jsonl"))) < parts:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def busy_node(cluster: Cluster, process: subprocess.Popen[str]) -> subprocess.Popen[bytes]:
    """A machine that works on a photo."""
    while process.poll() is None:
        for node in cluster.nodes[1:]:
            if any(b"ray::Worker.do" in command_line(pid) for pid in descendants(node.pid)):
                return node
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def test_a_killed_worker_loses_nothing(cluster: Cluster, photos: Path, folder: str, tmp_path: Path) -> None:
    output = tmp_path / "masks"
    words = words_of(photos, folder, cluster.address, output)
    process = subprocess.Popen(
        [python("ray"), "-m", "trt_sam", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment(),
    )
    wait_for(output, 1, process)
    cluster.kill(busy_node(cluster, process))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "1 could not be done" in out
    assert "a worker died" in err
    assert "Traceback" not in err
    found = lines_in(output)
    assert Counter(line["image"]["file_name"] for line in found) == dict.fromkeys(
        (f"photo{number}.jpg" for number in range(PHOTOS) if number != 3), 1
    )
    assert not list(output.glob(".*"))
    (failed,) = [json.loads(line) for line in (output / "failed.jsonl").read_text().splitlines()]
    assert failed["file_name"] == "photo3.jpg"
    ((reference,),) = json.loads(
        run(str(ROOT / "tests/services/reference.py"), folder, str(PHOTO), given=json.dumps([CLICK])).stdout
    )
    for line in found:
        assert [each["segmentation"] for each in line["annotations"]] == [reference["rle"]]
    before = {part: part.stat().st_mtime_ns for part in output.glob("part-*.jsonl")}
    (photos / "photos" / "photo3.jpg").write_bytes(PHOTO.read_bytes())
    (photos / "photos" / LATE).write_bytes(PHOTO.read_bytes()[:2000])
    again = run(*words, by="ray", code=1, env=cluster.environment())
    assert "1 photo, 1 mask, 5 were there, 1 could not be done" in again.stdout
    assert len(lines_in(output)) == PHOTOS
    changed = {part.name for part, stamp in before.items() if not part.exists() or part.stat().st_mtime_ns != stamp}
    assert changed == {"part-000003.jsonl", "part-000003.failed.jsonl"}
    (photos / "photos" / LATE).unlink()


READ = """
import json, sys, pyarrow.dataset
from pathlib import Path
print(json.dumps(pyarrow.dataset.dataset(sorted(Path(sys.argv[1]).glob("*.parquet"))).to_table().to_pylist()))
"""


def test_a_folder_of_parquet_is_one_data_set(cluster: Cluster, photos: Path, folder: str, tmp_path: Path) -> None:
    names = ["photo0.jpg", "photo1.jpg", "nothing.jpg"]
    (photos / "few").mkdir()
    for name in names:
        (photos / "few" / name).write_bytes(PHOTO.read_bytes())
    prompts = {"images": {names[0]: [CLICK, {"box": [10, 20, 300, 400]}], names[1]: [CLICK], names[2]: []}}
    (photos / "few.json").write_text(json.dumps(prompts))
    output = tmp_path / "masks"
    words = [str(photos / "few"), "--ray", cluster.address, "--prompts", str(photos / "few.json"), "--set", folder]
    run("segment", *words, "--output", str(output), "--shard-size", "1", "--parquet", by="ray", env=cluster.environment())
    assert len(list(output.glob("part-*.parquet"))) == 3
    script = tmp_path / "read.py"
    script.write_text(READ)
    read = run(str(script), str(output), by="ray", env=cluster.environment())
    rows = json.loads(read.stdout.splitlines()[-1])
    assert {row["image"]["file_name"]: len(row["annotations"]) for row in rows} == dict(zip(names, (2, 1, 0), strict=True))
    ((reference,),) = json.loads(
        run(str(ROOT / "tests/services/reference.py"), folder, str(PHOTO), given=json.dumps([CLICK])).stdout
    )
    assert all(row["annotations"][0]["segmentation"] == reference["rle"] for row in rows if row["annotations"])


def test_a_folder_goes_on_by_contents(cluster: Cluster, folder: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(PHOTO.read_bytes())

    def segment(images: dict[str, list[Any]], code: int = 0) -> subprocess.CompletedProcess[str]:
        (tmp_path / "prompts.json").write_text(json.dumps({"images": images}))
        words = [*words_of(tmp_path, folder, cluster.address, tmp_path / "masks"), "--parquet"]
        return run(*words, by="ray", code=code, env=cluster.environment())

    assert "1 photo, 1 mask, 1 without prompts left out" in segment({"a.jpg": [CLICK]}).stdout
    assert "1 photo, 1 mask, 1 were there" in segment({"b.jpg": [CLICK], "a.jpg": [CLICK]}).stdout
    other = {"a.jpg": [CLICK, {"box": [10, 20, 300, 400]}], "b.jpg": [CLICK]}
    assert "changed since: a.jpg (its prompts, in part-000000.parquet); name another --output, or remove these files" in (
        segment(other, code=2).stderr
    )
    (tmp_path / "masks" / "part-000000.parquet").unlink()
    assert "1 photo, 2 masks, 1 were there" in segment(other).stdout
    (tmp_path / "photos" / "b.jpg").write_bytes(PHOTO.read_bytes() + b"more")
    assert "changed since: b.jpg (its file, in part-000001.parquet)" in segment(other, code=2).stderr


def test_an_address_where_nothing_is(photos: Path, folder: str, tmp_path: Path) -> None:
    for address, said in (("127.0.0.1:9", "nothing answers at 127.0.0.1:9"), ("somewhere", "must be HOST:PORT")):
        done = run(*words_of(photos, folder, address, tmp_path / "masks"), by="ray", code=2)
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "masks").exists()
