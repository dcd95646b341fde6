"""What Triton's Python backend gives a model, and tensors in and out of numpy."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import InferenceError, TrtSamError
from trt_sam.serve.faults import Refusal

__all__ = ["Array", "answered", "input_array", "parameter", "response", "utils", "version_folder"]

Array = npt.NDArray[Any]

_log = logging.getLogger(__name__)


def utils() -> Any:
    """Triton's own module, which only its server can import."""
    return importlib.import_module("triton_python_backend_utils")


def version_folder(args: Mapping[str, str]) -> Path:
    """The folder of this version of the model."""
    return Path(args["model_repository"]) / args["model_version"]


def parameter(args: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of config.pbtxt's parameters."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return int(parameters.get(name, {}).get("string_value", default))


def input_array(request: Any, name: str) -> Array | None:
    """An input as numpy; None where the client left it out."""
    tensor = utils().get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def response(arrays: Mapping[str, Array], wanted: Sequence[str]) -> Any:
    """The answer with those outputs that were asked for."""
    found = [utils().Tensor(name, np.ascontiguousarray(arrays[name])) for name in arrays if name in wanted]
    return utils().InferenceResponse(output_tensors=found)


def answered(requests: Sequence[Any], answer: Callable[[Any], Any]) -> list[Any]:
    """`answer` to each request; what is wrong with one is the error of that one."""
    triton, answers = utils(), []
    for request in requests:
        try:
            answers.append(answer(request))
        except TrtSamError as error:
            line = " ".join(str(error).split())
            code = triton.TritonError.INTERNAL if isinstance(error, InferenceError) else triton.TritonError.INVALID_ARG
            if isinstance(error, Refusal) and error.status == 404:
                code = triton.TritonError.NOT_FOUND
            answers.append(triton.InferenceResponse(error=triton.TritonError(line, code)))
        except Exception:
            _log.exception("a request failed")
            answers.append(triton.InferenceResponse(error=triton.TritonError("internal error; the server's log has it")))
    return answers
