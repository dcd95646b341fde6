"""`Worker`: what runs on each GPU or core of the cluster, a set of its own in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_sam._version import __version__
from trt_sam.cluster.photo import Task
from trt_sam.cluster.plan import Shard
from trt_sam.cluster.shard import Done, do_shard
from trt_sam.engine.manifest import ONNX_RUNTIME, open_manifest
from trt_sam.errors import InputError
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.onnx_encoder import OnnxEncoder
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.set_graphs import graphs_of_set

__all__ = ["Worker", "files_of_set", "runs_on_gpu"]


class Worker:
    """Opens the set that came with it; does one shard after the other."""

    def open(self, files: Mapping[str, bytes], version: str) -> str:
        """Write the set's `files` into a folder of this machine and open it; gives the machine's name.

        Raises:
            InputError: another version of this package is installed here.
            TrtSamError: the set cannot be opened.
        """
        machine = os.uname().nodename
        if version != __version__:
            raise InputError(f"{machine} has trt-sam {__version__}, the caller {version}; install the same on all machines")
        self._folder = tempfile.TemporaryDirectory(prefix="trt-sam-worker-")
        folder = Path(self._folder.name)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self._runner: Runner
        self._encoder: Any
        if runs_on_gpu(folder):
            from trt_sam.runner import DecoderRunner

            self._runner = DecoderRunner.open(folder)
            self._encoder = OnnxEncoder(graphs_of_set(folder)["encode"])
        else:
            # Ray says with this variable how many cores a worker has.
            threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
            self._runner = self._encoder = OnnxRunner(folder, threads=threads)
        return machine

    def do(self, photos: str, shard: Shard, task: Task) -> Done:
        """As `do_shard`."""
        return do_shard(self._runner, lambda _, image: self._encoder.embed(image), Path(photos), shard, task)


def files_of_set(folder: Path) -> dict[str, bytes]:
    """The files of a set with an image encoder, by name, each checked against its hash.

    Raises:
        ManifestError: it is damaged.
        InputError: it has no image encoder.
    """
    manifest = open_manifest(folder)
    if all(graph.role != "encode" for graph in manifest.graphs):
        raise InputError(
            f"set {folder} has no image encoder, and photos have to be embedded; write it again with "
            f"{manifest.command(encoder=True)}"
        )
    names = ["manifest.json", *(file.name for graph in manifest.graphs for file in graph.files)]
    return {name: (manifest.folder / name).read_bytes() for name in names}


def runs_on_gpu(folder: Path) -> bool:
    """Whether the set has engines."""
    return open_manifest(folder, verify=False).flavour != ONNX_RUNTIME
