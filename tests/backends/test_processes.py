"""What a rank says when another one is gone, at whatever moment."""

import multiprocessing
import os
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmforge.backends.base import World
from llmforge.backends.common.processes import Processes, join_processes, leave_processes
from llmforge.errors import UserError

PROCESSES = multiprocessing.get_context("forkserver")


def meet_and_part(rank: int, port: int, queue: Any) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ.update(address)
    processes = Processes(join_processes(torch.device("cpu")))
    if rank == 1:
        os._exit(3)
    try:
        with processes.naming_the_lost():
            dist.all_reduce(torch.zeros(1))
    except UserError as error:
        queue.put(str(error))
    leave_processes()


def test_the_rank_that_ended_is_named() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    queue = PROCESSES.Queue()
    ranks = [PROCESSES.Process(target=meet_and_part, args=(rank, port, queue)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    assert f"rank 1 (process {ranks[1].pid}" in queue.get(timeout=60)
    for process in ranks:
        process.join(60)


def test_a_failure_of_our_own_is_not_blamed_on_others() -> None:
    processes = Processes(World())
    processes.world, processes.all = World(0, 2), 2 * processes.all
    with pytest.raises(RuntimeError, match="shapes"), processes.naming_the_lost():
        raise RuntimeError("shapes do not fit")
