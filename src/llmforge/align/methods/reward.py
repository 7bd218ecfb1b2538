"""A reward model: a head of one number that scores the chosen answer of a pair above the rejected one (Bradley-Terry)."""

from typing import Any

from llmforge.align.methods.base import Context, Method, pair_figures


class Reward(Method):
    text = "a reward model (one score per answer), for ppo and grpo"
    rows = "pairs"
    learning_rate = 1e-5
    scores = True

    def trainer(self, context: Context) -> Any:
        import trl

        return trl.RewardTrainer(
            model=context.model,
            args=trl.RewardConfig(**context.arguments, max_length=None, pad_to_multiple_of=None),
            train_dataset=_whole(context.rows.dataset()),
            processing_class=context.tokenizer,
            callbacks=context.callbacks,
        )

    def measure(self, trainer: Any, context: Context) -> dict[str, float]:
        """Those of pairs, of the scores of both answers."""
        import numpy as np

        from llmforge.align.models import scores_of

        assert context.heldout is not None
        dataset, model = _whole(context.heldout.dataset()), self.trained(trainer).eval()
        batch = 2 * context.options.micro_batch_size
        chosen, rejected = (
            np.array(scores_of(model, dataset[name], batch)) for name in ("chosen_ids", "rejected_ids")
        )
        return pair_figures(chosen - rejected)


def _whole(dataset: Any) -> Any:
    """The same with the prompt in front of both answers."""
    return dataset.map(
        lambda row: {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}
    )


METHOD = Reward()
