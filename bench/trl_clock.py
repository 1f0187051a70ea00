"""How long the steps of TRL's trainer take, and what it logs of them."""

import time

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """A callback that keeps the `seconds` of each step, from its begin to its end, and the `logged` value of `name`."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.logged = name, [], []

    def on_step_begin(self, *_, **__) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, args, state, control, logs=None, **__) -> None:
        if logs and self.name in logs:
            self.logged.append(float(logs[self.name]))
