"""What a process imports that forks ranks which train with ColossalAI's plugins (tests/warm.py)."""

from llmforge.backends.colossalai import compat

compat.install()

import colossalai.booster.plugin  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import llmforge.train.run  # noqa: E402, F401
