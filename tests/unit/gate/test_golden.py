"""Golden data: what is written comes back, and what was cut or changed is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.made_answers import answer, example
from trt_sam.errors import InputError
from trt_sam.gate.answers import reduced
from trt_sam.gate.golden import Golden, load_golden, save_golden


@pytest.fixture
def path(tmp_path: Path) -> Path:
    examples = (example(3, seed=0), example(2, seed=1, size=(300, 200)))
    answers = (reduced(answer(3), 16), reduced(answer(2, seed=1), 16))
    save_golden(tmp_path / "golden.npz", Golden("made up", "ab" * 32, examples, answers, {"numpy": "2"}))
    return tmp_path / "golden.npz"


def test_what_is_written_comes_back(path: Path) -> None:
    golden = load_golden(path)
    assert (golden.checkpoint, golden.checkpoint_sha256, golden.prompts) == ("made up", "ab" * 32, 5)
    assert [image.original_size for image in golden.images] == [(1024, 1024), (300, 200)]
    for number, (seen, said) in enumerate(zip(golden.examples, golden.answers, strict=True)):
        wanted = example(len(seen.kinds), seed=number)
        assert np.array_equal(seen.feed["image_embeddings"], wanted.feed["image_embeddings"])
        assert np.array_equal(seen.feed["point_labels"], wanted.feed["point_labels"])
        expected = reduced(answer(len(seen.kinds), seed=number), 16)
        assert said.step == 16
        assert np.array_equal(said.inside, expected.inside)
        assert np.array_equal(said.logits, expected.logits)
        assert np.array_equal(said.scores, expected.scores)


def test_a_cut_file_is_one_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cut short or damaged"):
        load_golden(path)


@pytest.mark.parametrize("key", ["iou_predictions", "point_coords", "mask_bits"])
def test_a_changed_number_is_found_out(path: Path, key: str) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    arrays[key] = arrays[key].copy()
    arrays[key].flat[0] += 1
    np.savez_compressed(path, **arrays)
    with pytest.raises(InputError, match="was changed after it was written"):
        load_golden(path)


@pytest.mark.parametrize("changed", [{"checkpoint_sha256": ""}, {"step": 8}, {"images": []}])
def test_changed_words_are_found_out_too(path: Path, changed: dict[str, Any]) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    arrays["about"] = np.array(json.dumps({**json.loads(str(arrays["about"])), **changed}))
    np.savez_compressed(path, **arrays)
    with pytest.raises(InputError, match="was changed after it was written"):
        load_golden(path)


def test_other_files_are_no_golden_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="is no golden data"):
        load_golden(tmp_path / "other.npz")
    np.save(tmp_path / "one.npz.npy", np.zeros(3))
    with pytest.raises(InputError, match="is no golden data"):
        load_golden(tmp_path / "one.npz.npy")
    (tmp_path / "text.npz").write_text("golden")
    with pytest.raises(InputError, match=r"it is no \.npz"):
        load_golden(tmp_path / "text.npz")
