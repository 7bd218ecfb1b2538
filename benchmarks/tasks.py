"""Multiple choice beside lm-evaluation-harness: the same questions, prompts, model and CPU.

pip install 'llmforge[eval]'; OMP_NUM_THREADS=1 python benchmarks/tasks.py [--questions 281] [--shots 0] [--scoring letter] [--keep FILE]

Both run in turn, some subjects at a time. Questions are the 281 of `tools/real_inputs.py mmlu`, the model is SmolLM2-135M in float32. For each question both choose an option;
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
from dataclasses import replace
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
    parser.add_argument("--subjects", type=int, default=10, help="subjects of each pair of runs")
    parser.add_argument("--keep", type=Path, help="file of the pairs that are done; they are not done again")
    given = parser.parse_args()

    import torch
    import transformers
    from real_inputs import fetch

    from llmforge.evaluate.models import load_model
    from llmforge.evaluate.tasks.loading import load_tasks

    torch.set_num_threads(1)
    loaded = load_model(fetch("smollm2"))
    # A model of its own: llmforge's computes its products by oneDNN.
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        loaded.tokenizer.directory, dtype=torch.float32
    ).eval()
    (task,) = load_tasks([str(fetch("mmlu"))], given.shots, [given.scoring])
    left = given.questions
    for subject in task.subjects:
        subject.questions, left = subject.questions[: max(0, left)], left - len(subject.questions)
    subjects = [subject for subject in task.subjects if subject.questions]
    done = given.keep.read_text().splitlines() if given.keep and given.keep.exists() else []
    pairs = [json.loads(line) for line in done]
    for start in range(len(pairs) * given.subjects, len(subjects), given.subjects):
        some = replace(task, subjects=subjects[start : start + given.subjects])
        ours, seconds = own(loaded, some, given)
        theirs, harness_seconds = harness(loaded, peer, some, given)
        pairs.append({
            "seconds": [seconds, harness_seconds],
            "answers": [q.answer for subject in some.subjects for q in subject.questions],
            "ours": ours,
            "theirs": theirs,
        })  # fmt: skip
        if given.keep:
            with given.keep.open("a") as file:
                file.write(json.dumps(pairs[-1]) + "\n")
        print(
            f"{len(ours)} questions: llmforge {seconds:.1f} s of CPU, harness {harness_seconds:.1f}",
            flush=True,
        )
    report(pairs, f"{given.shots} shots, {given.scoring}")


def report(pairs: list[dict[str, Any]], what: str) -> None:
    """Agreement by question, accuracy of both with its standard error, and CPU seconds."""
    import numpy as np

    answers = [answer for pair in pairs for answer in pair["answers"]]
    scores = [[one for pair in pairs for one in pair[who]] for who in ("ours", "theirs")]
    chosen = [[int(np.argmax(one)) for one in of] for of in scores]
    agree = sum(a == b for a, b in zip(*chosen, strict=True))
    furthest = max(float(np.abs(np.array(a) - b).max()) for a, b in zip(*scores, strict=True))
    count, seconds = len(answers), [sum(pair["seconds"][i] for pair in pairs) for i in (0, 1)]
    for who, of, spent in zip(("llmforge", "lm-evaluation-harness"), chosen, seconds, strict=True):
        right = sum(a == b for a, b in zip(of, answers, strict=True)) / count
        error = (right * (1 - right) / (count - 1)) ** 0.5
        print(f"{who}: accuracy {right:.4f} ± {error:.4f}; {count / spent:.2f} questions per second of CPU")
    ratios = sorted(pair["seconds"][1] / pair["seconds"][0] for pair in pairs)
    print(
        f"{what}: {agree} of {count} choices agree, log-likelihoods to {furthest:.1e}; {seconds[1] / seconds[0]:.2f} x the "
        f"harness, pairs from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


def own(loaded: Any, task: Any, given: argparse.Namespace) -> tuple[list[list[float]], float]:
    """Log-likelihoods by question, and the CPU seconds from the texts of the prompts on."""
    from llmforge.evaluate.tasks.likelihood import Scorer
    from llmforge.evaluate.tasks.measure import to_questions

    began = time.process_time()
    groups = [
        to_questions(loaded, task.layout.style(subject), subject, listed=given.scoring == "letter")
        for subject in task.subjects
    ]
    scored = Scorer(loaded, 2048).judge(groups, lambda *_: None)
    seconds = time.process_time() - began
    return [scores[0].tolist() for of_subject in scored for scores in of_subject], seconds


def harness(loaded: Any, peer: Any, task: Any, given: argparse.Namespace) -> tuple[list[list[float]], float]:
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
    model = HFLM(pretrained=peer, tokenizer=tokenizer, batch_size=given.harness_batch)
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
