"""`llmforge launch` on this machine, and what it refuses before it talks to anybody."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UserError
from llmforge.launch.hosts import Ssh, read_hostfile

COLOSSALAI_RUN = bool(find_spec("colossalai") and find_spec("fabric"))


@pytest.fixture
def hostfile(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "hostfile").write_text(text, encoding="utf-8")
        return tmp_path / "hostfile"

    return write


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    """Two names for one address, one for another, and one behind a gate."""
    lines = "Host a b\n  HostName 127.0.0.9\nHost c\n  HostName 127.0.0.10\nHost far\n  ProxyJump gate\n"
    (tmp_path / "ssh_config").write_text(lines)
    return Ssh(config=tmp_path / "ssh_config")


def test_a_hostfile_names_hosts_in_order_and_may_hold_comments(hostfile: Any, ssh: Ssh) -> None:
    hosts = read_hostfile(hostfile("# the cluster\n\nc\n me@a   # the second\nlocalhost\nfar\n"), ssh)
    assert [host.name for host in hosts] == ["c", "me@a", "localhost", "far"]
    assert [host.address for host in hosts] == ["127.0.0.10", "127.0.0.9", "localhost", "far"]
    assert [host.is_local for host in hosts] == [False, False, True, False]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\nc\n\na\n", "hostfile:4: a is on line 1 already; remove one."),
        ("a\nc\nb\n", "hostfile:3: b is on line 1 already under the name a; remove one."),
        ("localhost\n127.0.0.1\n", "hostfile:2: 127.0.0.1 is on line 1 already under the name localhost"),
        ("a\nno-such-host.invalid\n", "hostfile:2: no-such-host.invalid is not a known host"),
        ("a slots=8\n", 'hostfile:1: "a slots=8": a line must contain a host name only'),
        ("-oProxyCommand=touch\n", 'hostfile:1: "-oProxyCommand=touch" is not a host name'),
        ("a; rm\n", 'hostfile:1: "a; rm" is not a host name'),
        ("# nobody\n", "names no host"),
    ],
)
def test_a_wrong_hostfile_is_refused_with_its_line(hostfile: Any, ssh: Ssh, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_hostfile(hostfile(text), ssh)
    assert sentence in str(error.value)


@pytest.mark.parametrize("again", ["gone.invalid", "me@gone.invalid"])
def test_every_mistake_in_a_hostfile_is_named_once(hostfile: Any, ssh: Ssh, again: str) -> None:
    with pytest.raises(UserError) as error:
        read_hostfile(hostfile(f"gone.invalid\na\nlost.invalid\n{again}\nb\n"), ssh)
    also = "" if again == "gone.invalid" else " under the name gone.invalid"
    file = ssh.config.with_name("hostfile") if ssh.config else ""
    assert str(error.value) == (
        f"{file}:1: gone.invalid is not a known host: its name does not resolve. "
        f"{file}:3: lost.invalid is not a known host: its name does not resolve. "
        f"{file}:4: {again} is on line 1 already{also}; remove one. "
        f"{file}:5: b is on line 2 already under the name a; remove one."
    )


def test_a_missing_hostfile_is_refused(tmp_path: Path, ssh: Ssh) -> None:
    with pytest.raises(UserError, match="one host per line"):
        read_hostfile(tmp_path / "absent", ssh)


TRAIN = ("--", "train", "--pretrained", "m", "--dataset", "d", "--save-dir", "s")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--", "export", "--checkpoint", "c"], 2, '"export" cannot be launched on hosts'),
        ([*TRAIN, "--learning-speed", "1"], 2, "No such option"),
        ([*TRAIN, "--min-lr-ratio", "7"], 2, "--min-lr-ratio 7.0: must be between 0 and 1"),
        (["--env", "NOT_SET_HERE", *TRAIN], 2, "--env NOT_SET_HERE: this variable is not set here"),
        (["--hostfile", "absent", *TRAIN], 1, "--hostfile absent: No such file"),
    ],
)
def test_wrong_use_is_refused_before_any_host_is_asked(
    llmforge: Any, words: list[str], code: int, sentence: str
) -> None:
    done = llmforge("launch", *words, code=code)
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
    assert "checking" not in done.stderr


def test_what_the_model_does_not_allow_is_refused_before_any_host_is_asked(
    llmforge: Any, workplace: Path
) -> None:
    # 4 heads in 3 shares
    flags = ["--plugin", "3d", "--tp", "3", "--rehearse", "--dataset", "d", "--save-dir", "s"]
    words = ["--nproc-per-node", "3", "--", "train", "--pretrained", workplace / "model", *flags]
    done = llmforge("launch", *words, code=1)
    assert done.stderr == f"error: --tp 3 does not divide the 4 attention heads of {workplace / 'model'}.\n"


@pytest.mark.skipif(bool(find_spec("colossalai")), reason="ColossalAI is here")
def test_a_host_without_colossalai_is_named(llmforge: Any, workplace: Path, tmp_path: Path) -> None:
    flags = [
        "--pretrained",
        workplace / "model",
        "--dataset",
        workplace / "语料 data",
        "--save-dir",
        tmp_path,
    ]
    words = ["--master-port", free_port(), "--", "train", "--plugin", "zero2", "--rehearse", *flags]
    done = llmforge("launch", *words, code=1)
    assert "localhost: --plugin zero2 needs ColossalAI: pip install" in done.stderr
    assert "error: not ready: localhost; nothing was started." in done.stderr


def test_a_dry_run_shows_the_commands_and_no_values_of_variables(
    llmforge: Any, hostfile: Any, ssh: Ssh
) -> None:
    words = ["--hostfile", hostfile("a\nc\n"), "--ssh-config", ssh.config, "--ssh-port", 2200]
    more = ["--nproc-per-node", 4, "--env", "TOKEN", "--dry-run", "--", "train", "--dataset", "语料 data"]
    out = llmforge("launch", *words, *more, "--pretrained", "m", "--save-dir", "s", TOKEN="s3cret").stdout
    assert "a: ssh -T -a -x -o BatchMode=yes" in out
    assert "-p 2200" in out
    torchrun = "-m torch.distributed.run --nnodes=2 --node-rank=1 --nproc-per-node=4 --master-addr=127.0.0.9"
    assert f"{torchrun} --master-port=29500 -m llmforge train --dataset '语料 data'" in out
    assert "TOKEN" in out
    assert "s3cret" not in out


def test_this_machine_is_checked_too(llmforge: Any, workplace: Path, tmp_path: Path) -> None:
    words = ["--pretrained", workplace / "model", "--dataset", workplace / "nowhere", "--save-dir", tmp_path]
    done = llmforge("launch", "--", "train", *words, code=1)
    assert f"localhost: lacks {workplace / 'nowhere'}" in done.stderr
    assert "error: not ready: localhost; nothing was started." in done.stderr
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words[3] = workplace / "语料 data"
        done = llmforge("launch", "--master-port", port, "--", "train", *words, code=1)
    assert f"localhost: has port {port} in use" in done.stderr


def test_a_worker_that_fails_fails_the_launch(
    llmforge: Any, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    port = free_port()
    flags = [word if word != "ddp" else "native" for word in flags]
    command = [*("launch", "--nproc-per-node", "2", "--master-port", port), "--", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "llmforge", *map(str, command), "--save-dir", str(tmp_path / "s")],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "--plugin native is one process, but 2 were started" in done.stderr
    assert (
        done.stderr.splitlines()[-1] == "error: localhost ended with exit code 1 (its lines above say why)."
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun",
        pytest.param(
            "colossalai",
            marks=[
                pytest.mark.stress,
                pytest.mark.skipif(not COLOSSALAI_RUN, reason="needs ColossalAI and fabric"),
            ],
        ),
    ],
)
def test_nothing_runs_on_when_the_launcher_is_killed(
    launcher: str, workplace: Path, flags: list[str], tmp_path: Path
) -> None:
    save_dir = tmp_path / "s"
    command = ["launch", "--nproc-per-node", "2", "--master-port", free_port(), "--launcher", launcher]
    command += ["--", *flags]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "llmforge",
            *map(str, command),
            "--num-epochs",
            "99999",
            "--save-dir",
            save_dir,
        ],
        cwd=workplace,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (save_dir / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while workers(save_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (save_dir / "metrics.jsonl").is_file()
    assert workers(save_dir) == []


def workers(save_dir: Path) -> list[str]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(save_dir) in words:
            found.append(directory.name)
    return found
