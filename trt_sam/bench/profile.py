"""Where ONNX Runtime's time goes in a graph, by kind of node, from its own profile."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from trt_sam._lazy import require
from trt_sam.bench.feed import make_feed
from trt_sam.errors import InferenceError
from trt_sam.runtime.session import disabled_optimizers, session_options

__all__ = ["profile_graph"]

CALLS = 5
_CPU = ["CPUExecutionProvider"]
_LARGEST = 8


def profile_graph(
    path: str | os.PathLike[str], num_prompts: int, *, threads: int, prepare: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Run a decoder graph without mask input a few times on the CPU, as `OnnxRunner` would, under ONNX Runtime's profiler.

    A graph that takes an image's terms needs `prepare`, the graph that gives them; its time does not count.

    Returns "prompts", "calls", "node_ms" (the sum over nodes of their median times), "by_kind" and "largest": lists of
    dictionaries with "kind" or "node", "count", "ms" and "share", by time. Times hold the profiler's own cost, so shares say
    more than sums.

    Raises:
        InferenceError: the graph does not run on these inputs.
    """
    ort = require("onnxruntime", "to profile a graph")
    settings = session_options(threads)
    feed = make_feed(num_prompts)
    if prepare is not None:
        session = ort.InferenceSession(os.fspath(prepare), settings, providers=_CPU)
        terms = session.run(None, {"image_embeddings": feed.pop("image_embeddings")})
        feed |= dict(zip([each.name for each in session.get_outputs()], terms, strict=True))
    with tempfile.TemporaryDirectory(prefix="trt-sam-profile-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "ort")
        try:
            session = ort.InferenceSession(
                os.fspath(path), settings, providers=_CPU, disabled_optimizers=disabled_optimizers(_CPU)
            )
            for _ in range(CALLS + 1):
                session.run(None, feed)
        except Exception as error:  # onnxruntime has a class per status, all directly under Exception
            raise InferenceError(f"{path} cannot be profiled ({str(error).partition(chr(10))[0]})") from error
        events = json.loads(Path(session.end_profiling()).read_text())
    times, kinds = _node_times(events)
    # The first call allocates; it does not count.
    medians = {name: statistics.median(values[1:]) / 1000 for name, values in times.items() if len(values) > 1}
    total = sum(medians.values())
    by_kind: dict[str, list[float]] = defaultdict(list)
    for name, ms in medians.items():
        by_kind[kinds[name]].append(ms)
    return {
        "prompts": num_prompts,
        "calls": CALLS,
        "node_ms": total,
        "by_kind": _ranked("kind", {kind: (len(each), sum(each)) for kind, each in by_kind.items()}, total),
        "largest": _ranked("node", {f"{n} ({kinds[n]})": (1, ms) for n, ms in medians.items()}, total)[:_LARGEST],
    }


def _node_times(events: list[dict[str, Any]]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Microseconds of each node by call, and its kind."""
    times: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(event["dur"])
        kinds[name] = event["args"]["op_name"]
    return times, kinds


def _ranked(key: str, found: dict[str, tuple[int, float]], total: float) -> list[dict[str, Any]]:
    rows = [{key: name, "count": count, "ms": ms, "share": ms / total} for name, (count, ms) in found.items()]
    return sorted(rows, key=lambda row: -float(row["ms"]))
