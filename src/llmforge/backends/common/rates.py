"""Learning rates by group: factors of the learning rate for embeddings, for the rows of new tokens, and by the depth of a
layer. Imports no torch at its top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rates:
    """Factors of the learning rate: `embeddings` of the rows of old tokens in embedding and head, `new_embeddings` of the
    rows from the first new token on; the layer with number i of n has `layer_decay` ** (n - 1 - i) (arXiv 1801.06146,
    2003.10555). All else has 1.
    """

    embeddings: float = 1.0
    new_embeddings: float = 1.0
    layer_decay: float = 1.0

    def of_layer(self, number: int, layers: int) -> float:
        return float(self.layer_decay ** (layers - 1 - number))

    def peaks(self, learning_rate: float, layers: int) -> dict[str, float]:
        """The peak of each group, for people; empty where all have one."""
        if self == Rates():
            return {}
        return {
            "embeddings": learning_rate * self.embeddings,
            "new embeddings": learning_rate * self.new_embeddings,
            "first layer": learning_rate * self.of_layer(0, layers),
            "last layer": learning_rate,
        }


def factors(causal: Any, rates: Rates, new_rows_only: bool) -> dict[int, float]:
    """The factor of each parameter of `causal` that has one, by its id. Of an embedding it is that of its old rows,
    which are not trained where `new_rows_only`.
    """
    if rates == Rates():
        return {}
    from llmforge.backends.common.trainable import embedding_parameters
    from llmforge.weights.modules import decoder_layers

    layers = decoder_layers(causal)
    found = {
        id(p): rates.of_layer(number, len(layers))
        for number, layer in enumerate(layers)
        for p in layer.parameters()
    }
    embeddings = rates.new_embeddings if new_rows_only else rates.embeddings
    return found | {id(p): embeddings for p in embedding_parameters(causal).values()}


class RowParts:
    """A parameter whose rows below and from `first_new` on an optimizer steps as two, with the learning rates of two
    groups: `views` are parameters that share its memory (of the rows of this rank), with the number of their first row
    here and their factor.

    The state of the parts lies in that of the whole, so checkpoints do not depend on the factors.
    """

    def __init__(self, whole: "torch.nn.Parameter", first_new: int, rates: Rates) -> None:
        import torch

        self.whole = whole
        rows, first = _local(whole.detach())
        edge = min(max(first_new - first, 0), len(rows))
        ranges = ((0, edge, rates.embeddings), (edge, len(rows), rates.new_embeddings))
        self.views = [
            (torch.nn.Parameter(rows[begin:end]), slice(begin, end), factor)
            for begin, end, factor in ranges
            if begin < end
        ]

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": [view], "weight_decay": weight_decay, "factor": factor}
            for view, _, factor in self.views
        ]

    def join(self, optimizer: "torch.optim.Optimizer") -> None:
        """Lets `optimizer`, which has `groups` and the state of the whole, step the parts by the gradient of the whole."""
        whole, state = self.whole, optimizer.state[self.whole]
        for view, rows, _ in self.views:
            optimizer.state[view] = {
                key: _local(tensor)[0][rows] if tensor.ndim else tensor.clone()
                for key, tensor in state.items()
            }

        def before(*_given: Any) -> None:
            for view, rows, _ in self.views if whole.grad is not None else ():
                view.grad = _local(whole.grad)[0][rows]
                optimizer.state[view]["step"].copy_(state["step"])

        def after(*_given: Any) -> None:
            if whole.grad is not None:
                state["step"] += 1
            for view, _, _ in self.views:
                view.grad = None

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def row_parts(
    causal: Any, parameters: "Mapping[str, torch.nn.Parameter]", settings: Any
) -> "dict[torch.nn.Parameter, RowParts]":
    """The embeddings among `parameters` whose old and new rows have different factors."""
    from llmforge.backends.common.trainable import embedding_parameters

    rates, embeddings = settings.rates, embedding_parameters(causal)
    if rates.embeddings == rates.new_embeddings or settings.trainable.new_rows_only:
        return {}
    wanted = {id(p) for p in embeddings.values()}
    return {p: RowParts(p, settings.old_rows, rates) for p in parameters.values() if id(p) in wanted}


def _local(tensor: Any) -> "tuple[torch.Tensor, int]":
    """The rows of a tensor that lie on this rank, and the number of the first."""
    if not hasattr(tensor, "to_local"):
        return tensor, 0
    from llmforge.backends.common.sharded_weights import first_row

    mesh = tensor.device_mesh
    return tensor.to_local(), first_row(tensor.shape[0], mesh.get_local_rank(), mesh.size())
