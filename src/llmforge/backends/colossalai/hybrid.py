"""3d: tensor, pipeline and sequence parallelism of LLaMA models, times data parallelism with ZeRO 0 to 2."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import IGNORED, MicroBatch, World
from llmforge.backends.colossalai.engine import NO_SCALING, Losses
from llmforge.backends.colossalai.parts import Cut, Part
from llmforge.backends.colossalai.plain import ZeroParts, flat
from llmforge.backends.common.transfer import to_device


class HybridEngine(ZeroParts):
    """HybridParallelPlugin. In a pipeline all micro-batches of a step run through it in one go."""

    def _make_plugin(self) -> Any:
        from colossalai.booster.plugin import HybridParallelPlugin

        from llmforge.backends.colossalai.llama import Head, PackedLlamaPolicy

        layout = self.layout
        shares_tensor = layout.sequence_mode == "split_gather"
        return HybridParallelPlugin(
            tp_size=layout.tensor,
            pp_size=layout.pipeline,
            sp_size=1 if shares_tensor else layout.sequence,
            enable_sequence_parallelism=layout.sequence_mode is not None,
            sequence_parallelism_mode=layout.sequence_mode,
            zero_stage=layout.zero,
            precision=self.precision,
            microbatch_size=layout.pipeline_rows,
            custom_policy=PackedLlamaPolicy(Head(self.dtype, self.settings.head_chunk, self.rows)),
            gradient_as_bucket_view=True,
            **NO_SCALING,
        )

    def _module(self) -> torch.nn.Module:
        return self.causal  # type: ignore[no-any-return]

    def _find_world(self) -> World:
        plugin = self.plugin
        return World(
            self.world.rank,
            self.world.size,
            plugin.pg_mesh.coordinate(plugin.dp_axis),
            plugin.pg_mesh.size(plugin.dp_axis),
        )

    def _cut(self) -> Cut:
        if not self.names.trains_embeddings:
            self._forget_shared_parameters()
        plugin = self.plugin
        group = plugin.mixed_dp_group
        sharded = self.layout.zero > 0
        return Cut(
            self.device,
            tensor=plugin.tp_group if self.layout.tensor > 1 else None,
            shards=group if sharded else None,
            owner=self.world.rank if sharded else dist.get_global_rank(group, 0),
        )

    def _forget_shared_parameters(self) -> None:
        """Tied embeddings lie on two stages, whose gradients are added up: 0.5.0 does so where there are none."""
        self.model.shared_params, self.model.shared_param_process_groups = [], []

    def _parts(self) -> list[Part]:
        if self.layout.zero > 0:
            return self._zero_parts()
        masters = self.optimizer.working_to_master_map if self.precision != "fp32" else {}
        parts = []
        for name, parameter in self._trained():
            master = masters.get(parameter, parameter)
            parts.append(
                self._make_part(
                    name,
                    parameter.shape,
                    lambda master=master: master.data.view(-1),
                    lambda parameter=parameter: flat(parameter.grad),
                    key=master,
                )
            )
        return parts

    def _publish_masters(self) -> None:
        if self.layout.zero > 0:
            self._publish_zero()
        elif self.precision != "fp32":
            for parameter, master in self.optimizer.working_to_master_map.items():
                parameter.data.copy_(master)

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, losses = self.model(**self._tensors(batch))
        return loss, self._whole_sequences(losses, len(batch.input_ids))

    def _backward(self, micro_batches: Sequence[MicroBatch], factor: float) -> Losses:
        factor *= self._sequence_ranks()
        if self.layout.pipeline == 1:
            return super()._backward(micro_batches, factor)
        return self._run_pipeline(micro_batches, factor)

    def _losses(self, micro_batches: Sequence[MicroBatch]) -> Losses:
        if self.layout.pipeline == 1:
            return super()._losses(micro_batches)
        return self._run_pipeline(micro_batches, None)

    def _run_pipeline(self, micro_batches: Sequence[MicroBatch], factor: float | None) -> Losses:
        """One pass of all rows through the stages, with gradients of `factor` times the loss unless it is None."""
        layout, plugin, scheduler = self.layout, self.plugin, self.plugin.scheduler
        batch = join(micro_batches, layout.pipeline_rows, layout.pipeline)
        count = len(batch.input_ids) // layout.pipeline_rows
        scheduler.num_microbatches, scheduler.microbatch_size = count, layout.pipeline_rows
        # The last step of an epoch has fewer rows, a holdout rows of another length: shapes are sent again.
        scheduler.last_batch_size = None
        scheduler.enable_metadata_cache = scheduler.send_tensor_metadata = scheduler.send_grad_metadata = True
        scheduler.tensor_metadata_recv = scheduler.grad_metadata_recv = None
        collected: list[torch.Tensor] = []

        def criterion(output: tuple[torch.Tensor, torch.Tensor], _: Any) -> torch.Tensor:
            collected.append(self._whole_sequences(output[1], layout.pipeline_rows))
            return output[0] * ((factor or 0.0) * count)  # the schedule divides by their number

        data = iter([self._tensors(batch)])
        if factor is None:
            scheduler.forward_backward_step(self.model, data, criterion, None)
        else:
            plugin.execute_pipeline(data, self.model, criterion, self.optimizer, return_loss=False)
        if not collected:
            # The losses are on the last stage; the others know how many tokens there are, and wait.
            collected = [torch.zeros(batch.targets.numel(), device=self.device)]
        return Losses([torch.cat(collected)], [batch], times=layout.pipeline)

    def _sequence_ranks(self) -> int:
        return self.layout.sequence if self.layout.sequence_mode == "all_to_all" else 1

    def _whole_sequences(self, losses: torch.Tensor, rows: int) -> torch.Tensor:
        """The losses of whole rows, (rows * length,), where each rank has those of its piece of the sequences."""
        if self._sequence_ranks() == 1:
            return losses
        pieces = [torch.empty_like(losses) for _ in range(self._sequence_ranks())]
        dist.all_gather(pieces, losses, group=self.plugin.sp_group)
        return torch.cat([piece.view(rows, -1) for piece in pieces], dim=1).flatten()

    def _tensors(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        documents = max(map(len, batch.lengths))
        lengths = torch.tensor([[*row, *[0] * (documents - len(row))] for row in batch.lengths])
        tensors = {"input_ids": batch.input_ids, "targets": batch.targets, "positions": batch.positions}
        if batch.kept is not None and self.layout.pipeline == 1 and self._sequence_ranks() == 1:
            tensors["kept"] = batch.kept
        moved = {name: to_device(tensor, self.device) for name, tensor in tensors.items()}
        return {**moved, "lengths": lengths}  # which the host reads


def join(micro_batches: Sequence[MicroBatch], rows: int, at_least: int) -> MicroBatch:
    """All rows as one micro-batch, filled up with empty ones to a multiple of `rows` and to `at_least` as many."""
    first = micro_batches[0]
    count = sum(len(batch.input_ids) for batch in micro_batches)
    length = first.input_ids.shape[1]
    missing = max(-(-count // rows), at_least) * rows - count
    empty = torch.zeros((missing, length), dtype=torch.int64)
    positions = torch.arange(length).expand(missing, length)
    return MicroBatch(
        torch.cat([*(b.input_ids for b in micro_batches), empty]),
        torch.cat([*(b.targets for b in micro_batches), torch.full_like(empty, IGNORED)]),
        torch.cat([*(b.positions for b in micro_batches), positions]),
        torch.cat([*(b.groups for b in micro_batches), empty]),
        tuple(row for b in micro_batches for row in b.lengths) + ((length,),) * missing,
    )
