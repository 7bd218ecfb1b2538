"""Runs one program apart from everything else: `python -I jail.py SETTINGS`, the program on standard input.

This file is a process of its own and uses the standard library alone. It closes what the machine permits it to close:

- namespaces (unshare(2)): no network but an empty one, no processes but its own, every file system read-only but a small
  one in memory, which is the working directory;
- libseccomp: no new processes or threads, no sockets, no signals to others;
- rlimits (setrlimit(2)): CPU seconds, memory, size and number of files; no new processes.

Standard output gets one line of JSON: `closed` (of network, processes, files, forks), `outcome` (passed, failed, time) and `why`.
"""

import ctypes
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mount, ipc, user, pid, net
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1 | 2  # rdonly, nosuid
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITY_VERSION = 0x20080522
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
REFUSED = (
    *("fork", "vfork", "clone", "clone3", "kill", "tkill", "tgkill", "pidfd_open", "pidfd_send_signal"),
    *(
        "rt_sigqueueinfo",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "unshare",
        "setns",
        "mount",
        "umount2",
    ),
    *("socket", "socketpair", "connect", "bind", "io_uring_setup", "bpf", "keyctl", "add_key", "request_key"),
    *("perf_event_open", "userfaultfd", "shmget", "semget", "msgget", "mq_open"),
)

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read()
    answer, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    closed = {"network": False, "processes": False, "files": False, "forks": False}
    _namespaces(settings, closed)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    token, (reader, writer) = secrets.token_bytes(16), os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _run(program, settings, closed, token, writer, answer)
    os.close(writer)
    in_time = signal.sigtimedwait({signal.SIGCHLD}, settings["wall_seconds"]) is not None
    if not in_time:
        os.kill(child, signal.SIGKILL)  # and with it, as the first of its namespace, all others
    _, status = os.waitpid(child, 0)
    os.set_blocking(reader, False)
    try:
        said = os.read(reader, 4096)
    except BlockingIOError:
        said = b""
    facts, _, said = said.partition(b"\n")
    outcome, why = _outcome(said, token, status, in_time)
    closed = json.loads(facts) if facts.startswith(b"{") else closed
    os.write(answer, json.dumps({"closed": closed, "outcome": outcome, "why": why}).encode())


def _outcome(said: bytes, token: bytes, status: int, in_time: bool) -> tuple[str, str]:
    if not in_time:
        return "time", "no end"
    if said.startswith(token):
        why = said[len(token) :].decode("utf-8", "replace")
        return ("failed", why) if why else ("passed", "")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        killed = number in (signal.SIGKILL, signal.SIGXCPU)
        return ("time", "out of CPU seconds") if killed else ("failed", signal.Signals(number).name)
    return "failed", "it ended before its tests"


def _namespaces(settings: Mapping[str, Any], closed: dict[str, bool]) -> None:
    """Leaves the namespaces of the machine, as far as it permits; `closed` gets what is out of reach then."""
    uid, gid = os.geteuid(), os.getegid()
    if not settings["namespaces"] or libc.unshare(NEW_NAMESPACES):
        return
    closed["network"] = closed["processes"] = True
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    size = f"size={settings['disk_bytes']},nr_inodes=10000,mode=700".encode()
    here = os.fsencode(os.getcwd())
    closed["files"] = not (
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
        or libc.mount(b"tmpfs", here, b"tmpfs", MS_NOSUID | MS_NODEV, size)
    )
    os.chdir(here)


def _run(
    program: bytes,
    settings: Mapping[str, Any],
    closed: dict[str, bool],
    token: bytes,
    writer: int,
    answer: int,
) -> NoReturn:
    """The program, in this process; `token` before the outcome tells it from what the program writes by itself."""
    os.close(answer)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    if closed["processes"] and libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None):
        libc.mount(
            b"tmpfs", b"/proc", b"tmpfs", MS_NOSUID | MS_NODEV, b"size=0"
        )  # where proc is not permitted
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())
    _limits(settings)
    closed["forks"] = os.geteuid() != 0  # RLIMIT_NPROC does not hold for root
    if settings["seccomp"] and _seccomp():
        closed |= {"network": True, "processes": True, "forks": True}
    write, end, each = os.write, os._exit, BaseException
    write(writer, json.dumps(closed).encode() + b"\n")
    if not closed["forks"]:
        end(1)
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
        why = b""
    except each as error:
        try:
            why = f"{type(error).__name__}: {error}"[:300].encode("utf-8", "replace")
        except each:
            why = b"an error that cannot be shown"
    write(writer, token + why)
    end(0)


def _limits(settings: Mapping[str, Any]) -> None:
    bounds = {
        resource.RLIMIT_CPU: settings["cpu_seconds"],
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in bounds.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _seccomp() -> bool:
    """Whether libseccomp refuses what `REFUSED` names, from now on."""
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    lib.seccomp_load.argtypes = [ctypes.c_void_p]
    rules = lib.seccomp_init(ALLOW)
    numbers = [lib.seccomp_syscall_resolve_name(name.encode()) for name in REFUSED]
    # A call that this machine does not have has a number below 0.
    added = [lib.seccomp_rule_add_array(rules, REFUSE, number, 0, None) for number in numbers if number >= 0]
    return bool(rules) and not any(added) and lib.seccomp_load(rules) == 0


if __name__ == "__main__":
    main()
