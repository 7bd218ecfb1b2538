"""Run by tests and benchmarks in another interpreter: what its transformers makes of a tokenizer directory.

    python encode_with_transformers.py TOKENIZER_DIR DOCUMENTS.json IDS.json

DOCUMENTS.json is a list of texts; IDS.json becomes {"transformers": version, "class": name, "size": n, "ids":
[[...]],
"framed": ids of "a" with the special tokens that the tokenizer itself adds, "decoded": [...]}. Special tokens spelled
in a text are text.
"""

import json
import sys
from pathlib import Path

import transformers


def main(directory: str, documents: str, output: str) -> None:
    """Encodes and decodes every document."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = json.loads(Path(documents).read_text(encoding="utf-8"))
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    answer = {
        "transformers": transformers.__version__,
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "ids": ids,
        "framed": tokenizer("a")["input_ids"],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "decoded": tokenizer.batch_decode(ids, skip_special_tokens=False),
    }
    Path(output).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
