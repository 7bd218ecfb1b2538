"""Run by tests and benchmarks in another interpreter: what its transformers makes of tokenizer directories.

    python encode_with_transformers.py DOCUMENTS.json ANSWERS.json TOKENIZER_DIR...

DOCUMENTS.json is a list of texts; ANSWERS.json becomes a list with, for each directory, {"transformers": version, "class":
name, "size": n, "ids": [[...]], "framed": ids of "a" with the special tokens that the tokenizer itself adds, "special": ids
of bos, eos and pad, "decoded": [...]}. Special tokens spelled in a text are text.
"""

import json
import sys
from pathlib import Path
from typing import Any

import transformers


def main(documents: str, output: str, *directories: str) -> None:
    """Encodes and decodes every document with every tokenizer."""
    texts = json.loads(Path(documents).read_text(encoding="utf-8"))
    answers = [_answer(directory, texts) for directory in directories]
    Path(output).write_text(json.dumps(answers), encoding="utf-8")


def _answer(directory: str, texts: list[str]) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return {
        "transformers": transformers.__version__,
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "ids": ids,
        "framed": tokenizer("a")["input_ids"],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "decoded": tokenizer.batch_decode(ids, skip_special_tokens=False),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
