"""What happens around a step: a file for each concern.

`CALLBACKS` is the one place where they are registered. Their order is that of the calls: what refuses a step comes
first, then what adds figures, then what writes them, and last what saves.
"""

from llmforge.train.callbacks.base import Callback, Run, Step
from llmforge.train.callbacks.checkpoints import Checkpoints
from llmforge.train.callbacks.evaluation import Evaluation
from llmforge.train.callbacks.guards import Guards
from llmforge.train.callbacks.metrics import Metrics
from llmforge.train.callbacks.new_tokens import NewTokens
from llmforge.train.callbacks.progress import Progress
from llmforge.train.callbacks.signals import Signals
from llmforge.train.callbacks.throughput import Throughput
from llmforge.train.callbacks.time_limit import TimeLimit

__all__ = ["CALLBACKS", "Callback", "Run", "Step"]

CALLBACKS: list[type[Callback]] = [
    Signals,
    TimeLimit,
    Guards,
    NewTokens,
    Throughput,
    Metrics,
    Progress,
    Evaluation,
    Checkpoints,
]
