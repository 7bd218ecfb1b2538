"""Whether a model that was written computes what it was made of: both read by transformers, in a process of its own.

python -m llmforge.weights.verify SOURCE WRITTEN IDS [int8|int4] [trust-remote-code] [base=MODEL]

prints the largest difference of their logits. IDS is a JSON file: ids of texts for each, and the ids of the source that the
written model has, null for the first ones. With a base, WRITTEN is an adapter for it.
"""

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.errors import UserError
from llmforge.weights.quantization import KINDS, Kind
from llmforge.weights.vocabulary import Vocabulary

TOLERANCE = 1e-4
BASE = "base="
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
    ids = _random_ids(vocabulary)
    return _difference(
        model, exported, (ids, ids, None), [*([quantize] if quantize else []), *_trusting(trust_remote_code)]
    )


def verify_adapter(merged: Path, adapter: Path, base: Path, vocabulary: Vocabulary) -> float:
    """The largest absolute difference of the logits of the model `merged` and of `base` with `adapter`, as peft adds it, in
    float32, on ids as those of `verify_export`. Raises `UserError` as it does.
    """
    ids = _random_ids(vocabulary)
    return _difference(merged, adapter, (ids, ids, None), [f"{BASE}{base}"])


def verify_pruned(
    model: Path, pruned: Path, kept: npt.NDArray[np.int64], trust_remote_code: bool = False
) -> float:
    """The largest absolute difference of the logits of `model` and `pruned` over the ids `kept` of `model`, on random ones
    of them. Raises `UserError` as `verify_export` does.
    """
    ids = np.random.default_rng(0).integers(0, len(kept), (SEQUENCES, LENGTH))
    return _difference(model, pruned, (kept[ids], ids, kept), _trusting(trust_remote_code))


def _random_ids(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """(SEQUENCES, LENGTH) of which half the sequences are new ids, where there are some."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary.size, (SEQUENCES, LENGTH))
    ids[::2] = generator.integers(
        min(vocabulary.source, vocabulary.size - 1), vocabulary.size, (SEQUENCES // 2, LENGTH)
    )
    return ids


def _trusting(trust_remote_code: bool) -> list[str]:
    return ["trust-remote-code"] if trust_remote_code else []


def _difference(
    model: Path,
    written: Path,
    ids: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None],
    words: list[str],
) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # longer than an argument may be
        json.dump([None if part is None else part.tolist() for part in ids], file)
        file.flush()
        command = [sys.executable, "-m", "llmforge.weights.verify", str(model), str(written), file.name]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--verify: transformers could not compare {model} with what was written: {reason}")
    difference = float(done.stdout.strip().splitlines()[-1])
    if not difference <= TOLERANCE:
        raise UserError(
            f"--verify: logits of {model} and of what was made of it differ by {difference:.2g}; nothing was written."
        )
    return difference


def _logits(
    directory: Path, ids: list[list[int]], kept: Any, dtype: str, trust: bool, adapter: Path | None = None
) -> np.ndarray:
    """float32 logits [sequence, position, id] of the ids `kept`, a list or a slice, of a model or of it with `adapter`."""
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
    model = model.float().eval()
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    return _computed(model, ids, kept)


def _computed(model: Any, ids: list[list[int]], kept: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        logits: np.ndarray = (
            model(torch.tensor(ids, device=model.device), use_cache=False).logits.float().cpu().numpy()
        )
    return logits[..., kept]


def _main() -> None:
    import torch

    from llmforge.weights.architecture import find_vocabulary_tensors
    from llmforge.weights.config import read_config
    from llmforge.weights.floats import NAMES
    from llmforge.weights.quantization.load import quantized_model, stored_model
    from llmforge.weights.read import open_weights

    model, written = Path(sys.argv[1]), Path(sys.argv[2])
    trust = "trust-remote-code" in sys.argv[4:]
    source_ids, ids, kept = json.loads(Path(sys.argv[3]).read_text())
    rows = slice(len(kept) if kept else None)
    if bases := [word.removeprefix(BASE) for word in sys.argv[4:] if word.startswith(BASE)]:
        new = _logits(Path(bases[0]), ids, rows, "float32", trust, adapter=written)
        gc.collect()
        print(float(np.abs(new - _logits(model, source_ids, rows, "float32", trust)).max()))
        return
    stored = find_vocabulary_tensors(open_weights(written), read_config(written), trust).embedding.dtype
    dtype = next(name for name, short in NAMES.items() if short == stored)
    if kinds := [kind for kind in KINDS if kind in sys.argv[4:]]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        new = _computed(stored_model(written, dtype, device, trust), ids, rows)
        gc.collect()
        made, _ = quantized_model(model, open_weights(model), kinds[0], dtype, device, trust)
        old = _computed(made, source_ids, kept or slice(new.shape[-1]))
    else:
        new = _logits(written, ids, rows, dtype, trust)
        gc.collect()
        old = _logits(model, source_ids, kept or slice(new.shape[-1]), dtype, trust)
    print(float(np.abs(new - old).max()))


if __name__ == "__main__":
    _main()
