"""`llmforge prune-vocabulary`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.embedding.prune_options import PruneOptions
from llmforge.options import Result


@example(
    "llmforge prune-vocabulary --model smollm2 --data corpus/zh.jsonl --keep-data corpus/en.jsonl --min-count 1",
    "--output pruned",
)
def prune_vocabulary(options: PruneOptions, result: Result) -> None:
    """Remove tokens that texts do not use, and their rows of a model.

    Special tokens, bytes, and what kept tokens are merged from stay. Ids are renumbered in their order. A text without a
    removed token keeps its tokens, which is checked on every document of --data and --keep-data. init-tokenizer and
    init-model continue from the output.
    """
    from llmforge import hub
    from llmforge.embedding.prune import prune

    local = replace(
        options,
        model=hub.local(options.model) if options.model else None,
        tokenizer=hub.local(options.tokenizer, "tokenizer") if options.tokenizer else None,
    )
    finished = prune(local, texts(options.data), texts(options.keep_data))
    outputs, metrics = finished.manifest.outputs, finished.manifest.metrics
    data = metrics["data"]
    summary = (
        f"{outputs['source_size']:,} -> {outputs['size']:,} ids: {metrics['removed']:,} tokens removed (pruned.jsonl)\n"
        f"--data: {data['changed']:,} of {data['documents']:,} documents have other tokens, {data['tokens_before']:,} before and "
        f"{data['tokens_after']:,} now"
    )
    if "keep_data" in metrics:
        summary += f"\n--keep-data: all {metrics['keep_data']['documents']:,} documents keep their tokens"
    if "verified" in metrics:
        summary += f"\nlogits of kept tokens within {metrics['verified']:.2g} of the source's"
    show_finished(finished, result.json, summary)
