"""Every command that a message of the package advises is one: its parser takes it as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import trt_sam
from tests.advice import parses
from trt_sam.cli import COMMANDS

ROOT = Path(trt_sam.__file__).parent
ADVISED = re.compile(rf"(?<!of )\btrt-sam (?:{'|'.join(COMMANDS)})\b(?! of)[^;,()`\n]*")
"""A command up to where the sentence goes on; neither "a file of trt-sam golden" nor "trt-sam golden of standin" advises."""
TITLES = ("trt-sam bench", "trt-sam compare")
"""Of reports."""
VALUE = "VALUE"
"""What an f-string or a variable puts in."""
GOES_ON = re.compile(r" (says|lists|or|and)\b.*")


def test_every_advised_command_parses() -> None:
    found = {}
    for path in ROOT.rglob("*.py"):
        for line, text in texts(ast.parse(path.read_text())):
            if text in TITLES:
                continue
            for match in ADVISED.findall(text):
                found[f"{path.relative_to(ROOT)}:{line}"] = GOES_ON.sub("", match).strip()
    assert len(found) > 10
    assert {place: command for place, command in found.items() if not parses(shlex.split(command)[1:])} == {}


def texts(module: ast.Module) -> Iterator[tuple[int, str]]:
    """The strings that are no docstrings, and whole lists of words that begin with the program's name, with their lines."""
    skipped = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield node.lineno, "".join(_text(part) for part in node.values)
        elif isinstance(node, ast.List) and node.elts and _text(node.elts[0]) == "trt-sam":
            if not any(isinstance(part, ast.Starred) for part in node.elts):
                yield node.lineno, " ".join(_text(part) for part in node.elts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def _text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else VALUE
