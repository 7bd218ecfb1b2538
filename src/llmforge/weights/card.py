"""The model card of an export: what it is, and the steps that made it, from their manifests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.hub import name_of
from llmforge.report.markdown import cell, code
from llmforge.weights.lineage import Artifact, lineage
from llmforge.weights.vocabulary import Vocabulary

CARD = "README.md"
LONGEST_VALUE = 300
_USE = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("path/of/this/directory")',
)
_USE_OF_ADAPTER = (
    "from peft import PeftModel",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("path/of/the/base/model")',
    'model = PeftModel.from_pretrained(model, "path/of/this/directory")',
)


def write_card(
    output: Path,
    model: Path,
    name: str,
    vocabulary: Vocabulary,
    parameters: int,
    adapter_of: str | None = None,
) -> None:
    """Writes the card of the model exported from `model` to `output`. `parameters` counts them all. With `adapter_of` it is
    that of an adapter for the model of this name.
    """
    artifacts = lineage(model)
    made = [artifact for artifact in artifacts if artifact.manifest is not None]
    origins = [artifact for artifact in artifacts if artifact.manifest is None]
    sources = [path for path in map(_source_model, made) if path is not None]
    front = [
        "---",
        f"library_name: {'peft' if adapter_of else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags:",
        "- llmforge",
        "---",
    ]
    what = f"A causal language model of {parameters:,} parameters with"
    if adapter_of:
        what = (
            f"An adapter of {parameters:,} parameters for the causal language model {cell(adapter_of)} with"
        )
    lines = [
        *front,
        "",
        f"# {cell(name)}",
        "",
        f"{what} {vocabulary.size:,} tokens, of which the source model had {vocabulary.source:,} and "
        f"{vocabulary.size - vocabulary.source:,} are new. Made with llmforge.",
        "",
        "## Use",
        "",
        "```python",
        *(_USE_OF_ADAPTER if adapter_of else _USE),
        'tokenizer = AutoTokenizer.from_pretrained("path/of/this/directory")',
        "```",
        "",
        "## Lineage",
        "",
        *(
            f"Source model: {code(name_of(Path(path)) or Path(path).name)}."
            for path in dict.fromkeys(sources)
        ),
        "",
        "The steps that made this model, the last one first. Fingerprints are of contents, not of paths.",
        "",
    ]
    if not made:
        lines += ["No manifest of llmforge was found with the model, so its steps are unknown.", ""]
    for artifact in made:
        lines += _section(artifact)
    if origins:
        lines += ["### Original inputs", "", "| input | fingerprint |", "| --- | --- |"]
        lines += [
            f"| {cell(name_of(origin.path) or origin.path.name)} | `{origin.fingerprint}` |"
            for origin in origins
        ]
        lines += [""]
    (output / CARD).write_text("\n".join(lines), encoding="utf-8")


def _source_model(artifact: Artifact) -> str | None:
    manifest = artifact.manifest
    return manifest.inputs[0].path if manifest and manifest.step == "init-model" and manifest.inputs else None


def _section(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    assert manifest is not None
    outputs = {
        key: value
        for key, value in manifest.outputs.items()
        if key not in ("files", "checksums", "fingerprint")
    }
    rows = [
        ("fingerprint", artifact.fingerprint),
        *_flat("", manifest.arguments),
        *_flat("output ", outputs),
        *_flat("metric ", manifest.metrics),
    ]
    inputs = [("input", f"{one.name or Path(one.path).name}, {one.fingerprint}") for one in manifest.inputs]
    lines = [
        f"### {manifest.step}",
        "",
        f"llmforge {manifest.llmforge}, {manifest.created}",
        "",
        "| | |",
        "| --- | --- |",
    ]
    return [*lines, *(f"| {_cell(key)} | {_cell(value)} |" for key, value in [*rows, *inputs]), ""]


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of every leaf; names of nested objects are joined by dots."""
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(f"{prefix}{key}.", value)
        else:
            rows.append(
                (f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return rows


def _cell(text: str) -> str:
    text = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."
    return cell(text)
