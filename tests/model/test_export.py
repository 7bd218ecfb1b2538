"""Export: padding cut off, everything else as it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmforge import model
from llmforge.errors import UserError
from llmforge.model.export import export
from llmforge.model.grow import Growth, grow
from llmforge.tokenizer import load

from .conftest import NEW_SIZE, OLD_SIZE
from .test_grow import tensors


@pytest.fixture
def checkpoint(tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path) -> Path:
    """A grown model in the place that a training gives it."""
    (tmp_path / "run" / "epoch-0_step-5").mkdir(parents=True)
    grow(tiny_model(), new_tokenizer, tmp_path / "run" / "epoch-0_step-5" / "modeling", Growth())
    shutil.copytree(tmp_path / "run" / "epoch-0_step-5" / "modeling", tmp_path / "run" / "modeling")
    return tmp_path / "run" / "epoch-0_step-5"


@pytest.mark.parametrize("given", ["epoch-0_step-5", "epoch-0_step-5/modeling", ".", "modeling"])
def test_export_cuts_the_padding(given: str, checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(checkpoint.parent / given, tmp_path / "out")
    assert model.vocabulary(tmp_path / "out") == model.Vocabulary(OLD_SIZE, NEW_SIZE, NEW_SIZE)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(checkpoint / "modeling")
    assert exported.config.vocab_size == exported.get_input_embeddings().weight.shape[0] == NEW_SIZE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the cat sat 中文的词语", return_tensors="pt")["input_ids"]
    assert int(ids.max()) >= OLD_SIZE
    with torch.no_grad():
        old, new = trained(ids).logits[..., :NEW_SIZE], exported(ids).logits
    torch.testing.assert_close(new, old, rtol=0, atol=1e-6)


def test_a_plain_directory_is_trimmed_too(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model(rows=320)
    export(source, tmp_path / "out")
    old, new = tensors(source), tensors(tmp_path / "out")
    assert (new["lm_head.weight"] == old["lm_head.weight"][:OLD_SIZE]).all()


def test_check_fits(
    checkpoint: Path, tiny_model: Callable[..., Path], new_tokenizer: Path, old_tokenizer: Path
) -> None:
    grown = checkpoint / "modeling"
    assert model.check_fits(grown, load(new_tokenizer)).size == NEW_SIZE
    with pytest.raises(UserError, match="another tokenizer"):
        model.check_fits(grown, load(old_tokenizer))
    plain = tiny_model(name="plain")
    assert model.check_fits(plain, load(old_tokenizer)).size == OLD_SIZE
    with pytest.raises(UserError, match="another tokenizer"):
        model.check_fits(plain, load(new_tokenizer))


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        export(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        export(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
