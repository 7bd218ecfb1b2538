"""Run by an interpreter with another transformers: what `check_complete` says of models that that version wrote.

python complete_probe.py    prints {"transformers": version, "cases": {architecture: {case: what is said, "" for nothing}}}
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SIZES, "intermediate_size": 24}
GROUPED = {**WIDE, "num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 2},
    "qwen2_moe": {
        **GROUPED,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "gemma2": {**GROUPED, "head_dim": 8},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": WIDE,
    "falcon": {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 1},
    "phi3": {**GROUPED, "pad_token_id": 0},
}


def said(directory: Path, tensors: dict[str, Any]) -> str:
    from safetensors.torch import save_file

    from llmforge.errors import UserError
    from llmforge.weights.completeness import check_complete

    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    try:
        check_complete(directory)
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    import transformers
    from safetensors.torch import load_file

    found: dict[str, dict[str, str]] = {}
    for kind, sizes in ARCHITECTURES.items():
        with TemporaryDirectory() as work:
            directory = Path(work)
            config = transformers.AutoConfig.for_model(kind, **sizes)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
            whole = load_file(directory / "model.safetensors")
            # A matrix of the last layer (of the last expert), which no other tensor stands in for.
            name = [n for n, tensor in whole.items() if ".1." in n and tensor.dim() == 2][-1]
            found[kind] = {
                "whole": said(directory, whole),
                "one less": said(directory, {n: t for n, t in whole.items() if n != name}),
                "one more": said(directory, {**whole, name.replace(".1.", ".7.", 1): whole[name].clone()}),
                "one cut": said(directory, {**whole, name: whole[name][:-1].clone()}),
                "name": name,
            }
    print(json.dumps({"transformers": transformers.__version__, "cases": found}))


if __name__ == "__main__":
    sys.exit(main())
