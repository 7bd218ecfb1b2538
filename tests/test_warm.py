"""Commands that `warm` forks are those that `python -m llmforge` starts."""

import os

import pytest

from warm import TERMINAL


@pytest.mark.parametrize(
    ("words", "code"), [(("export", "--help"), 0), (("export", "--checkpoint", "absent"), 2)]
)
def test_a_forked_command_is_the_started_one(llmforge, words, code):
    warm, cold = llmforge(*words, code=code), llmforge(*words, code=code, cold=True)
    assert (warm.stdout, warm.stderr) == (cold.stdout, cold.stderr)


def test_commands_are_forked_wherever_torch_was_imported(warm, tiny_model):
    assert warm.takes(["train"], {**os.environ, **TERMINAL})
    assert not warm.takes(["train"], {**os.environ, **TERMINAL, "WORLD_SIZE": "2"})
    assert not warm.takes(["prepare-data"], {**os.environ, **TERMINAL})
