"""The whole path on this machine: the stand-in exported, built and compared in FP32 and FP16 with every TensorRT found.

A step that cannot run here is reported as not run, with the reason; it is never counted as passed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import install_command
from trt_sam.accuracy.metrics import decibels
from trt_sam.accuracy.sides import open_side
from trt_sam.engine.engine_set import GraphSource, build_set, copy_graph
from trt_sam.engine.flavour import Flavour, available_flavours
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import InputError, TrtSamError
from trt_sam.gate.comparison import Questions, compare_with
from trt_sam.gate.fitting import LeftOut, fitting
from trt_sam.gate.golden import Golden, load_golden, shipped_golden
from trt_sam.gate.limits import DEFAULTS
from trt_sam.gate.questions import golden_questions
from trt_sam.gate.report.text import to_dict
from trt_sam.gate.verdict import FAIL
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.machine.report import MachineReport, examine
from trt_sam.recipe import EXPORT_PRECISIONS, EngineRecipe, GraphOptions

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["SelftestReport", "Step", "run_selftest"]

PROMPTS = 12
"""Three of each kind, in feeds of 1, 4, 2 and 5 prompts."""

_STANDIN = "standin"
_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Step:
    """One thing that was tried."""

    name: str
    status: str
    """"passed", "failed" or "not run"."""
    detail: str
    """What was seen, why it failed, or why it did not run."""
    seconds: float
    comparison: dict[str, Any] | None = None
    """The `ComparisonReport` where the step was one."""


@dataclass(frozen=True)
class SelftestReport:
    """Everything that is worth attaching to an issue."""

    device: str
    """"cpu" or "cuda:N"."""
    machine: MachineReport
    steps: tuple[Step, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no step failed; steps that were not run do not fail it, and the verdict names them."""
        return not any(step.status == "failed" for step in self.steps)

    @property
    def engines_executed(self) -> bool:
        """Whether any engine was really executed, and agreed."""
        return any(step.name.startswith("execute") and step.status == "passed" for step in self.steps)

    def verdict(self) -> str:
        """One line."""
        count = {status: sum(step.status == status for step in self.steps) for status in ("passed", "failed", "not run")}
        counts = f"{count['passed']} steps passed, {count['failed']} failed, {count['not run']} not run"
        executed = "engines were executed" if self.engines_executed else "engine execution was NOT tested"
        failed = ", ".join(step.name for step in self.steps if step.status == "failed")
        return f"{'PASSED' if self.passed else f'FAILED ({failed})'}: {counts}; {executed}; {self.seconds:.0f} s"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        head = {"verdict": self.verdict(), "passed": self.passed, "engines_executed": self.engines_executed}
        return {**head, **asdict(self)}


def run_selftest(device: str | None = None, *, on_step: Callable[[Step], None] | None = None) -> SelftestReport:
    """Run everything in a temporary folder, which is removed again whatever happens.

    Args:
        device: "cpu" executes no engine; "cuda:N" demands that GPU; None takes the first GPU where there is one.
        on_step: called with each step when it is done.

    Raises:
        InputError: another `device`, or no such GPU.
        TrtSamError: the stand-in cannot be loaded here.
    """
    started = time.perf_counter()
    number = _gpu_number(device)
    machine = examine()
    with tempfile.TemporaryDirectory(prefix="trt-sam-selftest-") as name, _torch_cache_in(Path(name)):
        trial = _Trial(Path(name), number, on_step or (lambda _: None))
        trial.run()
    where = "cpu" if number is None else f"cuda:{number}"
    return SelftestReport(where, machine, tuple(trial.steps), round(time.perf_counter() - started, 1))


@contextlib.contextmanager
def _torch_cache_in(folder: Path) -> Iterator[None]:
    """Let the exporter's cache folder be made in `folder`, unless the user has chosen a place."""
    if _TORCH_CACHE in os.environ:
        yield
        return
    os.environ[_TORCH_CACHE] = str(folder / "torch")
    try:
        yield
    finally:
        os.environ.pop(_TORCH_CACHE, None)


def _gpu_number(device: str | None) -> int | None:
    """The GPU to execute on, None for the CPU."""
    if device is None:
        return 0 if gpu_compute_capability(0) is not None else None
    if device == "cpu":
        return None
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise InputError(f"--device is {device!r}, must be cpu or cuda:N with N from 0")
    if gpu_compute_capability(int(number)) is None:
        raise InputError(f"--device is {device}, but the driver knows no such GPU; see trt-sam doctor, or use --device cpu")
    return int(number)


class _NotRun(Exception):  # noqa: N818 - not an error: the step cannot be tried here
    """Raised in a step with the reason."""


@dataclass
class _Trial:
    folder: Path
    gpu: int | None
    on_step: Callable[[Step], None]
    steps: list[Step] = field(default_factory=list)

    def run(self) -> None:
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(_STANDIN)
        path = shipped_golden(checkpoint.sha256)
        assert path is not None, "the stand-in's golden data belong to the package"
        golden = load_golden(path)
        flavours = available_flavours()
        for precision in EXPORT_PRECISIONS:
            self._try_precision(checkpoint, golden, precision, flavours)
        if not flavours:
            with self._step("build engines"):
                raise _NotRun(f"no TensorRT is installed: {install_command(['tensorrt_rtx'])}")

    def _try_precision(self, checkpoint: Checkpoint, golden: Golden, precision: str, flavours: tuple[Flavour, ...]) -> None:
        from trt_sam.graph.export import export_decoder

        options = GraphOptions(precision=precision, target="gpu")
        graph = self.folder / f"{precision}.onnx"
        with self._step(f"export {precision}") as note:
            report = export_decoder(checkpoint.decoder, graph, options, checkpoint_sha256=checkpoint.sha256)
            note(f"{graph.stat().st_size / 1e6:.1f} MB, relative logit error {max(row.error for row in report.parity):.1e}")
        if not graph.exists():
            return
        with self._step(f"compare {precision} graph with PyTorch") as note:
            self._compare(golden, str(graph), note)
        for flavour in flavours:
            self._try_flavour(golden, graph, EngineRecipe(graph=options), flavour)

    def _try_flavour(self, golden: Golden, graph: Path, recipe: EngineRecipe, flavour: Flavour) -> None:
        label = f"{graph.stem} engine, {flavour.title}"
        output = self.folder / f"{graph.stem}-{flavour.name}"
        with self._step(f"build {label}") as note:
            if flavour.needs_gpu_to_build and self.gpu is None:
                raise _NotRun("it builds on a GPU only, and none is used")
            gpu = (self.gpu or 0) if flavour.needs_gpu_to_build else 0
            (build,) = build_set([GraphSource(copy_graph(graph))], recipe, output, flavour=flavour, device=gpu).builds
            kernels = f", {build.kernels[0].kernels} kernels" if build.kernels else ""
            note(f"{len(build.engine) / 1e6:.1f} MB in {build.seconds:.1f} s{kernels}")
        with self._step(f"execute {label}") as note:
            if self.gpu is None:
                raise _NotRun("no GPU is used" if gpu_compute_capability(0) else "this machine has no NVIDIA GPU or driver")
            if not output.exists():
                raise _NotRun("it was not built")
            try:
                open_manifest(output).check_fits(flavour, gpu_compute_capability(self.gpu))
            except TrtSamError as error:
                raise _NotRun(str(error)) from error
            self._compare(golden, str(output), note)

    def _compare(self, golden: Golden, source: str, note: _Note) -> None:
        """Against PyTorch's answers in float64 that are in the package."""
        other = open_side(source, device=self.gpu or 0)
        with other.runner:
            found = golden_questions(golden, PROMPTS)
            left_out = LeftOut()
            questions = Questions(fitting(found.examples, [other], left_out), found.description, left_out=left_out)
            about = (golden.checkpoint, "PyTorch in float64", golden.checkpoint_sha256)
            comparison = compare_with(None, [other], questions, DEFAULTS, about=about)
        note.comparison = to_dict(comparison)
        judged = comparison.candidates[0]
        logits = judged.figures.outputs["low_res_masks"]
        sqnr = decibels(logits.signal, logits.noise)
        missed = [check.sentence for check in judged.verdict.checks if check.status == FAIL]
        note(
            f"{other.executed_by}: relative logit error {logits.error:.1e}, SQNR {sqnr:.0f} dB, "
            f"mean mask IoU {judged.figures.iou.mean():.5f}" + "".join(f"; {each}" for each in (*missed, *comparison.left_out))
        )
        note.failed = bool(missed)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[_Note]:
        """Record what the block notes; a failure in it is the step's, whatever it is, and the next step goes on."""
        started, note = time.perf_counter(), _Note()
        try:
            yield note
            status = "failed" if note.failed else "passed"
        except _NotRun as reason:
            status, note.detail = "not run", str(reason)
        except TrtSamError as error:
            status, note.detail = "failed", " ".join(str(error).split())
        except Exception as error:
            status, note.detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        step = Step(name, status, note.detail, round(time.perf_counter() - started, 1), note.comparison)
        self.steps.append(step)
        self.on_step(step)


@dataclass
class _Note:
    detail: str = ""
    failed: bool = False
    comparison: dict[str, Any] | None = None

    def __call__(self, detail: str) -> None:
        self.detail = detail
