"""A linear map from what a token's spelling becomes in the model to the row of the token."""

import numpy as np
import torch

from llmforge.console import progress
from llmforge.embedding.distillation.source_model import SourceModel
from llmforge.embedding.rows import Int64
from llmforge.tokenizer import Tokenizer
from llmforge.weights.floats import Float32

FEWEST, PER_DIMENSION = (
    4096,
    4,
)  # old tokens that the map is fitted on, at least, and for each dimension of the states
MOST_PARTS = 6
SPLIT_AGAIN = 0.5  # the share of parts that are split further
HELD_OUT = 8  # every eighth old token tells how strong the ridge has to be
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
BATCH_TOKENS = 2048


def split_old_tokens(source: Tokenizer, usable: np.ndarray, number: int, seed: int) -> dict[int, list[int]]:
    """At most `number` old ids of `usable` tokens, each with two to six old ids that spell it together.

    A token is cut at a place, drawn by `seed`, where both sides are tokens too; half of the parts are cut again.
    """
    generator = np.random.default_rng(seed)
    pieces = source.pieces()
    ids = {piece: i for i, piece in enumerate(pieces) if piece and i not in source.special_ids}

    def cut(piece: str) -> list[str] | None:
        for at in generator.permutation(len(piece) - 1) + 1:
            if piece[:at] in ids and piece[at:] in ids:
                return [piece[:at], piece[at:]]
        return None

    found: dict[int, list[int]] = {}
    candidates = np.array([i for piece, i in ids.items() if len(piece) > 1 and usable[i]], np.int64)
    for i in generator.permutation(candidates).tolist():
        if len(found) == number:
            break
        parts = cut(pieces[i])
        if parts is None:
            continue
        for _ in range(MOST_PARTS - 2):
            place = int(generator.integers(len(parts)))
            if generator.random() < SPLIT_AGAIN and (more := cut(parts[place])):
                parts[place : place + 1] = more
        found[i] = [ids[part] for part in parts]
    return found


def spelled_states(
    model: SourceModel, spellings: list[list[int]], start_ids: tuple[int, ...], layers: int
) -> Float32:
    """float32 [spellings, hidden size]: the state after `layers` layers at the end of each, behind `start_ids` alone."""
    order = sorted(range(len(spellings)), key=lambda i: len(spellings[i]))
    made: list[Float32] = []
    with progress("linear: hidden states", len(spellings), "spellings") as advance, torch.inference_mode():
        first = 0
        while first < len(order):
            width = len(spellings[order[first]])
            count = max(1, BATCH_TOKENS // (width + len(start_ids)))
            group = [i for i in order[first : first + count] if len(spellings[i]) == width]
            ids: Int64 = np.array([[*start_ids, *spellings[i]] for i in group], np.int64)
            made.append(model.states(ids, layers)[:, -1].float().cpu().numpy())
            first += len(group)
            advance(len(group))
    states: Float32 = np.empty((len(spellings), made[0].shape[1]), np.float32)
    states[order] = np.concatenate(made)
    return states


def fit(states: Float32, wanted: Float32) -> tuple[Float32, Float32, float]:
    """(matrix [hidden size, width], constant [width], share of the variance of `wanted` that is left on tokens held out).

    Ridge regression of `wanted` [tokens, width] on the standardised `states` [tokens, hidden size]; the strength of the ridge
    is the one of RIDGES that leaves least on every eighth token.
    """
    held = np.arange(len(states)) % HELD_OUT == 0
    mean, deviation = states[~held].mean(axis=0), states.std(axis=0) + 1e-6
    scaled = ((states - mean) / deviation).astype(np.float64)
    centre = wanted[~held].mean(axis=0)
    target = (wanted - centre).astype(np.float64)
    values, vectors = np.linalg.eigh(scaled[~held].T @ scaled[~held])
    right = vectors.T @ (scaled[~held].T @ target[~held])
    total = float(np.square(target[held]).sum())
    left = {}
    for ridge in RIDGES:
        matrix = vectors @ (right / (values + ridge * len(states))[:, None])
        left[ridge] = float(np.square(target[held] - scaled[held] @ matrix).sum()) / max(total, 1e-30)
    best = min(left, key=lambda ridge: left[ridge])
    matrix = (vectors @ (right / (values + best * len(states))[:, None])) / deviation[:, None]
    return matrix.astype(np.float32), (centre - mean @ matrix).astype(np.float32), left[best]
