"""Two hosts on one machine, each with its own sshd: network namespaces where they are permitted, else two
loopback addresses.
"""

import contextlib
import getpass
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNT = itertools.count()
NAMES = ("forge-one", "forge-two")


@dataclass
class TwoHosts:
    """`names` go into a hostfile; `ssh_config` is for --ssh-config; `hostfile` names both.

    `hidden` is a directory that the second host sees empty (for root; None for others).
    """

    names: tuple[str, str]
    addresses: list[str]
    ssh_config: Path
    hostfile: Path
    hidden: Path | None
    kind: str
    servers: dict[str, subprocess.Popen[bytes]]
    links: dict[str, str]

    def processes(self, name: str) -> set[int]:
        """Everything that runs on a host: its sshd and what descends from it."""
        found, new = set(), {self.servers[name].pid}
        while new:
            found |= new
            new = {child for pid in new for child in children(pid)} - found
        return found

    def kill(self, name: str) -> None:
        """The host dies: nothing of it runs on."""
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.servers[name].wait()

    def unplug(self, name: str) -> None:
        """The host falls silent: it runs on, but no packet comes or goes. Namespaces only."""
        run("ip", "link", "set", self.links[name], "down")

    def plug_in(self, name: str) -> None:
        run("ip", "link", "set", self.links[name], "up")


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def run(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts(sshd: Path, directory: Path) -> Iterator[TwoHosts]:
    """`sshd` is the server's program; it lies in an unpacked package, or in the system."""
    with contextlib.ExitStack() as stack:
        try:
            kind, addresses, prefixes, links = "namespaces", *namespaces(stack)
        except (OSError, subprocess.CalledProcessError):
            kind, addresses = "loopback", ["127.0.0.2", "127.0.0.3"]
            prefixes, links = {name: [] for name in NAMES}, {}
        settings = keys_and_settings(directory, addresses)
        servers: dict[str, subprocess.Popen[bytes]] = {}
        for name, address in zip(NAMES, addresses, strict=True):
            server = start(sshd, directory, name, address, prefixes[name])
            servers[name] = server
            stack.callback(server.wait)
            stack.callback(server.kill)
        hostfile = directory / "hostfile"
        hostfile.write_text("\n".join(NAMES) + "\n")
        hidden = directory / "hidden" if os.geteuid() == 0 else None
        made = TwoHosts(NAMES, addresses, settings, hostfile, hidden, kind, servers, links)
        wait_until_reachable(made)
        yield made
        for name in NAMES:
            made.kill(name)


def namespaces(stack: contextlib.ExitStack) -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """Two network namespaces on a bridge: their addresses, the words that run a command in each, their links."""
    if os.geteuid() or not shutil.which("ip"):
        raise OSError("network namespaces need root and iproute2")
    # Never used before: a deleted namespace keeps its links for a while.
    number = f"{os.getpid()}{next(COUNT)}"
    bridge, network = f"lfb{number}", f"10.{100 + int(number) // 250 % 100}.{int(number) % 250}"
    run("ip", "link", "add", bridge, "type", "bridge")
    stack.callback(run, "ip", "link", "del", bridge)
    run("ip", "addr", "add", f"{network}.254/24", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    addresses, prefixes, links = [], {}, {}
    for position, name in enumerate(NAMES, 1):
        space, outer = f"{name}-{number}", f"lfv{number}{position}"
        run("ip", "netns", "add", space)
        stack.callback(run, "ip", "netns", "del", space)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", outer, "master", bridge, "up")
        run("ip", "-n", space, "addr", "add", f"{network}.{position}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "netns", "exec", space, "true")
        addresses.append(f"{network}.{position}")
        prefixes[name] = ["ip", "netns", "exec", space]
        links[name] = outer
    return addresses, prefixes, links


def keys_and_settings(directory: Path, addresses: list[str]) -> Path:
    """Keys for both sides, and the configuration with which ssh finds the hosts."""
    for name in ("host_key", "user_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    (directory / "authorized_keys").write_bytes((directory / "user_key.pub").read_bytes())
    hosts = "".join(
        f"Host {name}\n  HostName {address}\n" for name, address in zip(NAMES, addresses, strict=True)
    )
    everywhere = {
        "Port": 2022,
        "User": getpass.getuser(),
        "IdentityFile": f'"{directory / "user_key"}"',
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
    }
    settings = directory / "ssh_config"
    settings.write_text(hosts + "Host *\n" + "".join(f"  {k} {v}\n" for k, v in everywhere.items()))
    return settings


def start(sshd: Path, directory: Path, name: str, address: str, prefix: list[str]) -> subprocess.Popen[bytes]:
    settings = directory / f"sshd_config.{name}"
    values = {
        "Port": 2022,
        "ListenAddress": address,
        "HostKey": f'"{directory / "host_key"}"',
        "AuthorizedKeysFile": f'"{directory / "authorized_keys"}"',
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    settings.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
    command = [str(sshd), "-D", "-e", "-f", str(settings)]
    if os.geteuid() == 0:
        command = [*prefix, *as_root(directory, name, command)]
    library = sshd.parents[2] / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
    path = os.pathsep.join([str(library), os.environ.get("LD_LIBRARY_PATH", "")]).strip(os.pathsep)
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "LD_LIBRARY_PATH": path},
            start_new_session=True,
        )


def as_root(directory: Path, name: str, command: list[str]) -> list[str]:
    """Started by root, sshd wants a user of its own and a directory in /run: both seen by it alone."""
    users = Path("/etc/passwd").read_text()
    if "\nsshd:" not in users:
        users += "sshd:x:74:65534::/run/sshd:/usr/sbin/nologin\n"
    (directory / "passwd").write_text(users)
    (directory / "hidden").mkdir(exist_ok=True)
    mounts = "mount --bind passwd /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd"
    if name == NAMES[1]:
        mounts += " && mount -t tmpfs tmpfs hidden"
    return ["unshare", "--mount", f"--wd={directory}", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]


def wait_until_reachable(hosts: TwoHosts, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    for name in hosts.names:
        words = [
            "ssh",
            "-F",
            str(hosts.ssh_config),
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=2",
            name,
            "true",
        ]
        while (done := subprocess.run(words, capture_output=True, text=True)).returncode:
            if hosts.servers[name].poll() is not None or time.monotonic() > deadline:
                log = (hosts.ssh_config.parent / f"{name}.log").read_text()
                raise OSError(f"the sshd of {name} does not answer: {done.stderr} {log}")
            time.sleep(0.1)
