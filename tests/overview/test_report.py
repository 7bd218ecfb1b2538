"""`llmforge report`: what is whole is shown, hostile text is shown as text, and nothing of others is overwritten."""

import html.parser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.cli.compat import SPELLINGS
from llmforge.errors import UsageError, UserError
from llmforge.overview.options import ReportOptions
from llmforge.overview.page import report
from llmforge.recipes.recipe import read_recipe
from llmforge.steps import Input, Manifest, manifest_path, write_manifest

HOSTILE = "</title><script>alert(1)</script>|`\x1b[31m<img src=x onerror=y>&lt;\u202e"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td"),
    *("small", "pre", "s", "svg", "g", "text", "rect", "line", "polyline", "circle"),
}  # fmt: skip


class Tags(html.parser.HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def make_training(path: Path, steps: int = 30, label: str = "zh", finished: bool = False) -> Path:
    """A training as `train` leaves it, with figures of `steps` steps."""
    path.mkdir(parents=True)
    arguments = {"learning_rate": 1e-3, "max_steps": 40, "trainable": label}
    (path / "run.json").write_text(json.dumps({"step": "train", "arguments": arguments}))
    (path / "config.yaml").write_text(json.dumps({**arguments, "model": label, "data": [label]}))
    lines: list[dict[str, Any]] = [{"step": 0, "holdout_bits_per_byte": {label: 3.0, "all": 3.0}}]
    for n in range(1, steps + 1):
        line = {
            "step": n,
            "epoch": 0,
            "sample": n,
            "loss": 3 - n / 50,
            "loss_by_category": {label: 2.0, "en": 1.0},
        }
        line |= {
            "learning_rate": 1e-3,
            "gradient_norm": 10.0 ** (n % 6),
            "applied": n != 7,
            "tokens": 64,
            "seconds": 2.0,
        }
        line |= {
            "bytes": 200,
            "tokens_per_second": 32.0,
            "model_flops_per_second": 1e9,
            "model_flops_utilization": 0.4,
        }
        if n % 10 == 0:
            line |= {
                f"{p}holdout_bits_per_byte": {label: 3 - n / 40, "all": 3 - n / 30} for p in ("", "ema_")
            }
            line["task_accuracy"] = {label: n / 100}
        lines.append(line)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    if finished:
        metrics = {
            "steps": steps,
            "tokens": 64 * steps,
            "skipped_steps": 1,
            "spikes": 2,
            "rollbacks": 0,
            "processes": 2,
        }
        write_manifest(manifest_path(path), Manifest("train", arguments, metrics=metrics))
    return path


def make_file(path: Path, step: str, metrics: dict[str, Any], model: str = "m", **arguments: Any) -> Path:
    path.write_text("{}")
    write_manifest(manifest_path(path), Manifest(step, arguments, [Input(model, "f")], metrics=metrics))
    return path


def write(paths: list[Path], output: Path) -> str:
    report(ReportOptions(paths=paths, output=output))
    return output.read_text(encoding="utf-8")


def test_an_unfinished_training_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    text = write([make_training(tmp_path / "stage")], tmp_path / "r.md")
    assert "| state | not finished: step 30 of 40 |" in text
    assert "| steps | 30 |" in text
    assert "| tokens trained on | 1,920 |" in text
    assert "| held-out bits per byte, first | 3.0000 |" in text
    assert "| held-out bits per byte, last | 2.0000 |" in text
    assert "| held-out bits per byte, last, moving average | 2.0000 |" in text
    assert "| time in steps | 60 s |" in text
    assert "| MFU, mean, % | 40.0 |" in text
    assert "| stage | skipped steps | 1: 7 |" in text
    assert "| zh, last, % | 30.0 |" in text


def test_trainings_on_preferences_are_finished_and_have_their_own_figures(tmp_path: Path) -> None:
    path = tmp_path / "out" / "preferred"
    path.mkdir(parents=True)
    lines = [{"step": n, "epoch": n / 4, "loss": 1 / n, "rewards/margins": n / 2, "kl": 0.1} for n in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"steps": 2, "data": {"read": 9, "used": 8}, "heldout": {"accuracy": 0.75}, "largest_kl": 0.1}
    made = Manifest("train-preferences", {"method": "dpo"}, [Input("tuned", "f")], metrics=metrics)
    write_manifest(manifest_path(path), made)
    text = write([tmp_path / "out"], tmp_path / "r.md")
    assert "| started from | tuned |" in text
    assert "| records used | 8 of 9 |" in text
    assert "| held-out pairs in which the chosen answer wins | 0.7500 |" in text
    assert "| --method | dpo |" in text
    assert "| preferred | 0.5 at 1 | 0.5 at 1 | 1 at 2 | 1 at 2 |" in text
    assert not [word for word in ("not finished", "could not be read", "## Cost") if word in text]
    make_training(tmp_path / "out" / "stage")
    text = write([tmp_path / "out"], tmp_path / "r.md")
    assert "|  | stage |" in text
    assert "|  | preferred |" in text
    assert "by tokens" not in text


def test_several_are_shown_side_by_side_by_the_tokens_they_read(tmp_path: Path) -> None:
    make_training(tmp_path / "out" / "a", finished=True)
    make_training(tmp_path / "out" / "deeper" / "b", steps=10)
    text = write([tmp_path / "out"], tmp_path / "r.md")
    assert "|  | a | b |" in text
    assert "| state | finished | not finished: step 10 of 40 |" in text
    assert "| process hours in steps | 0.03333 |  |" in text
    assert "| bits per byte by tokens trained on | first |" in text
    assert "| b, moving average | 2.667 at 640 |" in text
    page = Tags(write([tmp_path / "out"], tmp_path / "r.html"))
    assert {"svg", "polyline"} <= page.tags


def test_texts_of_others_are_shown_and_never_markup(tmp_path: Path) -> None:
    make_training(tmp_path / "out" / "a", label=HOSTILE)
    bits = {"bits_per_byte": 1.0, "tokens_per_character": 0.5}
    make_file(tmp_path / "out" / "t.md", "evaluate", {HOSTILE: {HOSTILE: bits}})
    make_file(
        tmp_path / "out" / "x.txt", "generate", {"text": f"```\n{HOSTILE}\n````"}, HOSTILE, prompt=HOSTILE
    )
    page = Tags(write([tmp_path / "out"], tmp_path / "r.html"))
    assert page.tags <= TAGS
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "href")}
    assert sum("<script>alert(1)</script>" in text for text in page.texts) > 5
    assert "\x1b" not in "".join(page.texts)
    text = write([tmp_path / "out"], tmp_path / "r.md")
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.M | re.S)
    assert outside.count("&lt;script&gt;") > 5
    assert "<script" not in outside
    assert "\x1b" not in text


def test_comparisons_and_samples_stand_beside_trainings(tmp_path: Path) -> None:
    bits = {"bits_per_byte": 1.25, "tokens_per_character": 0.5}
    table = make_file(tmp_path / "t.html", "evaluate", {"base": {"zh": bits}, "new": {"zh": bits}})
    before = make_file(tmp_path / "b.txt", "generate", {"text": "old text"}, "base", prompt="once")
    after = make_file(tmp_path / "p.jsonl", "generate", {"prompts": 1}, "new")
    after.write_text(json.dumps({"prompt": "once", "completion": "new text"}) + "\n")
    text = write([table, before, after], tmp_path / "r.md")
    assert "| base | 1.2500 | 0.500 |" in text
    assert text.index("once") < text.index("old text") < text.index("new text")
    assert "base (greedy)" in text


def test_models_that_cannot_be_compared_are_not_a_fault(tmp_path: Path) -> None:
    bits = {"bits_per_byte": 1.25, "tokens_per_character": 0.5}
    table = make_file(tmp_path / "t.json", "evaluate", {"base": {"zh": bits}, "new": {"en": bits}})
    assert "cannot be shown" in write([table], tmp_path / "r.md")


def test_damaged_records_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = make_training(tmp_path / "stage", finished=True)
    (path / "llmforge.json").write_text("{")
    (path / "run.json").write_bytes(b"\xff")
    (path / "config.yaml").write_text("a: [")
    (path / "abandoned-1").mkdir()
    (path / "abandoned-1" / "abandoned.json").write_text('{"resumed": 3, "at": []}')
    (path / "tensorboard").mkdir()
    for name in ("events.out.tfevents.1700000000.host.1.0", "events.out.tfevents.99999999999999999.h"):
        (path / "tensorboard" / name).touch()
    text = write([path], tmp_path / "r.md")
    assert text.count("could not be read") == 3
    assert "| stage | started | 2023-11-14 22:13:20 UTC |" in text
    assert "| steps | 30 |" in text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nothing", None, "does not exist; check the path"),
        ("empty", {}, "holds no training, no table of evaluate and no text of generate"),
        ("mine.md", "text", "is not an output of a finished llmforge step"),
    ],
)
def test_what_cannot_be_reported_is_refused(tmp_path: Path, name: str, content: Any, sentence: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if content == {}:
        path.mkdir()
    elif content:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        write([path], tmp_path / "r.md")
    assert not (tmp_path / "r.md").exists()


def test_nothing_of_others_is_overwritten(tmp_path: Path) -> None:
    path, output = make_training(tmp_path / "out" / "stage"), tmp_path / "out" / "r.html"
    write([path], output)
    write([tmp_path / "out"], output)  # its own, in the directory that it is of
    output.write_text("mine")
    with pytest.raises(UserError, match=r"--output .*r\.html was changed after llmforge report wrote it"):
        write([path], output)
    (tmp_path / "theirs.md").write_text("theirs")
    with pytest.raises(UserError, match=r"theirs\.md exists and was not written by llmforge report"):
        write([path], tmp_path / "theirs.md")
    with pytest.raises(UserError, match=r"would be inside .*stage, an output of llmforge"):
        write([path], path / "notes" / "r.html")
    with pytest.raises(UsageError, match=r"must end in \.html or \.md"):
        ReportOptions(paths=[path], output=tmp_path / "r.pdf")


def test_a_directory_that_leads_to_itself_is_read_once(tmp_path: Path) -> None:
    make_training(tmp_path / "out" / "stage")
    os.symlink(tmp_path / "out", tmp_path / "out" / "again")
    found = report(
        ReportOptions(paths=[tmp_path / "out", tmp_path / "out" / "stage"], output=tmp_path / "r.md")
    )
    assert list(found["trainings"]) == ["stage"]


def test_a_recipe_reports_what_its_steps_made(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "steps:\n- train: {model: m, data: d, output: t1}\n"
        "- launch: {command: [train, --model, m, --data, d, --output, t2]}\n"
        "- generate: {prompt: x, output: s.txt, model: m}\n- generate: {prompt: x, model: m}\n"
        "- evaluate: {data: x, model: m, output: e.json}\n"
        "- compare-tokenizers: {tokenizer: m, data: x, output: c.md}\n"
        "- train-preferences: {method: reward, data: x, model: m, output: w}\n"
        "- report: {output: r.html}\n- report: {output: r.md, paths: t1}\n"
    )
    steps = read_recipe(tmp_path / "r.yaml", [], SPELLINGS)
    assert steps[7].words == ("report", "t1", "t2", "s.txt", "e.json", "w", "--output", "r.html")
    assert steps[8].words == ("report", "t1", "--output", "r.md")
    (tmp_path / "r.yaml").write_text("steps:\n- report: {output: r.html}\n")
    with pytest.raises(
        UserError, match=r"step 1 \(report\): DIR... is missing. No step before it wrote a result"
    ):
        read_recipe(tmp_path / "r.yaml", [], SPELLINGS)


def test_the_command_says_what_it_wrote_and_imports_no_torch(
    tmp_path: Path, llmforge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = make_training(tmp_path / "stage")
    done = llmforge("report", path, "--output", tmp_path / "r.html")
    assert done.stdout == f"report: done: {tmp_path / 'r.html'}\n1 training\n"
    found = json.loads(llmforge("report", path, "--output", tmp_path / "r.html", "--json").stdout)
    assert found["trainings"]["stage"]["held_out"]["all"] == {"first": 3.0, "lowest": 2.0, "last": 2.0}
    program = (
        "import sys; from pathlib import Path; from llmforge.overview.page import report; "
        "from llmforge.overview.options import ReportOptions; "
        f"report(ReportOptions(paths=[Path({str(path)!r})], output=Path({str(tmp_path / 'q.md')!r}))); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
