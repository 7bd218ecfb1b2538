"""New rows by the example of a model that knows the new tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.console import progress
from llmforge.embedding.initializers.base import InitContext, Initializer
from llmforge.errors import UserError
from llmforge.options import Options, option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmforge.embedding.rows import Bool, Mixture, NewRows
    from llmforge.tokenizer import Tokenizer
    from llmforge.weights.floats import Float32
    from llmforge.weights.tensor import Tensor

BLOCK = 256


@dataclass(frozen=True)
class DonorOptions(Options):
    """`donor_terms` is the number of old tokens that are combined to a new row."""

    donor_terms: int = option("For --init donor: number of old tokens combined into a new row.", 8, least=1)


class FromDonor(Initializer):
    text = "the combination of old tokens that gives its row in the model --donor"
    reads_donor = True
    options = DonorOptions

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        assert context.donor is not None
        donor = Donor(context.donor)
        terms = context.options.of(DonorOptions).donor_terms
        made = {}
        for role in roles:
            tensor = donor.embedding if role == "embedding" else donor.head
            usable = context.old[role].usable
            found = orthogonal_matching_pursuit(context.source, context.target, donor, tensor, usable, terms)
            made[role] = context.mixed(role, found)
        return made


class Donor:
    """A model whose tokenizer has the new pieces; tokens are matched by their bytes, whatever its tokenizer's kind."""

    def __init__(self, directory: Path) -> None:
        from llmforge.tokenizer import load
        from llmforge.weights.architecture import find_vocabulary_tensors
        from llmforge.weights.completeness import check_complete
        from llmforge.weights.config import read_config

        weights = check_complete(directory)
        tensors = find_vocabulary_tensors(weights, read_config(directory))
        self.directory = directory
        self.embedding = tensors.embedding
        self.head = tensors.head or tensors.embedding
        tokenizer = load(directory)
        if tensors.rows < tokenizer.size:
            raise UserError(
                f"--donor {directory} has {tensors.rows:,} embedding rows but {tokenizer.size:,} ids; it is damaged. Download it again."
            )
        self.ids: dict[bytes, int] = {}
        for i, text in enumerate(tokenizer.token_bytes()):
            if text:
                self.ids.setdefault(text, i)


def orthogonal_matching_pursuit(
    source: "Tokenizer", target: "Tokenizer", donor: Donor, tensor: "Tensor", usable: "Bool", terms: int
) -> "Mixture":
    """`donor`: a new row combines the old tokens that, in the donor, best combine to the donor's row of that token.

        c(t) = argmin_c || d(t) - sum_a c_a d(a) ||  with at most `terms` anchors a,   e(t) = sum_a c_a e(a)

    d are rows of `tensor`, the donor's embedding or head; anchors are tokens that donor and source share. The anchors
    are found one by one, each the one that agrees best with what is left, and all coefficients are fitted again after
    each (Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit", arXiv
    2506.06607). `usable` bool [source.size] tells which old rows may be anchors. A token that the donor lacks gets an
    empty row.
    """
    import numpy as np

    from llmforge.embedding.rows import Mixture
    from llmforge.weights.floats import to_float32

    old_text, new_text = source.token_bytes(), target.token_bytes()[source.size :]
    anchors = np.array([i for i, t in enumerate(old_text) if t and usable[i] and t in donor.ids], np.int64)
    known = [(i, donor.ids[text]) for i, text in enumerate(new_text) if text and text in donor.ids]
    if not len(anchors) or not known:
        raise UserError(
            f"--donor {donor.directory} shares {len(anchors):,} old and {len(known):,} new tokens with the target tokenizer; "
            "choose a model whose vocabulary has more of the new tokens."
        )
    stored = tensor.array()
    dictionary = to_float32(stored[[donor.ids[old_text[i]] for i in anchors]], tensor.dtype)
    norms = np.linalg.norm(dictionary, axis=1, keepdims=True)
    good = (norms[:, 0] > 0) & np.isfinite(norms[:, 0])
    anchors, dictionary = anchors[good], (dictionary[good] / norms[good])
    terms = min(terms, len(anchors), dictionary.shape[1])
    ids = np.zeros((len(new_text), terms), np.int32)
    weights = np.zeros((len(new_text), terms), np.float32)
    rows = np.array([row for row, _ in known])
    with progress("donor", len(known), "tokens") as advance:
        for start in range(0, len(known), BLOCK):
            block = known[start : start + BLOCK]
            wanted = to_float32(stored[[donor_id for _, donor_id in block]], tensor.dtype)
            chosen, coefficients = pursue(np.nan_to_num(wanted), dictionary, terms)
            here = rows[start : start + BLOCK]
            ids[here], weights[here] = anchors[chosen], coefficients / norms[good][chosen, 0]
            advance(len(block))
    found = np.zeros(len(new_text), np.bool_)
    found[rows] = True
    offsets = np.concatenate([[0], np.cumsum(found * terms)])
    return Mixture(offsets, ids[found].reshape(-1), weights[found].reshape(-1))


def pursue(wanted: "Float32", dictionary: "Float32", terms: int) -> "tuple[np.ndarray, Float32]":
    """Orthogonal matching pursuit of every row of `wanted` [n, d] in `dictionary` (unit rows) [m, d].

    Returns (atoms int64 [n, terms], coefficients float32 [n, terms]).
    """
    import numpy as np

    number = np.arange(len(wanted))
    chosen = np.empty((len(wanted), terms), np.int64)
    coefficients: npt.NDArray[Any] = np.empty((len(wanted), 0))
    residual = wanted
    for term in range(terms):
        agreement = np.abs(residual @ dictionary.T)
        np.put_along_axis(agreement, chosen[:, :term], -1, axis=1)
        chosen[number, term] = agreement.argmax(axis=1)
        atoms = dictionary[chosen[:, : term + 1]].astype(np.float64)
        gram = atoms @ atoms.transpose(0, 2, 1)
        # Two atoms that are all but equal would make the fit singular.
        gram += 1e-8 * np.eye(term + 1)
        coefficients = np.linalg.solve(gram, atoms @ wanted[:, :, None].astype(np.float64))[..., 0]
        residual = (wanted - np.einsum("nt,ntd->nd", coefficients, atoms)).astype(np.float32)
    return chosen, coefficients.astype(np.float32)


INITIALIZER = FromDonor()
