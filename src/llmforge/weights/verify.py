"""Whether an export computes what its checkpoint does: both read by transformers, in a process of its own.

python -m llmforge.weights.verify CHECKPOINT_MODEL EXPORT IDS [int8|int4] [trust-remote-code]

prints the largest difference of their logits.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.errors import UserError
from llmforge.weights.quantization import KINDS, Kind
from llmforge.weights.vocabulary import Vocabulary

TOLERANCE = 1e-4
SEQUENCES, LENGTH = 4, 64


def verify_export(
    model: Path,
    exported: Path,
    vocabulary: Vocabulary,
    quantize: Kind | None = None,
    trust_remote_code: bool = False,
) -> float:
    """The largest absolute difference of the logits of `model` and `exported` over all true ids.

    Both compute in float32 from weights in the dtype of the export, on random ids among which new ones are frequent. With
    `quantize`, `model` is rounded as `evaluate --quantize` does it, and both compute in that dtype.
    Raises `UserError` if transformers cannot read the export, or if a logit differs by more than 1e-4.
    """
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary.size, (SEQUENCES, LENGTH))
    ids[::2] = generator.integers(
        min(vocabulary.source, vocabulary.size - 1), vocabulary.size, (SEQUENCES // 2, LENGTH)
    )
    command = [
        sys.executable,
        "-m",
        "llmforge.weights.verify",
        str(model),
        str(exported),
        json.dumps(ids.tolist()),
        *([quantize] if quantize else []),
        *(["trust-remote-code"] if trust_remote_code else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--verify: transformers could not compare {model} with its export: {reason}")
    difference = float(done.stdout.strip().splitlines()[-1])
    if not difference <= TOLERANCE:
        raise UserError(
            f"--verify: logits of {model} and of its export differ by {difference:.2g}; nothing was written."
        )
    return difference


def _logits(
    directory: Path, ids: list[list[int]], rows: int | None, dtype: str, trust: bool
) -> tuple[np.ndarray, int]:
    """float32 logits [sequence, position, id] of the first `rows` ids, by default of all."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmforge.weights.config import load_config

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        config=load_config(directory, trust),
        torch_dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=trust,
    )
    return _computed(model.float().eval(), ids, rows)


def _computed(model: Any, ids: list[list[int]], rows: int | None) -> tuple[np.ndarray, int]:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor(ids, device=model.device), use_cache=False).logits.float().cpu().numpy()
    return (logits[..., :rows] if rows else logits), logits.shape[-1]


def _main() -> None:
    import torch

    from llmforge.weights.architecture import find_vocabulary_tensors
    from llmforge.weights.config import read_config
    from llmforge.weights.floats import NAMES
    from llmforge.weights.quantization.load import quantized_model, stored_model
    from llmforge.weights.read import open_weights

    model, exported = Path(sys.argv[1]), Path(sys.argv[2])
    trust = "trust-remote-code" in sys.argv[4:]
    stored = find_vocabulary_tensors(open_weights(exported), read_config(exported), trust).embedding.dtype
    dtype = next(name for name, short in NAMES.items() if short == stored)
    ids = json.loads(sys.argv[3])
    if kinds := [kind for kind in KINDS if kind in sys.argv[4:]]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        new, rows = _computed(stored_model(exported, dtype, device, trust), ids, None)
        gc.collect()
        made, _ = quantized_model(model, open_weights(model), kinds[0], dtype, device, trust)
        old, _ = _computed(made, ids, rows)
    else:
        new, rows = _logits(exported, ids, None, dtype, trust)
        gc.collect()
        old, _ = _logits(model, ids, rows, dtype, trust)
    print(float(np.abs(new - old).max()))


if __name__ == "__main__":
    _main()
