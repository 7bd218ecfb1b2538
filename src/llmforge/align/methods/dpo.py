"""Direct preference optimization (arXiv 2305.18290): chosen answers become more likely than rejected ones, against the starting
model, whose log-probabilities are computed once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.align.methods.base import Context, Method, pair_figures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Columns of the data of TRL: the summed log-probabilities of both answers under the starting model.
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class Dpo(Method):
    text = "direct preference optimization, on pairs and without a reward model"
    rows = "pairs"
    learning_rate = 1e-6
    beta = 0.1

    def trainer(self, context: Context) -> Any:
        import trl

        class Trainer(trl.DPOTrainer):  # type: ignore[misc]  # TRL has no types here
            """TRL's, given ids instead of texts; what the starting model gives outlives a kill."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

            def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
                file = context.work / f"reference-{name}.npy"
                values = _kept(file, lambda: log_probabilities(self, dataset, batch_size))
                for column, one in zip(REFERENCE, values, strict=True):
                    dataset = dataset.add_column(column, one)
                return dataset

        return Trainer(
            model=context.model,
            args=trl.DPOConfig(
                **context.arguments,
                beta=context.beta,
                max_length=None,
                pad_to_multiple_of=None,
                precompute_ref_log_probs=True,
            ),
            train_dataset=context.rows.dataset(),
            eval_dataset=context.heldout.dataset() if context.heldout else None,
            processing_class=context.tokenizer,
            callbacks=context.callbacks,
        )

    def measure(self, trainer: Any, context: Context) -> dict[str, float]:
        """Those of pairs, of the implicit rewards of both answers."""
        import numpy as np

        dataset = trainer.eval_dataset
        chosen, rejected = (
            after - np.array(dataset[column])
            for after, column in zip(
                log_probabilities(trainer, dataset, context.options.micro_batch_size), REFERENCE, strict=True
            )
        )
        return pair_figures(context.beta * (chosen - rejected))


def log_probabilities(trainer: Any, dataset: Any, batch_size: int) -> "npt.NDArray[np.float64]":
    """The summed log-probabilities of the chosen and the rejected answers under the model of `trainer`, (2, rows)."""
    import numpy as np
    import torch

    model = trainer.model.to(trainer.args.device)
    training = model.training
    model.eval()
    found = []
    with torch.no_grad():
        for first in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(first, min(first + batch_size, len(dataset)))]
            batch = {
                name: value.to(trainer.args.device) for name, value in trainer.data_collator(rows).items()
            }
            found.append([one.double().cpu().numpy() for one in trainer.compute_ref_log_probs(model, batch)])
    model.train(training)
    return np.concatenate(found, axis=1)


def _kept(file: Path, compute: Any) -> "npt.NDArray[np.float64]":
    """What `compute()` gives, from `file` where an earlier run of the same training has written it."""
    import numpy as np

    if file.is_file():
        kept: npt.NDArray[np.float64] = np.load(file)
        return kept
    values: npt.NDArray[np.float64] = compute()
    partial = file.with_suffix(".partial.npy")
    np.save(partial, values)
    partial.replace(file)
    return values


METHOD = Dpo()
