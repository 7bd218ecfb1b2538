"""The native engine: accumulation, precision, clipping and the optimizer around one causal model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llmforge.backends.base import Accept, LossSums, MicroBatch, StepResult, World
from llmforge.backends.common import attention, optimizers, storage
from llmforge.backends.common.devices import keep_freed_memory
from llmforge.backends.common.lora import Lora
from llmforge.backends.common.model import (
    CausalLoss,
    load_model,
    noise_hook,
    own_memory,
)
from llmforge.backends.common.peft_files import PeftAdapter
from llmforge.backends.common.rates import factors
from llmforge.backends.common.settings import PRECISIONS, Settings
from llmforge.backends.common.sharded_weights import read_shards
from llmforge.backends.common.step import (
    LossScale,
    copy_to_cpu,
    count_targets,
    group_sums,
    peak_memory,
    seed_step,
)
from llmforge.backends.common.trainable import embedding_parameters, freeze, linear_matrices
from llmforge.backends.common.transfer import batch_to_device, to_host
from llmforge.backends.torch.anchor import Anchor
from llmforge.backends.torch.average import Average
from llmforge.backends.torch.distill import Teacher
from llmforge.backends.torch.layers import prepare_layers
from llmforge.backends.torch.memory_saving import keep_less
from llmforge.backends.torch.shield import Shield, make_shield
from llmforge.backends.torch.snapshot import NativeSnapshot
from llmforge.errors import UserError
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.read import open_weights


class NativeEngine:
    """`llmforge.backends.base.Engine` on one device; `parallel.py` has the two that share the work.

    Weights are float32; in bf16 and fp16 the matrix products are computed in that dtype (autocast). All
    chance of a step comes from (seed, step, rank), so there is no generator state to save.
    """

    family = "native"
    name = "native"

    def __init__(self, settings: Settings, world: World | None = None) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.world = world or World()
        self.precision = settings.precision
        self.dtype = PRECISIONS[settings.precision]
        self.attention = attention.choose(self.device, self.dtype, settings.attention)
        self.causal = self._load()
        if self.device.type == "cpu":
            own_memory(self.causal)
        keep_less(self.causal)
        freeze(self.causal, settings.trainable)
        self.lora = Lora.of(self.causal, settings, tell=self.world.is_main)
        if settings.noise:
            self.causal.get_input_embeddings().register_forward_hook(noise_hook(settings.noise))
        self.rows = settings.trained_rows
        self.loss = CausalLoss(self.causal, self.dtype, settings.head_chunk, self.rows)
        self.loss.train()
        self.module = self._distribute()
        if settings.distillation is not None:
            self.loss.teacher = self._make_teacher(settings.distillation)
        prepare_layers(self.causal, compiled=settings.compile, recomputed=settings.gradient_checkpointing)
        self.parameters = {n: p for n, p in self.causal.named_parameters() if p.requires_grad}
        self.masked = list(embedding_parameters(self.causal).values()) if self.rows else []
        self.shield = None if settings.protect is None else self._make_shield(settings.protect)
        self.optimizers = optimizers.find(settings.optimizer).make(self.causal, self.parameters, settings)
        self.average: Average | None = None
        if settings.ema is not None:
            self.average = Average(self.parameters, settings.ema, self._local)
        self.anchor = self._make_anchor()
        self.scale = LossScale.for_precision(settings.precision)
        self.steps = 0

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept
    ) -> StepResult:
        seed_step(self.settings.seed, self.steps, self.world.rank)
        tokens = self.total(torch.tensor([count_targets(micro_batches)], dtype=torch.float64)).item()
        factor = self.scale.value * self.world.data_size / max(tokens, 1.0)
        losses = []
        # Inside of an outer autocast, weights that were cast for one micro-batch stay cast for the next.
        with self._autocast():
            for number, batch in enumerate(micro_batches):
                if self.loss.teacher:
                    batch = replace(batch, distilled=self.loss.teacher.positions(batch))
                with self._gradient_sync(number == len(micro_batches) - 1):
                    loss, each = self.module(batch_to_device(batch, self.device))
                    with torch.autocast(self.device.type, enabled=False):
                        (loss * factor).backward()
                losses.append(each)
        # The one place of a step where the host waits for the device.
        *values, local_norm = to_host([*losses, self._gradient_norm()])
        groups = self._as_loss_sums(group_sums(values, micro_batches, self.settings.groups))
        loss_sum, valid = float(groups.loss.sum()), int(groups.tokens.sum())
        norm = self._whole_norm(local_norm) / self.scale.value
        finite = math.isfinite(loss_sum) and math.isfinite(norm)
        applied = valid > 0 and finite and accept(loss_sum / valid, norm)
        if applied:
            self._update(learning_rate, norm)
        self.scale.update(overflow=not finite)
        for parameter in self.parameters.values():
            parameter.grad = None
        self.steps += 1
        return StepResult(loss_sum, valid, norm, applied, groups)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSums:
        self.loss.eval()
        with torch.no_grad(), self._autocast():
            losses = [self.module(batch_to_device(batch, self.device))[1] for batch in micro_batches]
        self.loss.train()
        return self._as_loss_sums(group_sums(to_host(losses), micro_batches, self.settings.groups))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def embedding_norms(self) -> torch.Tensor:
        weight, first = self._local(self.causal.get_input_embeddings().weight.detach())
        norms = torch.zeros(self.settings.rows, dtype=torch.float64)
        used = weight[: max(0, self.settings.rows - first)]
        norms[first : first + len(used)] = used.float().norm(dim=1).double().cpu()
        return self._assemble(norms)

    def snapshot(self) -> NativeSnapshot:
        weights: dict[str, torch.Tensor] = {}
        average: dict[str, torch.Tensor] = {}
        if self.world.is_main:
            weights = storage.named_as_in_files(self.causal, self._copied_weights())
            average = storage.named_as_in_files(self.causal, self._copied_average())
        return NativeSnapshot(
            weights=weights,
            state=self._copied_state(),
            group=self._background_group(),
            adapter=self._copied_adapter(),
            average=average,
            averaged=self.average is not None,
        )

    def load_state(self, directory: Path) -> None:
        storage.load_sharded(self._state_tensors(), directory)

    def load_weights(self, directory: Path) -> None:
        if self.lora:
            return  # the base never changes, and the adapters are part of the state
        self._read(self._weights(), directory)

    def load_average(self, directory: Path) -> None:
        if self.average:  # with it, what is not trained, which has not changed
            self._read({**self._weights(), **self.average.values}, directory)

    def averaged(self) -> AbstractContextManager[None]:
        return self.average.swapped() if self.average else nullcontext()

    def _make_shield(self, share: float) -> Shield:
        settings, wanted = self.settings, linear_matrices(self.causal)
        names = {name: wanted[name].in_features for name in self.parameters if name in wanted}
        if not names:
            kind = self.causal.config.model_type
            raise UserError(
                f"--protect-source freezes columns of linear layers, and those that a {kind} model trains here are none."
            )
        kernel = attention.NAMES[self.attention]
        return make_shield(
            *(names, settings.model, kernel, settings.calibration, share, self.device, self.world)
        )

    def _make_teacher(self, weight: float) -> Teacher:
        settings = self.settings
        return Teacher(
            settings.teacher or settings.model,
            attention.NAMES[self.attention],
            settings.old_rows,
            weight,
            self.dtype,
            self.device,
            settings.head_chunk,
        )

    def _make_anchor(self) -> Anchor | None:
        settings = self.settings
        if settings.l2_to_start is None:
            return None
        made = Anchor(
            self.parameters,
            settings.l2_to_start,
            factors(self.causal, settings.rates, settings.trainable.new_rows_only),
            {id(p) for p in embedding_parameters(self.causal).values()},
            settings.old_rows,
            self._local,
        )
        if settings.origin and settings.origin.path != settings.model.path:
            self._read({**self._weights(), **made.start}, settings.origin.path)
        return made

    def _read(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        """Fills `state`, which has the names of `_weights`, from a model directory."""
        weights = open_weights(directory)
        if state.keys() <= weights.tensors.keys():
            read_shards(state, weights, self._local)
            return
        self._read_through_transformers(state, directory)

    def _read_through_transformers(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        """The same of files whose tensors transformers joins (experts)."""
        whole = load_model(ModelDirectory(directory), attention.NAMES[self.attention]).state_dict()
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(whole[name])

    def state(self) -> dict[str, Any]:
        own = {"steps": self.steps, "scale": asdict(self.scale), "optimizer": self.settings.optimizer}
        lora = self.settings.lora
        return {**own, "protected": self.settings.protect, "adapters": lora.shape if lora else None}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.scale = LossScale(**state["scale"])

    def describe(self) -> str:
        trained = sum(p.numel() for p in self.parameters.values())
        whole = sum(p.numel() for p in self.causal.parameters())
        return (
            f"{self.name} engine on {self.device}, {self.settings.precision}, {self.attention} attention, "
            f"training {trained:,} of {whole:,} parameters"
            f"{'' if self.settings.optimizer == 'adamw' else ' by ' + self.settings.optimizer}"
            f"{f', columns of {len(self.shield.kept)} matrices frozen' if self.shield else ''}"
        )

    def peak_memory(self) -> int:
        return peak_memory(self.device)

    # What differs with several processes.

    def _load(self) -> Any:
        """The causal model on the CPU; without weights where `_distribute` brings them."""
        return load_model(self.settings.model, attention.NAMES[self.attention])

    def _distribute(self) -> torch.nn.Module:
        """Puts the model on its device, and returns the module to call for a loss."""
        return self.loss.to(self.device)

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        """Around one micro-batch; gradients need to be complete on every rank after the last one alone."""
        yield

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _local(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The rows of a parameter or gradient that lie on this rank, and the number of the first."""
        return tensor, 0

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter with the rows of all ranks."""
        return tensor

    def _assemble(self, values: torch.Tensor) -> torch.Tensor:
        """`values` of all ranks added up, where each has those of its own rows and 0 elsewhere."""
        return values

    def _whole_norm(self, local: torch.Tensor) -> float:
        """The norm of all gradients, from that of this rank's rows (on the CPU)."""
        return float(local)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU that knows which part of the whole it is."""
        return copy_to_cpu(tensor)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The weights of the model under the names of its files, without adapters."""
        return self.lora.base() if self.lora else storage.unique_state(self.causal)

    def _copied_weights(self) -> dict[str, torch.Tensor]:
        """This rank's rows of the weights on the CPU; what is not trained does not change, and needs no copy."""
        if self.lora:
            return self.lora.merged(lambda tensor: self._local(tensor)[0], self._whole)
        rows = {name: self._local(tensor)[0] for name, tensor in self._weights().items()}
        return {n: copy_to_cpu(t) if n in self.parameters else t.detach().cpu() for n, t in rows.items()}

    def _copied_average(self) -> dict[str, torch.Tensor]:
        """The same with the moving average in the place of trained weights; nothing where there is none."""
        if self.average is None:
            return {}
        averaged = {name: self._local(tensor)[0] for name, tensor in self.average.values.items()}
        rows = {name: self._local(tensor)[0] for name, tensor in self._weights().items()}
        return {n: copy_to_cpu(averaged[n]) if n in averaged else t.detach().cpu() for n, t in rows.items()}

    def _copied_adapter(self) -> PeftAdapter | None:
        """Collective: what is trained as peft reads it, on the main rank, where there are adapters."""
        if self.lora is None:
            return None
        tables = {id(table) for table in self.masked}
        trained = {
            name: self._new_rows(p) if id(p) in tables else copy_to_cpu(self._whole(p.detach()))
            for name, p in self.parameters.items()
        }
        return self.lora.as_peft_reads(trained if self.world.is_main else {}, self.settings)

    def _new_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Collective: the trained rows of an embedding on the CPU."""
        assert self.rows is not None
        part, first = self._local(table.detach())
        low, high = max(first, self.rows[0]), min(first + len(part), self.rows[1])
        made = torch.zeros(self.rows[1] - self.rows[0], table.shape[1], dtype=table.dtype)
        if low < high:
            made[low - self.rows[0] : high - self.rows[0]] = part[low - first : high - first].cpu()
        return self._assemble(made)

    def _copied_state(self) -> dict[str, torch.Tensor]:
        return {name: self._copy(tensor) for name, tensor in self._state_tensors().items()}

    def _background_group(self) -> Any:
        """The process group for writing in the background, apart from that of training."""
        return None

    # Inside a step.

    def _update(self, learning_rate: float, norm: float) -> None:
        clip = self.settings.clip
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        factor /= self.scale.value
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in self.parameters.values() if p.grad is not None], factor)
        if self.anchor:
            self.anchor.pull(learning_rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("factor", 1.0)
            optimizer.step()
        if self.average:
            self.average.update()

    def _gradient_norm(self) -> torch.Tensor:
        """L2 norm over what of this rank is trained, (1,) float32, the loss scale included; rows that are not trained
        are cleared first.
        """
        for parameter in self.masked:
            if parameter.grad is not None and self.rows is not None:
                gradient, first = self._local(parameter.grad)
                gradient[: max(0, self.rows[0] - first)] = 0
                gradient[max(0, self.rows[1] - first) :] = 0
        if self.shield:
            held = {name: self.parameters[name].grad for name in self.shield.kept}
            self.shield.clear(
                {n: self._local(gradient)[0] for n, gradient in held.items() if gradient is not None}
            )
        gradients = [self._local(p.grad)[0] for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            return torch.zeros(1, device=self.device)
        norms: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norms.reshape(1)

    def _as_loss_sums(self, sums: torch.Tensor) -> LossSums:
        sums = self.total(sums)
        return LossSums(loss=sums[0], tokens=sums[1].long())

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """What `optimizer/` holds: the optimizer's tensors, and all that is trained with LoRA."""
        states = {parameter: state for one in self.optimizers for parameter, state in one.state.items()}
        tensors = {f"{n}.{key}": t for n, p in self.parameters.items() for key, t in states[p].items()}
        adapters = {n: p.detach() for n, p in self.parameters.items()} if self.lora else {}
        kept = {f"{name}.kept": tensor for name, tensor in self.shield.kept.items()} if self.shield else {}
        return tensors | adapters | kept
