"""Multiple choice beside lm-evaluation-harness: the same questions, prompts, model and CPU.

pip install 'llmforge[eval]'; OMP_NUM_THREADS=1 python benchmarks/tasks.py [--questions 281] [--shots 0] [--scoring letter]

Questions are the 281 of `tools/real_inputs.py mmlu`, the model is SmolLM2-135M in float32. For each question both choose an option;
the log-likelihoods of the options are compared, too. Seconds are those of CPU: of llmforge everything from the text of the
prompts on, of the harness its scoring alone (`loglikelihood`), without the building of its requests.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=281)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--scoring", choices=("letter", "answer"), default="letter")
    parser.add_argument("--harness-batch", type=int, default=8)
    given = parser.parse_args()

    import numpy as np
    import torch
    from real_inputs import fetch

    from llmforge.evaluate.models import load_model
    from llmforge.evaluate.tasks.likelihood import Scorer
    from llmforge.evaluate.tasks.loading import load_tasks
    from llmforge.evaluate.tasks.measure import _rows

    torch.set_num_threads(1)
    loaded = load_model(fetch("smollm2"))
    (task,) = load_tasks([str(fetch("mmlu"))], given.shots, [given.scoring])
    left = given.questions
    for subject in task.subjects:
        subject.questions, left = subject.questions[: max(0, left)], left - len(subject.questions)
    task.subjects[:] = [subject for subject in task.subjects if subject.questions]

    began = time.process_time()
    scorer, ours = Scorer(loaded, 2048), []
    for subject in task.subjects:
        rows = _rows(loaded, task.layout.style(subject), subject, listed=given.scoring == "letter")
        ours += scorer.score(rows, lambda *_: None)
    seconds = time.process_time() - began
    say("llmforge", seconds, len(ours))

    theirs, harness_seconds = harness(loaded, task, given)
    say("lm-evaluation-harness", harness_seconds, len(theirs))

    questions = [question for subject in task.subjects for question in subject.questions]
    chosen = [int(scores.argmax()) for scores in ours]
    agree = sum(a == int(np.argmax(b)) for a, b in zip(chosen, theirs, strict=True))
    furthest = max(float(np.abs(a - np.array(b)).max()) for a, b in zip(ours, theirs, strict=True))
    right = sum(a == question.answer for a, question in zip(chosen, questions, strict=True))
    print(
        f"{given.shots} shots, {given.scoring}: {agree} of {len(ours)} choices agree, log-likelihoods to {furthest:.1e}"
    )
    print(
        f"accuracy {right / len(ours):.4f}; items per second of CPU: {harness_seconds / seconds:.2f} x the harness"
    )


def say(who: str, seconds: float, count: int) -> None:
    print(f"{who}: {count} questions in {seconds:.1f} s of CPU, {count / seconds:.2f} a second", flush=True)


def harness(loaded: Any, task: Any, given: argparse.Namespace) -> tuple[list[list[float]], float]:
    """Log-likelihoods by question, and the CPU seconds of the harness's own scoring."""
    import lm_eval
    import transformers
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu"
    kind = (
        "default/_default_template_yaml"
        if given.scoring == "letter"
        else "continuation/_continuation_template_yaml"
    )
    template = yaml.safe_load((folder / kind).read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(loaded.tokenizer.directory)
    model = HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=given.harness_batch)
    spent = 0.0
    scoring = model.loglikelihood

    def timed(*words: Any, **named: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        found = scoring(*words, **named)
        spent += time.process_time() - began
        return found

    model.loglikelihood = timed
    # Without shots one task has all subjects; with shots each subject is a task with a dev split of its own.
    groups = [[subject] for subject in task.subjects] if given.shots else [task.subjects]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, group in enumerate(groups):
            files = {}
            for split in ("dev", "test"):
                files[split] = str(Path(scratch, f"{number}-{split}.json"))
                records = [
                    {
                        "question": question.stem,
                        "choices": list(question.options),
                        "answer": question.answer,
                        "subject": subject.name.replace("_", " "),
                    }
                    for subject in group
                    for question in (subject.shots if split == "dev" and given.shots else subject.questions)
                ]
                Path(files[split]).write_text("".join(json.dumps(record) + "\n" for record in records))
            config = {
                **template,
                "task": f"mmlu_{number}",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": files},
                "description": "The following are multiple choice questions (with answers) about {{subject}}.\n\n",
            }
            config.pop("dataset_name", None)
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=[config],
                num_fewshot=given.shots,
                task_manager=TaskManager(),
                bootstrap_iters=0,
                log_samples=True,
            )
            samples = sorted(results["samples"][f"mmlu_{number}"], key=lambda sample: sample["doc_id"])
            found += [[float(score) for score, _ in sample["filtered_resps"]] for sample in samples]
    return list(itertools.chain(found)), spent


if __name__ == "__main__":
    main()
