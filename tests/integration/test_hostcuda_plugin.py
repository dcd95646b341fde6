"""The tests marked `hostcuda` run in a process of their own, and behave as all others do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.fixtures.hostcuda import LIBRARY

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built (scripts/install_gpu_fixtures.sh does)")

ROOT = Path(__file__).parents[2]
CONFTEST = """
import os, pathlib, pytest
pytest_plugins = ["tests.fixtures.hostcuda.plugin"]
here = pathlib.Path(__file__).parent

def note(text):
    with (here / "notes").open("a") as file:
        file.write(f"{text} {os.getpid()}\\n")

@pytest.fixture(scope="session")
def of_session():
    note("session up")
    yield
    note("session down")
"""
HEAD = "import os, signal, time, warnings, pytest\nfrom conftest import note\nMARK = pytest.mark.hostcuda\n"


class Folder:
    """A project of its own with the plugin in its conftest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "conftest.py").write_text(CONFTEST)
        (path / "pytest.ini").write_text("[pytest]\ntimeout = 60\n")

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", "--junitxml=junit.xml", *args]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "TRT_SAM_HOSTCUDA"))}
        return {**kept, "PYTHONPATH": os.fspath(ROOT)}

    def write(self, name: str, text: str) -> None:
        (self.path / f"test_{name}.py").write_text(HEAD + text)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        (self.path / "notes").unlink(missing_ok=True)
        done = subprocess.run(
            self.command(*args), cwd=self.path, env=self.environment(), capture_output=True, text=True, check=False, timeout=240
        )
        assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done

    def notes(self) -> list[str]:
        """What the tests noted, without the process that they ran in."""
        return [line.rsplit(" ", 1)[0] for line in (self.path / "notes").read_text().splitlines()]

    def processes(self, text: str) -> set[int]:
        return {int(line.split()[-1]) for line in (self.path / "notes").read_text().splitlines() if line.startswith(text)}

    def outcomes(self) -> dict[str, str]:
        """By test: passed, failure, error or skipped, as the session counts them."""
        cases = ElementTree.parse(self.path / "junit.xml").iter("testcase")
        return {
            case.attrib["name"]: "+".join(child.tag for child in case if child.tag != "properties") or "passed"
            for case in cases
        }


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_marked_test_runs_in_another_process_that_all_share(folder: Folder) -> None:
    folder.write(
        "one",
        "@MARK\ndef test_a(host_cuda): note('marked')\ndef test_b(): note('plain')\n@MARK\ndef test_c(): note('marked')\n",
    )
    folder.write("two", "@MARK\ndef test_d(host_cuda): note('marked')\n")
    done = folder.run()
    assert done.returncode == 0, done.stdout
    assert folder.notes() == ["marked", "plain", "marked", "marked"]
    assert len(folder.processes("marked")) == 1
    assert folder.processes("plain").isdisjoint(folder.processes("marked"))


def test_fixtures_live_as_long_as_their_scope_says(folder: Folder) -> None:
    text = """
@pytest.fixture(scope="module")
def of_module():
    note("module up")
    yield
    note("module down")

@MARK
def test_a(of_session, of_module): note("a")
def test_plain(): note("plain")
@MARK
def test_b(of_session, of_module): note("b")
"""
    folder.write("one", text)
    folder.write("two", text + "def test_last(): note('last')\n")
    assert folder.run().returncode == 0
    module = ["module up", "a", "plain", "b", "module down"]
    assert folder.notes() == ["session up", *module, *module, "last", "session down"]
    assert folder.run("-k", "not test_b").returncode == 0
    module = ["module up", "a", "module down", "plain"]
    assert folder.notes() == ["session up", *module, *module, "last", "session down"]


def test_a_killed_process_fails_its_test_and_no_other(folder: Folder) -> None:
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


def test_each_test_has_its_own_limit(folder: Folder) -> None:
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


def test_a_hang_that_no_signal_ends_is_killed_and_shown(folder: Folder) -> None:
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


FAILS = (
    "@MARK\ndef test_passes(): note('ran')\n@MARK\ndef test_fails(of_session): assert 0\n@MARK\ndef test_last(): note('ran')\n"
)


def test_stopping_at_a_failure_and_repeating_it(folder: Folder) -> None:
    folder.write("one", FAILS)
    done = folder.run("-x")
    assert "1 failed, 1 passed" in done.stdout
    assert folder.notes() == ["ran", "session up", "session down"]
    done = folder.run("--lf")
    assert "1 failed" in done.stdout
    assert folder.outcomes() == {"test_fails": "failure"}
    folder.run("-k", "last")
    assert folder.notes() == ["ran"]


def test_outcomes_are_told_as_elsewhere(folder: Folder) -> None:
    folder.write(
        "one",
        """
@pytest.fixture
def bad_end():
    yield
    raise ValueError("end")
@MARK
def test_bad_end(bad_end): pass
@MARK
@pytest.mark.skip(reason="no")
def test_skipped(): pass
@MARK
@pytest.mark.skipif(True, reason="no")
def test_skipped_if(): pass
@MARK
@pytest.mark.xfail(strict=True)
def test_xfails(): assert 0
@MARK
@pytest.mark.parametrize("value", [1, 2])
def test_value(value, capsys):
    print("said")
    assert value == 1
@MARK
def test_warns(): warnings.warn("mind this")
@MARK
def test_leaks(host_cuda):
    import pycuda.driver as cuda
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    globals()["kept"] = cuda.mem_alloc(64)
    context.pop()
""",
    )
    done = folder.run()
    expected = {"test_bad_end": "error", "test_skipped": "skipped", "test_skipped_if": "skipped", "test_xfails": "skipped"}
    expected |= {"test_value[1]": "passed", "test_value[2]": "failure", "test_warns": "passed", "test_leaks": "error"}
    assert folder.outcomes() == expected
    assert "mind this" in done.stdout
    assert "left on the device: {'device_bytes': 64}" in done.stdout


@pytest.mark.parametrize("dist", ["loadfile", "load"])
def test_each_worker_runs_its_share_and_no_more(folder: Folder, dist: str) -> None:
    module = "@pytest.fixture(scope='module')\ndef of_module():\n    yield\n    note('module down')\n"
    for name in "abcd":
        tests = (
            f"@MARK\ndef test_{name}{i}(of_session, of_module): note('ran {name}')\ndef test_{i}(): pass\n" for i in range(3)
        )
        folder.write(name, module + "".join(tests))
    done = folder.run("-n", "2", "--dist", dist)
    assert "24 passed" in done.stdout
    notes = folder.notes()
    assert sorted(note for note in notes if note.startswith("ran")) == sorted(
        f"ran {name}" for name in "abcd" for _ in range(3)
    )
    assert len(folder.processes("ran")) == 2
    assert notes.count("session down") == 2
    if dist == "loadfile":
        assert all(len(folder.processes(f"ran {name}")) == 1 for name in "abcd")
        assert notes.count("module down") == 4


def test_a_module_that_cannot_be_imported_over_the_driver_fails_with_the_reason(folder: Folder) -> None:
    folder.write("one", "if 'TRT_SAM_HOSTCUDA' in os.environ: raise OSError('not here')\n@MARK\ndef test_a(): pass\n")
    folder.write("two", "@MARK\ndef test_b(): pass\n")
    done = folder.run()
    assert folder.outcomes() == {"test_a": "error", "test_b": "passed"}
    assert "not here" in done.stdout


def test_ctrl_c_ends_both_processes_and_tears_down(folder: Folder) -> None:
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


def test_a_test_may_end_the_session(folder: Folder) -> None:
    folder.write("one", "@MARK\ndef test_a(): pytest.exit('enough', returncode=9)\n@MARK\ndef test_b(): note('never')\n")
    done = folder.run()
    assert done.returncode == 9
    assert "enough" in done.stdout
    assert not (folder.path / "notes").exists()
