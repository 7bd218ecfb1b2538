"""Counted training FLOPs: what arms are compared at.

A multiplication and an addition are two. A product of activations with a matrix of n weights takes 2 n per token
forward; backward 2 n for the gradient of its input and 2 n for that of its weights, and the latter is not computed where
the matrix is frozen. So with N weights in the matrices of all layers, V rows in the head, width d, L layers, and
documents of n_1, n_2, ... tokens (`attended` is the sum of n² over the sum of n):

    layers      6 N per token; 4 N where they are frozen (nothing is frozen below an embedding that is trained)
    head        6 V d per token: the matrix is trained in every arm, and where old rows are frozen their gradient is
                computed and then cleared
    attention   6 L d `attended`: scores and values take 2 d per pair of tokens each, half of all pairs are causal,
                and backward takes twice of forward

Not counted: the table look-up, norms, softmax, rotations and the optimizer, as is usual (Kaplan et al. 2020, Chinchilla's
appendix F). torch.utils.flop_counter counts the same products, but all pairs in attention (tests/experiments).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAINABLE = {"all": 6, "embeddings": 4, "new-embeddings": 4}  # what a weight of the layers takes


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one training token, forward and backward."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head


def token_flops(config: Mapping[str, Any], rows: int, attended: float, trainable: str = "all") -> TokenFlops:
    """For a LLaMA with the values of its config.json, `rows` embedding rows, and `trainable` as `train` takes it.

    Raises `ValueError` for what is not counted here.
    """
    if config["model_type"] != "llama":
        raise ValueError(f"FLOPs of {config['model_type']} are not counted, only those of llama.")
    if trainable not in TRAINABLE:
        raise ValueError(f"FLOPs of trainable {trainable} are not counted, only of {', '.join(TRAINABLE)}.")
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    weights = layers * (2 * width * (queries + keys) + 3 * width * config["intermediate_size"])
    return TokenFlops(
        layers=TRAINABLE[trainable] * weights,
        attention=6 * layers * queries * attended,
        head=6 * rows * width,
    )


SUMS = {"subtoken-mean": 5, "mean": 1, "gaussian": 1, "align": 5, "focus": 50}


def initialization_flops(init: str, new_rows: int, width: int, matrices: int) -> float:
    """FLOPs of new rows in `matrices` matrices that are weighted sums of old rows, about `SUMS` of them each: less than a
    step of training. Raises `ValueError` for initializations that compute more than that.
    """
    if init not in SUMS:
        raise ValueError(f"FLOPs of --init {init} are not counted here, only of {', '.join(SUMS)}.")
    return 2.0 * new_rows * width * SUMS[init] * matrices


def distillation_flops(
    config: Mapping[str, Any], old_rows: int, new_rows: int, spelled: float, given: Mapping[str, Any]
) -> float:
    """FLOPs of `--init distill` with the options `given`, where `spelled` old tokens spell a token of the text.

    Both sides read T = --distill-tokens, in snippets of 48 and of 192. The input side runs the source's first layers on the old
    tokens once, and the resized model's on T in each epoch, forward and backward to the rows. The output side runs the whole
    model on T once, and then fits the rows in at most 4 passes: new logits, their gradient, and two products of all rows with
    a matrix of width x width for every 512 tokens; each pass and the start are judged on a tenth of T. The anchor of a tied
    model is left out.
    """
    width, layers, rows = config["hidden_size"], config["num_hidden_layers"], old_rows + new_rows
    tokens = given.get("distill-tokens", 16384)
    first = given.get("distill-layers", max(1, layers // 3))

    def forward(length: float) -> float:
        """Of a layer, for a token of a snippet of that length."""
        token = token_flops(config, rows, length)
        return (token.layers + token.attention) / 3 / layers

    states = first * (spelled * forward(48 * spelled) + 2 * given.get("distill-epochs", 3) * forward(48))
    collected = layers * forward(192) + 2 * old_rows * width
    fitted = new_rows * width * (4 * (4 + 4 * width / 512) + 5 * 2 / 10)
    return float(tokens * (states + collected + fitted))
