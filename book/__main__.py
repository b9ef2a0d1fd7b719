"""The command line: every verb of `./course` that is Python, each a module with `add_arguments` and `command`."""

import argparse
import importlib
import os
import signal
import sys

from book import Trouble, shown

VERBS = {
    "run": "book.run",
    "check": "book.check",
    "sync": "book.sync",
    "lab": "book.lab",
    "book": "book.build",
    "pages": "book.pages",
    "study": "helpers.study",
    "weights": "helpers.weights",
    "data": "helpers.data.commands",
}


def main(argv=None):
    """Do what a verb asks for; returns the exit code: 0, 1 for trouble, 2 for a wrong call, 130 for a stop."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter shows a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if argv is None else argv
    try:
        verb, module = _verb(arguments[:1])
        parser = argparse.ArgumentParser(prog=f"./course {verb}")
        module.add_arguments(parser)
        options, more = parser.parse_known_args(arguments[1:])
        if more and not hasattr(options, "more"):
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        options.more = more
        return int(module.command(options) or 0)
    except KeyboardInterrupt:
        after_ctrl_c = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
        print(f"{after_ctrl_c}course: stopped. Committed files are as they were.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # ./course check | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Trouble, ValueError, FloatingPointError) as trouble:
        print(f"course: {trouble}", file=sys.stderr)
    except OSError as error:
        what = error.strerror or error
        print(f"course: {f'{shown_name(error.filename)}: ' if error.filename else ''}{what}", file=sys.stderr)
    return 1


def _verb(first):
    parser = argparse.ArgumentParser(prog="./course")
    parser.add_argument("verb", choices=VERBS)
    verb = parser.parse_args(first).verb
    return verb, importlib.import_module(VERBS[verb])


def shown_name(name):
    from pathlib import Path

    return shown(Path(os.fsdecode(name)))


def stop(signum, frame):
    """End in good order; a second signal ends at once."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup, or a shell's background
            signal.signal(each, stop)
    sys.exit(main())
