"""The rows of a shard's file, one photo each with all of its masks: JSON lines, or Parquet with the same names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_sam._files import write_atomically
from trt_sam._json import strict
from trt_sam._lazy import require
from trt_sam.errors import InputError, first_line
from trt_sam.formats.lines import read_lines

__all__ = ["PARQUET", "check_parquet", "read_heads", "read_rows", "write_rows"]

PARQUET = ".parquet"
"""The suffix that takes Parquet."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what `formats.coco.sa1b_data` gave for each photo, with `settings`, into `path`, whole or not at all.

    The suffix says how. Parquet has the columns `image` (a struct), `annotations` (a list of structs), null where an annotation
    has no such value, and `settings` (JSON); the types do not depend on the rows, so that the files of a folder are one data
    set.

    Raises:
        InputError: the disk is full, or the folder cannot be written; the file is as it was.
        MissingDependencyError: for Parquet, pyarrow is not installed.
    """
    if path.suffix != PARQUET:
        write_atomically(path, "".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in rows))
        return
    pa, parquet = _pyarrow()
    buffer = io.BytesIO()
    plain = [{**row, "settings": json.dumps(row["settings"])} for row in rows]
    parquet.write_table(pa.Table.from_pylist(plain, schema=_schema(pa)), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file, none where it is not there; raises InputError where it is damaged."""
    if not path.exists():
        return []
    return _read_table(path, None) if path.suffix == PARQUET else read_lines(path)


def read_heads(path: Path) -> list[dict[str, Any]]:
    """As `read_rows`, of a file that is there; of Parquet without the masks, which are nearly all of it."""
    return _read_table(path, ["image", "settings"]) if path.suffix == PARQUET else read_lines(path)


def _read_table(path: Path, columns: list[str] | None) -> list[dict[str, Any]]:
    pa, parquet = _pyarrow()
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
        return [{**row, "settings": json.loads(row["settings"])} for row in rows]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no whole Parquet file ({first_line(error)}); remove it, it is made again") from None


def check_parquet() -> None:
    """Raise MissingDependencyError where pyarrow is not installed."""
    _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    parquet = require("pyarrow.parquet", "to write Parquet")
    return require("pyarrow", "to write Parquet"), parquet


def _schema(pa: Any) -> Any:
    numbers, pairs = pa.list_(pa.float64()), pa.list_(pa.list_(pa.float64()))
    image = {"image_id": pa.int64(), "width": pa.int32(), "height": pa.int32(), "file_name": pa.string()}
    annotation = {
        "id": pa.int32(),
        "segmentation": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}),
        "bbox": numbers,
        "area": pa.int64(),
        "predicted_iou": pa.float64(),
        "stability_score": pa.float64(),
        "point_coords": pairs,
        "crop_box": numbers,
        "prompt": pa.struct({"points": pairs, "labels": pa.list_(pa.int32()), "box": numbers}),
    }
    return pa.schema({"image": pa.struct(image), "annotations": pa.list_(pa.struct(annotation)), "settings": pa.string()})
