"""Commands that `warm` forks are those that `python -m llmforge` starts."""

import os

import pytest

from warm import TERMINAL


@pytest.mark.parametrize(
    ("words", "code"),
    [(("export", "--help"), 0), (("export", "--checkpoint", "absent"), 2), (("verify", "absent"), 1)],
)
def test_a_forked_command_is_the_started_one(llmforge, words, code):
    warm, cold = llmforge(*words, code=code), llmforge(*words, code=code, cold=True)
    assert (warm.stdout, warm.stderr) == (cold.stdout, cold.stderr)


def test_commands_are_forked_wherever_torch_was_imported(warm, without_torch):
    assert warm.takes(["train"], {**os.environ, **TERMINAL})
    assert not warm.takes(["train"], {**os.environ, **TERMINAL, "OMP_NUM_THREADS": "7"})
    assert warm.takes(["train"], {**os.environ, **TERMINAL, "RANK": "1"})
    assert not warm.takes(["prepare-data"], {**os.environ, **TERMINAL})
    assert without_torch.takes(["prepare-data"], {**os.environ, **TERMINAL})


def test_what_is_imported_for_commands_without_torch_is_without_torch(without_torch, tmp_path):
    (tmp_path / "look.py").write_text("import sys; sys.exit(int('torch' in sys.modules))")
    assert without_torch.run([str(tmp_path / "look.py")], {**os.environ, **TERMINAL}, 60).returncode == 0
