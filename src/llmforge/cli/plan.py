"""`llmforge plan`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import AsJson, Debug, example, paths
from llmforge.console import show, show_json

Precision = Literal["auto", "bf16", "fp16", "fp32"]


@example("llmforge plan --pretrained grown --dataset data --device h100 --processes 8 --plugin fsdp")
def plan(
    pretrained: Annotated[Path, typer.Option(help="Model directory.")],
    dataset: Annotated[list[str], typer.Option(help="Prepared datasets.")],
    device: Annotated[str, typer.Option(help="this, or a name such as h100 or a100-80gb.")] = "this",
    processes: Annotated[int, typer.Option(help="Number of devices.", min=1)] = 1,
    plugin: Annotated[str, typer.Option(help="auto, native, ddp or fsdp.")] = "auto",
    trainable: Annotated[str, typer.Option(help="As for train.")] = "all",
    mixed_precision: Annotated[Precision, typer.Option(help="As for train.")] = "auto",
    micro_batch_size: Annotated[
        int, typer.Option("--micro-batch-size", "--batch-size", help="As for train.")
    ] = 2,
    accumulation_steps: Annotated[int, typer.Option(help="As for train.")] = 1,
    num_epochs: Annotated[int, typer.Option(help="As for train.")] = 1,
    max_steps: Annotated[int | None, typer.Option(help="As for train.")] = None,
    head_chunk: Annotated[int, typer.Option(help="As for train.")] = 512,
    tp: Annotated[int, typer.Option(help="As for train.")] = 1,
    pp: Annotated[int, typer.Option(help="As for train.")] = 1,
    sp: Annotated[int, typer.Option(help="As for train.")] = 1,
    zero: Annotated[int | None, typer.Option(help="As for train.")] = None,
    use_grad_checkpoint: Annotated[bool, typer.Option("--use-grad-checkpoint", help="As for train.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Estimate parameters, memory, steps and hours of a training, before anything is loaded."""
    from llmforge import hub
    from llmforge.backends.common.devices import by_name
    from llmforge.train.options import TrainConfig
    from llmforge.train.plan import make_plan

    config = TrainConfig(
        pretrained=pretrained,
        dataset=paths(dataset),
        save_dir=Path("unused"),
        plugin=plugin,
        trainable=trainable,
        mixed_precision=mixed_precision,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        num_epochs=num_epochs,
        max_steps=max_steps,
        head_chunk=head_chunk,
        tp=tp,
        pp=pp,
        sp=sp,
        zero=zero,
        use_grad_checkpoint=use_grad_checkpoint,
    )
    made = make_plan(config, hub.local(pretrained), by_name(device), processes)
    if as_json:
        show_json(made.to_json())
    else:
        show(made.render())
