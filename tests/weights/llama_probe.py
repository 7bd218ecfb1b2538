"""What llama.cpp makes of a GGUF file, in an environment that has llama-cpp-python.

python llama_probe.py MODEL.gguf ASKED.json OUT.npz    ASKED: {"texts": [...], "prompt": [id, ...], "new": n}
OUT: `ids` of all texts one after the other and their `lengths`, without bos; `with_bos`, those of the first text with what is put
before it; `logits` float32 [position of the prompt, id]; `greedy`, the n likeliest ids behind the prompt; `template`.
"""

import json
import sys

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama

model, asked, out = sys.argv[1:]
with open(asked, encoding="utf-8") as file:
    wanted = json.load(file)
llama = Llama(
    model, n_ctx=96, logits_all=True, verbose=False, n_threads=1, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32
)
ids = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in wanted["texts"]]
with_bos = llama.tokenize(wanted["texts"][0].encode(), add_bos=True, special=False)
llama.eval(wanted["prompt"])
logits = np.array(llama.scores[: len(wanted["prompt"])], np.float32)
greedy: list[int] = []
row = logits[-1]
while len(greedy) < wanted["new"]:
    greedy.append(int(row.argmax()))
    llama.eval(greedy[-1:])
    row = llama.scores[len(wanted["prompt"]) + len(greedy) - 1]
np.savez(
    out,
    ids=np.array([one for text in ids for one in text], np.int64),
    lengths=np.array([len(text) for text in ids]),
    with_bos=np.array(with_bos),
    logits=logits,
    greedy=np.array(greedy),
    eos=np.array(llama.token_eos()),
)
