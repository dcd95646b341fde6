"""What `decode` costs on the host now and at an older commit, over the host-memory driver and an engine that does nothing.

python benchmarks/host_overhead.py --against COMMIT [--pairs 9] --output benchmarks/results/host_overhead.json

The older tree is unpacked beside this one for the time of the run; both run `tests/unit/runner/test_overhead.py` in turn, in
an order drawn for each pair, a process each. Beside FILE.json there is FILE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.script import finish, say  # noqa: E402

TESTS = "tests/unit/runner/test_overhead.py::test_the_host_overhead_of_one_prompt_is_small"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="of this repository")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    return finish("host_overhead", run, parser.parse_args())


def run(args: argparse.Namespace) -> int:
    from trt_sam._files import write_atomically
    from trt_sam.errors import InputError
    from trt_sam.machine.load import clocks, describe_machine

    if args.pairs < 3:
        raise InputError(f"--pairs is {args.pairs}, must be at least 3")
    load_before = clocks()["load_average"]
    pairs = []
    with older_tree(args.against) as (older, commit):
        for number in range(args.pairs):
            sides = [("before", older), ("now", ROOT)]
            random.shuffle(sides)
            pairs.append({name: microseconds(tree) for name, tree in sides})
            say(f"pair {number + 1} of {args.pairs}: {pairs[-1]}")
    report = {
        "against": commit,
        "pairs": pairs,
        "rows": rows_of(pairs),
        "machine": {**describe_machine(), "load_before": load_before, "load_after": clocks()["load_average"]},
    }
    write_atomically(args.output, (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(args.output.with_suffix(".md"), page(report).encode())
    return 0


@contextlib.contextmanager
def older_tree(commit: str) -> Iterator[tuple[Path, str]]:
    """The tree of `commit` in a folder of its own, and its hash."""
    from trt_sam.errors import InputError

    asked = ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"--against is {commit!r}, which is no commit of this repository")
    with tempfile.TemporaryDirectory(prefix="trt-sam-before-") as folder:
        tree = Path(folder) / "tree"
        archive = subprocess.run(["git", "archive", found.stdout.strip()], cwd=ROOT, capture_output=True, check=True).stdout
        tree.mkdir()
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        yield tree, found.stdout.strip()


def microseconds(tree: Path) -> dict[str, float]:
    """Median microseconds of a call of each kind, by its parameters, measured by the tests of `tree`."""
    from trt_sam.errors import InputError

    with tempfile.TemporaryDirectory(prefix="trt-sam-overhead-") as folder:
        results = Path(folder) / "results.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", TESTS]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        cases = ElementTree.parse(results).iter("testcase") if results.exists() else ()
        found = {
            str(case.get("name")).partition("[")[2].rstrip("]"): float(str(each.get("value")))
            for case in cases
            for each in case.iter("property")
            if each.get("name") == "median_microseconds"
        }
    if done.returncode or not found:
        last = (done.stdout or done.stderr).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(f"the tests of {tree} measured nothing ({last[0]}); they need what make install puts there")
    return found


def rows_of(pairs: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """For each kind of call the medians of both sides, and how they compare."""
    rows = []
    for kind in pairs[0]["now"]:
        before, now = ([pair[side][kind] for pair in pairs] for side in ("before", "now"))
        ratios = [new / old for old, new in zip(before, now, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "call": kind,
                "before_us": statistics.median(before),
                "now_us": statistics.median(now),
                "ratio": middle,
                "quartiles": [low, high],
                "ratio_of_least": min(now) / min(before),
            }
        )
    return rows


def page(report: dict[str, Any]) -> str:
    """The report to read."""
    machine = report["machine"]
    lines = [
        "# What a decode costs on the host, now and before",
        "",
        f"Median microseconds of `decode`, one prompt, over the host-memory driver and an engine that does nothing, against "
        f"{report['against'][:10]}; {len(report['pairs'])} pairs of processes in turn. Ratios are of the two processes of a "
        "pair, their median and quartiles; the last is of the least medians.",
        "",
        "| graph and masks | before | now | ratio | quartiles | of the least |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['call']} | {row['before_us']:.1f} | {row['now_us']:.1f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} | "
            f"{row['ratio_of_least']:.2f} |"
        )
    lines += ["", "## Machine", "", *(f"- {name}: {value}" for name, value in machine.items() if name != "versions")]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n".join([*lines, f"- versions: {versions}", ""])


if __name__ == "__main__":
    sys.exit(main())
