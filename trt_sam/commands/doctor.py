"""Say what this machine has and can do, from GPU and driver to TensorRT and torch, and what to install for the rest.

It initialises nothing but the driver's own list of GPUs. A package that is installed but does not import is shown with its
error.

Example:
  trt-sam doctor --json doctor.json
"""

from __future__ import annotations

import argparse

from trt_sam.commands._options import add_json_argument, write_json
from trt_sam.machine.report import MachineReport, examine

HELP = "what this machine can do, and what to install for the rest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `doctor`."""
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; always 0, whatever is missing or broken."""
    report = examine()
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print("\n".join(lines(report)))
    return 0


def lines(report: MachineReport) -> list[str]:
    """The report for people."""
    text = [f"trt-sam {report.trt_sam}, Python {report.python}, {report.platform}, {report.cpus} CPUs"]
    driver = report.driver
    text.append(f"driver    {f'for CUDA up to {driver.cuda}' if driver.cuda else 'none'}")
    for index, gpu in enumerate(driver.gpus):
        capability, memory = gpu.compute_capability, gpu.memory_bytes / 2**30
        text.append(f"cuda:{index}    {gpu.name}, compute capability {capability}, {memory:.1f} GiB")
    if driver.error:
        text.append(f"GPU       {driver.error}")
    text.append("")
    for package in report.packages:
        said = {"ok": package.version, "missing": "not installed", "no driver": "installed, needs the NVIDIA driver"}.get(
            package.status, f"BROKEN: {package.error}"
        )
        more = "".join(f", {name} {_plain(value)}" for name, value in package.details.items())
        text.append(f"{package.module:<21} {said}{more}")
    text.append("")
    for ability in report.abilities:
        text.append(f"{'yes' if ability.able else 'NO ':<4} {ability.name}")
        if not ability.able:
            text.append(f"     because {'; '.join(ability.needs)}")
        if ability.pip:
            text.append(f"     {ability.pip}")
    return text


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
