"""Group relative policy optimization (arXiv 2402.03300): completions that are rewarded above the mean of those of the same prompt
become more likely, at a price for leaving the starting model.
"""

from dataclasses import dataclass
from typing import Any

from llmforge.align.methods.base import Context, Method
from llmforge.options import Options, option


@dataclass(frozen=True)
class GrpoOptions(Options):
    """What GRPO has of its own."""

    grpo_generations: int = option("For --method grpo: completions per prompt.", 8, least=2)


class Grpo(Method):
    text = "group relative policy optimization, on prompts with a reward model or rules"
    rows = "prompts"
    learning_rate = 1e-6
    beta = 0.04
    options = GrpoOptions

    def trainer(self, context: Context) -> Any:
        import trl

        rows, sampling = context.rows.columns["prompt_ids"], context.options.sampling
        prompts = [ids.tolist() for ids in rows]
        by_text = {str(number): ids for number, ids in enumerate(prompts)}

        class Trainer(trl.GRPOTrainer):  # type: ignore[misc]  # TRL has no types here
            """TRL's, whose prompts are the numbers of rows, and have their ids already."""

            def _tokenize_prompts(self, prompts: list[str]) -> Any:
                return [list(by_text[text]) for text in prompts], None, {}

        def reward(prompts: list[str], completions: list[str], completion_ids: Any, **_: Any) -> list[float]:
            asked = [by_text[text] for text in prompts]
            each = [one(asked, completion_ids, completions) for one in context.rewards]
            return [sum(values) for values in zip(*each, strict=True)]

        import datasets

        number = context.options.of(GrpoOptions).grpo_generations
        idle = {"suppress_tokens": context.idle_ids} if context.idle_ids else None
        shared = context.arguments
        batch = shared["per_device_train_batch_size"] * number
        return Trainer(
            model=context.model,
            reward_funcs=reward,
            args=trl.GRPOConfig(
                **{**shared, "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch},
                beta=context.beta,
                num_generations=number,
                max_completion_length=sampling.max_new_tokens,
                temperature=sampling.temperature,
                generation_kwargs=idle,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": list(by_text)}),
            processing_class=context.tokenizer,
            callbacks=context.callbacks,
        )


METHOD = Grpo()
