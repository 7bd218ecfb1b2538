"""`llmforge evaluate`."""

from llmforge.cli.command import example
from llmforge.cli.results import labeled_texts
from llmforge.console import show_json, show_table
from llmforge.evaluate.options import Asked, EvaluateOptions
from llmforge.options import Result


@example(
    "llmforge evaluate --model smollm2 trained",
    "--data zh=heldout/zh.jsonl en=heldout/en.jsonl --output models.md",
)
def evaluate(options: EvaluateOptions, result: Result) -> None:
    """Compare models on the same documents (bits per byte, tokens per character), questions (accuracy) and programming
    problems (pass@k).

    Accuracies have their standard errors; a difference of less than two of them says little.
    """
    from llmforge import hub
    from llmforge.evaluate.compare import compare, compare_to_file
    from llmforge.evaluate.tables import tables

    models, sources = [hub.local(path) for path in options.model], labeled_texts(options.data)
    asked = Asked(options.tasks, options.asking, options.code, options.programs)
    if options.output is None:
        results = compare(models, sources, options.protocol, options.trust_remote_code, asked)
    else:
        results = compare_to_file(
            models,
            sources,
            options.protocol,
            options.output,
            options.overwrite,
            options.trust_remote_code,
            asked,
        ).manifest.metrics
    if result.json:
        show_json(results)
        return
    for header, rows in tables(results):
        show_table(header, rows)
