"""Sessions of ONNX Runtime as every runner of a graph opens them, and what they say, in our words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_sam._lazy import require
from trt_sam.contract import TensorSpec
from trt_sam.errors import GraphError, InputError

__all__ = ["Providers", "disabled_optimizers", "open_session", "reason_in", "session_options", "specs_of"]

Providers = Sequence[str | tuple[str, Mapping[str, Any]]]
"""ONNX Runtime's execution providers, best first, each a name or a name with its options."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}
_TOO_NEW = re.compile(r"model IR version|official(ly)? support|Opset \d+ is under development", re.IGNORECASE)


def open_session(
    path: Path, threads: int | None, providers: Providers | None, *, emulate_quantization: bool
) -> tuple[Any, str]:
    """Open a graph as `OnnxRunner` does, which explains the arguments; gives the session and the name of its first provider.

    Raises:
        GraphError: no graph that can be loaded.
        InputError: a provider or the number of threads is impossible.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort = require("onnxruntime", "to run an ONNX graph")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, must be at least 1; leave it out for the cores of this process")
    wanted = list(providers or ["CPUExecutionProvider"])
    chosen = [_provider_name(each) for each in wanted]
    available = ort.get_available_providers()
    # ONNX Runtime would go on without a missing one, on the CPU and much slower.
    for name in chosen:
        if name not in available:
            raise InputError(f"provider {name} is not in this onnxruntime; it has {', '.join(available)}")
    settings = session_options(threads, emulate_quantization=emulate_quantization)
    try:
        session = ort.InferenceSession(
            os.fspath(path), settings, providers=wanted, disabled_optimizers=disabled_optimizers(chosen)
        )
    except Exception as error:  # onnxruntime has a class per status, all directly under Exception
        reason = reason_in(error)
        if _TOO_NEW.search(reason):
            raise GraphError(
                f"{path} is too new for onnxruntime {ort.__version__} ({reason}); get a newer one: "
                "pip install --upgrade 'onnxruntime>=1.20'"
            ) from None
        raise GraphError(f"{path} is not an ONNX graph that can be loaded ({reason}); export it again") from None
    if session.get_providers()[0] != chosen[0]:
        raise InputError(f"provider {chosen[0]} could not be started; check its CUDA and driver, or leave it out")
    return session, chosen[0]


def session_options(threads: int | None = None, *, emulate_quantization: bool = False) -> Any:
    """The `onnxruntime.SessionOptions` that `OnnxRunner` uses; its arguments are explained there."""
    settings = require("onnxruntime", "to run an ONNX graph").SessionOptions()
    settings.log_severity_level = 4  # errors come as exceptions; the log would say them twice, on stderr
    settings.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # Idle workers spin on their cores by default, and take them from whoever shares the machine: image encoder, service.
    # Seen on 2 cores with a training run beside: one prompt 57 ms without spinning, 96 ms with it.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern is one more block of memory beside the arena for each size of call that ever came. Seen: 8 prompts with masks
    # peak at 609 MB with it and 386 MB without, at the same processor time.
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.disable_quant_qdq", str(int(emulate_quantization)))
    return settings


def disabled_optimizers(providers: Sequence[str]) -> list[str]:
    """ONNX Runtime's graph rewrites that `OnnxRunner` leaves out, for `InferenceSession(disabled_optimizers=...)`."""
    # The CPU's fused Add and LayerNormalization goes through a row one number at a time; apart they are vectorized. Seen with
    # ONNX Runtime 1.32, 2 threads: 8.5 of 43 ms in the one node of 4096 x 256, one prompt 26 ms with it, 21 ms without.
    # Likewise BiasGelu: 1.0 ms for 2 million values; sixteen prompts take 182 ms without it, 185 ms with it.
    return ["SkipLayerNormFusion", "BiasGeluFusion"] if providers[0] == "CPUExecutionProvider" else []


def specs_of(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The session's tensors as specs; a dimension without a name or number is "?"."""
    return tuple(
        TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple("?" if d is None else d for d in node.shape))
        for node in nodes
    )


def reason_in(error: BaseException) -> str:
    """The first line of ONNX Runtime's message, at most 200 characters, without its status, our path and its source's place."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(r"^Load model from .* failed: ?", "", line)
    # "/onnxruntime_src/.../model.cc:179 onnxruntime::Model::Model(...) Unsupported ...": what is said comes last.
    return re.sub(r"^\S+\.(?:cc|cpp|h|hpp):\d+ .*?\) (?=[A-Z])", "", line)[:200]


def _provider_name(provider: Any) -> str:
    name, options = provider if isinstance(provider, tuple) and len(provider) == 2 else (provider, {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise InputError(f"provider {provider!r} is neither a name nor (name, {{option: value}}); give one of both")
    return name
