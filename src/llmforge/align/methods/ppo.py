"""Proximal policy optimization (arXiv 1707.06347, for language models arXiv 1909.08593), by the trainer that TRL had as an experiment
until version 1.12: it was removed in 1.13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llmforge.align.methods.base import Context, Method
from llmforge.errors import UserError
from llmforge.options import Options, option


@dataclass(frozen=True)
class PpoOptions(Options):
    """What PPO has of its own."""

    ppo_epochs: int = option("For --method ppo: passes over the completions of a step.", 4, least=1)


class Ppo(Method):
    text = (
        "proximal policy optimization, likewise; TRL's trainer was an experiment and ended with TRL 1.12, which this method needs, and a "
        "killed run begins again"
    )
    rows = "prompts"
    learning_rate = 3e-6
    beta = 0.05
    resumable = False
    options = PpoOptions

    def check(self) -> None:
        try:
            from trl.experimental.ppo import PPOTrainer  # noqa: F401
        except ImportError:
            import trl

            raise UserError(
                f"--method ppo needs TRL 1.12, the last with a PPO trainer ({trl.__version__} is installed); run: "
                "pip install 'trl==1.12.0', or use --method grpo."
            ) from None

    def trainer(self, context: Context) -> Any:
        import torch
        import transformers
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        from llmforge.align.models import load_policy
        from llmforge.weights.directory import ModelDirectory

        sampling, shared, tokenizer = context.options.sampling, context.arguments, context.tokenizer
        rows = [ids.tolist() for ids in context.rows.columns["prompt_ids"]]
        width = max(map(len, rows))
        # TRL takes every token that is the padding one for padding, also in prompts; so it is one that no text has.
        tokenizer.add_special_tokens({"pad_token": "<|padding of prompts|>"})
        pad = tokenizer.pad_token_id
        context.model.generation_config.update(
            pad_token_id=tokenizer.eos_token_id, suppress_tokens=context.idle_ids or None
        )

        def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
            ids = [[pad] * (width - len(row["input_ids"])) + row["input_ids"] for row in batch]
            return {"input_ids": torch.tensor(ids)}

        rewarded = _Rewarded(context, width)
        epochs = context.options.of(PpoOptions).ppo_epochs
        updates = epochs * shared["gradient_accumulation_steps"]

        class Trainer(PPOTrainer):  # type: ignore[misc]  # TRL has no types here
            """TRL's, which says its KL divergence per token, too."""

            def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
                if math.isnan(logs["val/ratio_var"]) and updates == 1:
                    del logs["val/ratio_var"]  # the variance over the updates of a step
                logs["objective/kl_per_token"] = logs["objective/kl"] / max(1.0, rewarded.mean_length)
                super().log(logs, start_time)

        import datasets

        dataset = datasets.Dataset.from_dict({"input_ids": rows})
        batch = shared["per_device_train_batch_size"] * shared["gradient_accumulation_steps"]
        value = load_policy(ModelDirectory(context.origin), context.rows.longest, scores=True)
        policy = context.model
        trainer = Trainer(
            args=PPOConfig(
                **shared,
                total_episodes=batch * shared["max_steps"],
                num_ppo_epochs=epochs,
                kl_coef=context.beta,
                response_length=sampling.max_new_tokens,
                temperature=sampling.temperature,
                stop_token_id=tokenizer.eos_token_id,
                local_rollout_forward_batch_size=batch,
                num_sample_generations=0,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=rewarded.module(),
            train_dataset=dataset,
            eval_dataset=dataset.select(range(1)),
            value_model=value,
            data_collator=collate,
            callbacks=context.callbacks,
        )
        trainer.accelerator.print = lambda *_: None  # standard output is for results
        transformers.set_seed(context.options.seed)
        return trainer

    def trained(self, trainer: Any) -> Any:
        return trainer.accelerator.unwrap_model(trainer.model).policy


class _Rewarded:
    """Rewards in the form in which TRL asks a reward model: a backbone whose last hidden state a head turns into a score for each
    position. Prompts are `width` positions, padded on the left.
    """

    def __init__(self, context: Context, width: int) -> None:
        self.context, self.width = context, width
        self.mean_length = 0.0

    def module(self) -> Any:
        import torch

        class Backbone(torch.nn.Module):
            def __init__(self, rewards: Any) -> None:
                super().__init__()
                self.rewards = rewards

            def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
                scores = self.rewards(input_ids, attention_mask)
                return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])

        model: Any = torch.nn.Module()
        model.base_model_prefix = "backbone"
        model.backbone, model.score = Backbone(self.rewards), torch.nn.Identity()
        return model

    def rewards(self, ids: Any, mask: Any) -> Any:
        """The scores (n,) of sequences `ids` (n, length), of which `mask` tells padding."""
        import torch

        rows = [
            [one[kept].tolist() for one, kept in zip(ids[:, part], mask[:, part].bool(), strict=True)]
            for part in (slice(0, self.width), slice(self.width, None))
        ]
        prompts, completions = rows
        self.mean_length = sum(map(len, completions)) / max(1, len(completions))
        texts = self.context.tokenizer.batch_decode(completions, skip_special_tokens=True)
        each = [one(prompts, completions, texts) for one in self.context.rewards]
        return torch.tensor([sum(values) for values in zip(*each, strict=True)], device=ids.device)


METHOD = Ppo()
