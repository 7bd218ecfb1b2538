"""Tries llmforge on every causal language model that the installed transformers has, and counts what becomes of them.

python tools/sweep.py                   prints what became of each class, and the counts; exit status 1 if any is wrong
python tools/sweep.py --only mamba,glm  of some model types
python tools/sweep.py --write           puts the counts into docs/models.md, below the table of model_table.py

LLMFORGE_PYTHON_TRANSFORMERS4 names an interpreter with transformers 4.51.3, which then tries its classes too.

The configuration is the one that transformers has for the type, made small (`reduce` of attention_check). Whatever is not
refused must grow, give every token of packed documents the loss that transformers' own model gives it in its document
alone, train a step with transformers' loss and gradient norm, and be exported to a model with
equal logits.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from trial import NEW, OLD, SPECIAL_IDS, SWEEP, TABLE, Trial, make_tokenizer, quiet

BATCH, SECONDS = 24, 60  # classes of a process, and the time of the CPU that one may take
MARK = "found: "
LAYERS = 4  # one of each kind, as no class has more kinds in one model
PACKED, ALONE, ROWS = "documents packed", "one document at a time", "one document per row"
REFUSED, WRONG = "refused", "wrong"
# What transformers' own configurations leave out, without which it makes no model of them either.
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}, "ffn_config": {"moe_num_experts": 4}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 8},
}
Found = dict[str, tuple[str, str]]  # by model type: what became of it, and what was said


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries every causal language model of transformers.")
    parser.add_argument("--only", help="model types, with commas between")
    parser.add_argument("--write", action="store_true", help="put the counts into docs/models.md")
    parser.add_argument("--batch", help=argparse.SUPPRESS)  # a process of this script that tries these
    options = parser.parse_args()
    if options.batch:
        try_all(options.batch.split(","))
        return 0
    found = {}
    for python in filter(None, (sys.executable, os.environ.get("LLMFORGE_PYTHON_TRANSFORMERS4"))):
        version, kinds = classes(python)
        chosen = [kind for kind in kinds if not options.only or kind in options.only.split(",")]
        found[version] = in_batches(python, chosen)
    text = "\n".join(render(version, results) for version, results in found.items())
    print(text)
    if options.write:
        page = TABLE.read_text(encoding="utf-8").partition(f"\n{SWEEP}\n")[0]
        TABLE.write_text(f"{page}\n{SWEEP}\n\n{INTRODUCTION}\n{text}", encoding="utf-8")
    return any(state == WRONG for results in found.values() for state, _ in results.values())


def classes(python: str) -> tuple[str, list[str]]:
    """The version of transformers that `python` has, and the model types of its causal language models."""
    code = (
        "import json, transformers; from transformers.models.auto.modeling_auto import "
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names; print(json.dumps([transformers.__version__, list(names)]))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version, kinds = json.loads(done.stdout.strip().splitlines()[-1])
    return version, kinds


def in_batches(python: str, kinds: list[str]) -> Found:
    """A process tries `BATCH` classes, as starting one takes longer than a class."""
    found: Found = {}
    for start in range(0, len(kinds), BATCH):
        batch = kinds[start : start + BATCH]
        command = [python, __file__, "--batch", ",".join(batch)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    kind, state, said = json.loads(line.removeprefix(MARK))
                    print(f"{kind}: {state}{f' ({said})' if said else ''}", file=sys.stderr, flush=True)
                    found[kind] = (state, said)
        for kind in batch:
            found.setdefault(kind, (WRONG, f"its process ended with {process.returncode}"))
    return found


def try_all(kinds: list[str]) -> None:
    quiet()
    signal.signal(signal.SIGPROF, too_long)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_tokenizer(work / "old", OLD)
        make_tokenizer(work / "new", NEW)
        for kind in kinds:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                state, said = try_one(kind, work)
            except (Exception, TimeoutError) as error:
                state, said = WRONG, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            said = re.sub(re.escape(str(work)) + r"[\w/.-]*", "MODEL", said)
            print(MARK + json.dumps([kind, state, said]), flush=True)


def too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds of CPU")


def try_one(kind: str, work: Path) -> tuple[str, str]:
    from llmforge.backends.common.packing import way_of

    config = configuration(kind)
    if said := refusal(kind, config, work):
        return REFUSED, said
    trial = Trial(small(config), work, work / kind)
    if trial.refusal:
        return REFUSED, trial.refusal
    said = trial.cell(trial.pack)
    trial.one_a_row = said.endswith("--documents-per-row 1.")
    for column in (trial.plan, trial.pack, trial.train, trial.save, trial.export):
        if (said := trial.cell(column)) != "yes":
            return WRONG, f"{column.__name__}: {said}"
    if trial.one_a_row:
        return ROWS, ""
    return (PACKED if way_of(trial.engine.causal).packed else ALONE), ""


def configuration(kind: str) -> Any:
    """transformers' own configuration of a model type; None where it cannot be made of nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[kind](**SETTINGS.get(kind, {}))
    except Exception:  # of a class with an encoder and a decoder, which wants both
        return None


def refusal(kind: str, config: Any, work: Path) -> str:
    """What plan and init-model say of the configuration alone, if they refuse it; they must say the same."""
    from llmforge.embedding.options import ResizeOptions
    from llmforge.embedding.resize import resize
    from llmforge.errors import UserError
    from llmforge.train.shape import read_shape
    from llmforge.weights.directory import ModelDirectory

    directory = work / f"{kind}-configuration"
    directory.mkdir()
    fields = config.to_dict() if config else {}
    (directory / "config.json").write_text(json.dumps({**fields, "model_type": kind}, default=str))
    for file in (work / "old").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    said = []
    for ask in (
        lambda: read_shape(ModelDirectory(directory)),
        lambda: resize(directory, work / "new", work / f"{kind}-grown", ResizeOptions()),
    ):
        try:
            ask()
        except UserError as error:
            said.append(str(error))
    if said and "supported are" in said[0]:
        assert said == said[:1] * 2, f"plan and init-model differ: {said}"
        return said[0]
    return ""


def small(config: Any) -> Any:
    from llmforge.backends.common.reduced import reduce
    from llmforge.weights.architecture import with_vocabulary_size

    fields = with_vocabulary_size(reduce(config, LAYERS).to_dict(), OLD)
    still = {
        name: 0.0 for name in fields if re.search("drop|jitter", name) and isinstance(fields[name], float)
    }
    return type(config).from_dict({**fields, **SPECIAL_IDS, **still})


INTRODUCTION = """`python tools/sweep.py --write` tries every model type for which transformers has a causal language model, with its own
configuration made small, in float32 on a CPU. Each that is not refused is resized, gives every token the loss that transformers' own
model gives it in its document alone (to 0.0001), trains a step with transformers' loss and gradient norm, and is exported to a
model with the same logits. `plan` and `init-model` refuse the same models.
"""


def render(version: str, results: Found) -> str:
    counts = Counter(state for state, _ in results.values())
    lines = [
        f"transformers {version} has {len(results)}:",
        "",
        "| result | model types | which |",
        "| --- | ---: | --- |",
    ]
    for state in (PACKED, ALONE, ROWS):
        names = ", ".join(kind for kind, (found, _) in results.items() if found == state)
        lines.append(f"| {state} | {counts[state]} | {names} |")
    sentences: dict[str, list[str]] = {}
    for kind, (state, said) in results.items():
        if state in (REFUSED, WRONG):
            said = re.sub(rf"\b{re.escape(kind)}\b", "*type*", said.partition("; supported are")[0])
            sentences.setdefault(f"{state}: {said.removeprefix('MODEL: ')}", []).append(kind)
    for said, kinds in sorted(sentences.items(), key=lambda one: -len(one[1])):
        lines.append(f"| {said} | {len(kinds)} | {', '.join(kinds)} |")
    right = counts[PACKED] + counts[ALONE] + counts[ROWS]
    lines += ["", f"{right} correct, {counts[REFUSED]} refused, {counts[WRONG]} wrong.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
