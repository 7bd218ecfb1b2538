"""From the flags of `llmforge launch` to a job: who takes part, where they meet, what they are told."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.console import show
from llmforge.errors import UsageError
from llmforge.launch import colossal
from llmforge.launch.agent import gpus
from llmforge.launch.check import Lacking, check_hosts
from llmforge.launch.hosts import Host, Ssh, local_host, read_hostfile
from llmforge.launch.job import Job, run_job, show_job
from llmforge.launch.remote import PASSED, Remote


@dataclass(frozen=True)
class Launch:
    """What to launch and where. `command` is `train` and its flags; `paths` are those that it reads.

    `variables` are NAME or NAME=VALUE, passed besides `PASSED`. `check` is given the number of processes of all hosts, and
    raises for what so many cannot do; `lacking` says what the packages of a host cannot do.
    """

    command: Sequence[str]
    paths: Sequence[Path]
    check: Callable[[int], None]
    lacking: Lacking
    hostfile: Path | None = None
    processes: int | None = None
    launcher: str = "auto"
    ssh: Ssh = field(default_factory=Ssh)
    master_address: str | None = None
    master_port: int = 29500
    variables: Sequence[str] = ()
    python: str | None = None
    dry_run: bool = False

    def run(self) -> None:
        """Checks the hosts, runs the job to its end. Raises `UserError` for whatever does not go well."""
        hosts = read_hostfile(self.hostfile, self.ssh) if self.hostfile else [local_host()]
        remote = Remote(self.ssh, Path.cwd(), passed(self.variables), **self._python())
        job = Job(
            hosts,
            ["-m", "llmforge", *self.command],
            self.processes or max(1, gpus()),
            self.master_address or meeting_place(hosts),
            self.master_port,
        )
        self.check(len(hosts) * job.processes)
        through_colossalai = self.launcher == "colossalai"
        if through_colossalai:
            colossal.check_ssh(job, remote)
        if self.dry_run:
            show(colossal.show(job, remote, self.hostfile) if through_colossalai else show_job(job, remote))
            return
        paths = [str(path) for path in self.paths]
        check_hosts(hosts, remote, paths, job.processes, job.master_port, self.lacking)
        (colossal.run if through_colossalai else run_job)(job, remote)

    def _python(self) -> dict[str, str]:
        return {"python": self.python} if self.python else {}


def meeting_place(hosts: Sequence[Host]) -> str:
    """The address of the first host, as the others see it."""
    if not hosts[0].is_local:
        return hosts[0].address
    if len(hosts) == 1:
        return "127.0.0.1"
    if hosts[0].name in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"the first host is {hosts[0].name}, which is a different machine on every host; "
            "write its network name in the hostfile, or set --master-addr."
        )
    return hosts[0].name


def passed(variables: Sequence[str]) -> dict[str, str]:
    """The environment that goes to the hosts: `PASSED` where they are set here, and those asked for."""
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    for word in variables:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise UsageError(
                f"--env {name}: this variable is not set here; set it, or write --env {name}=VALUE."
            )
        environment[name] = value if equals else os.environ[name]
    return environment
