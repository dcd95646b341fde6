"""The parser of prompt files: what it takes, what it refuses, and that no input gets anything else out of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from calibrators.prompt_file import FilePrompt, parse_prompts, read_prompts
from trt_sam.errors import InputError


def parse(content: Any) -> Any:
    return parse_prompts(json.dumps(content).encode())


def test_both_kinds() -> None:
    own = parse({"images": {"a.jpg": [{"points": [[1, 2.5]], "labels": [0]}, {"box": [1, 2, 3, 4]}], "b.jpg": []}})
    assert own.prompts == {"a.jpg": (FilePrompt(((1.0, 2.5),), (0,)), FilePrompt(box=(1, 2, 3, 4))), "b.jpg": ()}
    coco = parse(
        {
            "images": [{"id": "x", "file_name": "c/a.jpg", "width": 4, "height": 3}],
            "annotations": [{"image_id": "x", "bbox": [1, 2, 3, 4]}],
        }
    )
    assert coco.prompts == {"c/a.jpg": (FilePrompt(box=(1, 2, 4, 6)),)}
    assert coco.sizes == {"c/a.jpg": (3, 4)}


def test_an_image_is_found_by_its_whole_name_first() -> None:
    box = [{"box": [1, 2, 3, 4]}]
    found = parse({"images": {"a.jpg": box, "a.png": box, "x/b.png": box}})
    assert found.find("a.png") == "a.png"
    assert found.find("b.jpg", "b") == "x/b.png"
    # Two photos could be meant.
    assert found.find("a.webp") is None
    assert found.find("c.jpg") is None


IMAGE = {"id": 1, "file_name": "a.jpg"}
BOX = {"image_id": 1, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it must be"),
        ({"images": 3}, "it must be"),
        ({"images": {}}, "no prompt"),
        ({"images": {"a": []}}, "no prompt"),
        ({"images": {"a": [{"box": [1, 2, 3, 4]}]}, "other": 1}, 'unknown key "other"'),
        ({"images": {"a": {}}}, 'image "a" is {}'),
        ({"images": {"a": [[]]}}, "prompt 1 is"),
        ({"images": {"a": [{}]}}, "prompt 1 is"),
        ({"images": {"a": [{"boxes": [1, 2, 3, 4]}]}}, 'unknown key "boxes"'),
        ({"images": {"a": [{"points": [], "labels": []}]}}, "neither a point nor a box"),
        ({"images": {"a": [{"points": [[1, 2]]}]}}, "as many labels"),
        ({"images": {"a": [{"points": [[1, 2]], "labels": [2]}]}}, "label 2"),
        ({"images": {"a": [{"points": [[1, 2]], "labels": [True]}]}}, "label true"),
        ({"images": {"a": [{"points": [[1, 2, 3]], "labels": [1]}]}}, r"point \[1, 2, 3\]"),
        ({"images": {"a": [{"points": [[1, float("nan")]], "labels": [1]}]}}, r"point \[1, NaN\]"),
        ({"images": {"a": [{"points": [[1, 10**400]], "labels": [1]}]}}, r"point \[1, 1000.*\.\.\.,"),
        ({"images": {"a": [{"box": [1, 2, 1, 4]}]}}, "is empty"),
        ({"images": {"a": [{"box": ["1", 2, 3, 4]}]}}, "must be"),
        ({"images": {"a": [{"box": None}]}}, "box null"),
        ({"images": [IMAGE]}, '"annotations" are no list'),
        ({"images": [3], "annotations": []}, "COCO image 1 has no file_name"),
        ({"images": [{"id": 1.5, "file_name": "a"}], "annotations": []}, "image id 1.5"),
        ({"images": [IMAGE, IMAGE], "annotations": []}, "id 1 of another image"),
        ({"images": [{**IMAGE, "width": 0, "height": 3}], "annotations": []}, "0 by 3"),
        ({"images": [{**IMAGE, "width": 5}], "annotations": []}, "5 by null"),
        ({"images": [IMAGE], "annotations": [None]}, "annotation 1 is null"),
        ({"images": [IMAGE], "annotations": [{"image_id": 2, "bbox": [1, 2, 3, 4]}]}, "of image 2"),
        ({"images": [IMAGE], "annotations": [{"image_id": 1}]}, "bbox null"),
        ({"images": [IMAGE], "annotations": [{"image_id": 1, "bbox": [1, 2, -3, 4]}]}, "must not be negative"),
        ({"images": [IMAGE], "annotations": [{**BOX, "iscrowd": 1}]}, "no box of a single object"),
    ],
)
def test_what_is_refused(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(content)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "data", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}", b"nul", b'"\xed\xa0\x80"']
)
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(InputError, match=r"not JSON|it must be"):
        parse_prompts(data)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"prompt file .*prompts\.json: it is not JSON"):
        read_prompts(path)
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_prompts(path)


SEEDS = [
    json.dumps({"images": {"a.jpg": [{"points": [[1, 2]], "labels": [1], "box": [1, 2, 3, 4]}]}}),
    json.dumps({"images": [{**IMAGE, "width": 9, "height": 9}], "annotations": [BOX, {**BOX, "iscrowd": 1}]}),
]
PIECES = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    '"',
    "-",
    "1e999",
    "NaN",
    "-Infinity",
    "null",
    "true",
    "0",
    "1e308",
    "\\ud800",
    '"box"',
    "é",
    "\x00",
]


def test_100_000_fuzzed_files_give_prompts_or_our_own_error() -> None:
    rng = random.Random(0)
    accepted, lines = 0, set()
    for number in range(100_000):
        data = fuzzed_value(rng) if number % 4 == 0 else fuzzed_text(rng, SEEDS[number % 2])
        try:
            found = parse_prompts(data)
        except InputError as error:
            lines |= {str(error).count("\n")}
            continue
        accepted += 1
        for rows in found.prompts.values():
            for row in rows:
                assert len(row.points) == len(row.labels)
                assert row.points or row.box is not None
                assert all(abs(value) <= 2e9 for point in (*row.points, row.box or ()) for value in point)
    assert lines == {0}
    # Both outcomes were tried.
    assert 1000 < accepted < 99_000


def fuzzed_text(rng: random.Random, text: str) -> bytes:
    """A valid file with a few cuts, insertions and changed bytes."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[place : place + rng.randint(1, 6)] = b""
        elif kind == 1:
            data[place:place] = rng.choice(PIECES).encode()
        elif kind == 2 and place < len(data):
            data[place] = rng.randrange(256)
        else:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.randint(1, 20)]
    return bytes(data)


def fuzzed_value(rng: random.Random) -> bytes:
    """A valid file of which one value, anywhere, is another one."""
    content = json.loads(rng.choice(SEEDS))
    node, key = {"": content}, ""
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:  # type: ignore[index]
        node = node[key]  # type: ignore[assignment,index]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))  # type: ignore[arg-type]
    odd = [
        None,
        True,
        -1,
        0,
        1.5,
        "",
        "x",
        [],
        {},
        [[]],
        [1, 2],
        10**30,
        1e300,
        [1, 2, 3, 4],
        {"box": [0, 0, 1, 1]},
        float("nan"),
    ]
    node[key] = rng.choice(odd)  # type: ignore[index]
    return json.dumps(content).encode()
