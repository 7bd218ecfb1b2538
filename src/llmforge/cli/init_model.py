"""`llmforge init-model`."""

from llmforge.cli.command import example
from llmforge.cli.results import labeled_texts, show_finished, texts
from llmforge.embedding.options import InitModelOptions
from llmforge.options import Result


@example("llmforge init-model --model smollm2 --tokenizer tokenizer --output resized")
def init_model(options: InitModelOptions, result: Result) -> None:
    """Resize a model's embeddings for an extended tokenizer.

    The model is streamed from file to file. Only embedding and head change: rows of old tokens stay the same bit for
    bit, and rows of new tokens are initialized. All other tensors are copied.
    """
    from llmforge import hub
    from llmforge.embedding.resize import resize
    from llmforge.evaluate.compare import compare, markdown
    from llmforge.evaluate.options import ProtocolOptions
    from llmforge.evaluate.texts import load_corpora
    from llmforge.steps import add_metrics

    protocol = ProtocolOptions(
        max_documents=50, max_characters=2000, by_category=True, reading=options.reading
    )
    heldout = labeled_texts(options.verify_data)
    if heldout:  # a mistake in them should show before the work begins
        load_corpora(heldout, protocol.max_documents, protocol.max_characters, reading=options.reading)
    source = hub.local(options.model)
    finished = resize(
        source,
        hub.local(options.tokenizer, "tokenizer"),
        options.output,
        options.resize,
        corpus=texts(options.data),
        donor=hub.local(options.donor) if options.donor else None,
        reading=options.reading,
        overwrite=options.overwrite,
        trust_remote_code=options.trust_remote_code,
    )
    rows = finished.manifest.outputs["vocabulary"]
    summary = (
        f"{rows['source']:,} ids -> {rows['size']:,} ids in {rows['padded']:,} rows, "
        f"new rows by {options.resize.init}"
    )
    if heldout:
        step_0 = compare([source, options.output], heldout, protocol, options.trust_remote_code)
        finished = add_metrics(finished, step_0=step_0)
        summary += f"\n\n{markdown(step_0)}"
    show_finished(finished, result.json, summary)
