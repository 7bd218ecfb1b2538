"""`llmforge train-preferences`."""

from llmforge.align.options import PreferenceOptions
from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.options import Result


@example(
    "llmforge train-preferences --method dpo --model smollm2 --data examples/preferences/pairs.jsonl --output tuned",
    "--max-steps 4",
)
def train_preferences(options: PreferenceOptions, result: Result) -> None:
    """Train a model on preferences: on pairs of answers (dpo, reward), or on rewards for what it writes (grpo, ppo).

    Needs TRL: pip install 'llmforge[align]'. The trained model is OUTPUT/modeling. The same command continues a run that was
    killed, from its last checkpoint.
    """
    from llmforge.align.run import train_preferences as train

    finished = train(options, texts(options.data), texts(options.eval_data))
    metrics = finished.manifest.metrics
    summary = (
        f"{metrics['data']['used']:,} of {metrics['data']['read']:,} records, {metrics['steps']:,} steps"
    )
    if "heldout" in metrics:
        held = metrics["heldout"]
        summary += f"; held-out pairs: accuracy {held['accuracy']:.3f}, loss {held['loss']:.4f}"
    if "largest_kl" in metrics:
        summary += f"; largest KL divergence {metrics['largest_kl']:.4g} nats per token"
    show_finished(finished, result.json, summary)
