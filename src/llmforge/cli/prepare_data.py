"""`llmforge prepare-data`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.console import show, show_json
from llmforge.dataset.options import PrepareOptions
from llmforge.options import Result


@example(
    "llmforge prepare-data --data corpus --tokenizer tokenizer --output data",
    "--max-length 512 --mix zh=0.9,en=0.1",
)
def prepare_data(options: PrepareOptions, result: Result) -> None:
    """Tokenize a corpus and pack it into rows, without losing a token.

    The output has parts of the same mixture of categories. After an interruption, the same command continues.
    """
    from llmforge.dataset.workers import warm_up_for

    inputs = texts(options.data)
    if not (options.ray or options.dry_run):
        warm_up_for(inputs, options.workers)  # first: it takes as long as the imports below
    if not options.dry_run:
        from llmforge.steps.checksums import read_ahead

        read_ahead(inputs)
    from llmforge import hub
    from llmforge.dataset.prepare import prepare_data as prepare
    from llmforge.dataset.report import forecast_text, summary_text

    options = replace(options, data=inputs, tokenizer=hub.local(options.tokenizer, "tokenizer"))
    if options.dry_run:
        from llmforge.dataset.forecast import forecast

        expected = forecast(options)
        if result.json:
            show_json(expected)
        else:
            show(forecast_text(expected))
        return
    if options.jsonl_output_dir is None or options.shard:
        finished = prepare(options)
    else:
        from llmforge.dataset.jsonl import check_place, write_jsonl

        check_place(options, options.jsonl_output_dir)
        finished = prepare(options)
        write_jsonl(
            finished.output,
            options.jsonl_output_dir,
            workers=options.workers,
            overwrite=options.overwrite,
        )
    show_finished(finished, result.json, summary_text(finished.manifest))
