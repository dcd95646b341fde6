"""The description of the service for programs: OpenAPI 3.1, with an example of everything."""

from __future__ import annotations

from typing import Any

from trt_sam._version import __version__
from trt_sam.serve.requests import FORMATS, OUTPUTS
from trt_sam.serve.settings import ServeSettings

__all__ = ["described"]

Json = dict[str, Any]

_ERRORS = {
    400: ("bad_prompt", "points: (513, 20) is outside of the picture, which is 512 wide and 512 high"),
    401: ("no_token", "send the service's token as Authorization: Bearer TOKEN"),
    403: ("wrong_host", "the Host header is not a name of this service"),
    404: ("image_unknown", "no such image, or it has expired; send the picture again to POST /images"),
    408: ("too_slow", "the request had not arrived after 30 s; send it faster"),
    413: ("picture_too_large", "the picture has more than 36,000,000 pixels; scale it down"),
    429: ("busy", "too many prompts are waiting; try again later"),
    503: ("stopping", "the service is being stopped"),
}
_RLE = {"size": [512, 512], "counts": "PPY54g?2N2N2O0O2O0O2N2N"}
_TIMES = {"queue": 0.1, "decode": 24.5, "masks": 3.9, "total": 30.2}
_MASK = {"id": "q1w2e3r4", "score": 0.98, "area": 60214, "bbox": [103, 12, 291, 500], "segmentation": _RLE}
_IMAGE = {
    "id": "kQ3v9xYz0aB1cD2e",
    "height": 512,
    "width": 512,
    "expires": "2026-11-26T12:30:00Z",
    "expires_in_seconds": 1800,
    "times_ms": {"read": 0.6, "picture": 9.0, "queue": 0.1, "embed": 390.0, "total": 402.1},
}


def described(settings: ServeSettings) -> Json:
    """The OpenAPI document of a service with these bounds."""
    image_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": _IMAGE["id"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "trt_sam",
            "version": __version__,
            "description": "Segment Anything: send a picture once, then ask for masks by points and boxes in its pixels.",
        },
        "paths": {
            "/images": {"post": _add_image(settings)},
            "/images/{id}": {
                "parameters": [image_id],
                "get": _operation(
                    "getImage", "Size of an image; it is kept longer for it.", {"200": _ok("Image", _IMAGE)}, 404
                ),
                "delete": _operation("deleteImage", "Forget an image.", {"204": {"description": "Forgotten."}}, 404),
            },
            "/images/{id}/masks": {"parameters": [image_id], "post": _masks(settings)},
            "/images/{id}/everything": {"parameters": [image_id], "post": _everything()},
            "/about": {"get": _operation("about", "Model and bounds.", {"200": _ok("About", None)})},
            "/v2/health/live": {"get": _operation("live", "The process is there.", {"200": {"description": "It is."}})},
            "/v2/health/ready": {
                "get": _operation("ready", "The model was warmed up.", {"200": {"description": "It was."}}, 503)
            },
            "/metrics": {
                "get": _operation(
                    "metrics", "Numbers for Prometheus.", {"200": {"description": "Text.", "content": {"text/plain": {}}}}
                )
            },
        },
        "components": {"schemas": _schemas(settings), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        **({"security": [{"token": []}]} if settings.token else {}),
    }


def _add_image(settings: ServeSettings) -> Json:
    picture = {"schema": {"type": "string", "format": "binary", "maxLength": settings.body_bytes}}
    about = (
        f"Embed a picture of at most {settings.pixels:,} pixels and keep it for {settings.image_seconds} s after its last use."
    )
    return {
        **_operation("addImage", about, {"201": _ok("Image", _IMAGE)}, 400, 408, 413, 429, 503),
        "requestBody": {
            "required": True,
            "content": dict.fromkeys(("image/jpeg", "image/png", "image/webp", "application/octet-stream"), picture),
        },
    }


def _masks(settings: ServeSettings) -> Json:
    answer = {"image": _IMAGE["id"], "results": [{"masks": [_MASK], "best": 0}], "times_ms": _TIMES}
    examples = {
        "a click": {"value": {"points": [[220, 400]], "labels": [1]}},
        "a click to add, one to remove": {"value": {"points": [[220, 400], [250, 120]], "labels": [1, 0], "output": "best"}},
        "two boxes": {"value": {"boxes": [[100, 10, 400, 500], [20, 30, 90, 120]], "output": "single", "format": "polygons"}},
        "a mask refined": {"value": {"points": [[220, 400]], "labels": [1], "mask": "q1w2e3r4", "output": "single"}},
    }
    about = "Masks of one prompt of points, of a box with points, or of each of several boxes."
    return {
        **_operation("masks", about, {"200": _ok("Masks", answer)}, 400, 404, 408, 413, 429, 503),
        "requestBody": _body("MasksRequest", examples),
    }


def _everything() -> Json:
    answer = {"image": _IMAGE["id"], "masks": [{**_MASK, "stability_score": 0.97, "point": [220, 400]}], "times_ms": _TIMES}
    examples = {"as it is": {"value": {}}, "a finer grid": {"value": {"points_per_side": 32, "format": "polygons"}}}
    about = "All masks that the model is sure of, found by a grid of clicks; the largest first."
    return {
        **_operation("everything", about, {"200": _ok("Everything", answer)}, 400, 404, 408, 413, 429, 503),
        "requestBody": {**_body("EverythingRequest", examples), "required": False},
    }


def _operation(name: str, summary: str, answers: Json, *faults: int) -> Json:
    refused = {
        str(status): {
            "description": "Refused.",
            "content": {"application/json": {"schema": _ref("Error"), "example": _error(*_ERRORS[status])}},
        }
        for status in (401, 403, *faults)
    }
    return {"operationId": name, "summary": summary, "responses": {**answers, **refused}}


def _error(code: str, message: str) -> Json:
    return {"error": {"code": code, "message": message, "request": "3f9c0a1b2c4d"}}


def _ok(schema: str, example: Json | None) -> Json:
    media: Json = {"schema": _ref(schema)}
    if example is not None:
        media["example"] = example
    return {"description": "Done.", "content": {"application/json": media}}


def _body(schema: str, examples: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema), "examples": examples}}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: tuple[str, ...] = (), *, closed: bool = False, **properties: Json) -> Json:
    found: Json = {"type": "object", "properties": properties}
    if required:
        found["required"] = list(required)
    if closed:
        found["additionalProperties"] = False
    return found


def _schemas(settings: ServeSettings) -> Json:
    number, text, whole = {"type": "number"}, {"type": "string"}, {"type": "integer"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    pair = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 2}
    four = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 4, "maxItems": 4}
    segmentation = {
        "description": "COCO's compressed RLE, polygons [x0, y0, x1, y1, ...], or a PNG in base64.",
        "type": ["object", "array", "string"],
    }
    mask: Json = {
        "score": {**number, "description": "Predicted IoU."},
        "area": {**whole, "description": "Pixels."},
        "bbox": {**four, "description": "x, y, width, height."},
        "segmentation": segmentation,
    }
    times = {"type": "object", "additionalProperties": number, "description": "Milliseconds by stage."}
    kept_mask = _object(("id", "score", "area", "bbox", "segmentation"), id={"type": ["string", "null"]}, **mask)
    result = _object(("masks", "best"), masks={"type": "array", "items": kept_mask}, best=whole)
    return {
        "Error": _object(("error",), error=_object(("code", "message", "request"), code=text, message=text, request=text)),
        "Image": _object(
            ("id", "height", "width", "expires", "expires_in_seconds"),
            id=text,
            height=whole,
            width=whole,
            expires={**text, "format": "date-time"},
            expires_in_seconds=whole,
            times_ms=times,
        ),
        "MasksRequest": _object(
            closed=True,
            points={"type": "array", "items": pair, "maxItems": settings.points, "description": "[x, y] in pixels."},
            labels={"type": "array", "items": {"enum": [0, 1]}, "description": "For each point, 1 to add and 0 to remove."},
            boxes={"type": "array", "items": four, "maxItems": settings.boxes, "description": "[x0, y0, x1, y1] in pixels."},
            mask={"type": ["string", "null"], "description": "Id of an earlier mask of this image, to be refined."},
            output={"enum": list(OUTPUTS), "default": OUTPUTS[0]},
            format={"enum": list(FORMATS), "default": FORMATS[0]},
            keep={"type": "boolean", "default": True, "description": "Whether later requests may name the masks."},
        ),
        "Masks": _object(("image", "results"), image=text, results={"type": "array", "items": result}, times_ms=times),
        "EverythingRequest": _object(
            closed=True,
            points_per_side={"type": "integer", "minimum": 1, "maximum": 64, "default": 16},
            pred_iou_thresh=share,
            stability_score_thresh=share,
            box_nms_thresh=share,
            format={"enum": list(FORMATS), "default": FORMATS[0]},
        ),
        "Everything": _object(
            ("image", "masks"),
            image=text,
            masks={
                "type": "array",
                "items": _object(("score", "area", "bbox", "segmentation"), **mask, stability_score=number, point=pair),
            },
            times_ms=times,
        ),
        "About": _object(
            ("version", "model", "executed"), version=text, model=text, executed=text, takes_masks={"type": "boolean"}
        ),
    }
