"""`manifest.json`: what was built, from what, by what and for which GPUs; written last, and read before anything else.

A folder without a manifest is no engine set, whatever else lies in it. Needs numpy and the standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_sam._files import write_atomically
from trt_sam.contract import MANIFEST_NAME
from trt_sam.engine import manifest_json as parsing
from trt_sam.engine.flavour import NAMES, Flavour, distribution, title
from trt_sam.engine.manifest_entries import ROLES, FileEntry, GraphEntry, graph_entry
from trt_sam.errors import InputError, ManifestError
from trt_sam.graph.advice import BUILD_SET, command_of_set
from trt_sam.machine.driver import RTX_GPUS, rtx_runs_on
from trt_sam.recipe import EngineRecipe

__all__ = [
    "CACHE_SUFFIX",
    "MANIFEST_NAME",
    "ONNX_RUNTIME",
    "ROLES",
    "SCHEMA",
    "FileEntry",
    "GraphEntry",
    "Manifest",
    "open_manifest",
    "write_manifest",
]

CACHE_SUFFIX = ".rtx-cache"
"""TensorRT-RTX's compiled kernels lie beside the engine: decoder.engine.rtx-cache. It may be deleted at any time."""
SCHEMA = 1
"""Raised when an older reader would misunderstand; new keys alone do not raise it, readers skip what they do not know."""
ONNX_RUNTIME = "onnxruntime"
"""Stands as the flavour of a set of graphs alone, without engines."""


@dataclass(frozen=True)
class Manifest:
    """An engine set."""

    folder: Path
    graphs: tuple[GraphEntry, ...]
    recipe: EngineRecipe
    flavour: str
    """"tensorrt_rtx" or "tensorrt"; "onnxruntime" where there are no engines."""
    flavour_version: str
    target: str = "gpu"
    compute_capabilities: tuple[str, ...] = ()
    """GPUs it was built for; empty is RTX's default, all that RTX supports from 8.0."""
    calibration: str | None = None
    """That of the first graph; older manifests have no other."""
    gpu_model: str | None = None
    """The GPU that TensorRT 10 or 11 timed its kernels on; None where none was needed, and in older manifests."""
    verified: Mapping[str, Any] | None = None
    """How the engines were judged on a GPU by golden data, with figures, where they passed; None where they were not."""
    not_verified: str = ""
    """Why not; empty where they were, and in older manifests."""
    created: Mapping[str, Any] = field(default_factory=dict)
    """Time (UTC), trt_sam's version, build seconds and machine; for people, nothing depends on it."""

    def graph(self, role: str) -> GraphEntry:
        """The graph with `role`; raises ManifestError where the set has none."""
        for graph in self.graphs:
            if graph.role == role:
                return graph
        held = ", ".join(graph.role for graph in self.graphs)
        raise ManifestError(f"engine set {self.folder} has no {role!r} graph, only {held}; build one that has it")

    def read(self, file: FileEntry) -> bytes:
        """The bytes of `file`, checked against the manifest: what is returned is what was built.

        Raises:
            ManifestError: the file is missing, unreadable or was changed.
        """
        path = self.folder / file.name
        again = f"write the set again with {self.command()}"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ManifestError(f"{file.name} is missing from engine set {self.folder}; {again}") from None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}; make it readable, or {again}") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != file.sha256:
            raise ManifestError(
                f"{path} is not the file that was built: its SHA-256 starts with {digest[:12]}, the manifest says "
                f"{file.sha256[:12]}; {again}"
            )
        return data

    def command(self, **instead: Any) -> str:
        """The command that writes the set again, or with `instead` one that is otherwise, as `graph.advice.command_of_set`."""
        return command_of_set(self.folder, self.to_dict(), **instead)

    def verify(self) -> None:
        """Read every file and compare it with its hash; raises ManifestError as `read` does."""
        for graph in self.graphs:
            for file in graph.files:
                self.read(file)

    def engine(self, graph: GraphEntry) -> FileEntry:
        """The engine of one of the graphs; raises ManifestError where the set has graphs alone."""
        if graph.engine is None:
            raise ManifestError(
                f"set {self.folder} holds graphs for ONNX Runtime and no engine; open it with OnnxRunner, or build engines in "
                f"its place with {self.command(engines=True)}"
            )
        return graph.engine

    def check_fits(self, flavour: Flavour, compute_capability: str | None) -> None:
        """Raise unless this TensorRT, and this GPU where it is known ("8.9"), can run the engines.

        Raises:
            ManifestError: another flavour, version or GPU; the message says what to install or build.
        """
        for graph in self.graphs:
            self.engine(graph)
        built = title(self.flavour, self.flavour_version)
        again = f"build again with {self.command(backend=flavour.backend)}"
        if flavour.name != self.flavour:
            raise ManifestError(f"engine set {self.folder} was built by {built} and cannot run on {flavour.title}; {again}")
        if not self.takes_version(flavour.version):
            pip = f"pip install {distribution(self.flavour)}=={self.flavour_version}"
            raise ManifestError(f"engine set {self.folder} was built by {built}, this is {flavour.version}; {pip}, or {again}")
        if compute_capability is not None and not self._takes_gpu(compute_capability):
            gpus = ", ".join(self.compute_capabilities) or f"the GPUs that TensorRT-RTX supports ({RTX_GPUS})"
            # TensorRT-RTX lists 7.5, too, and cannot compile these graphs' float32 products for it.
            builds = compute_capability in flavour.compute_capabilities and rtx_runs_on(compute_capability)
            choose = compute_capability if builds else None
            backend = flavour.backend if choose or not flavour.compute_capabilities else "tensorrt"
            raise ManifestError(
                f"engine set {self.folder} was built for compute capability {gpus}, this GPU is {compute_capability}; "
                f"build again with {self.command(backend=backend, compute_capability=choose)}"
            )

        too_old = compute_capability is not None and parsing.version_numbers(compute_capability) < (8, 9)
        if too_old and any(graph.options.precision == "fp8" for graph in self.graphs):
            raise ManifestError(
                f"engine set {self.folder} is FP8, which needs compute capability 8.9; this GPU is {compute_capability}; "
                f"build it in FP16 with {self.command(precision='fp16')}"
            )

    def takes_version(self, version: str) -> bool:
        """Whether that version of the same TensorRT runs the engines: their own, or a newer one where the recipe allows it."""
        ours, theirs = parsing.version_numbers(self.flavour_version), parsing.version_numbers(version)
        if not self.recipe.version_compatible:
            return ours == theirs
        return ours[:1] == theirs[:1] and theirs >= ours

    def other_model(self, gpu_model: str | None) -> str:
        """What to say where the engines were tuned for another GPU model than this; empty where there is nothing to say.

        NVIDIA warns of slower kernels, and of failures, where an engine runs on another model of its compute capability.
        """
        portable = self.recipe.any_model or self.recipe.hardware_compatible
        if portable or not self.gpu_model or gpu_model in (None, self.gpu_model):
            return ""
        return (
            f"engine set {self.folder} was built on {self.gpu_model}, this is {gpu_model}: it may be slow or fail here; build "
            "it again on this GPU, or from a recipe with any_model = true"
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON-able data, as the file holds it."""
        data = dataclasses.asdict(dataclasses.replace(self, folder=Path()))
        del data["folder"]
        for graph, entry in zip(data["graphs"], self.graphs, strict=True):
            graph["kernels"] = [summary.to_dict() for summary in entry.kernels]
            graph["limits"] = {name: list(bounds) for name, bounds in entry.limits.items()}
        tensorrt = {"flavour": data.pop("flavour"), "version": data.pop("flavour_version")}
        return {"schema": SCHEMA, "tensorrt": tensorrt, **data, "recipe": self.recipe.to_dict(), "created": dict(self.created)}

    def _takes_gpu(self, compute_capability: str) -> bool:
        if compute_capability in self.compute_capabilities:
            return True
        if self.flavour == "tensorrt_rtx":
            return not self.compute_capabilities and rtx_runs_on(compute_capability)
        return self.recipe.hardware_compatible and parsing.version_numbers(compute_capability) >= (8, 0)


def write_manifest(manifest: Manifest) -> Path:
    """Write `manifest.json` into the manifest's folder, atomically; from then on the set counts. Returns its path.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
        ManifestError: the manifest would not be accepted when read again.
    """
    text = json.dumps(manifest.to_dict(), indent=2, allow_nan=False) + "\n"
    _parse(manifest.folder, text)
    path = manifest.folder / MANIFEST_NAME
    write_atomically(path, text)
    return path


def open_manifest(folder: str | os.PathLike[str], *, verify: bool = True) -> Manifest:
    """Read the manifest of the engine set in `folder` (or of a manifest file), and with `verify` check every file's hash.

    Raises:
        ManifestError: there is no manifest, it is damaged or of a newer schema, or a file is missing or was changed.
    """
    folder = Path(folder)
    if folder.name == MANIFEST_NAME and not folder.is_dir():
        folder = folder.parent
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(_no_set(folder)) from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path} is not text; write the set again with {command_of_set(folder, None)}") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    manifest = _parse(folder, text)
    if verify:
        manifest.verify()
    return manifest


def _no_set(folder: Path) -> str:
    """What to say of a folder, or another path, without a manifest."""
    if folder.is_file():
        its = (
            f"give its folder, {folder.parent}" if (folder.parent / MANIFEST_NAME).is_file() else f"build one with {BUILD_SET}"
        )
        return f"{folder} is no engine set: it is a file; {its}"
    command = command_of_set(folder, None, engines=True)
    return f"{folder} is no engine set: it has no {MANIFEST_NAME}; build one with {command}"


def _parse(folder: Path, text: str) -> Manifest:
    path = folder / MANIFEST_NAME
    data: Any = None
    try:
        data = json.loads(text)
        parsing.check_schema(data, SCHEMA, path)
        tensorrt = parsing.table(data, "tensorrt")
        calibration = parsing.optional_text(data, "calibration")
        graphs = tuple(graph_entry(item, calibration) for item in parsing.items(data, "graphs"))
        roles = [graph.role for graph in graphs]
        if not roles or len(set(roles)) != len(roles):
            raise ValueError(f"graphs have the roles {roles}, must be at least one and each once")
        flavour = parsing.choice(tensorrt, "flavour", (*NAMES, ONNX_RUNTIME))
        for graph in graphs:
            if (graph.engine is None) != (flavour == ONNX_RUNTIME):
                raise ValueError(f"graph {graph.role} has {'no' if graph.engine is None else 'an'} engine, for {flavour}")
        return Manifest(
            folder=folder,
            graphs=graphs,
            recipe=parsing.recipe(parsing.table(data, "recipe")),
            flavour=flavour,
            flavour_version=parsing.text(tensorrt, "version"),
            target=parsing.choice(data, "target", ("cpu", "gpu")),
            compute_capabilities=tuple(parsing.strings(data, "compute_capabilities")),
            calibration=calibration,
            gpu_model=parsing.optional_text(data, "gpu_model"),
            verified=None if data.get("verified") is None else parsing.table(data, "verified"),
            not_verified=parsing.text(data, "not_verified", empty=True) if "not_verified" in data else "",
            created=parsing.table(data, "created"),
        )
    except (ValueError, TypeError, RecursionError, InputError) as error:
        again = f"write the set again with {command_of_set(folder, data)}"
        raise ManifestError(f"{path} is damaged ({error}); {again}") from error
