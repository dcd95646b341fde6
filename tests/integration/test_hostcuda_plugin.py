"""The tests marked `hostcuda` run in a process of their own, and are told as all others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.marked_project import Project, needs_driver

pytestmark = needs_driver


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_marked_test_runs_in_another_process_that_all_share(folder: Project) -> None:
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


def test_fixtures_live_as_long_as_their_scope_says(folder: Project) -> None:
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


FAILS = (
    "@MARK\ndef test_passes(): note('ran')\n@MARK\ndef test_fails(of_session): assert 0\n@MARK\ndef test_last(): note('ran')\n"
)


def test_stopping_at_a_failure_and_repeating_it(folder: Project) -> None:
    folder.write("one", FAILS)
    done = folder.run("-x")
    assert "1 failed, 1 passed" in done.stdout
    assert folder.notes() == ["ran", "session up", "session down"]
    done = folder.run("--lf")
    assert "1 failed" in done.stdout
    assert folder.outcomes() == {"test_fails": "failure"}
    folder.run("-k", "last")
    assert folder.notes() == ["ran"]


def test_outcomes_are_told_as_elsewhere(folder: Project) -> None:
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
def test_each_worker_runs_its_share_and_no_more(folder: Project, dist: str) -> None:
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


def test_a_module_that_cannot_be_imported_over_the_driver_fails_with_the_reason(folder: Project) -> None:
    folder.write("one", "if 'TRT_SAM_HOSTCUDA' in os.environ: raise OSError('not here')\n@MARK\ndef test_a(): pass\n")
    folder.write("two", "@MARK\ndef test_b(): pass\n")
    done = folder.run()
    assert folder.outcomes() == {"test_a": "error", "test_b": "passed"}
    assert "not here" in done.stdout
