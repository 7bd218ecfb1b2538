"""Starting the agent (agent.py) on a host, by ssh or, on this machine, as it is."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.launch.hosts import Host, Ssh

# What the hosts of one job must agree on, and nothing that is secret or says where something lies on one machine.
PASSED = (
    *("PYTHONPATH", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"),
    *("NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"),
)


@dataclass(frozen=True)
class Remote:
    """How agents are started: through `ssh`, with `python`, in `directory`, with the variables `environment`."""

    ssh: Ssh
    directory: Path
    environment: Mapping[str, str]
    python: str = sys.executable

    def command(self, host: Host) -> list[str]:
        """The command line that starts an agent on `host`; it says nothing of what is to be done there."""
        source = agent_source()
        code = f"import sys; exec(compile(sys.stdin.buffer.read({len(source)}), 'agent.py', 'exec'))"
        words = [self.python, "-c", code]
        return words if host.is_local else self.ssh.words(host, f"exec {shlex.join(words)}")

    def request(self, action: str, **values: Any) -> bytes:
        """What the agent reads first: its own source, and one line of JSON."""
        common = {
            "action": action,
            "python": self.python,
            "directory": str(self.directory),
            "environment": dict(self.environment),
        }
        return agent_source() + json.dumps({**common, **values}).encode() + b"\n"


def agent_source() -> bytes:
    return Path(__file__).with_name("agent.py").read_bytes()
