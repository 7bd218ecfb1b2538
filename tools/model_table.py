"""Tries llmforge on a tiny random model of every architecture against transformers, and writes docs/models.md.

python tools/model_table.py            prints what differs from the committed table; exit status 1 if anything does
python tools/model_table.py --write    writes it
python tools/model_table.py --only gpt2,opt

LLMFORGE_PYTHON_TRANSFORMERS4 names an interpreter with transformers 4.51.3, for the column of that name.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "models.md"
READER = Path(__file__).with_name("model_table_reader.py")
TOLERANCE = 1e-4
LENGTHS = (21, 12, 7)  # longer than the windows below
COLUMNS = ("tokenizer", "grow", "pack", "train", "resume", "plan", "export", "evaluate")
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
    ): "transformers 4.51.3 gives the window to every layer, but with flash attention",
    (
        "Falcon with ALiBi",
        "evaluate",
    ): "transformers rounds ALiBi to bfloat16, otherwise in sdpa than in eager attention",
    (
        "Falcon with ALiBi",
        NEWEST,
    ): "transformers rounds ALiBi to bfloat16, otherwise in sdpa than in eager attention",
}

HEADING = f"""# Supported models

Made by `python tools/model_table.py --write`, and checked by the tests. A row is a tiny random model of that architecture,
tried by llmforge and by transformers' own model side by side, in float32 on a CPU; a cell says "yes" where they agree to
{TOLERANCE:g}, and has a number where llmforge refuses, with its sentence below.

- tokenizer: transformers reads the grown model's tokenizer and gives the ids that llmforge gives
- grow: old rows of embedding and head are bit for bit those of the source, and so are the logits of old ids (to {TOLERANCE:g})
- pack: in a row of three documents the loss of every token is that in its document by itself
- train: loss and gradient norm of a step are those of a plain loop over transformers' model
- resume: a step after a checkpoint is bit for bit that of a run without one
- plan: the counted parameters are the model's
- export: the logits of the export are those of the trained model, and no tensor is missing or left over
- evaluate: bits per byte are those of transformers' logits
- {NEWEST}, {OLDEST}: the export has the same logits there, read by that version alone

The loss is that of the text alone: what routers of experts add to a loss when `output_router_logits` is set
(`router_aux_loss_coef`) is not part of it, as it is none in transformers either unless that is set.

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
        TABLE.write_text(made, encoding="utf-8")
        return 0
    committed = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.is_file() else []
    changed = [line for line in made.splitlines() if line not in committed]
    print("\n".join(changed))
    return bool(changed)


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


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
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_tokenizer(work / "old", 301)
        make_tokenizer(work / "new", 330)
        found, exports = {}, {}
        for name, kind, settings in rows:
            trial = Trial(kind, settings, work, work / f"{len(found)}")
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


TEXTS = [
    "the cat sat on the mat and the other cat looked at the hat on that mat",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。中文的词语被拆成字节，模型要学会新的词语。",
]


def make_tokenizer(directory: Path, size: int) -> None:
    """A byte-level BPE tokenizer of `size` ids; a larger one extends a smaller one."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))


class Trial:
    """One row: every column is a method that raises where llmforge and transformers differ."""

    def __init__(self, kind: str, settings: dict[str, Any], tokenizers: Path, work: Path) -> None:
        self.kind, self.settings, self.tokenizers = kind, settings, tokenizers
        self.source, self.grown, self.trained, self.exported = (
            work / name for name in ("source", "grown", "trained", "exported")
        )
        self.logits: torch.Tensor | None = None
        self.refusal: str | None = None  # of init-model
        self.untrained: str | None = None
        self._make()

    def cell(self, column: Callable[[], None]) -> str:
        from llmforge.errors import UserError

        if self.refusal:
            return self.refusal
        if self.untrained and column.__name__ in ("export", "newest"):
            return self.untrained
        try:
            column()
        except UserError as error:
            said = str(error)
            for path in (self.source, self.grown, self.trained, self.exported):
                said = said.replace(str(path), "MODEL")
            if column.__name__ == "resume":  # nothing after it can be tried
                self.untrained = said
            return said
        except AssertionError as error:
            return f"differs: {error}"
        except Exception as error:
            return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return "yes"

    def _make(self) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = AutoConfig.for_model(self.kind, **{"vocab_size": 301, **ids, **self.settings})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases and norms too, which start as constants
            torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(self.source)
        for file in (self.tokenizers / "old").iterdir():
            (self.source / file.name).write_bytes(file.read_bytes())
        from llmforge.embedding.initializers.choice import Growth
        from llmforge.embedding.resize import grow
        from llmforge.errors import UserError

        try:
            grow(self.source, self.tokenizers / "new", self.grown, Growth())
        except UserError as error:
            self.refusal = str(error).replace(str(self.source), "MODEL")

    def tokenizer(self) -> None:
        from transformers import AutoTokenizer

        from llmforge.tokenizer import load

        flat, _ = load(self.grown).encode([TEXTS[1]])
        theirs = AutoTokenizer.from_pretrained(self.grown)(TEXTS[1], add_special_tokens=False)["input_ids"]
        assert flat.tolist() == theirs, "ids"
        assert max(theirs) >= 301, "no new id"

    def grow(self) -> None:
        old, new = plain(self.source), plain(self.grown)
        assert new.config.vocab_size == 384, "rows"
        for get in ("get_input_embeddings", "get_output_embeddings"):
            before, after = (getattr(model, get)().weight for model in (old, new))
            assert torch.equal(before, after[:301]), "old rows"
        with torch.no_grad():
            ids = documents(301)
            for document in ids:
                equal(old(document).logits, new(document).logits[..., :301], "logits of old ids")

    def pack(self) -> None:
        from llmforge.backends.common import attention
        from llmforge.backends.common.model import CausalLoss, load_model

        causal = load_model(self.grown, attention.NAMES["sdpa"]).eval()
        with torch.no_grad():
            _, mine = CausalLoss(causal, torch.float32, 16, None)(packed())
            theirs = torch.cat([losses(plain(self.grown), ids) for ids in documents(330)])
        equal(mine[packed().targets[0] != -100], theirs, "loss of a token")

    def train(self) -> None:
        engine = self._engine(self.grown)
        theirs = plain(self.grown)
        loss = plain_loss(theirs) / (sum(LENGTHS) - len(LENGTHS))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters() if p.grad is not None]).norm()
        done = engine.train_step([packed()], 1e-3, lambda *_: True)
        equal(torch.tensor(done.loss_sum / done.valid_tokens), loss.detach(), "loss")
        equal(torch.tensor(done.gradient_norm), norm, "gradient norm")

    def resume(self) -> None:
        from llmforge.train.checkpoint import finish_model, hold_files

        whole = self._engine(self.grown)
        whole.train_step([packed()], 1e-3, lambda *_: True)
        snapshot = whole.snapshot()
        state = self.trained.with_name("state")
        for directory in (self.trained, state):
            directory.mkdir()
        snapshot.write_model(self.trained)
        snapshot.write_state(state)
        manifest = json.loads((self.grown / "llmforge.json").read_text())["outputs"]
        finish_model(
            self.trained, hold_files(self.grown), {key: manifest[key] for key in ("vocabulary", "tokenizer")}
        )
        again = self._engine(self.trained)
        again.load_state(state)
        again.restore(whole.state())
        for engine in (whole, again):
            engine.train_step([packed()], 1e-3, lambda *_: True)
        for (name, one), other in zip(
            whole.causal.named_parameters(), again.causal.parameters(), strict=True
        ):
            assert torch.equal(one, other), name

    def plan(self) -> None:
        from llmforge.train.plan import read_shape

        counted, real = read_shape(self.grown).parameters, plain(self.grown).num_parameters()
        assert counted == real, f"{counted:,} parameters, not {real:,}"

    def export(self) -> None:
        from llmforge.weights.export import ExportOptions, export

        export(self.trained, self.exported, ExportOptions())
        model = plain(self.exported)
        with torch.no_grad():
            made = model(documents(330)[0]).logits
            equal(plain(self.trained)(documents(330)[0]).logits[..., :330], made, "logits")
        self.logits = made

    def newest(self) -> None:
        from transformers import AutoModelForCausalLM

        if self.logits is None:
            self.export()
        assert self.logits is not None
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(self.exported).eval()
            equal(model(documents(330)[0]).logits, self.logits, "logits")

    def evaluate(self) -> None:
        from llmforge.evaluate.bits import measure
        from llmforge.evaluate.models import load_model
        from llmforge.evaluate.texts import Corpus

        loaded = load_model(self.grown)
        got = measure(loaded, Corpus("zh", [TEXTS[1][:9]]), 64, 64, lambda *_: None).bits_per_byte
        flat, _ = loaded.tokenizer.encode([TEXTS[1][:9]])
        assert len(flat) < 64, "more than one window"
        ids = torch.tensor([[0, *flat.tolist()]])
        with torch.no_grad():
            scores = plain(self.grown)(ids).logits[0, :-1, :330].double().log_softmax(-1)
        nats = -scores.gather(1, ids[0, 1:, None]).sum().item()
        equal(torch.tensor(got), torch.tensor(nats / np.log(2) / len(TEXTS[1][:9].encode())), "bits per byte")

    def _engine(self, model: Path) -> Any:
        from llmforge.backends.common.settings import Settings
        from llmforge.backends.common.trainable import parse
        from llmforge.backends.torch import NativeEngine

        rows = {"old_rows": 301, "rows": 330, "groups": 2, "seed": 1}
        return NativeEngine(Settings(model=model, precision="fp32", trainable=parse("all"), **rows))


@lru_cache(maxsize=3)
def plain(directory: Path) -> Any:
    """The model as transformers alone reads it, with its plainest attention."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    assert not wrong, f"transformers finds {wrong}"
    return model.eval()


def documents(rows: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return [torch.randint(1, rows, (1, length), generator=chance) for length in LENGTHS]


def packed() -> Any:
    """The documents in one row, as training packs them."""
    from llmforge.backends.base import IGNORED, MicroBatch

    parts = documents(330)
    targets = [torch.cat([ids[:, 1:], torch.tensor([[IGNORED]])], 1) for ids in parts]
    positions = [torch.arange(ids.shape[1])[None] for ids in parts]
    ids = torch.cat(parts, 1)
    return MicroBatch(ids, torch.cat(targets, 1), torch.cat(positions, 1), torch.zeros_like(ids), (LENGTHS,))


def plain_loss(model: Any) -> torch.Tensor:
    """The summed cross entropy of every document by itself."""
    return torch.cat([losses(model, ids) for ids in documents(330)]).sum()


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The cross entropy of every token of a document but the first."""
    logits = model(ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def equal(one: torch.Tensor, other: torch.Tensor, what: str) -> None:
    difference = ((one.double() - other.double()).abs() / other.double().abs().clamp(min=1)).max().item()
    assert difference <= TOLERANCE, f"{what} by {difference:.1g}"


if __name__ == "__main__":
    sys.exit(main())
