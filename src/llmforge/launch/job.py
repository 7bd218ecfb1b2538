"""The job itself: one torchrun per host, their lines with the host's name, and one end for all.

A host ends badly when its torchrun does, or when its connection breaks. The others are then told to end, and killed
where they do not; a message names the host that was first. SIGINT and SIGTERM let the training save and end; a second
one ends it at once.
"""

import contextlib
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.launch.hosts import Host
from llmforge.launch.remote import Remote

BEAT_SECONDS = 2.0
SETTLE_SECONDS = 2.0  # hosts that fail together: wait for all of them before one is blamed
KILL_SECONDS = 8.0  # for an agent to end its processes, before its connection is cut
LOST = 255  # ssh's own exit code


@dataclass(frozen=True)
class Job:
    """`words` is the command of one worker after `python`, `processes` their number on a host."""

    hosts: Sequence[Host]
    words: Sequence[str]
    processes: int
    master_address: str
    master_port: int
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def torchrun(self, rank: int, python: str) -> list[str]:
        """The command of the host `rank`; torchrun as a module, so that nothing need be on PATH."""
        return [
            *(python, "-m", "torch.distributed.run", f"--nnodes={len(self.hosts)}", f"--node-rank={rank}"),
            *(f"--nproc-per-node={self.processes}", f"--master-addr={self.master_address}"),
            *(f"--master-port={self.master_port}", *self.words),
        ]


def show_job(job: Job, remote: Remote) -> str:
    """The exact commands: how each host is reached, and what runs there. Of variables, the names alone."""
    lines = []
    passed = f" (with {', '.join(remote.environment)})" if remote.environment else ""
    for rank, host in enumerate(job.hosts):
        lines.append(f"{host.name}: {shlex.join(remote.command(host))}")
        command = (
            f"cd {shlex.quote(str(remote.directory))} && {shlex.join(job.torchrun(rank, remote.python))}"
        )
        lines.append(f"  runs there{passed}: {command}")
    return "\n".join(lines)


def run_job(job: Job, remote: Remote) -> None:
    """Starts the job on all hosts and waits for its end; `UserError` names the host that ended it badly."""
    count = f"{len(job.hosts)} host{'s' if len(job.hosts) > 1 else ''} x {job.processes}"
    say(
        f"starting {count} process{'es' if job.processes > 1 else ''}; master address {job.master_address}:{job.master_port}"
    )
    agents: list[Agent] = []
    with signals_as_requests() as asked:
        try:
            agents += [Agent(job, rank, remote) for rank in range(len(job.hosts))]
            watch(agents, asked)
        finally:
            end(agents)
    report(agents, asked())


class Agent:
    """One host's agent: its process here, the threads that pass its lines on, and how it ended."""

    def __init__(self, job: Job, rank: int, remote: Remote) -> None:
        self.host = job.hosts[rank]
        alone = self.host.is_local and len(job.hosts) == 1
        pipe = None if alone else subprocess.PIPE  # alone, the training sees the terminal itself
        self.process = subprocess.Popen(
            remote.command(self.host),
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # Ctrl-C goes to the launcher, which passes it on
        )
        self.ended_at: float | None = None
        self.unread = False
        self.readers = [
            threading.Thread(target=self._pass_on, args=(source, target), daemon=True)
            for source, target in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
            if source is not None
        ]
        for reader in self.readers:
            reader.start()
        request = remote.request(
            "run",
            words=job.torchrun(rank, remote.python),
            job=f"{job.name}-{rank}",
            master=job.master_address,
        )
        self.tell(request)

    def tell(self, order: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended: poll() knows
            assert self.process.stdin is not None
            self.process.stdin.write(order)
            self.process.stdin.flush()

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.ended_at is None:
            self.ended_at = time.monotonic()
        return code

    def _pass_on(self, source: IO[bytes], target: IO[str]) -> None:
        prefix = f"[{self.host.name}] ".encode()
        for line in source:
            if self.unread:
                continue  # read on, or the host would block
            try:
                with WRITING:
                    target.buffer.write(prefix + line.rstrip(b"\n") + b"\n")  # type: ignore[attr-defined]
                    target.flush()
            except OSError:
                self.unread = True

    def describe(self) -> str:
        """How it ended, as the middle of a sentence."""
        code = self.process.returncode
        if code == LOST and not self.host.is_local:
            return f"{self.host.name} was lost: its connection broke"
        return f"{self.host.name} ended with exit code {code if code >= 0 else 128 - code} (its lines above say why)"


WRITING = threading.Lock()


@contextlib.contextmanager
def signals_as_requests() -> Iterator["Asked"]:
    """Counts SIGINT and SIGTERM instead of ending this process."""
    asked = Asked()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, asked.ask) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Asked:
    """The number of times that the user asked to stop."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.times = 0

    def ask(self, number: int, _frame: object) -> None:
        self.times += 1
        self.queue.put(number)

    def __call__(self) -> int:
        return self.times

    def wait(self, seconds: float) -> None:
        """Sleeps, but not past a request."""
        with contextlib.suppress(queue.Empty):
            self.queue.get(timeout=seconds)


def watch(agents: Sequence[Agent], asked: Asked) -> None:
    """Returns when all hosts have ended, or when the rest has to be ended."""
    beat, told = 0.0, False
    while any(agent.poll() is None for agent in agents):
        now = time.monotonic()
        first_bad = min((a.ended_at for a in agents if a.poll() and a.ended_at is not None), default=None)
        unread = any(agent.unread for agent in agents)
        if (first_bad is not None and now - first_bad > SETTLE_SECONDS) or unread or asked() > 1:
            return
        if asked() and not told:
            say("stopping: the training saves a checkpoint and exits; a second signal ends it at once.")
            told = True
            for agent in agents:
                agent.tell(b"stop\n")
        if now - beat > BEAT_SECONDS:
            beat = now
            for agent in agents:
                agent.tell(b"beat\n")
        asked.wait(0.1)


def end(agents: Sequence[Agent]) -> None:
    """Leaves nothing running: tells agents to kill what they started, then cuts the connections."""
    for agent in agents:
        if agent.process.poll() is None:
            agent.tell(b"kill\n")
    deadline = time.monotonic() + KILL_SECONDS
    for agent in agents:
        try:
            agent.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            agent.process.kill()  # the agent sees its input end, or no beat, and ends its processes itself
            agent.process.wait()
    for agent in agents:
        for reader in agent.readers:
            reader.join(1.0)


def report(agents: Sequence[Agent], asked: int) -> None:
    """Says how the job ended; raises where it was badly."""
    if any(agent.unread for agent in agents):
        raise BrokenPipeError
    bad = sorted((a for a in agents if a.process.returncode), key=lambda a: a.ended_at or float("inf"))
    if not bad:
        return
    if asked > 1:
        raise UserError(
            "ended at once, as requested; --load-checkpoint latest resumes from the last checkpoint."
        )
    # A host that went away is the cause, whoever noticed it first.
    first = next((a for a in bad if a.process.returncode == LOST and a.ended_at), bad[0])
    others = [agent for agent in agents if agent is not first]
    rest = f"; the job was ended on {', '.join(a.host.name for a in others)} too" if others else ""
    raise UserError(f"{first.describe()}{rest}.")
