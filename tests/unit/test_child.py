"""Processes that are started beside this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trt_sam._child import python_running


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a file of the user was taken for a module')\n")
    command = python_running("import colorsys\nprint(colorsys.__file__)")
    assert command[:2] == [sys.executable, "-c"], "Python 3.10 has no -P"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("colorsys.py"), done.stderr
    assert str(tmp_path) not in done.stdout


def test_its_errors_have_its_own_exit_code() -> None:
    assert subprocess.run(python_running("sys.exit(7)"), check=False).returncode == 7
