"""The parts of the deployment that need no Ray; a real cluster of it is in `tests/services`."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.served import DiscRunner
from trt_sam.errors import InputError, TrtSamError
from trt_sam.serve.faults import Refusal
from trt_sam.serve.model import Model
from trt_sam.serve.ray import app, replica
from trt_sam.serve.ray.application import _checked
from trt_sam.serve.ray.pictures import PictureFolder
from trt_sam.serve.ray.replica import Replica

ROOT = Path(__file__).parents[3]
PHOTO = ROOT / "samples" / "astronaut.jpg"


@pytest.fixture
def runner() -> DiscRunner:
    return DiscRunner()


@pytest.fixture
def served(runner: DiscRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    monkeypatch.setattr(replica, "open_model", lambda folder, **_: Model(runner, "discs"))
    found = Replica("set", str(tmp_path / "pictures"), images=4, threads=1)
    yield found
    found._runner.shutdown()


def test_pictures_are_files_by_hash(tmp_path: Path) -> None:
    pictures = PictureFolder(str(tmp_path / "pictures"))
    name = pictures.put(b"a picture")
    assert pictures.put(b"a picture") == name
    assert PictureFolder(str(tmp_path / "pictures")).get(name) == b"a picture"
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    # Whoever removes old files by their time of change keeps what is in use.
    for use in (lambda: pictures.put(b"a picture"), lambda: pictures.get(name)):
        os.utime(path, (0, 0))
        use()
        assert path.stat().st_mtime > 0


@pytest.mark.parametrize("name", ["0" * 32, "../" * 10 + "etc/passwd", "", "A" * 32, "0" * 32 + "\n"])
def test_an_id_that_is_none_is_unknown(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refusal, match="no such image") as caught:
        PictureFolder(str(tmp_path)).get(name)
    assert caught.value.status == 404


def test_clicks_on_one_picture_are_one_call(served: Replica, runner: DiscRunner) -> None:
    async def clicks() -> list[Any]:
        name = served._pictures.put(PHOTO.read_bytes())
        first, second = await served.load(name), await served.load(name)
        before = len(runner.feeds)
        asked = [(first, [point(100)]), (second, [point(200)]), (first, [point(300), point(400)])]
        found = await served.decode(asked)
        assert len(runner.feeds) - before == 2
        for (_, prompts), decoded in zip(asked, found, strict=True):
            alone = await served.decode([(first, prompts)])
            assert not isinstance(decoded, Refusal)
            np.testing.assert_array_equal(decoded[0], alone[0][0])
        return found

    assert [len(decoded[0]) for decoded in asyncio.run(clicks())] == [1, 1, 2]


def test_a_picture_that_has_gone_refuses_its_own_clicks_alone(served: Replica, runner: DiscRunner) -> None:
    async def clicks() -> list[Any]:
        name = served._pictures.put(PHOTO.read_bytes())
        first, second = await served.load(name), await served.load(name)
        first.__del__()  # as Ray does with the least recently used
        first.__del__()
        return await served.decode([(first, [point(100)]), (second, [point(200)])])

    gone, here = asyncio.run(clicks())
    assert isinstance(gone, Refusal)
    assert gone.code == "image_unknown"
    assert len(here[0]) == 1


def test_an_answer_is_that_of_the_service(served: Replica) -> None:
    async def masks(asked: dict[str, Any]) -> Any:
        resident = await served.load(served._pictures.put(PHOTO.read_bytes()))

        async def decode(click: Any) -> Any:
            return (await served.decode([click]))[0]

        return await served.masks(resident, asked, decode)

    (result,) = asyncio.run(masks({"points": [[220, 400]], "labels": [1]}))["results"]
    assert [sorted(mask) for mask in result["masks"]] == [["area", "bbox", "score", "segmentation"]] * 3
    assert result["masks"][result["best"]]["score"] == max(mask["score"] for mask in result["masks"])
    with pytest.raises(Refusal, match="keeps no earlier masks"):
        asyncio.run(masks({"points": [[220, 400]], "labels": [1], "mask": "earlier"}))


def test_the_configuration_has_only_known_arguments() -> None:
    text = (ROOT / "docs" / "ray_serve.yaml").read_text()
    args = dict(re.findall(r"^      (\w+): (\S+)", text, re.MULTILINE))
    assert set(_checked(args)) == {"set", "pictures", "images", "threads", "batch", "wait_ms"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"set": "s"}, "pictures is missing"),
        ({"set": "s", "pictures": "p", "replicas": 4}, "'replicas' is no argument"),
        ({"set": "s", "pictures": "p", "images": "many"}, "images is 'many', must be a number"),
        ({"set": "s", "pictures": "p", "wait_ms": 0}, "must be more than 0"),
        ({"set": "nothing", "pictures": "p"}, "nothing is no set with a manifest"),
    ],
    ids=["missing", "unknown", "no-number", "zero", "no-set"],
)
def test_bad_arguments(args: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.serve.ray.application.require", lambda name, purpose: None)
    with pytest.raises(InputError, match=re.escape(said)):
        app(args)


def test_without_ray_the_hint_says_what_to_install() -> None:
    with pytest.raises(TrtSamError, match=r"ray is not installed, needed to run a deployment: pip install .*\[ray\]"):
        app({"set": "s", "pictures": "p"})


def point(x: float) -> Any:
    return np.array([[x, 100.0], [0, 0]], np.float32), np.array([1, -1], np.float32)
