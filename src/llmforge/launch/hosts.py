"""Hosts by name: the hostfile, and how ssh gets to them.

A hostfile is ColossalAI's: one host a line, in the order of the ranks. Comments (`#`) are allowed here.
"""

import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UserError
from llmforge.sizes import refuse_large

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Host:
    """`name` as the hostfile has it, `[user@]name`; `address` is what ssh makes of it (its HostName)."""

    name: str
    address: str
    is_local: bool = False


@dataclass(frozen=True)
class Ssh:
    """How to get to hosts that are not this one."""

    port: int | None = None
    config: Path | None = None

    def words(self, host: Host, *command: str) -> list[str]:
        """The command line of an ssh that never asks, notices a dead host in 15 seconds and forwards nothing."""
        options = [
            *("BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}", "ControlPath=none", "LogLevel=ERROR"),
            *("ServerAliveInterval=5", "ServerAliveCountMax=3"),
        ]
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-T", "-a", "-x", *flags, *self._own(), "--", host.name, *command]

    def resolve(self, name: str) -> dict[str, str]:
        """ssh's own configuration for a host (`ssh -G`): hostname, port, proxyjump and so on."""
        done = subprocess.run(
            ["ssh", "-G", *self._own(), "--", name], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise UserError(f"ssh refuses the host {name}: {done.stderr.strip()}")
        return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())

    def _own(self) -> list[str]:
        port = ["-p", str(self.port)] if self.port is not None else []
        return [*port, *(["-F", str(self.config)] if self.config else [])]


def local_host() -> Host:
    """This machine."""
    return Host("localhost", "127.0.0.1", is_local=True)


def read_hostfile(path: Path, ssh: Ssh) -> list[Host]:
    """The hosts of a hostfile, in its order.

    Raises `UserError` with file and line for what is no host name, for names that nothing resolves, and for one
    machine named twice.
    """
    try:
        lines = refuse_large(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"--hostfile {path}: {error.strerror}; it must contain one host per line (hostfile.example)."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--hostfile {path} is not UTF-8 text.") from error
    named = {}
    for number, line in enumerate(lines, 1):
        name = re.sub(r"(^|\s)#.*", "", line).strip()
        if name:
            named[number] = check_name(name, f"{path}:{number}")
    if not named:
        raise UserError(f"--hostfile {path} names no host; write one per line.")
    if any(not is_local(name) for name in named.values()) and not shutil.which("ssh"):
        raise UserError("ssh is not on PATH; install the OpenSSH client.")
    with ThreadPoolExecutor(16) as pool:
        looked_up = list(pool.map(lambda name: look_up(name, ssh), named.values()))
    first: dict[str, int] = {}
    mistakes = []
    for (number, name), (host, key) in zip(named.items(), looked_up, strict=True):
        other = first.setdefault(key or host.address, number)
        if other != number:
            also = "" if named[other] == name else f" under the name {named[other]}"
            mistakes.append(f"{path}:{number}: {name} is on line {other} already{also}; remove one.")
        elif key is None:
            mistakes.append(f"{path}:{number}: {name} is not a known host: its name does not resolve.")
    if mistakes:
        raise UserError(" ".join(mistakes))
    return [host for host, _ in looked_up]


def check_name(name: str, where: str) -> str:
    """`name` if it can be a host's; never anything that ssh would read as an option."""
    if "slots=" in name:
        raise UserError(
            f'{where}: "{name}": a line must contain a host name only, as for colossalai run; '
            "set the number of processes with --nproc-per-node."
        )
    if not re.fullmatch(r"[\w.:@%][\w.:@%-]*", name, re.ASCII):
        raise UserError(f'{where}: "{name}" is not a host name; write one host per line.')
    return name


def is_local(name: str) -> bool:
    """Whether `name` plainly means this machine."""
    return name in LOCAL_NAMES or name in (socket.gethostname(), socket.getfqdn())


def look_up(name: str, ssh: Ssh) -> tuple[Host, str | None]:
    """The host, and what tells machines apart: address and ssh port. None for a name that nothing resolves."""
    if is_local(name):
        return Host(name, name, is_local=True), "this machine"
    settings = ssh.resolve(name)
    address, port = settings.get("hostname", name), settings.get("port", "22")
    host = Host(name, address)
    if settings.get("proxyjump", "none") != "none" or settings.get("proxycommand", "none") != "none":
        return host, f"{address} {port}"  # only the machine between may know the name
    try:
        return host, f"{socket.getaddrinfo(address, None)[0][4][0]} {port}"
    except (OSError, UnicodeError):  # UnicodeError: a name that no host can have
        return host, None
