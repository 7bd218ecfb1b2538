"""`llmforge learn-pieces`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.options import Result
from llmforge.tokenizer.options import LearnPiecesOptions

if TYPE_CHECKING:
    from llmforge.train.shape import Shape


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

    shape = _shape(options)
    finished = learn(options)
    metrics = finished.manifest.metrics
    show_finished(
        finished,
        result.json,
        f"{finished.manifest.outputs['pieces']:,} tokens learned from {metrics['words']:,} different words; "
        f"{metrics['characters']:,} characters are {metrics['tokens_after']:,} tokens, "
        f"{metrics['tokens_before']:,} before.",
    )
    if options.curve and not result.json:
        _show_curve(options, metrics, shape)


def _shape(options: LearnPiecesOptions) -> "Shape | None":
    """The model of --curve, read before the work begins."""
    if not options.curve or not (options.model or (options.tokenizer / "config.json").is_file()):
        return None
    from llmforge import hub
    from llmforge.train.shape import read_shape
    from llmforge.weights.directory import ModelDirectory

    model = hub.local(options.model, "model") if options.model else options.tokenizer
    return read_shape(ModelDirectory(model))


def _show_curve(options: LearnPiecesOptions, metrics: dict[str, Any], shape: "Shape | None") -> None:
    from llmforge.console import show, show_table, warn
    from llmforge.train.vocabulary_curve import HEADER, WITHOUT_MODEL, rows

    if "curve" not in metrics:
        warn(f"{options.output} was made by a version without --curve; --overwrite learns it again.")
        return
    points = [(0, metrics["tokens_before"]), *metrics["curve"]]
    found = rows(metrics["characters"], points, shape)
    show_table(HEADER[: len(found[0])], found, ())
    show("Counted on the texts that the tokens were learned from: held-out texts gain less from rare tokens.")
    if len(found[0]) == WITHOUT_MODEL:
        show("Give --model for FLOPs per character and the size of the embeddings.")
