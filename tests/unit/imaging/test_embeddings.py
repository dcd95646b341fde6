from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trt_sam.errors import InputError
from trt_sam.feeds.feeds import stored_images
from trt_sam.imaging.embeddings import Embedding, load_embedding, save_embedding


def make_array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 256, 64, 64)).astype(np.float32)


def members(**changed: object) -> dict[str, object]:
    whole = {
        "image_embeddings": make_array(),
        "original_size": np.array([480, 640], dtype=np.int64),
        "file_name": np.array("cat.jpg"),
        "encoder_sha256": np.array("ab" * 32),
    }
    return {name: value for name, value in (whole | changed).items() if value is not None}


def test_round_trip(tmp_path: Path) -> None:
    embedding = Embedding(make_array(), (480, 640), "Katze äöü.jpg", "ab" * 32, "cd" * 32)
    save_embedding(tmp_path / "new" / "a.npz", embedding)
    loaded = load_embedding(tmp_path / "new" / "a.npz")
    np.testing.assert_array_equal(loaded.image_embeddings, embedding.image_embeddings)
    assert (loaded.original_size, loaded.file_name, loaded.encoder_sha256) == ((480, 640), "Katze äöü.jpg", "ab" * 32)
    assert loaded.checkpoint_sha256 == "cd" * 32
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"]
    with np.load(tmp_path / "new" / "a.npz", allow_pickle=False) as plain:
        assert plain["original_size"].dtype == np.int64


def test_bare_arrays_need_the_size(tmp_path: Path) -> None:
    array = make_array(1)
    np.save(tmp_path / "a.npy", array)
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"image_embeddings": array, "other": np.zeros(3)}, tmp_path / "named.safetensors")
    save_file({"x": array}, tmp_path / "single.safetensors")
    for name in ("a.npy", "named.safetensors", "single.safetensors"):
        loaded = load_embedding(tmp_path / name, original_size=(30, 40))
        np.testing.assert_array_equal(loaded.image_embeddings, array)
        assert loaded.original_size == (30, 40)
        with pytest.raises(InputError, match="original size"):
            load_embedding(tmp_path / name)
    save_file({"x": array, "y": array}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="no image_embeddings among its 2 tensors"):
        load_embedding(tmp_path / "two.safetensors", original_size=(30, 40))


def test_size_of_the_file_wins_or_is_confirmed(tmp_path: Path) -> None:
    save_embedding(tmp_path / "a.npz", Embedding(make_array(), (480, 640)))
    assert load_embedding(tmp_path / "a.npz", original_size=(480, 640)).original_size == (480, 640)
    with pytest.raises(InputError, match=r"\(480, 640\).*not \(640, 480\)"):
        load_embedding(tmp_path / "a.npz", original_size=(640, 480))


def with_nan() -> np.ndarray:
    array = make_array()
    array[0, 3, 2, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_embeddings": None}, "has no image_embeddings, it holds original_size"),
        ({"original_size": None}, "has no original_size"),
        ({"image_embeddings": make_array()[:, :128]}, r"float32 \[1, 128, 64, 64\], must be floats \[1, 256, 64, 64\]"),
        ({"image_embeddings": make_array()[..., :32, :32]}, "at 1024 px"),
        ({"image_embeddings": make_array()[0].transpose(1, 2, 0)}, "channels come first"),
        ({"image_embeddings": make_array().reshape(-1)}, r"reshape it to \[1, 256, 64, 64\]"),
        ({"image_embeddings": np.zeros((2, 256, 64, 64), np.float16)}, "a file for each"),
        ({"image_embeddings": make_array().astype(np.int8)}, r"int8 \[1, 256, 64, 64\], must be floats.*before any scaling"),
        ({"image_embeddings": make_array().astype(np.float64) * 1e300}, "NaN or infinity as float32"),
        ({"image_embeddings": with_nan()}, "NaN"),
        ({"original_size": np.array([480.0, 640.0])}, "original_size float64"),
        ({"original_size": np.array([0, 640])}, r"\[0, 640\]"),
        ({"original_size": np.arange(1, 900)}, r"of shape \[899\]"),
        ({"file_name": np.array(b"cat.jpg")}, "file_name is .S7"),
        ({"file_name": np.array(["a", "b"])}, "one unicode string"),
        ({"file_name": np.array({"a": 1}, dtype=object)}, "cannot be read as .npz"),
        ({"image_embeddings": np.zeros(17 << 20, dtype=np.float32)}, "unpacks to"),
    ],
)
def test_wrong_members_are_one_line(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **members(**changed))
    with pytest.raises(InputError, match=message) as caught:
        load_embedding(path)
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [[1200, 1800], np.array([1200, 1800], np.int32), np.array([[1200, 1800]], np.uint16)])
def test_an_embedding_and_a_size_are_enough(tmp_path: Path, dtype: type, size: object) -> None:
    array = make_array().astype(dtype)
    np.savez(tmp_path / "mine.npz", image_embeddings=array, original_size=size)
    np.savez(tmp_path / "flat.npz", image_embeddings=array[0], original_size=size)
    for name in ("mine", "flat"):
        loaded = load_embedding(tmp_path / f"{name}.npz")
        assert loaded.image_embeddings.dtype == np.float32
        np.testing.assert_array_equal(loaded.image_embeddings, array.astype(np.float32))
        assert (loaded.original_size, loaded.file_name, loaded.encoder_sha256) == ((1200, 1800), name, "")


def test_every_reader_takes_every_kind_of_file(tmp_path: Path) -> None:
    from calibrators.feeds import FeedOptions, calibration_feeds

    np.savez(
        tmp_path / "a.npz", image_embeddings=make_array(1)[0].astype(np.float16), original_size=np.array([48, 64], np.int32)
    )
    np.save(tmp_path / "b.npy", make_array(2)[0].astype(np.float16))
    pytest.importorskip("safetensors.numpy").save_file({"x": make_array(3)[0]}, tmp_path / "c.safetensors")
    save_embedding(tmp_path / "d.npz", Embedding(make_array(4), (480, 640)))
    compared = stored_images(tmp_path)
    calibrated = calibration_feeds(tmp_path, FeedOptions(prompts_per_image=1))
    assert [image.original_size for image in compared] == [(48, 64), (1024, 1024), (1024, 1024), (480, 640)]
    for image, feed in zip(compared, calibrated, strict=True):
        np.testing.assert_array_equal(feed["image_embeddings"], image.embedding)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    packed = io.BytesIO()
    np.savez(packed, **members())
    whole = packed.getvalue()
    bare = io.BytesIO()
    np.save(bare, make_array())
    flipped = bytearray(whole)
    flipped[len(flipped) // 3] ^= 255  # the zip's checksum sees it
    liar = io.BytesIO()
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("image_embeddings.npy", bare.getvalue().replace(b"(1, 256, 64, 64)", b"(9, 256, 64, 64)"))
    huge = bare.getvalue().replace(b"(1, 256, 64, 64)", b"(9999999999999,)")
    for name, data, message in (
        ("empty.npz", b"", "is empty"),
        ("text.npz", b"hello", "cannot be read as .npz"),
        ("cut.npz", whole[: len(whole) // 2], "cannot be read as .npz"),
        ("flipped.npz", bytes(flipped), "cannot be read as .npz"),
        ("liar.npz", liar.getvalue(), "cannot be read as .npz"),
        ("text.npy", b"hello", "not an .npy file"),
        ("cut.npy", bare.getvalue()[: 1 << 20], "cannot be read as .npy"),
        ("huge.npy", huge, "cannot be read as .npy"),
        ("text.safetensors", b"hello", "cannot be read as safetensors"),
        ("photo.jpg", b"hello", r"must be .npz, .npy or .safetensors"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            load_embedding(tmp_path / name, original_size=None if name.endswith(".npz") else (3, 4))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not found"):
        load_embedding(tmp_path / "missing.npz")


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    good = make_array()
    for path, embedding in (
        (tmp_path / "a.npy", Embedding(good, (3, 4))),
        (tmp_path / "a.npz", Embedding(good[0], (3, 4))),
        (tmp_path / "a.npz", Embedding(with_nan(), (3, 4))),
        (tmp_path / "a.npz", Embedding(good, (0, 4))),
    ):
        with pytest.raises(InputError):
            save_embedding(path, embedding)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_takes_every_kind_of_embedding_file_of_a_folder(tmp_path: Path) -> None:
    save_embedding(tmp_path / "b.npz", Embedding(make_array(), (480, 640)))
    np.save(tmp_path / "a.npy", make_array() + 1)
    (tmp_path / "notes.txt").write_text("no embedding")
    images = stored_images(tmp_path)
    assert [image.original_size for image in images] == [(1024, 1024), (480, 640)]
    np.testing.assert_array_equal(images[0].embedding, make_array() + 1)
    with pytest.raises(InputError, match="embeddings folder not found"):
        stored_images(tmp_path / "nowhere")
