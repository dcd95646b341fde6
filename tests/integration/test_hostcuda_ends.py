"""How tests marked `hostcuda` end before their time: killed, out of time, by Ctrl-C; and no process is left."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.fixtures.marked_project import Project, needs_driver

pytestmark = needs_driver


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_killed_process_fails_its_test_and_no_other(folder: Project) -> None:
    folder.write(
        "one",
        """
@MARK
def test_before(): note("ran")
@MARK
def test_kills():
    print("what it said last", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
@MARK
def test_ends(): os._exit(7)
@MARK
def test_after(host_cuda): note("ran")
""",
    )
    done = folder.run()
    assert done.returncode == 1
    assert folder.outcomes() == {
        "test_before": "passed",
        "test_kills": "failure",
        "test_ends": "failure",
        "test_after": "passed",
    }
    assert "the process of the test was killed by SIGKILL" in done.stdout
    assert "the process of the test ended with status 7" in done.stdout
    assert len(folder.processes("ran")) == 2


def test_each_test_has_its_own_limit(folder: Project) -> None:
    folder.write(
        "one",
        """
@pytest.fixture
def torn_down():
    yield
    note("torn down")
@MARK
def test_slow_one(): time.sleep(1.6)
@MARK
def test_slow_two(): time.sleep(1.6)
@MARK
def test_hangs(torn_down): time.sleep(60)
@MARK
@pytest.mark.timeout(60)
def test_has_time(): time.sleep(3.5)
""",
    )
    done = folder.run("-o", "timeout=3")
    assert folder.outcomes() == {
        "test_slow_one": "passed",
        "test_slow_two": "passed",
        "test_hangs": "failure",
        "test_has_time": "passed",
    }
    assert "time.sleep(60)" in done.stdout, "the failure shows where it hung"
    assert folder.notes() == ["torn down"]


def test_a_hang_that_no_signal_ends_is_killed_and_shown(folder: Project) -> None:
    folder.write(
        "one",
        """
@MARK
def test_holds_the_process():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(600)
@MARK
def test_after(): pass
""",
    )
    done = folder.run("-o", "timeout=1", "-p", "short_grace")
    assert folder.outcomes() == {"test_holds_the_process": "failure", "test_after": "passed"}
    assert "Timeout (>1.0s)" in done.stdout
    assert "in test_holds_the_process" in done.stdout, "where it was, by faulthandler"


@pytest.fixture(autouse=True)
def _short_grace(tmp_path: Path) -> None:
    (tmp_path / "short_grace.py").write_text("from tests.fixtures.hostcuda import process\nprocess.GRACE = 1.0\n")


def test_ctrl_c_ends_both_processes_and_tears_down(folder: Project) -> None:
    folder.write(
        "one",
        """
@pytest.fixture
def torn_down():
    yield
    note("torn down")
@MARK
def test_waits(torn_down):
    note("waits")
    time.sleep(60)
@MARK
def test_never(): note("never")
""",
    )
    session = subprocess.Popen(folder.command(), cwd=folder.path, env=folder.environment(), stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (folder.path / "notes").exists() and time.monotonic() < until:
        time.sleep(0.05)
    session.send_signal(signal.SIGINT)
    output, _ = session.communicate(timeout=60)
    assert session.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert folder.notes() == ["waits", "torn down"]
    (child,) = folder.processes("waits")
    assert not Path(f"/proc/{child}").exists()


def test_a_test_may_end_the_session(folder: Project) -> None:
    folder.write("one", "@MARK\ndef test_a(): pytest.exit('enough', returncode=9)\n@MARK\ndef test_b(): note('never')\n")
    done = folder.run()
    assert done.returncode == 9
    assert "enough" in done.stdout
    assert not (folder.path / "notes").exists()
