"""A tiny random model of some architecture, tried by llmforge and by transformers' own model side by side.

Shared by model_table.py, whose rows are the architectures that people use, and sweep.py, which takes all there are.
"""

import json
import logging
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

TABLE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
SWEEP = "## All classes"  # the heading of the part of it that sweep.py writes
TOLERANCE = 1e-4
LENGTHS = (21, 12, 7)  # longer than the windows of the models
OLD, NEW = 301, 330  # ids of the two tokenizers
SPECIAL_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


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

    def __init__(self, config: Any, tokenizers: Path, work: Path) -> None:
        self.config, self.tokenizers = config, tokenizers
        self.source, self.grown, self.trained, self.exported = (
            work / name for name in ("source", "grown", "trained", "exported")
        )
        self.logits: torch.Tensor | None = None
        self.refusal: str | None = None  # of init-model
        self.untrained: str | None = None
        self.one_a_row = False  # rows of one document, the shorter ones padded
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
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, which start as constants
                noise = torch.randn_like(parameter) * 0.15
                parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
        model.save_pretrained(self.source)
        for file in (self.tokenizers / "old").iterdir():
            (self.source / file.name).write_bytes(file.read_bytes())
        from llmforge.embedding.options import ResizeOptions
        from llmforge.embedding.resize import resize
        from llmforge.errors import UserError

        try:
            resize(self.source, self.tokenizers / "new", self.grown, ResizeOptions())
        except UserError as error:
            self.refusal = str(error).replace(str(self.source), "MODEL")

    def tokenizer(self) -> None:
        from transformers import AutoTokenizer

        from llmforge.tokenizer import load

        flat, _ = load(self.grown).encode([TEXTS[1]])
        theirs = AutoTokenizer.from_pretrained(self.grown)(TEXTS[1], add_special_tokens=False)["input_ids"]
        assert flat.tolist() == theirs, "ids"
        assert max(theirs) >= OLD, "no new id"

    def resize(self) -> None:
        old, new = plain(self.source), plain(self.grown)
        assert new.config.vocab_size == 384, "rows"
        for get in ("get_input_embeddings", "get_output_embeddings"):
            before, after = (getattr(model, get)().weight for model in (old, new))
            assert torch.equal(before, after[:OLD]), "old rows"
        with torch.no_grad():
            ids = documents(OLD)
            for document in ids:
                equal(old(document).logits, new(document).logits[..., :OLD], "logits of old ids")

    def pack(self) -> None:
        from llmforge.backends.common.model import CausalLoss

        with torch.no_grad():
            _, mine = CausalLoss(self.engine.causal.eval(), torch.float32, 16, None)(packed(self.one_a_row))
            theirs = torch.cat([losses(plain(self.grown), ids) for ids in documents(NEW)])
            together = losses(plain(self.grown), torch.cat(documents(NEW), 1))
        second = slice(LENGTHS[0] - 1, LENGTHS[0] - 1 + LENGTHS[1] - 1)
        trace = (together[1:][second] - theirs[second]).abs().max()
        assert trace > 10 * TOLERANCE, "nothing, as no document leaves a trace in the next"
        equal(mine[packed(self.one_a_row).targets.flatten() != -100], theirs, "loss of a token")

    def train(self) -> None:
        theirs = plain(self.grown)
        loss = plain_loss(theirs) / (sum(LENGTHS) - len(LENGTHS))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters() if p.grad is not None]).norm()
        self.engine.causal.train()
        done = self.engine.train_step([packed(self.one_a_row)], 1e-3, lambda *_: True)
        equal(torch.tensor(done.loss_sum / done.valid_tokens), loss.detach(), "loss")
        equal(torch.tensor(done.gradient_norm), norm, "gradient norm")

    def save(self) -> None:
        from llmforge.train.checkpoint import finish_model
        from llmforge.weights.directory import ModelDirectory

        snapshot, state = self.engine.snapshot(), self.trained.with_name("state")
        for directory in (self.trained, state):
            directory.mkdir()
        snapshot.write_model(self.trained)
        snapshot.write_state(state)
        manifest = json.loads((self.grown / "llmforge.json").read_text())["outputs"]
        finish_model(
            self.trained,
            ModelDirectory(self.grown).side_files,
            {key: manifest[key] for key in ("vocabulary", "tokenizer")},
        )

    def resume(self) -> None:
        self.save()
        again = self._engine(self.trained)
        again.load_state(self.trained.with_name("state"))
        again.restore(self.engine.state())
        for engine in (self.engine, again):
            engine.train_step([packed(self.one_a_row)], 1e-3, lambda *_: True)
        for (name, one), other in zip(
            self.engine.causal.named_parameters(), again.causal.parameters(), strict=True
        ):
            assert torch.equal(one, other), name

    def plan(self) -> None:
        from llmforge.train.shape import read_shape
        from llmforge.weights.directory import ModelDirectory

        counted, real = read_shape(ModelDirectory(self.grown)).parameters, plain(self.grown).num_parameters()
        assert counted == real, f"{counted:,} parameters, not {real:,}"

    def export(self) -> None:
        from llmforge.weights.export import FormatOptions, export

        export(self.trained, self.exported, FormatOptions())
        model = plain(self.exported)
        with torch.no_grad():
            made = model(documents(NEW)[0], use_cache=False).logits
            kept = plain(self.trained)(documents(NEW)[0], use_cache=False).logits[..., :NEW]
            equal(kept, made, "logits")
        self.logits = made

    def newest(self) -> None:
        from transformers import AutoModelForCausalLM

        if self.logits is None:
            self.export()
        assert self.logits is not None
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(self.exported).eval()
            equal(model(documents(NEW)[0], use_cache=False).logits, self.logits, "logits")

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
            scores = plain(self.grown)(ids).logits[0, :-1, :NEW].double().log_softmax(-1)
        nats = -scores.gather(1, ids[0, 1:, None]).sum().item()
        equal(torch.tensor(got), torch.tensor(nats / np.log(2) / len(TEXTS[1][:9].encode())), "bits per byte")

    @cached_property
    def engine(self) -> Any:
        return self._engine(self.grown)

    def _engine(self, model: Path) -> Any:
        from llmforge.backends.common.settings import Settings
        from llmforge.backends.common.trainable import parse
        from llmforge.backends.torch.engine import NativeEngine
        from llmforge.weights.directory import ModelDirectory

        rows = {"old_rows": OLD, "rows": NEW, "groups": 2, "seed": 1}
        settings = Settings(ModelDirectory(model), "fp32", parse("all"), **rows)
        return NativeEngine(settings)


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


def packed(one_a_row: bool) -> Any:
    """The documents as training gives them: packed in one row, or a padded row each."""
    from llmforge.backends.base import IGNORED, MicroBatch

    parts = documents(NEW)
    targets = [torch.cat([ids[:, 1:], torch.tensor([[IGNORED]])], 1) for ids in parts]
    positions = [torch.arange(ids.shape[1])[None] for ids in parts]
    if not one_a_row:
        ids = torch.cat(parts, 1)
        return MicroBatch(
            ids, torch.cat(targets, 1), torch.cat(positions, 1), torch.zeros_like(ids), (LENGTHS,)
        )
    longest = max(LENGTHS)
    ids, wanted, places = (
        torch.cat([torch.nn.functional.pad(one, (0, longest - one.shape[1]), value=fill) for one in tensors])
        for tensors, fill in ((parts, 0), (targets, IGNORED), (positions, 0))
    )
    lengths = tuple((n, longest - n) if n < longest else (n,) for n in LENGTHS)
    return MicroBatch(
        ids, wanted, places, torch.zeros_like(ids), lengths, tuple(n < longest for n in LENGTHS)
    )


def plain_loss(model: Any) -> torch.Tensor:
    """The summed cross entropy of every document by itself."""
    return torch.cat([losses(model, ids) for ids in documents(NEW)]).sum()


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The cross entropy of every token of a document but the first."""
    logits = model(ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def equal(one: torch.Tensor, other: torch.Tensor, what: str) -> None:
    difference = ((one.double() - other.double()).abs() / other.double().abs().clamp(min=1)).max().item()
    assert difference <= TOLERANCE, f"{what} by {difference:.1g}"
