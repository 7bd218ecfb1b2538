"""`llmforge learn-pieces`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.options import Result
from llmforge.tokenizer.options import LearnPiecesOptions


@example(
    "llmforge learn-pieces --tokenizer smollm2 --data corpus/zh.jsonl",
    "--num-pieces 1000 --output pieces.jsonl",
)
def learn_pieces(options: LearnPiecesOptions, result: Result) -> None:
    """Learn new tokens from a corpus by continuing the tokenizer's BPE.

    Each new token is the merge of two earlier ones. The output is the input of init-tokenizer.
    """
    from llmforge import hub

    data = [str(path) for path in texts(options.data)]
    options = replace(options, tokenizer=hub.local(options.tokenizer, "tokenizer"), data=data)
    if options.word_list:
        from llmforge.tokenizer.word_list import pieces_from_words

        finished = pieces_from_words(options)
        show_finished(finished, result.json, f"{finished.manifest.outputs['pieces']:,} words.")
        return
    from llmforge.tokenizer.learn import learn_pieces as learn

    finished = learn(options)
    metrics = finished.manifest.metrics
    show_finished(
        finished,
        result.json,
        f"{finished.manifest.outputs['pieces']:,} tokens learned from {metrics['words']:,} different words; "
        f"{metrics['characters']:,} characters are {metrics['tokens_after']:,} tokens, "
        f"{metrics['tokens_before']:,} before.",
    )
