"""LLaMA under HybridParallelPlugin: ColossalAI's sharded layers, with our forward pass through them.

ColossalAI's own forward has no place for documents in a row, keeps the logits of all tokens, takes a mean of means,
and in pipelines computes the loss in bf16. This one hands documents to the attention, and ends in the head of every
other engine.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from colossalai.shardformer.layer._operation import (
    all_to_all_comm,
    gather_sp_output,
    split_forward_gather_backward,
)
from colossalai.shardformer.policies.llama import LlamaForCausalLMPolicy
from torch.utils.checkpoint import checkpoint

from llmforge.backends.common.documents import Documents
from llmforge.backends.common.head import chunked_cross_entropy


@dataclass(frozen=True)
class Head:
    """How the loss is computed, as `CausalLoss` has it; `rows` are the trained rows of the whole matrix."""

    dtype: torch.dtype
    chunk: int
    rows: tuple[int, int] | None


class PackedLlamaPolicy(LlamaForCausalLMPolicy):  # type: ignore[misc]
    """Shards as ColossalAI does, and replaces the forward of the model, and of attention where sequences are cut."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def module_policy(self) -> Any:
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaModel

        policy = super().module_policy()
        manager, layers = self.pipeline_stage_manager, (0, len(self.model.model.layers))
        if manager is not None:
            first, last = manager.get_stage_index(manager.distribute_layers(layers[1]))
            layers = (first, last)
        forward = partial(
            causal_forward, shards=self.shard_config, manager=manager, layers=layers, head=self.head
        )
        policy[LlamaForCausalLM].method_replacement = {"forward": forward}
        if LlamaModel in policy:
            policy[LlamaModel].method_replacement = None
        if LlamaAttention in policy:
            forward = partial(attention_forward, shards=self.shard_config)
            policy[LlamaAttention].method_replacement = {"forward": forward}
        return policy


def causal_forward(
    self: Any,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    hidden_states: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    *,
    shards: Any,
    manager: Any,
    layers: tuple[int, int],
    head: Head,
) -> Any:
    """`LlamaForCausalLM.forward` of one pipeline stage: hidden states for the next one, or (summed loss, (rows *
    length,) losses). `lengths` is (rows, documents), filled up with zeros.
    """
    model = self.model
    mode, size = shards.sequence_parallelism_mode, shards.sequence_parallel_size
    if hidden_states is None:
        hidden_states = model.embed_tokens(input_ids)
        if mode is not None:
            # With all_to_all the averaging over data ranks divides by the ranks of the sequence as well.
            scale = 1 / size if mode == "all_to_all" else None
            hidden_states = split_forward_gather_backward(
                hidden_states, 1, shards.sequence_parallel_process_group, scale
            )
    documents = Documents(tuple(tuple(n for n in row if n) for row in lengths.tolist()), input_ids.device)
    rotary = model.rotary_emb(hidden_states, positions)
    for layer in model.layers[layers[0] : layers[1]]:
        run = partial(layer, position_ids=positions, position_embeddings=rotary, documents=documents)
        if model.gradient_checkpointing and self.training and torch.is_grad_enabled():
            hidden_states = checkpoint(run, hidden_states, use_reentrant=False)[0]
        else:
            hidden_states = run(hidden_states)[0]
    if manager is not None and not manager.is_last_stage():
        return {"hidden_states": hidden_states}
    hidden_states = model.norm(hidden_states)
    if mode == "all_to_all":
        targets = targets.chunk(size, 1)[torch.distributed.get_rank(shards.sequence_parallel_process_group)]
    elif mode is not None:
        hidden_states = gather_sp_output(hidden_states, shards)
    weight, bias = self.lm_head.weight, self.lm_head.bias
    group, first, rows = None, 0, head.rows
    if shards.enable_tensor_parallelism:
        group = shards.tensor_parallel_process_group
        first = torch.distributed.get_rank(group) * len(weight)
    if rows is not None:
        rows = (min(max(rows[0] - first, 0), len(weight)), min(max(rows[1] - first, 0), len(weight)))
    return chunked_cross_entropy(
        hidden_states.flatten(0, 1),
        weight,
        bias,
        targets.flatten(),
        dtype=head.dtype,
        chunk=head.chunk,
        trained_rows=rows,
        group=group,
        first_row=first,
        kept=kept,
    )


def attention_forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: Any = None,
    documents: Documents | None = None,
    *,
    shards: Any,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`LlamaAttention.forward` where each rank has a piece of every sequence: whole sequences, some of the heads.

    With all_to_all heads are exchanged for tokens here; with split_gather the linear layers did it.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    exchanged = shards.sequence_parallelism_mode == "all_to_all"
    group = shards.sequence_parallel_process_group
    states = [projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj)]
    if exchanged:
        states = [all_to_all_comm(state, group) for state in states]
    rows, length, _width = states[0].shape
    query, key, value = (s.view(rows, length, -1, self.head_dim).transpose(1, 2) for s in states)
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    attended = attend(self, query, key, value, None, scaling=self.scaling, documents=documents)[0]
    attended = attended.reshape(rows, length, -1).contiguous()
    if exchanged:
        attended = all_to_all_comm(attended, group, scatter_dim=1, gather_dim=2)
    return self.o_proj(attended), None
