"""The command line: `trt-sam COMMAND ...`. One module of `trt_sam.commands` per subcommand.

Exit codes: 0 done, 1 a comparison failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from trt_sam._cache import cache_set_to
from trt_sam._version import __version__
from trt_sam.errors import TrtSamError, did_you_mean
from trt_sam.progress import SAID_ONCE, write_line

__all__ = ["by_flags", "main"]

_ABOUT = re.compile(r"(?:limit )?([a-z]\w*) (?:is|has) .*, (?:must|of which) ")
"""How the library begins what it says of a setting."""
_NAME = re.compile(r"(?<![\w/.'\"-])[a-z]+(?:_[a-z0-9]+)+(?![\w/'\"-])")
"""A further setting in such a message; not a part of a path or of a value."""

COMMANDS = (
    "download",
    "export",
    "embed",
    "calibrate",
    "build",
    "segment",
    "serve",
    "triton",
    "golden",
    "compare",
    "accuracy",
    "sensitivity",
    "bench",
    "inspect",
    "doctor",
    "selftest",
)
"""Each is a module of `trt_sam.commands` with `HELP`, `add_arguments(parser)` and `run(args) -> int`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code; errors are one line on stderr. No word at all shows the help."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except TrtSamError as error:
        print(f"trt-sam: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trt-sam: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error, but Python would complain again at exit.
        _drop_output()
        return 0
    except OSError as error:
        # What a command writes into files it tells of itself; this is print's, which names no file.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        print(f"trt-sam: error: cannot write the output: {error.strerror}; make room, or send it elsewhere", file=sys.stderr)
        return 2


def _run(words: Sequence[str]) -> int:
    parser = _Parser(prog="trt-sam", description="SAM mask decoder: checkpoint to ONNX to TensorRT engine to masks.")
    parser.add_argument("--version", action="version", version=f"trt-sam {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    # The modules of the other commands would cost a click a third of its time.
    for name in words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(f"trt_sam.commands.{name}")
        subparser = subparsers.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(subparser)
        subparser.add_argument("-v", "--verbose", action="store_true", help="also say what the library notes on the way")
        subparser.set_defaults(run=module.run)
    if not words:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(words)
    if unknown:
        subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    with cache_set_to(getattr(args, "cache", None)), _messages_on_stderr(verbose=args.verbose):
        try:
            code: int = args.run(args)
        except TrtSamError as error:
            raise TrtSamError(by_flags(str(error), subparsers.choices[args.command], words[1:])) from error
    sys.stdout.flush()
    return code


def by_flags(message: str, parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """The message of an error, for who typed `words` after the command's name.

    A setting keeps its name where none of the flags that the message is about was typed: it came from a file then, or is no
    matter of the command line.
    """
    about = _ABOUT.match(message)
    if about is None:
        return message
    flags, typed = _flags(parser, words)
    rest = message[about.end(1) :]
    if about[1] not in flags or not typed.intersection([about[1], *_NAME.findall(rest)]):
        return message
    return flags[about[1]] + _NAME.sub(lambda found: flags.get(found[0], found[0]), rest)


def _flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """The flag of each setting, of several the one that was typed last; and the settings whose flag was typed."""
    options = {option: action for action in parser._actions for option in action.option_strings}
    given: dict[argparse.Action, str] = {}
    for word in (word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2):
        # argparse takes the beginning of a flag for it.
        meant = [word] if word in options else [option for option in options if option.startswith(word)]
        given |= {options[option]: option for option in meant}
    names = {option: option.lstrip("-").replace("-", "_") for option in options}
    flags = {name: given.get(options[option], option) for option, name in names.items()}
    return flags, {name for option, name in names.items() if options[option] in given}


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _messages_on_stderr(*, verbose: bool) -> Iterator[None]:
    """What the package logs, from INFO on, or all of it, as lines on stderr."""
    handler = _Lines()
    logger = logging.getLogger("trt_sam")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    """Writes a record with the time since the command began, a warning as such, and who noted what only --verbose shows."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if SAID_ONCE.items() <= vars(record).items():
            if message in self._said:
                return
            self._said.add(message)
        if record.levelno >= logging.WARNING:
            line = f"trt-sam: {record.levelname.lower()}: {message}"
        else:
            source = f"{record.name}: " if record.levelno < logging.INFO else ""
            line = f"[{time.monotonic() - self._started:6.1f} s] {source}{message}"
        try:
            write_line(line, sys.stderr)
        except Exception:
            self.handleError(record)


class _Parser(argparse.ArgumentParser):
    """argparse, but with one error line instead of the usage in front of it, and values like "-1,0,50,60" taken as such."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # argparse takes what begins with a dash for a flag, unless this says that it is a number: lists of them are none to it.
        self._negative_number_matcher = re.compile(r"-[\d.][-+\d.,eE]*$")

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument COMMAND: invalid choice: '([^']*)'", message):
            near = difflib.get_close_matches(unknown[1], COMMANDS, n=1)
            meant = did_you_mean(near)
            message = f"no command is called {unknown[1]!r}; {meant}commands are {', '.join(COMMANDS)}"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


if __name__ == "__main__":
    sys.exit(main())
