"""Whether vLLM, where it is installed, loads a model directory and computes what transformers does; and what llmforge says of it.

    python benchmarks/gpu/vllm_check.py trained trained-int4 [--dtype bfloat16]

vLLM gives the log-likelihood of each token of a few prompts, transformers of the same ids. In 16 bits they differ by
rounding; a mean difference of more than --tolerance ends the script with 1. It was not run where this repository is
developed, which has no GPU.
"""

import argparse
import gc
import importlib.util
import sys
from pathlib import Path

PROMPTS = ("The capital of France is Paris, and that of", "中国的首都是北京，", "def add(a, b):\n    return")


def ours(directory: Path, dtype: str) -> list[tuple[list[int], list[float]]]:
    """(ids, log-likelihoods of all but the first) of each prompt, as transformers computes them."""
    import torch

    from llmforge.evaluate.models import load_model

    loaded = load_model(directory, dtype)
    found = []
    for text in PROMPTS:
        ids = [*loaded.start_ids, *loaded.tokenizer.encode([text])[0].tolist()]
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([ids], device=loaded.device)).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:], device=logits.device)[:, None])
        found.append((ids, chosen[:, 0].tolist()))
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    return found


def theirs(directory: Path, dtype: str, prompts: list[list[int]]) -> list[list[float]]:
    """The same log-likelihoods by vLLM."""
    from vllm import LLM, SamplingParams

    model = LLM(model=str(directory), dtype=dtype, enforce_eager=True, gpu_memory_utilization=0.5)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    done = model.generate([{"prompt_token_ids": ids} for ids in prompts], asked)
    return [
        [one.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]
        for one, ids in zip(done, prompts, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tolerance", type=float, default=0.05, help="nats per token")
    asked = parser.parse_args()
    from llmforge.weights.vllm import reasons_against

    failed = False
    for directory in asked.models:
        reasons = reasons_against(directory)
        print(f"{directory}: llmforge says {'; '.join(reasons) or 'nothing against it'}")
        if importlib.util.find_spec("vllm") is None:
            continue
        mine = ours(directory, asked.dtype)
        other = theirs(directory, asked.dtype, [ids for ids, _ in mine])
        differences = [
            abs(a - b) for (_, x), y in zip(mine, other, strict=True) for a, b in zip(x, y, strict=True)
        ]
        mean = sum(differences) / len(differences)
        failed |= mean > asked.tolerance
        print(f"{directory}: {mean:.4f} nats per token from transformers, at most {max(differences):.4f}")
    if importlib.util.find_spec("vllm") is None:
        sys.exit(
            "vLLM is not installed, so only its rules were looked up: pip install vllm, on a machine with a GPU."
        )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
