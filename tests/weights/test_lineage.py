"""Where an output came from, by the manifests behind it."""

from pathlib import Path

from llmforge.steps import Outcome, Step, run_step
from llmforge.weights.lineage import lineage


def make(name: str, output: Path, text: str, *inputs: Path, overwrite: bool = False) -> Path:
    def build(path: Path) -> Outcome:
        (path / "tokenizer.json").write_text(text)
        return Outcome()

    run_step(Step(name, output, {}, inputs, overwrite=overwrite), build)
    return output


def train(step: str, output: Path, model: Path) -> Path:
    def build(path: Path) -> Outcome:
        make("train-model", path / "modeling", output.name)
        return Outcome()

    run_step(Step(step, output, {}, [model]), build)
    return output / "modeling"


def test_stages_that_follow_each_other_lead_to_the_first(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    model = make("init-model", tmp_path / "resized", "1", tmp_path / "source")
    for step, stage in (("train", "stage-1"), ("train", "stage-2"), ("train-preferences", "preferred")):
        model = train(step, tmp_path / stage, model)
    names = [one.path.relative_to(tmp_path).parts[0] for one in lineage(model)]
    assert [*dict.fromkeys(names)] == ["preferred", "stage-2", "stage-1", "resized", "source"]


def test_a_file_of_an_output_leads_to_the_step_that_made_it(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("x")
    tokenizer = make("init-tokenizer", tmp_path / "tokenizer", "1", tmp_path / "texts")
    dataset = make("prepare-data", tmp_path / "data", "2", tokenizer / "tokenizer.json")
    found = [(one.path.name, one.manifest and one.manifest.step) for one in lineage(dataset)]
    assert found == [("data", "prepare-data"), ("tokenizer", "init-tokenizer"), ("texts", None)]
    make("init-tokenizer", tokenizer, "3", tmp_path / "texts", overwrite=True)  # another one since
    found = [(one.path.name, one.manifest and one.manifest.step) for one in lineage(dataset)]
    assert found == [("data", "prepare-data"), ("tokenizer.json", None)]
