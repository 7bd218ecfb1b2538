"""Looking at every host before anything starts: one sentence for each that is not ready."""

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.launch.hosts import Host
from llmforge.launch.remote import Remote
from llmforge.steps.identity import NOT_INSTALLED, identity

CHECK_SECONDS = 60.0
# From the versions of packages (None: not installed) to the sentence for a host that cannot run the job with them.
Lacking = Callable[[Mapping[str, str | None]], str | None]
AGREED = ("llmforge", "source", "python", "torch", "transformers", "colossalai")


def check_hosts(
    hosts: Sequence[Host], remote: Remote, paths: Sequence[str], processes: int, port: int, lacking: Lacking
) -> None:
    """Asks all hosts at once. Raises `UserError` naming those that are not ready, after a sentence for each.

    `paths` must exist on every host; those that llmforge wrote must hold the same everywhere. `processes` is their
    number on a host; `port` must be free on the first one; `lacking` judges the packages of each.
    """
    say(f"checking {len(hosts)} host{'s' if len(hosts) > 1 else ''}: {', '.join(h.name for h in hosts)}")
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(
            pool.map(lambda host: ask(host, remote, paths, port if host is hosts[0] else 0), hosts)
        )
    here = {name: version for name, version in identity().items() if name in ("llmforge", "source")}
    model = next((a for a in answers if isinstance(a, dict) and "identity" in a), None)
    expected: dict[str, Any] = model or {"identity": {}, "contents": {}}
    expected = {**expected, "identity": {**expected["identity"], **here}}
    faulty = {}
    for host, answer in zip(hosts, answers, strict=True):
        sentence = (
            answer if isinstance(answer, str) else judge(answer, expected, remote, processes, port, lacking)
        )
        if sentence:
            faulty[host.name] = sentence
            say(f"{host.name}: {sentence}")
    if faulty:
        raise UserError(f"not ready: {', '.join(faulty)}; nothing was started.")


def ask(host: Host, remote: Remote, paths: Sequence[str], port: int) -> dict[str, Any] | str:
    """The answer of the agent on `host`, or the sentence that says why there is none."""
    command = remote.command(host)
    try:
        done = subprocess.run(
            command,
            input=remote.request("check", paths=list(paths), port=port),
            capture_output=True,
            timeout=CHECK_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {CHECK_SECONDS:.0f} seconds."
    last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1].strip()
    if done.returncode == 255 and not host.is_local:
        return f"cannot be reached by ssh ({last}); try: {shlex.join(command[:-1])} true"
    if done.returncode in (126, 127):
        return f"has no {remote.python}; install the same environment there, or give its Python by --python."
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"cannot be checked: exit code {done.returncode}, {last}."
    return answer if isinstance(answer, dict) else f"cannot be checked: unexpected answer {answer!r}."


def judge(
    answer: dict[str, Any],
    expected: dict[str, Any],
    remote: Remote,
    processes: int,
    port: int,
    lacking: Lacking,
) -> str | None:
    """What is wrong with a host that answered; `expected` is the answer of the first host, with our llmforge."""
    if not answer["directory"]:
        return f"has no directory {remote.directory}, in which launch was started; create it there."
    if "identity" not in answer:
        return f"has no llmforge for {remote.python} ({answer['fault']}); install this version there."
    for name in AGREED:
        there, wanted = answer["identity"].get(name), expected["identity"].get(name)
        if there != wanted:
            what = (
                "llmforge (same version, other files)"
                if name == "source"
                else f"{name}: {there}, not {wanted}"
            )
            return f"has another {what}; every host needs the same installation."
    versions = {name: None if v == NOT_INSTALLED else v for name, v in answer["identity"].items()}
    if problem := lacking(versions):
        return problem
    if answer["missing"]:
        return (
            f"lacks {', '.join(answer['missing'])}; every host needs the data and the model at the same path."
        )
    for path, content in answer["contents"].items():
        if expected["contents"].get(path, content) != content:
            return f"has other content at {path} than the first host; copy it again."
    if 0 < answer["gpus"] < processes:
        return f"has {answer['gpus']} GPUs, but --nproc-per-node is {processes}."
    if not answer.get("port_free", True):
        return f"has port {port} in use; set another --master-port."
    return None
