"""Starting the job through `colossalai run`, for those who want its launcher.

Its faults (0.5.0) are kept away as far as they can be: it joins arguments unquoted, so they are quoted first; it exports
and, when a command fails, prints its whole environment, so it gets a small one, and values that the user passes are
struck out of what it prints; when one host fails it waits for the others, so those are ended. What it prints does not
say from which host it came, and a host that falls silent is noticed only by the processes that wait for it.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from llmforge.console import say
from llmforge.errors import UsageError, UserError
from llmforge.launch.hosts import Host, local_host
from llmforge.launch.job import BEAT_SECONDS, SETTLE_SECONDS, Asked, Job, signals_as_requests
from llmforge.launch.remote import Remote

# What ssh and a login shell need, besides what is passed on anyway.
KEPT = ("HOME", "USER", "LOGNAME", "LANG", "SSH_AUTH_SOCK")
FAILED = re.compile(r"^Error: failed to run .* on (\S+), is localhost", re.DOTALL)
SWEEP_SECONDS = 30.0


def program(remote: Remote) -> str:
    """The path of `colossalai`, beside the Python of the job or on PATH."""
    found = shutil.which("colossalai", path=os.path.dirname(remote.python)) or shutil.which("colossalai")
    if found is None:
        raise UserError(
            "--launcher colossalai needs ColossalAI, which is not installed here; --launcher torchrun does not need it."
        )
    return found


def command(job: Job, remote: Remote, hostfile: str) -> list[str]:
    """The command line of `colossalai run`. It joins the arguments of the job with spaces, for a shell."""
    port = ["--ssh-port", str(remote.ssh.port)] if remote.ssh.port is not None else []
    alone = len(job.hosts) == 1 and job.hosts[0].is_local
    where = [] if alone else ["--hostfile", hostfile, *port]
    meeting = ["--master_addr", job.master_address, "--master_port", str(job.master_port)]
    flags = ["--nproc_per_node", str(job.processes), *where, *meeting]
    module, *words = job.words[1:]
    return [program(remote), "run", *flags, "-m", module, *map(shlex.quote, words)]


def environment(job: Job, remote: Remote) -> dict[str, str]:
    """All that `colossalai run` is given, and so all that it exports. Raises for what its quoting would break."""
    path = os.pathsep.join([os.path.dirname(remote.python), os.environ.get("PATH", os.defpath)])
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    for name, value in remote.environment.items():
        if re.search(r'["$`\\\n]', value):
            raise UsageError(
                f"{name} contains a quote, $, a backslash or a line break, which colossalai run does not pass on; "
                "use --launcher torchrun."
            )
    return {**kept, "PATH": path, **remote.environment, "LLMFORGE_JOB": job.name}


def called(host: Host) -> str:
    """A name that `colossalai run` can use: it resolves names itself, and knows no aliases of ssh."""
    try:
        socket.getaddrinfo(host.name, None)
    except (OSError, UnicodeError):
        return host.address
    return host.name


def check_ssh(job: Job, remote: Remote) -> None:
    """`colossalai run` has an ssh client of its own, and takes a line of a hostfile for a name as it is."""
    if named := next((host.name for host in job.hosts if "@" in host.name), None):
        raise UsageError(
            f"{named} names a user, which --launcher colossalai does not support; set User in ~/.ssh/config."
        )
    if remote.ssh.config is not None:
        raise UsageError(
            f"--ssh-config {remote.ssh.config} contradicts --launcher colossalai, whose ssh client reads "
            "~/.ssh/config alone; use --launcher torchrun."
        )


def show(job: Job, remote: Remote, hostfile: Path | None) -> str:
    """The exact command; of variables, the names alone."""
    names = " ".join(environment(job, remote))
    return f"{shlex.join(command(job, remote, str(hostfile)))}\n  with these variables and no others: {names}"


def run(job: Job, remote: Remote) -> None:
    """Runs the job to its end; `UserError` names the host whose command failed first, where that is known."""
    with (
        tempfile.TemporaryDirectory(prefix="llmforge-") as directory,
        signals_as_requests() as asked,
        guarded(job, remote) as tell,
    ):
        hostfile = Path(directory) / "hostfile"
        names = {called(host): host.name for host in job.hosts}
        hostfile.write_text("".join(f"{name}\n" for name in names))
        started = subprocess.Popen(
            command(job, remote, str(hostfile)),
            env=environment(job, remote),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        readers = [
            Reader(started.stdout, sys.stdout, remote.environment),
            Reader(started.stderr, sys.stderr, remote.environment),
        ]
        try:
            failed = wait(started, readers, asked, tell)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    if failed:
        raise UserError(
            f"the command on {names.get(failed, failed)} failed; the job was ended on every host (its lines above say why)."
        )
    if started.returncode and not asked():
        raise UserError("colossalai run failed (its lines above say why).")


class Reader:
    """Passes on what `colossalai run` prints, without the values of variables; `failed` is the host it complains of."""

    def __init__(self, source: IO[bytes] | None, target: IO[str], variables: Mapping[str, str]) -> None:
        assert source is not None
        self.source, self.target = source, target
        self.values = [value for value in variables.values() if len(value) > 3]
        self.failed: str | None = None
        self.failed_at = 0.0
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for raw in self.source:
            line = raw.decode("utf-8", "replace")
            if (found := FAILED.search(line)) and self.failed is None:
                self.failed, self.failed_at = found[1], time.monotonic()
            for value in self.values:
                line = line.replace(value, "***")
            with contextlib.suppress(OSError):
                self.target.write(line)
                self.target.flush()


def wait(
    started: "subprocess.Popen[bytes]", readers: list[Reader], asked: Asked, tell: Callable[[bytes], None]
) -> str | None:
    """Waits for the end, or for the first failure. The host that failed first, if one did."""
    told, beat = False, 0.0
    while started.poll() is None and asked() < 2:
        first = min((r for r in readers if r.failed), key=lambda r: r.failed_at, default=None)
        if first and time.monotonic() - first.failed_at > SETTLE_SECONDS:
            break
        if asked() and not told:
            say("stopping: the training saves a checkpoint and exits; a second signal ends it at once.")
            told = True
            tell(b"stop\n")
        if time.monotonic() - beat > BEAT_SECONDS:
            beat = time.monotonic()
            tell(b"beat\n")
        asked.wait(0.1)
    if started.poll() is not None:
        for reader in readers:
            reader.thread.join(2.0)
    return min((r for r in readers if r.failed), key=lambda r: r.failed_at, default=readers[0]).failed


@contextlib.contextmanager
def guarded(job: Job, remote: Remote) -> Iterator[Callable[[bytes], None]]:
    """An agent of our own on every host and on this machine: what `colossalai run` starts there ends with this block,
    and at once where this process, or the connection to it, ends first. Yields what tells all of them an order.
    """
    hosts = [*job.hosts, *([] if any(host.is_local for host in job.hosts) else [local_host()])]
    agents = [
        subprocess.Popen(
            remote.command(host),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for host in hosts
    ]

    def tell(order: bytes) -> None:
        for agent in agents:
            with contextlib.suppress(OSError):  # it has ended, and with it what it guarded
                assert agent.stdin is not None
                agent.stdin.write(order)
                agent.stdin.flush()

    tell(remote.request("guard", job=job.name))
    try:
        yield tell
    finally:
        tell(b"kill\n")
        deadline = time.monotonic() + SWEEP_SECONDS
        for agent in agents:
            try:
                agent.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
