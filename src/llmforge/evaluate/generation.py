"""Continuing prompts: drawn tokens, stop strings, batches, streams."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from llmforge.errors import UserError
from llmforge.evaluate.models import Loaded
from llmforge.evaluate.options import SamplingOptions
from llmforge.weights.architecture import positions

Seeds = Sequence[int]
CONTEXT = 16  # ids before a text that its first character can depend on: a space, the bytes of a character


class _Draw(transformers.LogitsProcessor):  # type: ignore[misc]
    """Makes the highest score a draw from the distribution: Gumbel noise is added to every score of a row.

    Each row has a generator of its own, so that what it draws does not depend on the rows beside it.
    """

    def __init__(self, seeds: Seeds) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack(
            [torch.rand(scores.shape[1], generator=one, dtype=torch.float64) for one in self.generators]
        )
        gumbel = -(-noise.clamp_(min=1e-300).log_()).log_()
        return scores.double() + gumbel.to(scores.device)


class _Stop(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends a row once its new text holds one of the stop strings."""

    def __init__(
        self, loaded: Loaded, prompts: Sequence[Sequence[int]], width: int, stop: Sequence[str]
    ) -> None:
        self.loaded, self.prompts, self.width, self.stop = loaded, prompts, width, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        new = input_ids[:, self.width :].tolist()
        texts = [text_after(self.loaded, *pair) for pair in zip(self.prompts, new, strict=True)]
        done = [any(word in text for word in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class _Follow(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """Calls `follow` with every new id of the only row."""

    def __init__(self, follow: Callable[[int], None]) -> None:
        self.follow, self.begun = follow, False

    def put(self, value: torch.Tensor) -> None:
        if self.begun:
            self.follow(int(value.reshape(-1)[0]))
        self.begun = True  # the first call has the prompt

    def end(self) -> None:
        pass


def text_after(loaded: Loaded, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the ids `new` behind `prompt`: with its space in front, which no tokenizer decodes at the beginning."""
    before = list(prompt[-CONTEXT:])
    return loaded.tokenizer.decode([*before, *new])[len(loaded.tokenizer.decode(before)) :]


def end_ids(loaded: Loaded) -> list[int]:
    """The ids that end a text: the tokenizer's eos, and what the model's generation config names besides."""
    named = loaded.model.generation_config.eos_token_id
    ids = [loaded.tokenizer.eos_id, *(named if isinstance(named, list) else [named])]
    return sorted({one for one in ids if isinstance(one, int) and 0 <= one < loaded.tokenizer.size})


def check_positions(loaded: Loaded, length: int, new: int, what: str = "the prompt") -> None:
    """Raises `UserError` where `length` tokens and `new` ones are more than the model has positions."""
    limit = positions(loaded.model.config)
    if limit and length + new > limit:
        remedy = f"give at most --max-new-tokens {limit - length}" if length < limit else "shorten it"
        raise UserError(
            f"{what} has {length:,} tokens, and with {new:,} new ones more than the {limit:,} positions of "
            f"{loaded.tokenizer.directory.name}; {remedy}."
        )


def continue_ids(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingOptions,
    seeds: Seeds | None = None,
    follow: Callable[[int], None] | None = None,
    ends: Sequence[int] | None = None,
) -> list[list[int]]:
    """The new ids behind each prompt (lists of ids, none of them empty), in one batch, without the id that ended them.

    Ids of padding rows are never drawn. `seeds`: one for each prompt (default: `sampling.seed` and those after it).
    `follow` is called with each new id of a single prompt. `ends`: the ids that end a text (default: `end_ids`).
    """
    width = max(map(len, prompts))
    ends = list(end_ids(loaded) if ends is None else ends)
    # Padding is not attended to, but a penalty on repetition would see it: it repeats an id of the prompt.
    ids = torch.tensor([[one[0]] * (width - len(one)) + list(one) for one in prompts], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=loaded.device)
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    # The model's own generation config may ask for sampling; only what the user asked for counts here.
    config = transformers.GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        suppress_tokens=list(range(loaded.tokenizer.size, rows)) or None,
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
    )
    loaded.model.generation_config, own = config, loaded.model.generation_config
    try:
        with torch.inference_mode():
            made = loaded.model.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_processors(
                    sampling, seeds or range(sampling.seed, sampling.seed + len(prompts))
                ),
                stopping_criteria=transformers.StoppingCriteriaList(
                    [_Stop(loaded, prompts, width, sampling.stop)] if sampling.stop else []
                ),
                streamer=_Follow(follow) if follow else None,
            )
    finally:
        loaded.model.generation_config = own
    return [_until_end(row, ends) for row in made[:, width:].tolist()]


def _processors(sampling: SamplingOptions, seeds: Seeds) -> Any:
    """The filters in the order of transformers' own sampling, and the draw behind them."""
    found: list[Any] = []
    if sampling.temperature > 0:
        found.append(transformers.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            found.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(transformers.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            found.append(transformers.MinPLogitsWarper(sampling.min_p))
        found.append(_Draw(list(seeds)))
    return transformers.LogitsProcessorList(found)


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    end = next((i for i, one in enumerate(ids) if one in ends), len(ids))
    return ids[:end]
