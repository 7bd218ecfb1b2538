"""The entry point, and the one boundary at which errors become sentences."""

import gc
import os
import sys


def main() -> None:
    """Runs the command line and exits: 0 done, 2 wrong use, 1 anything else."""
    from llmforge.cli import options
    from llmforge.cli.app import app
    from llmforge.errors import UserError

    try:
        app(prog_name="llmforge")
    except KeyboardInterrupt:
        _stop("interrupted.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if options.debug_wanted(sys.argv):
            raise
        if isinstance(error, UserError):
            _stop(str(error), error.exit_code)
        if isinstance(error, OSError) and error.strerror:
            name = f"{error.filename}: " if error.filename else ""
            _stop(f"{name}{error.strerror[0].lower()}{error.strerror[1:]}.", 1)
        if isinstance(error, MemoryError):
            _stop("out of memory.", 1)
        _stop(
            f"{type(error).__name__}: {error} (this is a fault of llmforge: --debug shows where, please report it).",
            1,
        )
    finally:
        gc.freeze()  # Python looks through every object for cycles as it exits, which takes up to 0.1 s


def _stop(sentence: str, code: int) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
