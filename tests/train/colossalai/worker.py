"""Runs several trainings one after the other in the same processes: starting them costs more than training does.

worker.py PROCESSES CASES.json, a list of {"name": ..., flags of llmforge train}. Rank 0 writes RESULTS.json beside
it: None for a training that ended well, else what was raised. A case may name a module-level function of this file
that undoes one of llmforge's adjustments ("without"), so that a test can see what it is for, or one that has the place
of what needs a GPU ("with").
"""

import contextlib
import json
import os
import shutil
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ranks import in_ranks


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def masters() -> Any:
    """ColossalAI's way: float32 weights made anew of the rounded ones."""
    from llmforge.backends.colossalai.engine import ColossalEngine

    return replaced(ColossalEngine, "_read_masters", lambda self, weights: None)


def buffers() -> Any:
    from llmforge.backends.colossalai.engine import ColossalEngine

    return replaced(ColossalEngine, "_restore_buffers", lambda self, buffers: None)


def chunks() -> Any:
    """Gemini with the smallest chunk that is ColossalAI's default: one that every rank holds whole."""
    from colossalai.booster.plugin import GeminiPlugin

    make = GeminiPlugin.__init__

    def with_default(self: Any, **kwargs: Any) -> None:
        make(self, **{**kwargs, "min_chunk_size_m": 32})

    return replaced(GeminiPlugin, "__init__", with_default)


def shared_parameters() -> Any:
    from llmforge.backends.colossalai.hybrid import HybridEngine

    return replaced(HybridEngine, "_forget_shared_parameters", lambda self: None)


def discard() -> Any:
    """Gemini's own way of passing over a step: its gradients are forgotten, but not that some were there."""
    from llmforge.backends.colossalai.gemini import GeminiEngine

    return replaced(GeminiEngine, "_discard", lambda self: self.optimizer.zero_grad())


@contextlib.contextmanager
def ring() -> Any:
    """Sequence parallelism "ring" in the place of "split_gather"."""
    from llmforge.backends.colossalai import rules

    unchecked = replaced(rules, "check_3d", lambda config: None)
    with unchecked, replaced(rules, "sequence_mode", lambda config: "ring"):
        yield


@contextlib.contextmanager
def own_norm() -> Any:
    """ZeRO's own gradient norm, of which llmforge makes no use; what waits in vain is given up after 10 seconds."""
    from llmforge.backends.colossalai.hybrid import HybridEngine

    parts = HybridEngine._zero_parts

    def with_own_norm(self: Any) -> Any:
        found = parts(self)
        del self.optimizer._compute_grad_norm
        return found

    waiting = replaced(dist.distributed_c10d, "default_pg_timeout", timedelta(seconds=10))
    with waiting, replaced(HybridEngine, "_zero_parts", with_own_norm):
        yield


@contextlib.contextmanager
def fused_norms(everywhere: bool = True) -> Any:
    """Norms by a stand-in for apex; they must have computed, and the engine must say so."""
    import apex_stand_in

    from llmforge.backends.colossalai import norms
    from llmforge.backends.colossalai.engine import ColossalEngine

    found = (apex_stand_in.fused_rms_norm_affine, "") if everywhere or dist.get_rank() == 0 else (None, "")
    describe, said, calls = ColossalEngine.describe, list[str](), apex_stand_in.calls

    def noted(self: Any) -> str:
        said.append(describe(self))
        return said[-1]

    with (
        replaced(norms, "DEVICE", "cpu"),
        replaced(norms, "load_kernel", lambda: found),
        replaced(ColossalEngine, "describe", noted),
    ):
        yield
    assert all(("apex's norms" in words) == everywhere for words in said), said
    assert (apex_stand_in.calls > calls + 20) == everywhere


def fused_norms_on_one_rank() -> Any:
    return fused_norms(everywhere=False)


def lost_source() -> Any:
    """The model that the training started from is cut and deleted when the first checkpoint is to be saved."""
    from llmforge.train.saver import Saver

    save = Saver.save

    def lose(self: Any, path: Path, snapshot: Any, contents: Any) -> None:
        source = self.save_dir.with_name("source")
        dist.barrier()
        if self.is_main and source.exists():
            for file in source.glob("*.safetensors"):
                os.truncate(file, 0)  # reading a mapped page of it would be SIGBUS
            shutil.rmtree(source)
        dist.barrier()
        save(self, path, snapshot, contents)

    return replaced(Saver, "save", lose)


def run(case: dict[str, Any]) -> str | None:
    from llmforge.train.lora_options import LoraOptions
    from llmforge.train.options import TrainOptions
    from llmforge.train.run import run_training

    flags = {k: v for k, v in case.items() if k not in ("name", "without", "with")}
    flags |= {k: Path(flags[k]) for k in ("model", "output")}
    flags |= {k: [Path(p) for p in flags[k]] for k in ("data", "eval_data") if k in flags}
    if "lora_rank" in flags:
        flags["lora"] = LoraOptions(lora_rank=flags.pop("lora_rank"))
    name = case.get("without") or case.get("with")
    changed = globals()[name]() if name else contextlib.nullcontext()
    try:
        with changed:
            run_training(TrainOptions(**flags))
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    from llmforge.backends.common.processes import join_processes, leave_processes

    world = join_processes(torch.device("cpu"))
    cases = Path(sys.argv[2])
    results = {}
    for case in json.loads(cases.read_text()):
        results[case["name"]] = run(case)
        if world.is_main:
            cases.with_name("results.json").write_text(json.dumps(results))
    leave_processes()


if __name__ == "__main__":
    in_ranks(int(sys.argv[1]), main)
