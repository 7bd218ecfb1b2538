"""One training on two hosts, each with its own sshd: the curve of two processes here, and one end for both."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from warm import heed_signals

COLOSSALAI = bool(find_spec("colossalai"))
LONG = ("--num-epochs", "100000")


def losses(save_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def job_processes(save_dir: Path) -> list[str]:
    """Processes anywhere on this machine that work on `save_dir`."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if str(save_dir) in words:
            found.append(" ".join(words))
    return found


class Launched:
    """`llmforge launch` on the two hosts, running."""

    def __init__(self, hosts: Any, place: Path, *words: object, **environment: str) -> None:
        command = [sys.executable, "-m", "llmforge", "launch", "--ssh-config", hosts.ssh_config]
        self.process = subprocess.Popen(
            [str(word) for word in (*command, "--hostfile", hosts.hostfile, *words)],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            preexec_fn=heed_signals,
        )

    def wait_for_steps(self, save_dir: Path, count: int, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        file = save_dir / "metrics.jsonl"
        while not (file.is_file() and file.read_bytes().count(b"\n") >= count):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(self.process.communicate())
            time.sleep(0.05)

    def end(self, seconds: float) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


def plugin_flags(plugin: str) -> list[str]:
    if plugin == "ddp":
        return []
    if not COLOSSALAI:
        pytest.skip("ColossalAI is not installed")
    return ["--plugin", "zero2", "--rehearse"]


@pytest.mark.parametrize("plugin", ["ddp", pytest.param("colossalai-zero2", marks=pytest.mark.stress)])
def test_two_hosts_follow_the_curve_of_two_processes_here(
    plugin: str, hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    flags = [*flags, *plugin_flags(plugin), "--max-steps", "12"]
    one, two = tmp_path / "one", tmp_path / "保存 two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = subprocess.Popen(
        [*command, "-m", "llmforge", *flags, "--save-dir", str(one)],
        cwd=workplace,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    launched = Launched(
        hosts, workplace, "--env", "MARK=a b'c", "--", *flags, "--save-dir", two, SECRET="s3cret"
    )
    code, out, err = launched.end(200)
    assert code == 0, err
    assert here.wait(200) == 0
    assert len(losses(one)) == 12
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert "[forge-one] train: done" in out
    assert re.search(rf"\[forge-one\] .*{plugin.split('-')[-1]}.* 2 processes", err)
    assert "s3cret" not in out + err
    assert "a b'c" not in out + err


@pytest.mark.stress
@pytest.mark.parametrize("plugin", ["ddp", "colossalai-zero2"])
def test_a_host_that_dies_ends_the_job_with_its_name(
    plugin: str, hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    flags = [*flags, *plugin_flags(plugin)]
    launched = Launched(hosts, workplace, "--", *flags, *LONG, "--save-dir", tmp_path / "s")
    launched.wait_for_steps(tmp_path / "s", 3)
    assert len(job_processes(tmp_path / "s")) >= 4
    hosts.kill("forge-two")
    code, _, err = launched.end(60)
    assert code == 1
    assert "error: forge-two was lost" in err
    assert "the job was ended on forge-one too" in err
    assert job_processes(tmp_path / "s") == []


@pytest.mark.stress
def test_a_host_that_falls_silent_ends_the_job_and_its_own_part(
    hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    if hosts.kind != "namespaces":
        pytest.skip("only a network namespace can be unplugged")
    launched = Launched(hosts, workplace, "--", *flags, *LONG, "--save-dir", tmp_path / "s")
    launched.wait_for_steps(tmp_path / "s", 3)
    hosts.unplug("forge-two")
    code, _, err = launched.end(60)
    assert code == 1
    assert "error: forge-two was lost" in err
    deadline = time.monotonic() + 45  # the silent host misses the launcher's beat
    while job_processes(tmp_path / "s") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert job_processes(tmp_path / "s") == []


@pytest.mark.stress
def test_a_worker_that_dies_ends_the_job_with_its_hosts_name(
    hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    launched = Launched(hosts, workplace, "--", *flags, *LONG, "--save-dir", tmp_path / "s")
    launched.wait_for_steps(tmp_path / "s", 3)
    workers = [pid for pid in hosts.processes("forge-two") if "RANK=1" in environment(pid)]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    code, _, err = launched.end(60)
    assert code == 1
    assert "forge-two" in err.splitlines()[-1]
    assert job_processes(tmp_path / "s") == []


def environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")


def test_a_signal_lets_the_training_save_on_all_hosts(
    hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    save_dir = tmp_path / "s"
    launched = Launched(hosts, workplace, "--", *flags, *LONG, "--save-dir", save_dir)
    launched.wait_for_steps(save_dir, 3)
    launched.process.send_signal(signal.SIGINT)
    code, _, err = launched.end(60)
    assert code == 0, err
    assert "--load-checkpoint latest resumes" in err
    assert len(list(save_dir.glob("epoch-*/llmforge.json"))) == 1
    assert job_processes(save_dir) == []


def test_hosts_that_are_not_ready_are_named_before_anything_starts(
    hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    hosts.kill("forge-one")
    if hosts.hidden:
        shutil.copytree(workplace / "语料 data", hosts.hidden / "语料 data")
        flags = [word if word != "语料 data" else str(hosts.hidden / "语料 data") for word in flags]
    code, _, err = Launched(hosts, workplace, "--", *flags, "--save-dir", tmp_path / "s").end(60)
    assert code == 1
    assert "forge-one: cannot be reached by ssh" in err
    if hosts.hidden:
        assert f"forge-two: lacks {hosts.hidden / '语料 data'}; every host needs" in err
        assert "error: not ready: forge-one, forge-two; nothing was started." in err
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(
    not COLOSSALAI or not find_spec("fabric") or os.geteuid() != 0,
    reason="needs ColossalAI, fabric, and root, to give its ssh client another ~/.ssh/config",
)
@pytest.mark.stress
@pytest.mark.parametrize("dies", ["worker", "launcher"])
def test_through_colossalai_a_worker_or_the_launcher_that_dies_ends_the_job_everywhere(
    dies: str, hosts: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(hosts.ssh_config, home / ".ssh" / "config")
    users = Path("/etc/passwd").read_text().splitlines()
    root = ":".join([*users[0].split(":")[:5], str(home), "/bin/bash"])
    (tmp_path / "passwd").write_text("\n".join([root, *users[1:]]) + "\n")
    save_dir = tmp_path / "保存 s"
    more = [
        "--launcher",
        "colossalai",
        "--hostfile",
        hosts.hostfile,
        "--env",
        "MARK=m4rk m4rk",
        "GLOO_SOCKET_IFNAME=eth0",
    ]
    command = [sys.executable, "-m", "llmforge", "launch", *more, "--", *flags, *LONG, "--save-dir", save_dir]
    mount = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"']
    launched = subprocess.Popen(
        [*mount, str(tmp_path / "passwd"), *map(str, command)],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "SECRET": "s3cret"},
    )
    deadline = time.monotonic() + 200
    while not (save_dir / "metrics.jsonl").is_file():
        if launched.poll() is not None:
            raise AssertionError("\n".join(launched.communicate()[0].splitlines()[-40:]))
        assert time.monotonic() < deadline, launched.kill() or launched.communicate()
        time.sleep(0.1)
    workers = [pid for pid in hosts.processes("forge-two") if "RANK=1" in environment(pid)]
    if dies == "launcher":
        launched.kill()
        launched.wait()
        deadline = time.monotonic() + 20
        while job_processes(save_dir):
            assert time.monotonic() < deadline, job_processes(save_dir)
            time.sleep(0.1)
        return
    os.kill(workers[0], signal.SIGKILL)
    out, _ = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert "error: the command on forge-" in out.splitlines()[-1]
    assert "s3cret" not in out
    assert "m4rk" not in out
    assert job_processes(save_dir) == []
