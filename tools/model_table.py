"""Tries llmforge on a tiny random model of every architecture against transformers, and writes docs/models.md.

python tools/model_table.py            prints what differs from the committed table; exit status 1 if anything does
python tools/model_table.py --write    writes it
python tools/model_table.py --only gpt2,opt

LLMFORGE_PYTHON_TRANSFORMERS4 names an interpreter with transformers 4.51.3, for the column of that name.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trial import NEW, OLD, SPECIAL_IDS, SWEEP, TABLE, TOLERANCE, Trial, make_tokenizer, quiet

READER = Path(__file__).with_name("model_table_reader.py")
COLUMNS = ("tokenizer", "resize", "pack", "train", "resume", "plan", "export", "evaluate")
NEWEST, OLDEST = "transformers 5", "transformers 4.51"

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **NO_DROPOUT}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# (name, model_type, settings); what a name's kin have in common with it is one row.
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("LLaMA 2", "llama", GROUPED),
    ("LLaMA 3", "llama", {**GROUPED, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    ("Mistral", "mistral", {**HEADED, "sliding_window": 8}),
    ("Mixtral", "mixtral", {**HEADED, "num_local_experts": 4}),
    ("Qwen2, Qwen2.5", "qwen2", GROUPED),
    ("Qwen2 with a window", "qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("Qwen3", "qwen3", HEADED),
    ("Qwen3-MoE", "qwen3_moe", {**HEADED, **EXPERTS}),
    ("Gemma", "gemma", {**HEADED, "tie_word_embeddings": True}),
    ("Gemma 2", "gemma2", {**HEADED, "sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}),
    ("Gemma 3 (text)", "gemma3_text", {**HEADED, "num_hidden_layers": 6, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    ("Phi-2", "phi", GROUPED),
    ("Phi-3, Phi-4", "phi3", {**GROUPED, "sliding_window": 8}),
    ("SmolLM3", "smollm3", {**GROUPED, "num_hidden_layers": 4}),
    ("OLMo 2", "olmo2", GROUPED),
    ("OLMo 3", "olmo3", {**GROUPED, "num_hidden_layers": 4, "sliding_window": 8}),
    ("GLM-4", "glm4", HEADED),
    ("Granite", "granite", {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    ("Cohere", "cohere", {**GROUPED, "logit_scale": 0.25, "tie_word_embeddings": True}),
    ("Cohere 2", "cohere2", {**GROUPED, "sliding_window": 8, "num_hidden_layers": 4, "tie_word_embeddings": True}),
    ("StarCoder2", "starcoder2", {**GROUPED, "sliding_window": 8}),
    ("StableLM", "stablelm", GROUPED),
    ("Falcon", "falcon", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("Falcon with ALiBi", "falcon", {**SMALL, "alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    ("Bloom", "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ("GPT-2", "gpt2", GPT2),
    ("GPT-J", "gptj", {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False}),
    ("GPT-NeoX", "gpt_neox", SMALL),
    ("OPT", "opt", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32, "dropout": 0.0, "max_position_embeddings": 64}),
    ("DeepSeek-V3", "deepseek_v3", {
        **SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "first_k_dense_replace": 1,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    }),
    ("GPT-OSS", "gpt_oss", {**HEADED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_scaling": None}),
    ("Mamba", "mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    ("BERT", "bert", SMALL),
]  # fmt: skip

# Where transformers differs from itself, and why.
KNOWN = {
    (
        "Qwen2 with a window",
        OLDEST,
    ): "transformers 4.51.3 applies the window to every layer, except with flash attention",
    (
        "Falcon with ALiBi",
        "evaluate",
    ): "transformers rounds ALiBi to bfloat16, differently in sdpa and in eager attention",
    (
        "Falcon with ALiBi",
        NEWEST,
    ): "transformers rounds ALiBi to bfloat16, differently in sdpa and in eager attention",
}

HEADING = f"""# Supported models

`python tools/model_table.py --write` creates this table, and a test checks it. A row is a tiny random model of that architecture,
run by llmforge and by transformers' own model, in float32 on a CPU. "yes": both agree to {TOLERANCE:g}. A number: llmforge refuses,
with the message below.

- tokenizer: transformers reads the extended tokenizer and gives the same ids as llmforge
- resize: old rows of embedding and head equal those of the source bit for bit, and logits of old ids agree (to {TOLERANCE:g})
- pack: in a row of three documents, the loss of every token is that in its document alone
- train: loss and gradient norm of a step are those of a plain loop over transformers' model
- resume: a step after a resume equals that of an uninterrupted run bit for bit
- plan: the counted parameters are the model's
- export: the logits of the export are those of the trained model, and no tensor is missing or extra
- evaluate: bits per byte are those of transformers' logits
- {NEWEST}, {OLDEST}: the export, read by that version alone, has the same logits

The loss is that of the text. The auxiliary loss of expert routers (`router_aux_loss_coef`), which transformers adds if
`output_router_logits` is set, is not part of it.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries every architecture, and writes docs/models.md.")
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing it")
    parser.add_argument("--only", help="model types, with commas between; their rows are printed")
    options = parser.parse_args()
    quiet()
    chosen = [row for row in ROWS if not options.only or row[1] in options.only.split(",")]
    made = render(tried(chosen))
    if options.only:
        print(made.removeprefix(HEADING))
        return 0
    if options.write:
        rest = TABLE.read_text(encoding="utf-8").partition(f"\n{SWEEP}\n")  # what sweep.py writes below it
        TABLE.write_text(made + "".join(rest[1:]), encoding="utf-8")
        return 0
    committed = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.is_file() else []
    changed = [line for line in made.splitlines() if line not in committed]
    print("\n".join(changed))
    return bool(changed)


def render(found: dict[str, dict[str, str]]) -> str:
    """The page: `found[row][column]` is "yes" or a sentence."""
    columns = [*COLUMNS, NEWEST, OLDEST]
    reasons: list[str] = []
    lines = [f"| architecture | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, cells in found.items():
        shown = []
        for column in columns:
            said = cells.get(column, "not tried")
            if said != "yes":
                if said not in reasons:
                    reasons.append(said)
                said = str(reasons.index(said) + 1)
            shown.append(said)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return HEADING + "\n".join([*lines, "", *notes]) + "\n"


def tried(rows: list[tuple[str, str, dict[str, Any]]]) -> dict[str, dict[str, str]]:
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_tokenizer(work / "old", OLD)
        make_tokenizer(work / "new", NEW)
        found, exports = {}, {}
        for name, kind, settings in rows:
            config = AutoConfig.for_model(kind, **{"vocab_size": OLD, **SPECIAL_IDS, **settings})
            trial = Trial(config, work, work / f"{len(found)}")
            found[name] = {column: trial.cell(getattr(trial, column)) for column in (*COLUMNS, "newest")}
            found[name][NEWEST] = found[name].pop("newest")
            if trial.logits is not None:
                exports[name] = (str(trial.exported), trial.logits.tolist())
        for name, said in read_by_oldest(exports).items():
            found[name][OLDEST] = said
        for name, cells in found.items():
            if name not in exports:
                cells[OLDEST] = cells[NEWEST]
            for column, said in cells.items():
                if said.startswith("differs") and (name, column) in KNOWN:
                    cells[column] = KNOWN[name, column]
        return found


def read_by_oldest(exports: dict[str, Any]) -> dict[str, str]:
    python = os.environ.get("LLMFORGE_PYTHON_TRANSFORMERS4")
    if not python:
        return dict.fromkeys(exports, "not tried: LLMFORGE_PYTHON_TRANSFORMERS4 is not set")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, READER],
        input=json.dumps(exports),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    said: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


if __name__ == "__main__":
    sys.exit(main())
