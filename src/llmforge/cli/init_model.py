"""`llmforge init-model`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import (
    AsJson,
    CategoryField,
    Debug,
    Lines,
    MaxDocumentBytes,
    Overwrite,
    Seed,
    SourceField,
    TextField,
    TrustRemoteCode,
    example,
    labelled_texts,
    reading,
    show_finished,
    texts,
)


@example(
    "llmforge init-model --source-model-and-tokenizer-path SmolLM2-135M",
    "--target-tokenizer-path work/tokenizer --target-model-path work/model",
)
def init_model(
    source_model_and_tokenizer_path: Annotated[
        Path, typer.Option(help="The model to grow, a Hugging Face directory with its tokenizer.")
    ],
    target_tokenizer_path: Annotated[Path, typer.Option(help="The larger tokenizer, from init-tokenizer.")],
    target_model_path: Annotated[Path, typer.Option(help="Where the grown model goes.")],
    init: Annotated[
        str,
        typer.Option(
            help="How new rows are made: subtoken-mean, mean, gaussian, align or focus (with --corpus), "
            "donor (with --donor)."
        ),
    ] = "subtoken-mean",
    head_init: Annotated[
        str,
        typer.Option(
            help="How new rows of an untied head are made: same (as --init), mean or first-subtoken."
        ),
    ] = "same",
    pad_to_multiple_of: Annotated[
        int, typer.Option(help="Rows are padded to a multiple of this times --tp.")
    ] = 64,
    tp: Annotated[
        int, typer.Option(help="The tensor-parallel size that the model will be trained with.")
    ] = 1,
    norm_correction: Annotated[
        bool,
        typer.Option(
            "--norm-correction",
            help="Scale new rows to the median norm of old ones. Ruins tied models; measure first.",
        ),
    ] = False,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts that align and focus learn from: files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or names on the Hub."
        ),
    ] = None,
    donor: Annotated[
        Path | None, typer.Option(help="For donor: a model directory whose tokenizer has the new pieces.")
    ] = None,
    donor_terms: Annotated[int, typer.Option(help="For donor: how many old tokens make a new row.")] = 8,
    mend_rows: Annotated[
        bool,
        typer.Option(
            "--mend-rows",
            help="Make old rows that hold NaN or infinity the mean of the others; they are refused otherwise.",
        ),
    ] = False,
    verify_corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="[LABEL=]PATH of texts on which source and grown model are compared in bits per byte, by category: "
            "at most 50 documents of each, 2,000 characters of each document."
        ),
    ] = None,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    seed: Seed = 42,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Grow a model's embeddings to a larger tokenizer.

    The model is streamed from file to file: only its embedding and head are computed with, every other tensor
    is copied as it is, and the rows of old tokens stay the same bit for bit.
    """
    from llmforge import hub
    from llmforge.embedding.initializers.choice import Growth
    from llmforge.embedding.resize import grow
    from llmforge.evaluate.compare import Protocol, compare, markdown
    from llmforge.evaluate.texts import load_corpora
    from llmforge.steps import add_metrics

    how = reading(text_field, source_field, category_field, lines, max_document_bytes)
    protocol = Protocol(max_documents=50, max_characters=2000, by_category=True, reading=how)
    heldout = labelled_texts(verify_corpus or [])
    if heldout:  # a mistake in them should show before the growing
        load_corpora(heldout, protocol.max_documents, protocol.max_characters, reading=how)
    growth = Growth(init, head_init, pad_to_multiple_of, tp, norm_correction, donor_terms, seed, mend_rows)
    source = hub.local(source_model_and_tokenizer_path)
    finished = grow(
        source,
        hub.local(target_tokenizer_path, "tokenizer"),
        target_model_path,
        growth,
        corpus=texts(corpus or []),
        donor=hub.local(donor) if donor else None,
        reading=how,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    rows = finished.manifest.outputs["vocabulary"]
    summary = f"{rows['source']:,} ids -> {rows['size']:,} ids in {rows['padded']:,} rows, new rows by {init}"
    if heldout:
        step_0 = compare([source, target_model_path], heldout, protocol, trust_remote_code)
        finished = add_metrics(finished, step_0=step_0)
        summary += f"\n\n{markdown(step_0)}"
    show_finished(finished, as_json, summary)
