"""Run by another interpreter, whose transformers has another version: makes tiny models, or compares them.

python other_transformers.py make      < {"name": [architecture, settings, directory], ...}
python other_transformers.py compare   < {"name": [source directory, grown directory, old size], ...}

`compare` prints what is wrong with each, as an object of lists by name.
"""

import json
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def make(architecture: str, settings: dict, directory: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)


def compare(source: str, grown: str, old_size: int) -> list[str]:
    before = AutoModelForCausalLM.from_pretrained(source)
    after, report = AutoModelForCausalLM.from_pretrained(grown, output_loading_info=True)
    wrong = [f"{kind}: {names}" for kind, names in report.items() if names]
    ids = torch.randint(0, old_size, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        old, new = before(ids).logits[..., :old_size], after(ids).logits
    if new.shape[-1] != after.config.vocab_size:
        wrong.append(f"{new.shape[-1]} logits for a vocabulary of {after.config.vocab_size}")
    if not torch.equal(old.softmax(-1), new[..., :old_size].softmax(-1)):
        wrong.append(f"logits of old tokens differ by {(old - new[..., :old_size]).abs().max()}")
    return wrong


if __name__ == "__main__":
    function = {"make": make, "compare": compare}[sys.argv[1]]
    print(json.dumps({name: function(*arguments) for name, arguments in json.load(sys.stdin).items()}))
