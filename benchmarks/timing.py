"Clocks of the benchmarks: one call, contenders in turns, an epoch inside a learner."
import time
from collections.abc import Callable
from statistics import median

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner


def timed(f: Callable, *args, **kwargs) -> tuple:
    "Call a function. Returns its result and the seconds"
    start = time.perf_counter()
    result = f(*args, **kwargs)
    return result, time.perf_counter() - start


def seconds(f: Callable, *args, **kwargs) -> float:
    "Call a function. Returns the seconds"
    return timed(f, *args, **kwargs)[1]


def in_turns(contenders: dict, rounds: int) -> list:
    "Call each contender, a function that returns its seconds, once a round. Returns name -> seconds of each round"
    return [{name: f() for name, f in contenders.items()} for _ in range(rounds)]


def median_ratio(rounds: list, name: str, to: str) -> float:
    "Compute the median over rounds of the seconds of one contender divided by those of another"
    return median(seconds[name] / seconds[to] for seconds in rounds)


class _Clock(Callback):
    "Measure from the first batch of training to the last, loading included"
    def before_train(self): self.start = time.perf_counter()
    def after_train(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start


def epoch_seconds(learn: Learner, lr: float = .05) -> float:
    "Train for one epoch inside fastai's `Learner`. Returns the seconds"
    clock = _Clock()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr, cbs=clock)
    return clock.seconds
