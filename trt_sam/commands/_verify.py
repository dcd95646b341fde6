"""The end of `build` where the GPU is that was built for: the engines are judged by golden data, as by `compare --golden`.

They are judged in the folder where they were built, before they are installed. Engines that miss a limit are not installed, an
older set stays as it was, and `build` ends with exit code 1; `--no-verify` installs them, to be looked at with `compare`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._json import strict
from trt_sam.commands._limits import limits_of
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.manifest import GraphEntry, Manifest
from trt_sam.errors import BuildError, InferenceError, InputError, ManifestError, MissingDependencyError
from trt_sam.graph.advice import WRITE_GOLDEN
from trt_sam.machine.driver import gpu_compute_capability, gpu_model
from trt_sam.progress import Progress, Stages

if TYPE_CHECKING:
    from trt_sam.gate.comparison import Candidate, Comparison
    from trt_sam.gate.golden import Golden
    from trt_sam.gate.limits import Limits

__all__ = ["GoldenVerifier", "VerdictError", "add_verify_arguments", "verifier_of"]

_DECODERS = ("decode", "decode_mask")
_UNJUDGED = "--no-verify installs the set unjudged"


class VerdictError(BuildError):
    """A built engine misses a limit: exit code 1, as of `compare`."""


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the judgement at the end."""
    group = parser.add_argument_group("judging what was built, where its GPU is")
    group.add_argument(
        "--golden",
        metavar="G.npz",
        type=Path,
        help="judge by this file of trt-sam golden (default: that of the checkpoint in the package)",
    )
    group.add_argument("--limits", metavar="F.toml", type=Path, help="limits to judge by, as for compare")
    group.add_argument("--no-verify", action="store_true", help="install the set without judging it")


def verifier_of(args: argparse.Namespace, flavour: Flavour, stages: Stages) -> GoldenVerifier:
    """What judges by these flags.

    Raises:
        InputError: flags that exclude each other, a file that cannot be read, or no GPU to judge on though --golden is given.
    """
    if args.no_verify and (args.golden or args.limits):
        raise InputError(
            f"--no-verify judges nothing, so {'--golden' if args.golden else '--limits'} is of no use; leave one out"
        )
    golden = None
    if args.golden is not None:
        if gpu_compute_capability(args.device) is None:
            command = shlex.join(["trt-sam", "compare", "--golden", str(args.golden), str(args.output / "decoder.onnx")])
            raise InputError(
                f"--golden judges the built engine on GPU {args.device}, and there is none; leave it out, and judge the graph "
                f"afterwards with {command}"
            )
        from trt_sam.gate.golden import load_golden

        golden = load_golden(args.golden)
    return GoldenVerifier(flavour, args.device, args.output, limits_of(args), golden, stages, not args.no_verify)


@dataclass(frozen=True)
class GoldenVerifier:
    """A `Verifier` by golden data."""

    flavour: Flavour
    device: int
    output: Path
    """Where the set will lie: what people are told instead of the folder that it is judged in."""
    limits: Mapping[str, Limits]
    golden: Golden | None
    """What was asked for; None for that in the package."""
    stages: Stages
    """With "verify"."""
    wanted: bool = True

    def check(self, checkpoint_sha256: str) -> None:
        """Raise InputError where the golden data that were asked for are of another checkpoint."""
        if self.golden is not None:
            from trt_sam.gate.by_golden import check_checkpoint

            check_checkpoint(self.golden, f"what is built for {self.output}", checkpoint_sha256)

    def verify(self, staged: Manifest) -> Manifest:
        """Judge every decoder of the set.

        Raises:
            VerdictError: one misses a limit.
            BuildError: one does not run.
            InputError: the golden data that were asked for cannot judge it.
        """
        if reason := self._why_not(staged):
            return self._not_verified(staged, reason)
        golden = self._golden_of(staged)
        if golden is None:
            return self._not_verified(
                staged,
                f"there are no golden data of its checkpoint; write some with {WRITE_GOLDEN} and give --golden GOLDEN.npz",
            )
        judged: dict[str, Comparison] = {}
        for graph in staged.graphs:
            if graph.role in _DECODERS:
                progress = self.stages.begin("verify", f"judging {graph.engine_name} by golden data")
                try:
                    judged[graph.role] = self._judge(staged, graph, golden, progress)
                except (InferenceError, ManifestError) as error:
                    words = str(error).replace(str(staged.folder), str(self.output))
                    raise BuildError(f"the built engine {graph.engine_name} does not run: {words}; {_UNJUDGED}") from error
                except (InputError, MissingDependencyError) as error:
                    if self.golden is not None:
                        raise
                    return self._not_verified(staged, str(error).replace(str(staged.folder), str(self.output)))
        return self._told(staged, golden, judged)

    def _told(self, staged: Manifest, golden: Golden, judged: Mapping[str, Comparison]) -> Manifest:
        """The manifest by the verdicts; raises VerdictError where one is a failure."""
        from trt_sam.gate.verdict import FAIL

        place = Path(golden.path).name
        missed = {
            role: "; ".join([*(check.sentence for check in candidate.verdict.missed), *comparison.left_out])
            for role, comparison in judged.items()
            for candidate in comparison.candidates
            if not candidate.verdict.passed
        }
        words = "; ".join(f"{role}: {sentences}" for role, sentences in missed.items())
        if any(candidate.verdict.status == FAIL for each in judged.values() for candidate in each.candidates):
            raise VerdictError(
                f"the built engines fail by golden data {place} and are not installed ({words}); {_UNJUDGED}, to be looked at "
                f"with {shlex.join(['trt-sam', 'compare', '--golden', str(golden.path), str(self.output), '--report', 'DIR'])}"
            )
        if missed:
            return self._not_verified(staged, f"golden data {place} are too few prompts to tell ({words})")
        return replace(
            staged,
            verified=strict(
                {
                    "golden": {"file": place, "sha256": golden.sha256, "checkpoint": golden.checkpoint},
                    "prompts": min(comparison.prompts for comparison in judged.values()),
                    "left_out": list(dict.fromkeys(told for comparison in judged.values() for told in comparison.left_out)),
                    "gpu": gpu_model(self.device) or f"GPU {self.device}",
                    "graphs": {role: _figures(comparison.candidates[0]) for role, comparison in judged.items()},
                    "not_judged": [graph.role for graph in staged.graphs if graph.role not in judged],
                }
            ),
        )

    def _why_not(self, staged: Manifest) -> str:
        """Why the engines cannot be judged here, in words; empty where they can."""
        if not self.wanted:
            return "--no-verify was given"
        here = gpu_compute_capability(self.device)
        if here is None:
            return "there was no GPU to run it on"
        try:
            staged.check_fits(self.flavour, here)
        except ManifestError as error:
            if self.golden is not None:
                raise InputError(
                    f"--golden judges the built engine on GPU {self.device}, whose compute capability is {here}, and it was "
                    f"built for {', '.join(staged.compute_capabilities) or 'others'}; leave --golden out, or build for {here}"
                ) from error
            return f"it was not built for the GPU of this machine, whose compute capability is {here}"
        return ""

    def _golden_of(self, staged: Manifest) -> Golden | None:
        if self.golden is not None:
            return self.golden
        from trt_sam.gate.golden import load_golden, shipped_golden

        path = shipped_golden(staged.graphs[0].checkpoint_sha256)
        return None if path is None else load_golden(path)

    def _judge(self, staged: Manifest, graph: GraphEntry, golden: Golden, progress: Progress) -> Comparison:
        from trt_sam.accuracy.sides import open_side
        from trt_sam.gate.by_golden import about_golden, check_checkpoint
        from trt_sam.gate.comparison import Questions, compare_with
        from trt_sam.gate.fitting import LeftOut, fitting, refuse_calibration_images
        from trt_sam.gate.questions import golden_questions

        opened = open_side(str(staged.folder / graph.engine_name), device=self.device)
        side = replace(opened, source=str(self.output / graph.engine_name))
        try:
            check_checkpoint(golden, side.source, side.checkpoint_sha256)
            found = golden_questions(golden, golden.prompts)
            left_out = LeftOut()
            fits = fitting(found.examples, [side], left_out)
            asked = refuse_calibration_images(fits, {side.source: side.calibration_images})
            return compare_with(
                None,
                [side],
                Questions(asked, found.description, left_out=left_out),
                self.limits,
                about=about_golden(golden),
                progress=lambda done: progress(done / golden.prompts, f"{done} prompts"),
            )
        finally:
            side.runner.close()

    def _not_verified(self, staged: Manifest, reason: str) -> Manifest:
        return replace(staged, not_verified=reason)


def _figures(candidate: Candidate) -> dict[str, Any]:
    """Every check by its name in the limits."""
    return {
        "verdict": candidate.verdict.status,
        "limits_of": candidate.limits_of,
        "executed_by": candidate.executed_by,
        "figures": {check.name: check.value for check in candidate.verdict.checks},
        "limits": {check.name: check.limit for check in candidate.verdict.checks},
    }
