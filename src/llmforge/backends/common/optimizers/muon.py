"""Muon for the matrices inside the layers, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix orthogonal by five Newton-Schulz steps.
The update is scaled to the size of AdamW's, 0.2 x sqrt(larger dimension) (arXiv 2502.16982), so that both share one
learning rate and weight decay.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmforge.backends.common.optimizers import adamw
from llmforge.backends.common.optimizers.base import Optimizer
from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError

if TYPE_CHECKING:
    import torch

    from llmforge.backends.common.settings import Settings

PLUGINS = ("native", "ddp")
MOMENTUM = 0.95


class Muon(Optimizer):
    by_group = True

    def check(self, options: Any) -> None:
        from importlib.metadata import version

        if tuple(map(int, version("torch").split(".")[:2])) < (2, 9):
            raise UsageError(f"--optimizer muon needs torch 2.9 or newer; this is {version('torch')}.")
        if options.plugin != "auto":
            self.check_backend(options.plugin)
        if not parse(options.trainable).inside_layers:
            raise UsageError(
                f"--optimizer muon contradicts --trainable {options.trainable}: it is for the matrices of layers, of which "
                "none is trained; use --optimizer adamw."
            )

    def check_backend(self, plugin: str) -> None:
        if plugin not in PLUGINS:
            raise UsageError(
                f"--optimizer muon contradicts --plugin {plugin}: it needs whole matrices on every process; use "
                f"{' or '.join(PLUGINS)}, or --optimizer adamw."
            )

    def state_bytes(self, embeddings: int, layers: int) -> int:
        return 8 * embeddings + 4 * layers

    def make(
        self, causal: Any, parameters: "Mapping[str, torch.nn.Parameter]", settings: "Settings"
    ) -> "list[torch.optim.Optimizer]":
        import torch

        from llmforge.backends.common.step import optimizer_groups

        hidden = hidden_matrices(causal, parameters)
        others = {name: parameter for name, parameter in parameters.items() if name not in hidden}
        made = torch.optim.Muon(
            optimizer_groups(causal, hidden.values(), settings),
            lr=0.0,
            weight_decay=settings.weight_decay,
            momentum=MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
        for parameter in hidden.values():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [made, *(adamw.OPTIMIZER.make(causal, others, settings) if others else [])]


def hidden_matrices(
    causal: Any, parameters: "Mapping[str, torch.nn.Parameter]"
) -> "dict[str, torch.nn.Parameter]":
    """The matrices inside the decoder layers. Embeddings and heads are none, nor are norms and biases; experts that
    a layer keeps in one tensor of three dimensions are not matrices either.
    """
    import torch

    from llmforge.weights.modules import decoder_layers

    layers = decoder_layers(causal)
    tables = {
        id(module.weight)
        for layer in layers
        for module in layer.modules()
        if isinstance(module, torch.nn.Embedding)
    }
    inside = {id(p) for layer in layers for p in layer.parameters() if p.ndim == 2} - tables
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in inside}


OPTIMIZER = Muon()
