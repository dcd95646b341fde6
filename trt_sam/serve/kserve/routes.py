"""The addresses of KServe v2: what the server and its model are, and inference from picture and prompts to masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trt_sam._version import __version__
from trt_sam.serve.call import Call
from trt_sam.serve.faults import Refusal
from trt_sam.serve.http.routes import endpoint
from trt_sam.serve.images import HeldImage
from trt_sam.serve.kserve.tensors import HEADER, InferRequest, answered, infer_request
from trt_sam.serve.requests import MasksRequest, masks_request
from trt_sam.serve.segmentations import runs_at_size
from trt_sam.serve.service import Service

__all__ = ["kserve_routes"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

INPUTS = (
    ("image", "BYTES", [1]),
    ("image_id", "BYTES", [1]),
    ("point_coords", "FP32", [-1, -1, 2]),
    ("point_labels", "FP32", [-1, -1]),
    ("boxes", "FP32", [-1, 4]),
)
"""All but a picture and a prompt may be left out; `image` may also be UINT8 [height, width, 3]."""
OUTPUTS = (
    ("masks", "BOOL", [-1, 3, -1, -1]),
    ("iou_predictions", "FP32", [-1, 3]),
    ("low_res_masks", "FP32", [-1, 3, 256, 256]),
    ("image_id", "BYTES", [1]),
)
_MOST_MASK_BYTES = 256 << 20
VERSION = "1"


def kserve_routes(service: Service) -> list[Route]:
    """The routes; health is the service's own."""
    name, settings = service.model.name, service.settings

    def check(request: Request) -> None:
        given, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if given != name or version != VERSION:
            raise Refusal(404, "model_unknown", f"there is no such model; there is {name}, version {VERSION}")

    async def server(request: Request, call: Call) -> Response:
        return JSONResponse({"name": "trt_sam", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def metadata(request: Request, call: Call) -> Response:
        check(request)
        told = {"name": name, "versions": [VERSION], "platform": "trt_sam"}
        return JSONResponse({**told, "inputs": _specs(INPUTS), "outputs": _specs(OUTPUTS)})

    async def ready(request: Request, call: Call) -> Response:
        check(request)
        if not service.ready:
            raise Refusal(503, "not_ready", "the model is being warmed up", retry_seconds=2)
        return Response()

    async def infer(request: Request, call: Call) -> Response:
        check(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "encoded", "compressed requests are not taken; send it without Content-Encoding")
        body = await call.body(request, settings.body_bytes, settings.read_seconds)
        asked = await service.threaded(infer_request, body, request.headers.get(HEADER))
        unknown = set(asked.inputs) - {each for each, _, _ in INPUTS}
        if unknown:
            raise Refusal(
                400, "bad_tensor", f"{min(unknown)[:60]!r} is no input; there are {', '.join(e for e, _, _ in INPUTS)}"
            )
        image = await _image(service, call, request, asked)
        wanted = _prompts(asked.inputs, image, service)
        size = len(wanted.prompts) * 3 * image.size[0] * image.size[1]
        needs_masks = asked.outputs is None or "masks" in asked.outputs
        if needs_masks and size > _MOST_MASK_BYTES:
            raise Refusal(
                400, "too_many_masks", f"the masks would take {size:,} bytes; ask for fewer prompts, or low_res_masks"
            )
        low_res, iou = await service.decode(call, request, image, wanted)
        outputs: dict[str, Array] = {"iou_predictions": iou, "low_res_masks": low_res}
        if needs_masks:
            masks = await call.timed("masks", service.threaded, _full_masks, low_res, image.size)
            outputs = {"masks": masks, **outputs}
        outputs["image_id"] = np.array([image.id.encode()], object)
        content, header = await service.threaded(answered, asked, name, outputs)
        headers = {} if header is None else {HEADER: str(header)}
        return Response(
            content, media_type="application/json" if header is None else "application/octet-stream", headers=headers
        )

    found = [endpoint("/v2", server)]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [endpoint(path, metadata), endpoint(f"{path}/ready", ready), endpoint(f"{path}/infer", infer, "POST")]
    return found


async def _image(service: Service, call: Call, request: Request, asked: InferRequest) -> HeldImage:
    """The picture of a request, embedded, or the one that its id names."""
    picture, image_id = asked.inputs.get("image"), asked.inputs.get("image_id")
    if (picture is None) == (image_id is None):
        raise Refusal(400, "bad_tensor", "give one of image and image_id")
    if image_id is not None:
        return service.images.get(_single("image_id", image_id).decode("ascii", "replace"))
    assert picture is not None
    if picture.dtype == object:
        return await service.add_image(call, request, _single("image", picture))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise Refusal(400, "bad_tensor", "image must be BYTES [1], a JPEG or PNG, or UINT8 [height, width, 3], RGB")
    return await service.add_picture(call, request, picture)


def _single(name: str, texts: Array) -> bytes:
    if texts.dtype != object or texts.size != 1:
        raise Refusal(400, "bad_tensor", f"{name} must be BYTES of one element")
    return bytes(texts.ravel()[0])


def _prompts(inputs: dict[str, Array] | Any, image: HeldImage, service: Service) -> MasksRequest:
    """The prompts, each judged as one of `POST /images/{id}/masks` is."""
    points, labels, boxes = (inputs.get(name) for name in ("point_coords", "point_labels", "boxes"))
    for name, array, dims in (("point_coords", points, 3), ("point_labels", labels, 2), ("boxes", boxes, 2)):
        if array is not None and (array.ndim != dims or array.dtype.kind not in "uif"):
            raise Refusal(400, "bad_tensor", f"{name} must be numbers in {dims} dimensions")
    counts = {len(array) for array in (points, labels, boxes) if array is not None}
    most = service.settings.boxes
    if len(counts) != 1 or not 1 <= (count := counts.pop()) <= most:
        raise Refusal(
            400, "bad_tensor", f"point_coords and point_labels, or boxes, must be of as many prompts, from 1 to {most}"
        )
    prompts = []
    for row in range(count):
        asked: dict[str, Any] = {}
        if points is not None:
            asked["points"] = points[row].tolist()
        if labels is not None:
            asked["labels"] = labels[row].tolist()
        if boxes is not None:
            asked["boxes"] = [boxes[row].tolist()]
        prompts += masks_request(asked, image.size, service.settings).prompts
    return MasksRequest(prompts, None, "three", "rle", False)


def _full_masks(low_res: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    masks = np.empty((*low_res.shape[:2], *size), np.bool_)
    for row, each in enumerate(low_res):
        for place, logits in enumerate(each):
            masks[row, place] = runs_at_size(logits, size).mask()
    return masks


def _specs(tensors: tuple[tuple[str, str, list[int]], ...]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors]
