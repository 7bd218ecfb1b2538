"""Continuing a prompt."""

import torch

from llmforge.evaluate.models import Loaded


@torch.inference_mode()
def generate(
    loaded: Loaded, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> str:
    """The text that follows `prompt`: greedy at temperature 0, else sampled from the nucleus of mass `top_p`.

    Special tokens that the prompt spells are text, as everywhere; ids of the padding rows cannot be drawn.
    """
    torch.manual_seed(seed)
    flat, _ = loaded.tokenizer.encode([prompt])
    ids = torch.tensor([[loaded.start_id, *flat.tolist()]], device=loaded.device)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    if temperature == 0:  # what the model's own generation config asks for is for sampling alone
        for name in ("temperature", "top_p", "top_k"):
            setattr(loaded.model.generation_config, name, None)
    made = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        eos_token_id=loaded.tokenizer.eos_id,
        pad_token_id=loaded.tokenizer.eos_id,
        suppress_tokens=list(range(loaded.tokenizer.size, rows)) or None,
        **sampling,
    )
    continuation = [i for i in made[0, ids.shape[1] :].tolist() if i != loaded.tokenizer.eos_id]
    return loaded.tokenizer.decode([*flat.tolist(), *continuation])
