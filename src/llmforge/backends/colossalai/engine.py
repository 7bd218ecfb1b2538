"""The engine around ColossalAI's Booster: what all plugins have in common.

A plugin keeps its way of holding weights, gradients and optimizer state, and of communicating. The rest is ours,
because ColossalAI 0.5.0 has it differently, or wrong, in each (docs/colossalai.md): the mean over valid tokens, one
gradient norm, one clipping, the loss scale, the decision whether a step is applied, and what a resume needs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import Accept, LossSums, MicroBatch, StepResult, World
from llmforge.backends.colossalai import compat, rehearsal
from llmforge.backends.colossalai.norms import fuse_norms
from llmforge.backends.colossalai.parts import Cut, Part
from llmforge.backends.colossalai.snapshot import ColossalSnapshot, state_file
from llmforge.backends.colossalai.weights import Names, Weights
from llmforge.backends.common import attention, storage
from llmforge.backends.common.lora import Lora
from llmforge.backends.common.model import (
    CausalLoss,
    enable_recomputation,
    load_model,
    noise_hook,
    own_memory,
)
from llmforge.backends.common.processes import TIMEOUT
from llmforge.backends.common.settings import PRECISIONS, Settings
from llmforge.backends.common.step import (
    LossScale,
    copy_to_cpu,
    count_targets,
    group_sums,
    optimizer_groups,
    peak_memory,
    seed_step,
)
from llmforge.backends.common.trainable import freeze
from llmforge.backends.common.transfer import batch_to_device, to_host
from llmforge.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How ranks share the work; `sequence_mode` is None without sequence parallelism."""

    tensor: int = 1
    pipeline: int = 1
    sequence: int = 1
    sequence_mode: str | None = None
    zero: int = 0
    pipeline_rows: int = 1


@dataclass(frozen=True)
class Losses:
    """What was lost at each position of `batches`, (rows * length,) each, on the device; `times`: how many ranks share
    the rows, of which this one alone has losses.
    """

    values: Sequence[torch.Tensor]
    batches: Sequence[MicroBatch]
    times: int = 1


# ColossalAI's own loss scale stays 1: ours is applied to the loss before, and its state is ours to save.
NO_SCALING = {"initial_scale": 1, "min_scale": 1, "max_scale": 1, "max_norm": 0.0}


class ColossalEngine(ABC):
    """`llmforge.backends.base.Engine` over one plugin; a subclass says what the plugin does differently."""

    family = "colossal"
    precisions: tuple[str, ...] = ("bf16", "fp16", "fp32")
    holds_float32 = False  # whether the weights that compute are float32, and autocast lowers products

    def __init__(self, name: str, settings: Settings, world: World, layout: Layout, rehearse: bool) -> None:
        compat.install()
        if rehearse:
            rehearsal.install()
        from colossalai.booster import Booster

        from llmforge.backends.colossalai.optimizer import make_optimizer

        self.name, self.settings, self.layout, self.rehearse = name, settings, layout, rehearse
        self.device = rehearsal.ACCELERATOR if rehearse else torch.device(settings.device)
        self.precision = settings.precision
        self.dtype = PRECISIONS[settings.precision]
        self.world = world
        self.host = dist.new_group(backend="gloo", timeout=TIMEOUT)  # for tensors that lie on the CPU
        # Now, not with the first save: making a group waits for a rank that is dead until the timeout.
        self.saving = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.attention = attention.choose(self.device, self.dtype, settings.attention)
        held = torch.float32 if self.holds_float32 else self.dtype
        self.causal = load_model(settings.model, attention.NAMES[self.attention], held)
        if self.device.type == "cpu":
            own_memory(self.causal)
        freeze(self.causal, settings.trainable)
        self.fused_norms = fuse_norms(
            self.causal, self.device, self.host, tell=world.is_main and not rehearse
        )
        self.names = Names.of(self.causal)
        self.lora = Lora.of(self.causal, settings, tell=self.world.is_main)
        if settings.gradient_checkpointing:
            enable_recomputation(self.causal)
        self.rows = settings.trained_rows
        self.plugin = self._make_plugin()
        self.world = self._find_world()
        groups = optimizer_groups(self.causal, self._optimized(), settings)
        self.inner = make_optimizer(groups, settings.betas, settings.epsilon, self.host)
        buffers = {name: buffer.clone() for name, buffer in self.causal.named_buffers()}
        module = self._module()
        module.train()
        self.model, self.optimizer, *_ = Booster(plugin=self.plugin).boost(module, self.inner)
        self._restore_buffers(buffers)
        if settings.noise:
            self._hook_embeddings(noise_hook(settings.noise))
        self.cut = self._cut()
        self.parts = self._parts()
        self.weights = Weights(self.names, self.parts, self.cut, self.world, self.host)
        self.scale = LossScale.for_precision(settings.precision)
        self.steps = 0
        weights = storage.read_weights(settings.model.path)
        self._read_masters(weights)
        self.untrained = self.weights.untrained(weights)
        self.frozen_norms = self._frozen_norms(weights)

    # The protocol.

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept
    ) -> StepResult:
        seed_step(self.settings.seed, self.steps, self.world.data_rank)
        tokens = self.total(torch.tensor([count_targets(micro_batches)], dtype=torch.float64)).item()
        factor = self.scale.value * self.world.data_size / max(tokens, 1.0)
        losses = self._backward(micro_batches, factor)
        # Ours waits for the device here alone; what ColossalAI's plugins wait for inside is theirs.
        groups, square = self._read(losses, self.weights.gradient_square(self.rows))
        loss_sum, valid = float(groups.loss.sum()), int(groups.tokens.sum())
        norm = math.sqrt(square) / self.scale.value
        finite = math.isfinite(loss_sum) and math.isfinite(norm)
        applied = valid > 0 and finite and accept(loss_sum / valid, norm)
        if applied:
            clip = self.settings.clip
            factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
            self.inner.factor = factor / self.scale.value
            for group in self.inner.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            self._discard()
        self.scale.update(overflow=not finite)
        self.steps += 1
        return StepResult(loss_sum, valid, norm, applied, groups)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSums:
        self.model.eval()
        with torch.no_grad():
            losses = self._losses(micro_batches)
        self.model.train()
        return self._read(losses, torch.zeros(1, dtype=torch.float64, device=self.device))[0]

    def snapshot(self) -> ColossalSnapshot:
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in self.weights.gathered():
            if self.world.is_main:
                weights[name] = tensor
        adapter = self.lora.as_peft_reads(weights, self.settings) if self.lora else None
        if self.lora:
            weights = self.lora.merge(self.untrained, weights) if self.world.is_main else {}
        elif self.world.is_main:
            weights = {name: weights.get(name, self.untrained.get(name)) for name in self.names.saved}  # type: ignore[misc]
        mine = self.world.rank == self.cut.owner
        state = {name: copy_to_cpu(tensor) for name, tensor in self._state().items()} if mine else None
        return ColossalSnapshot(
            weights=weights, state=state, group=self.saving, adapter=adapter, rank=self.world.rank
        )

    def load_state(self, directory: Path) -> None:
        from safetensors.torch import load_file

        file = directory / state_file(self.cut.owner)
        if not file.is_file():
            raise UserError(
                f"{file} is missing: the checkpoint was written by another number of processes; start the same number."
            )
        saved = load_file(str(file))
        for part in self.parts:
            if part.key is None:
                continue
            moments = self.inner.moments(part.key, part.master())
            for key in moments:
                value = saved[f"{part.name}.{key}"]
                if torch.is_tensor(moments[key]):
                    moments[key].copy_(value.view(moments[key].shape))
                else:
                    moments[key] = int(value)
            self.inner.state[part.key] = moments
            if self.lora:
                part.master().copy_(saved[part.name])
        if self.lora:
            self._publish_masters()

    def load_weights(self, directory: Path) -> None:
        if not self.lora:  # the base never changes, and the adapters are part of the state
            self._read_masters(storage.read_weights(directory))

    def describe(self) -> str:
        layout = self.layout
        sizes = [
            f"{word} {size}"
            for word, size in (("tp", layout.tensor), ("pp", layout.pipeline), ("sp", layout.sequence))
            if size > 1
        ]
        inner = "HybridAdam" if "Hybrid" in type(self.inner).__name__ else "AdamW"
        norms = ", apex's norms" if self.fused_norms else ""
        return (
            f"ColossalAI's {self.name}{''.join(f', {s}' for s in sizes)} on "
            f"{'a rehearsing CPU' if self.rehearse else self.device}, {self.precision}, {self.attention} attention, "
            f"{inner}{norms}, training {self.weights.count():,} parameters, {self.world.size} processes"
        )

    def embedding_norms(self) -> torch.Tensor:
        """Of the float32 weights that the optimizer updates."""
        if self.frozen_norms is not None:
            return self.frozen_norms
        return self.weights.embedding_norms(self.settings.rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        # Ranks that share rows bring the same values: together they bring them as many times as there are.
        values = values.clone()
        dist.all_reduce(values, group=self.host)
        return values / (self.world.size // self.world.data_size)

    def peak_memory(self) -> int:
        return peak_memory(self.device)

    def state(self) -> dict[str, Any]:
        layout = self.layout
        sizes = [layout.tensor, layout.pipeline, layout.sequence, layout.zero]
        return {"steps": self.steps, "scale": asdict(self.scale), "sizes": sizes}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.scale = LossScale(**state["scale"])

    # What a plugin says of itself.

    @abstractmethod
    def _make_plugin(self) -> Any: ...

    @abstractmethod
    def _parts(self) -> list[Part]:
        """This rank's share of every trained weight, in the same order on ranks that share one."""

    @abstractmethod
    def _publish_masters(self) -> None:
        """Copies the float32 weights into those that compute."""

    def _discard(self) -> None:
        """Forgets the gradients of a step that is not applied."""
        self.optimizer.zero_grad()

    def _cut(self) -> Cut:
        return Cut(self.device)

    def _find_world(self) -> World:
        return self.world

    def _optimized(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer is given. ZeRO and 3d take frozen ones too, and skip them: they
        look at the first of a group, and a pipeline stage may have nothing to train.
        """
        return list(self.causal.parameters())

    def _module(self) -> torch.nn.Module:
        """What is boosted: for plugins that do not look into the model, the module that native wraps too."""
        return CausalLoss(self.causal, self.dtype, self.settings.head_chunk, self.rows)

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        """Around one micro-batch; gradients need to be complete on every rank after the last one alone."""
        # ZeRO 2 keeps a share of the gradients alone, and adds up every micro-batch at once.
        if last or self.layout.zero == 2 or not self.plugin.support_no_sync():
            yield
        else:
            with self.plugin.no_sync(self.model, self.optimizer):
                yield

    # Inside a step.

    def _backward(self, micro_batches: Sequence[MicroBatch], factor: float) -> Losses:
        """Gradients of `factor` times the summed loss."""
        values = []
        for number, batch in enumerate(micro_batches):
            with self._gradient_sync(number == len(micro_batches) - 1):
                with self._autocast():
                    loss, losses = self._forward(batch)
                self.optimizer.backward(loss * factor)
            values.append(losses)
        return Losses(values, micro_batches)

    def _losses(self, micro_batches: Sequence[MicroBatch]) -> Losses:
        values = []
        for batch in micro_batches:
            with self._autocast():
                values.append(self._forward(batch)[1])
        return Losses(values, micro_batches)

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, losses = self.model(batch_to_device(batch, self.device))
        return loss, losses

    def _autocast(self) -> Any:
        lowered = self.holds_float32 and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lowered)

    def _read(self, losses: Losses, square: torch.Tensor) -> tuple[LossSums, float]:
        """The sums of `losses` over all ranks, and `square`, float64 (1,), by one copy to the host."""
        *values, last = to_host([*(one.detach().double() for one in losses.values), square])
        sums = group_sums(values, losses.batches, self.settings.groups)
        sums[0] *= losses.times
        sums = self.total(sums)
        return LossSums(loss=sums[0], tokens=sums[1].round().long()), float(last)

    # Weights.

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and tensors of this rank's trained parameters; adapters under peft's names."""
        return [(name, p) for name, p in self.causal.named_parameters() if p.requires_grad and p.numel()]

    def _make_part(
        self, name: str, local: torch.Size, master: Any, gradient: Any, key: Any, start: int = 0
    ) -> Part:
        """A part of the parameter `name`, of which this rank, or those that share it, have the shape `local`."""
        shape = self.names.shapes.get(name, local)
        cut = [d for d in range(len(shape)) if shape[d] != local[d]]
        dim = cut[0] if cut else None
        alone = dim is not None or self.cut.tensor_rank == 0
        sharded = self.cut.shards is not None
        # The output head of a pipeline may be tied to the embeddings, which its first stage holds.
        copy = self.layout.pipeline > 1 and self.names.first.get(name, name) != name
        return Part(
            name=name,
            shape=shape,
            dim=dim,
            start=start,
            key=key,
            master=master,
            gradient=gradient,
            counts=alone and (sharded or self.world.rank == self.cut.owner) and not copy,
        )

    def _read_masters(self, weights: dict[str, torch.Tensor]) -> None:
        """The float32 weights from those of a model directory: ColossalAI would make them of the rounded ones."""
        self.weights.read(weights)
        with torch.no_grad():
            self._publish_masters()

    def _frozen_norms(self, weights: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if self.names.trains_embeddings and not self.lora:
            return None
        matrix = weights[self.names.embeddings[0]][: self.settings.rows]
        norms: torch.Tensor = torch.linalg.vector_norm(matrix.float(), dim=1)
        return norms.double()

    def _restore_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """ColossalAI lowers buffers too; the frequencies of rotary positions in bf16 turn far tokens by whole
        radians.
        """
        for name, buffer in self.causal.named_buffers():
            buffer.data = buffers[name].to(self.device)

    def _hook_embeddings(self, hook: Any) -> None:
        self.causal.get_input_embeddings().register_forward_hook(hook)

    def _state(self) -> dict[str, torch.Tensor]:
        """What `optimizer/` holds of this rank: the moments of its parts, and its share of adapters."""
        tensors = {}
        for part in self.parts:
            if part.key is None:
                continue
            for key, value in self.inner.moments(part.key, part.master()).items():
                tensors[f"{part.name}.{key}"] = torch.as_tensor(value, dtype=torch.float32)
            if self.lora:
                tensors[part.name] = part.master()
        return tensors
