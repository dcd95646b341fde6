"""What a benchmark is asked for, and what it finds. Times are milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_sam.bench.stats import Latency, Ratio
from trt_sam.errors import InputError

__all__ = ["SCHEMA", "BenchmarkReport", "Plan", "PromptsResult", "SideReport", "SideSpec"]

SCHEMA = 2


@dataclass(frozen=True)
class SideSpec:
    """One side, and how its worker opens it."""

    name: str
    factory: str
    """"package.module:function" in the worker; it gets `settings` and returns a `bench.sides.BenchSide`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able arguments of the factory."""
    path: tuple[str, ...] = ()
    """Folders from which the worker may import besides its own."""
    only_prompts: tuple[int, ...] = ()
    """Numbers of prompts to time it with; empty is all of the plan."""
    not_here: str = ""
    """Why it cannot be measured on this machine; it is then listed with this reason and not started."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    prompts: tuple[int, ...] = (1, 4, 16)
    seconds: float = 60.0
    """Of timed calls, all sides and numbers of prompts together; slow calls exceed it, one per slice is the least."""
    rounds: int = 5
    warmup_s: float = 1.0
    """Per side and number of prompts, at least one call, after the first."""
    threads: int = 1
    """CPU threads of each side."""
    alone: bool = False
    """One side in memory at a time: each has all its rounds before the next is opened, instead of taking turns."""

    def __post_init__(self) -> None:
        if not self.prompts or any(n < 1 for n in self.prompts) or len(set(self.prompts)) != len(self.prompts):
            raise InputError(f"prompts are {list(self.prompts)}, must be different numbers from 1")
        for name, least in (("seconds", 0.0), ("warmup_s", 0.0)):
            if not getattr(self, name) >= least or getattr(self, name) == float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}, must be a number from 0")
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True)
class PromptsResult:
    """One side with one number of prompts. Times are milliseconds."""

    prompts: int
    not_measured: str = ""
    """Why there are no numbers; empty where there are."""
    first_call_ms: float | None = None
    warmup_calls: int = 0
    host_to_host: Latency | None = None
    prompts_per_second: float | None = None
    best_mask: Latency | None = None
    """Host to host, of calls that bring one mask per prompt to the host instead of all; None for sides without such calls."""
    best_bits: Latency | None = None
    """The same, of calls that give that mask as inside or outside, not as logits."""
    device: Latency | None = None
    """Between CUDA events on the GPU, without the copies to and from the host; `about` of the side says around what."""
    device_not_measured: str = ""
    round_medians_ms: tuple[float, ...] = ()
    logits_error: float | None = None
    """Largest difference of logits to the first side's, relative to its largest |logit|; None where that has none."""


@dataclass(frozen=True)
class SideReport:
    """One side."""

    name: str
    not_measured: str
    about: Mapping[str, str]
    """See `bench.sides.BenchSide`; "call" says what each time includes."""
    open_ms: float | None
    """Import, load and build, before the first call."""
    results: tuple[PromptsResult, ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that was measured, and how."""

    title: str
    created: str
    machine: Mapping[str, Any]
    clocks_idle: Mapping[str, Any]
    """Before anything ran; the load is that of others."""
    clocks_at_work: tuple[Mapping[str, Any], ...]
    """One per round, while a side worked: with "round", "side" and "prompts"."""
    plan: Plan
    calls: str
    """What one call is."""
    method: str
    sides: tuple[SideReport, ...]
    ratios: tuple[Ratio, ...]
    """Of every side to the baseline, all masks as logits."""
    bits_ratios: tuple[Ratio, ...] = ()
    """The same, the best mask as bits; of sides that have such calls."""
    schema: int = SCHEMA
    notes: tuple[str, ...] = ()
    profiles: tuple[Mapping[str, Any], ...] = ()
    """Where ONNX Runtime's time goes, by number of prompts (`_bench_profile.profile_graph`), where that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return dataclasses.asdict(self)
