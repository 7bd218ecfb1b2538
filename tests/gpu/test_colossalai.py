"""ColossalAI's plugins that run on one GPU against float32 on the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gpu.conftest import REHEARSED, train
from llmforge.backends.base import World
from llmforge.backends.common.settings import Settings
from llmforge.errors import UsageError
from llmforge.train.options import TrainOptions

pytest.importorskip("colossalai", exc_type=ImportError)

PLUGINS = ("torch_ddp", "zero1", "zero2", "zero2_cpu", "gemini", "gemini_auto", "3d")
CLOSE = {"fp32": (1e-4, 1e-3), "bf16": (1e-2, 5e-2), "fp16": (1e-2, 5e-2)}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """The group that the first engine makes ends with this file."""
    yield
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def make(plugin: str, settings: Settings) -> Any:
    from llmforge.backends.colossalai.build import build

    path = settings.model.path
    config = TrainOptions(model=path, data=[path], output=path / "run", plugin=plugin, rehearse=REHEARSED)
    return build(config, settings, World())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_follow_the_cpu(
    plugin: str,
    precision: str,
    settings: Callable[..., Settings],
    expected: list[tuple[float, float]],
    device: torch.device,
) -> None:
    loss, norm = CLOSE[precision]
    try:
        engine = make(plugin, settings(device=str(device), precision=precision))
    except UsageError as error:
        pytest.skip(str(error))
    steps = train(engine, 0, len(expected))
    assert [step.loss for step in steps] == pytest.approx([one[0] for one in expected], rel=loss)
    assert [step.gradient_norm for step in steps] == pytest.approx([one[1] for one in expected], rel=norm)
