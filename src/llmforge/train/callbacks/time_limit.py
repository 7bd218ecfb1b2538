"""`--time-limit`: the run stops, with a checkpoint, after the step in which the time is over."""

import time

from llmforge.train.callbacks.base import Callback, Stage


class TimeLimit(Callback):
    stage = Stage.STOPS

    def poll(self) -> None:
        allowed = self.run.config.seconds_allowed()
        if allowed is not None and time.monotonic() - self.run.started >= allowed:
            self.run.asked_to_stop = self.run.asked_to_stop or "--time-limit"
