"""Running a command as a process of its own: signals are passed on, and its end is waited for."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# What ends a command in good order. A closed terminal (SIGHUP) ends it like SIGTERM, which every command handles.
PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (128 + the number of a signal that killed it), and the signal that this
    process was sent meanwhile, if any.
    """

    code: int
    asked: signal.Signals | None


def run_child(words: Sequence[str]) -> Ended:
    """Runs `words` to its end and passes SIGINT, SIGTERM and SIGHUP on to it, each time one comes.

    The child has a session of its own, so that Ctrl-C reaches it once, through this process, and not a second time
    from the terminal: to `train` a second Ctrl-C means to stop without a checkpoint. Ctrl-Z suspends both. If this
    process is killed, the child gets SIGTERM.
    """
    # What is ignored stays so, such as SIGHUP under nohup.
    waited = {n for n in (*PASSED_ON, signal.SIGTSTP) if signal.getsignal(n) is not signal.SIG_IGN}
    waited.add(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, children vanish without an exit code
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: _prepare(before)
        )
        asked: signal.Signals | None = None
        while child.poll() is None:
            number = signal.Signals(signal.sigwait(waited))
            if number in PASSED_ON:
                asked = number
                child.send_signal(PASSED_ON[number])
            elif number == signal.SIGTSTP:
                os.killpg(child.pid, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
                os.killpg(child.pid, signal.SIGCONT)
        code = child.returncode
        return Ended(code if code >= 0 else 128 - code, asked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(mask: set[int | signal.Signals]) -> None:
    """In the child, before the command starts."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
