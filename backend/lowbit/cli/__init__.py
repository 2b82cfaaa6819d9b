"""The command line: `lowbit info | convert | run | embed | perplexity | imatrix`; a module of this package for each.

Built on argparse, so that a plain `pip install lowbit` has it and `lowbit --help` answers at once: commands
with flat options need nothing a framework adds. Results go to stdout; progress, statistics and errors to stderr. Exit
codes: 0 done, 2 an error (one line; --debug shows the traceback), 130 interrupted.

A command's module has SUMMARY, add_arguments(parser) and execute(arguments), which returns an exit code or None.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from lowbit.cli import convert, embed, imatrix, info, perplexity, run
from lowbit.cli._common import err

COMMANDS = {
    "info": info,
    "convert": convert,
    "run": run,
    "embed": embed,
    "perplexity": perplexity,
    "imatrix": imatrix,
}

# Errors whose text is meant for users; any other kind is a defect of ours and says so.
_FOR_USERS = (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError, NotImplementedError)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code of one command; `argv` defaults to the process's arguments."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="lowbit: %(message)s")
    try:
        return int(COMMANDS[arguments.command].execute(arguments) or 0)
    except KeyboardInterrupt:
        err("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our stdout has left (| head): not an error of this command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, _FOR_USERS):
            text = f"{type(error).__name__}: {text} (a defect of lowbit; --debug shows where)"
        err(f"error: {text or type(error).__name__}")
        return 2


def _parser() -> argparse.ArgumentParser:
    import lowbit

    parser = argparse.ArgumentParser(prog="lowbit", description="Language models in 3 to 8 bits on ordinary CPUs.")
    parser.add_argument("--version", action="version", version=f"lowbit {lowbit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("-v", "--verbose", action="store_true", help="log what is done, on stderr")
        module.add_arguments(sub)
    return parser
