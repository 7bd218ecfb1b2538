"""What runs on every host: answers the check, or runs one command, or guards what another launcher starts, and ends it
when it is told to.

The source of this file is sent over ssh and executed there, so that a host without llmforge, or with another version
of it, can say so itself; hence the standard library alone. Standard input carries one JSON request, and then lines:

    beat     the launcher is alive; after LOST_SECONDS without one, everything is ended
    stop     let the workers save and end (SIGTERM to them, not to torchrun, which kills them after 30 s)
    kill     end at once; so does the end of the input, which is what a dead launcher or connection leaves

Everything that the command starts carries LLMFORGE_JOB in its environment, by which it is found at the end.
"""

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

LOST_SECONDS = 30.0
TERM_SECONDS = 3.0
SIOCGIFADDR = 0x8915
PR_SET_PDEATHSIG = 1
NOTHING = b"\n"


def main() -> None:
    """Reads the request, does it, and exits."""
    request = json.loads(sys.stdin.buffer.readline())
    os.environ.update(request["environment"])
    os.environ["PATH"] = os.pathsep.join(
        [os.path.dirname(request["python"]), os.environ.get("PATH", os.defpath)]
    )
    if request["action"] == "check":
        print(json.dumps(check(request)), flush=True)
        return
    if request["action"] == "guard":
        guard(request["job"])
        sys.stdout.flush()
        os._exit(0)  # as below
    os.environ["LLMFORGE_JOB"] = request["job"]
    os.chdir(request["directory"])
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_to(request["master"])):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    code = run(request["words"], request["job"])
    sys.stdout.flush()
    os._exit(code)  # a thread still waits for orders, and an ordinary exit would wait for its lock


def check(request: dict[str, Any]) -> dict[str, Any]:
    """What the launcher wants to know of this host; `missing` are paths, `contents` fingerprints by path."""
    answer: dict[str, Any] = {"gpus": gpus(), "directory": os.path.isdir(request["directory"])}
    if not answer["directory"]:
        return answer
    os.chdir(request["directory"])
    answer["missing"] = [path for path in request["paths"] if not os.path.exists(os.fsencode(path))]
    answer["contents"] = {path: recorded_fingerprint(path) for path in request["paths"]}
    words = [request["python"], "-m", "llmforge.steps.identity"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
    try:
        answer["identity"] = json.loads(done.stdout)
    except ValueError:
        answer["fault"] = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
    if request["port"]:
        answer["port_free"] = is_free(request["port"])
    return answer


def gpus() -> int:
    """Number of NVIDIA GPUs that a process here sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip() and not word.strip().startswith("-")])
    return len(glob.glob("/dev/nvidia[0-9]*"))


def recorded_fingerprint(path: str) -> Any:
    """What the llmforge.json of an output, or of the dataset to which a part belongs, says that it holds."""
    for above in (".", "..", "../.."):
        manifest = os.path.join(path, above, "llmforge.json")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(manifest, "rb") as file:
            return json.load(file)["outputs"]["fingerprint"]
    return None


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def interface_to(master: str) -> str | None:
    """The network interface whose address leads to `master`; gloo would take the one of the host's name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address or (name == "lo" and address.startswith("127.")):
                    return name
    return None


def run(words: list[str], job: str) -> int:
    """Runs `words` until it ends or is ended; its exit code as a shell gives it."""
    child = subprocess.Popen(
        [word.encode("utf-8", "surrogateescape") for word in words],
        stdin=subprocess.DEVNULL,
        preexec_fn=end_with_parent,  # where this agent is killed, torchrun ends, and with it its workers
    )
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda *_: orders.put(b"stop\n"))
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    heard = time.monotonic()
    while child.poll() is None:
        order = NOTHING
        with contextlib.suppress(queue.Empty):
            order = orders.get(timeout=0.1)
        if order == b"beat\n":
            heard = time.monotonic()
        elif order == b"stop\n":
            if not stop(job):
                send(child.pid, signal.SIGTERM)
        elif order != NOTHING or time.monotonic() - heard > LOST_SECONDS:
            send(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(TERM_SECONDS)
            break
    sweep(job)
    code = child.wait()
    return code if code >= 0 else 128 - code


def guard(job: str) -> None:
    """Watches over what another program starts here for the job: the orders are the same, and so is their end."""
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    order = NOTHING
    while order in (NOTHING, b"beat\n", b"stop\n"):
        try:
            order = orders.get(timeout=LOST_SECONDS)
        except queue.Empty:
            break
        if order == b"stop\n":
            stop(job)
    sweep(job)
    if order != b"kill\n":  # nobody has ended that program, so it may still have been starting something
        time.sleep(1.0)
        sweep(job)


def end_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def listen(orders: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    orders.put(b"")


def stop(job: str) -> int:
    """Asks the workers of the job to save and end; their number. What workers started themselves is left to them."""
    workers = {pid for pid in processes(job) if b"LOCAL_RANK" in environment(pid)}
    workers = {pid for pid in workers if parent(pid) not in workers}
    for pid in workers:
        send(pid, signal.SIGTERM)
    return len(workers)


def sweep(job: str) -> None:
    """Kills every process of the job that is left."""
    for _ in range(20):
        left = processes(job)
        if not left:
            return
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes(job: str) -> list[int]:
    """Ids of the processes of the job, but for this one."""
    mark = job.encode()
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in found if environment(pid).get(b"LLMFORGE_JOB") == mark and pid != os.getpid()]


def environment(pid: int) -> dict[bytes, bytes]:
    """The variables with which a process was started; {} where it has ended or is another user's."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
    return {}


def parent(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    main()
