"""Requests and answers of KServe v2: JSON, with tensors in it or, by the binary extension, behind it. numpy alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.serve.faults import Refusal
from trt_sam.serve.requests import json_object

__all__ = ["HEADER", "InferRequest", "answered", "infer_request"]

Array = npt.NDArray[Any]

HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON, where tensors follow it."""
DTYPES = {"BOOL": "?", "UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_NAMES = {"b": "BOOL", "u1": "UINT8", "f4": "FP32"}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class InferRequest:
    """What was asked."""

    id: str
    inputs: Mapping[str, Array]
    """By name; BYTES are arrays of bytes objects."""
    outputs: Mapping[str, bool] | None
    """Names, and whether each is to come behind the JSON; None for all."""
    binary: bool
    """Whether all outputs are to, where none is named."""


def infer_request(body: bytes, header: str | None) -> InferRequest:
    """Parse a body, whose header `HEADER` was `header`.

    Raises:
        Refusal: it is not such a request.
    """
    if header is not None and (not header.isdecimal() or len(header) > 12 or int(header) > len(body)):
        raise _bad(f"{HEADER} is {header[:20]!r}, must be the number of bytes of the JSON, at most those of the body")
    length = len(body) if header is None else int(header)
    asked, rest = json_object(body[:length]), memoryview(body)[length:]
    given = asked.get("inputs")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise _bad("inputs must be a list of tensors")
    inputs: dict[str, Array] = {}
    at = 0
    for each in given:
        name = each.get("name")
        if not isinstance(name, str) or name in inputs:
            raise _bad("each of the inputs must have a name of its own")
        size = _parameters(each).get("binary_data_size")
        if size is None:
            inputs[name] = _from_json(name, each)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest) - at:
            raise _bad(f"binary_data_size of {name[:60]!r} is not the number of bytes that follow for it")
        inputs[name] = _from_bytes(name, each, rest[at : at + size])
        at += size
    if at != len(rest):
        raise _bad(f"{len(rest) - at} bytes behind the JSON belong to no input")
    found = asked.get("id", "")
    return InferRequest(
        found if isinstance(found, str) else "", inputs, _outputs(asked), _parameters(asked).get("binary_data_output") is True
    )


def answered(request: InferRequest, model: str, outputs: Mapping[str, Array]) -> tuple[bytes, int | None]:
    """The body of an answer with `outputs` (float32, bool, or arrays of bytes), and the value of `HEADER` for it.

    Raises:
        Refusal: an output was asked for that there is not.
    """
    wanted = dict.fromkeys(outputs, request.binary) if request.outputs is None else request.outputs
    told: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in wanted.items():
        if name not in outputs:
            raise _bad(f"there is no output {name[:60]!r}; there are {', '.join(outputs)}")
        array = outputs[name]
        text = array.dtype == object
        entry: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if text else _NAMES.get(array.dtype.kind, "") or _NAMES[array.dtype.str[1:]],
            "shape": list(array.shape),
        }
        if binary:
            data = _packed(array) if text else np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = [each.decode() for each in array.ravel()] if text else array.ravel().tolist()
        told.append(entry)
    head = json.dumps({"model_name": model, "model_version": "1", "id": request.id, "outputs": told}).encode()
    return b"".join([head, *parts]), len(head) if parts else None


def _outputs(asked: Mapping[str, Any]) -> dict[str, bool] | None:
    given = asked.get("outputs")
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in given):
        raise _bad("outputs must be a list of objects with a name")
    return {each["name"]: _parameters(each).get("binary_data") is True for each in given}


def _parameters(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found = part.get("parameters", {})
    if not isinstance(found, dict):
        raise _bad("parameters must be an object")
    return found


def _form(name: str, entry: Mapping[str, Any]) -> tuple[str, list[int]]:
    kind, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in (*DTYPES, "BYTES"):
        raise _bad(f"the datatype of {name[:60]!r} must be one of {', '.join(DTYPES)}, BYTES")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _MOST_DIMENSIONS
        or not all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 1 << 31 for side in shape)
    ):
        raise _bad(f"the shape of {name[:60]!r} must be a list of whole numbers")
    return kind, shape


def _from_bytes(name: str, entry: Mapping[str, Any], data: memoryview) -> Array:
    kind, shape = _form(name, entry)
    if kind == "BYTES":
        return _shaped(name, _unpacked(name, data), shape)
    width = np.dtype(DTYPES[kind]).itemsize
    if len(data) != math.prod(shape) * width:
        raise _bad(f"{name[:60]!r} of shape {shape} and {kind} has {math.prod(shape) * width} bytes; {len(data)} came")
    return np.frombuffer(data, DTYPES[kind]).reshape(shape)


def _from_json(name: str, entry: Mapping[str, Any]) -> Array:
    kind, shape = _form(name, entry)
    flat: list[Any] = []
    _flatten(name, entry.get("data"), flat, _MOST_DIMENSIONS)
    if kind == "BYTES":
        if not all(isinstance(each, str) for each in flat):
            raise _bad(f"the data of {name[:60]!r} must be texts; send bytes by the binary extension")
        try:
            return _shaped(name, [each.encode() for each in flat], shape)
        except UnicodeEncodeError:
            raise _bad(f"the data of {name[:60]!r} is not Unicode") from None
    if kind == "FP16":
        raise _bad(f"{name[:60]!r} is FP16, which JSON does not have; send it by the binary extension")
    if not all(isinstance(each, bool | int | float) for each in flat):
        raise _bad(f"the data of {name[:60]!r} must be numbers")
    if np.dtype(DTYPES[kind]).kind in "iu" and not all(isinstance(each, int) for each in flat):
        raise _bad(f"the data of {name[:60]!r} must be whole numbers, as it is {kind}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, DTYPES[kind])
    except (OverflowError, ValueError):
        raise _bad(f"the data of {name[:60]!r} does not fit into {kind}") from None
    if array.size != math.prod(shape):
        raise _bad(f"{name[:60]!r} has {array.size} values, its shape {shape} has {math.prod(shape)}")
    return array.reshape(shape)


def _flatten(name: str, data: Any, into: list[Any], depth: int) -> None:
    if not isinstance(data, list) or depth < 0:
        raise _bad(f"the data of {name[:60]!r} must be a list, nested as deep as its shape at most")
    for each in data:
        if isinstance(each, list):
            _flatten(name, each, into, depth - 1)
        else:
            into.append(each)


def _shaped(name: str, texts: Sequence[bytes], shape: Sequence[int]) -> Array:
    if len(texts) != math.prod(shape):
        raise _bad(f"{name[:60]!r} has {len(texts)} values, its shape {list(shape)} has {math.prod(shape)}")
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _unpacked(name: str, data: memoryview) -> list[bytes]:
    """Each behind its length, four bytes."""
    found, at = [], 0
    while at < len(data):
        if at + 4 > len(data) or at + 4 + (length := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise _bad(f"{name[:60]!r} ends in the middle of an element; BYTES are a length of four bytes and as many bytes")
        found.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def _packed(texts: Array) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in texts.ravel())


def _bad(message: str) -> Refusal:
    return Refusal(400, "bad_tensor", message)
