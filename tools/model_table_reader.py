"""Run by an interpreter with another transformers: whether exports have the logits that they should.

python model_table_reader.py < {"name": [directory, logits], ...}     prints "yes" or what is wrong by name
"""

import json
import logging
import sys

import torch
import transformers

LENGTH, ROWS, TOLERANCE = 21, 330, 1e-4


def look_at(directory: str, logits: list) -> str:
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
    except ValueError as error:
        if "does not recognize this architecture" in str(error):
            return f"transformers {transformers.__version__} does not have this architecture"
        raise
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        directory, config=config, attn_implementation="eager", output_loading_info=True
    )
    if wrong := {kind: sorted(names)[:2] for kind, names in found.items() if names}:
        return f"transformers {transformers.__version__} finds {wrong}"
    ids = torch.randint(1, ROWS, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = model.eval()(ids).logits
    difference = float(((mine - torch.tensor(logits)).abs() / torch.tensor(logits).abs().clamp(min=1)).max())
    return "yes" if difference <= TOLERANCE else f"differs: logits by {difference:.1g}"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    said = {}
    for name, arguments in json.load(sys.stdin).items():
        try:
            said[name] = look_at(*arguments)
        except Exception as error:
            said[name] = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    print(json.dumps(said))
