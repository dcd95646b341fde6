"""The progress bar of a build."""

from __future__ import annotations

import io

from trt_sam.progress import TerminalBar


def test_the_bar_shows_progress_and_leaves_the_line_empty() -> None:
    stream = io.StringIO()
    with TerminalBar(stream, width=4) as bar:
        bar(0.5, "Compiling")
        bar(0.5, "Compiling")
        bar(1.0, "Done")
    first, second, blank, rest = stream.getvalue().split("\r")[1:]
    assert first.startswith("[##..]  50% Compiling")
    assert second.startswith("[####] 100% Done")
    assert (blank.strip(), rest, len(blank)) == ("", "", len(second))
