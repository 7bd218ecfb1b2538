"""Continuing a prompt."""

from pathlib import Path

from llmforge.evaluate.options import SamplingOptions
from llmforge.steps import Finished, Outcome, Step, run_step


def generate_text(
    directory: Path, prompt: str, sampling: SamplingOptions, trust_remote_code: bool = False
) -> str:
    """`prompt` and what the model in `directory` says after it.

    Special tokens that the prompt spells are text, as everywhere; ids of padding rows are never drawn.
    """
    from llmforge.evaluate.models import load_model

    loaded = load_model(directory, sampling.dtype, trust_remote_code)
    import torch

    torch.manual_seed(sampling.seed)
    flat, _ = loaded.tokenizer.encode([prompt])
    ids = torch.tensor([[*loaded.start_ids, *flat.tolist()]], device=loaded.device)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    # The model's own generation config may ask for sampling; only what the user asked for counts here.
    for name in ("temperature", "top_p", "top_k"):
        setattr(loaded.model.generation_config, name, None)
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {}
    with torch.inference_mode():
        made = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            eos_token_id=loaded.tokenizer.eos_id,
            pad_token_id=loaded.tokenizer.eos_id,
            suppress_tokens=list(range(loaded.tokenizer.size, rows)) or None,
            **drawn,
        )
    new = [token for token in made[0, ids.shape[1] :].tolist() if token != loaded.tokenizer.eos_id]
    return loaded.tokenizer.decode([*flat.tolist(), *new])


def generate_to_file(
    directory: Path,
    prompt: str,
    sampling: SamplingOptions,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
) -> Finished:
    """`generate_text` as a step that writes to `output`; the text is its metric."""

    def build(path: Path) -> Outcome:
        text = generate_text(directory, prompt, sampling, trust_remote_code)
        path.write_text(text + "\n", encoding="utf-8")
        return Outcome(metrics={"text": text})

    arguments = {**sampling.arguments(), "prompt": prompt}
    return run_step(
        Step("generate", output, arguments, [directory], overwrite=overwrite, single_file=True), build
    )
