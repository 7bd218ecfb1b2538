"""`llmforge init-tokenizer`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.options import Result
from llmforge.tokenizer.options import InitTokenizerOptions


@example(
    "llmforge init-tokenizer --tokenizer smollm2 --pieces pieces.jsonl --output tokenizer",
)
def init_tokenizer(options: InitTokenizerOptions, result: Result) -> None:
    """Add tokens to a tokenizer and check the result.

    Old ids do not change; new tokens get the ids after them. Reachability, parity with sentencepiece, round trip and
    drift are checked, printed, and written to llmforge.json (docs/tokenizer.md).
    """
    from llmforge import hub
    from llmforge.tokenizer.expand import init_tokenizer as init
    from llmforge.tokenizer.verify import summary

    finished = init(
        replace(
            options,
            tokenizer=hub.local(options.tokenizer, "tokenizer"),
            pieces=hub.local(options.pieces, "tokenizer") if options.pieces else None,
            verify_data=[str(path) for path in texts(options.verify_data)],
        )
    )
    outputs, counts = finished.manifest.outputs, finished.manifest.metrics["pieces"]
    sizes = f"{outputs['source_size']:,} -> {outputs['size']:,} ids: {counts['added']:,} tokens added"
    extra = f"{counts['closure']:,} of them characters and intermediate tokens"
    if "already_present" in counts:
        extra += f"; {counts['already_present']:,} existed already"
    if counts.get("special"):
        extra += f"; {counts['special']:,} special tokens"
    show_finished(finished, result.json, f"{sizes}, {extra}\n{summary(finished.manifest.metrics['gates'])}")
