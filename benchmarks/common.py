"Shared by all benchmarks: the machine they ran on, where results go, scores, plain trainings, fastText."
import json
import os
import platform
import random
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelValidException
from scipy.stats import t as student_t

from bpv_fastai.cli.compare import train_labelled
from bpv_fastai.cli.plan import TrainOptions
from bpv_fastai.decide.metrics import CategoryCounts
from bpv_fastai.learner import TitleLearner
from bpv_fastai.models.inference import usable_cores
from bpv_fastai.models.precision import means_bf16
from bpv_fastai.train.callbacks import F1Calibration
from bpv_fastai.train.loaders import TitleDL
from bpv_fastai.use.compare import fasttext_ids, train_fasttext

results = Path(__file__).parent/'results'


def machine() -> dict:
    "Describe processor, cores, threads, accelerator and versions"
    cpu = platform.processor()
    if os.path.exists('/proc/cpuinfo'):
        names = [line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
        cpu = names[0] if names else ''
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    libraries = ('torch', 'fastai', 'fastcore', 'numpy', 'pandas', 'scikit-learn')
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), gpu=gpu,
                python=platform.python_version(), date=str(date.today()), **{n: version(n) for n in libraries})


def save(name: str, result: dict) -> Path:
    "Write a result as JSON by way of a temporary file, and print where"
    path = results/f'{name}.json'
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(result | dict(machine=machine()), indent=1) + '\n')
    temporary.replace(path)
    print(f'written: benchmarks/results/{path.name}')
    return path


def half_interval(values) -> float | None:
    "Compute half the 95% interval of the mean (t distribution); None for one value"
    values = np.asarray(values, dtype=float)
    if len(values) < 2: return None
    return float(student_t.ppf(.975, len(values) - 1) * values.std(ddof=1) / len(values)**.5)


# Scores and trainings


def weighted_f1(targs, preds, n_categories: int) -> float:
    "Compute the weighted F1 of predicted category ids"
    return CategoryCounts(n_categories).add(np.asarray(targs), np.asarray(preds)).averages()['f1']


def f1_of_logits(logits: torch.Tensor, targs) -> float:
    "Compute the weighted F1 of the most probable category"
    return weighted_f1(targs, logits.argmax(1).numpy(), logits.shape[1])


def log_probs_of(learn: TitleLearner, dl: TitleDL) -> torch.Tensor:
    "Predict log-probabilities (n, categories) of all categories"
    with learn.no_bar(): return learn.get_preds(dl=dl)[0].clamp(min=1e-9).log()


class NoValidation(Callback):
    "Skip validation after each epoch; scores are taken once, at the end"
    def before_validate(self): raise CancelValidException()


def fit(learn: TitleLearner, n_epochs: int, bag: bool = False, lr: float = 1.) -> float:
    "Train one network, or a bag of n-grams, without output. Returns the seconds of one core"
    learn.remove_cb(F1Calibration)
    if not bag and means_bf16('auto', learn.dls.device): learn.to_bf16()
    start = time.process_time()
    with learn.quiet(), learn.added_cbs(NoValidation()):
        if bag: learn.fit_flat_cos(n_epochs, pct_start=0)
        else: learn.fit_linear_cycle(n_epochs, lr)
    return time.process_time() - start


def train_default(labelled: pd.DataFrame, seed: int, minutes: float | None = None, text: str = '',
                  group: str | None = None) -> tuple:
    """Train what `bpv_train` trains on labelled titles, on the threads of PyTorch.

    It reads further columns of `text`, and judges on titles of other groups where a column of these is named.
    Returns the judged ensemble, whose `final` is the one to keep, the recipe, and the seconds."""
    start = time.perf_counter()
    ensemble, recipe = train_labelled(labelled, TrainOptions(minutes=minutes, seed=seed, text=text, group=group))
    return ensemble, recipe, time.perf_counter() - start


# fastText


fasttext_model = partial(train_fasttext, thread=usable_cores())

# epochs, rate, words in a row, lengths of pieces
fasttext_settings = [(25, .5, 2, (2, 5)), (50, .5, 2, (2, 5)), (25, 1., 1, (2, 5))]
_all_settings = product((25, 50, 100), (.3, .5, 1.), (1, 2, 3), ((0, 0), (2, 5), (3, 6)))
fasttext_settings += random.Random(0).sample([s for s in _all_settings if s not in fasttext_settings], 40)


def fasttext_search(train: tuple, judge: tuple, n_categories: int, limit: float = 0.) -> dict:
    """Train fastText with several settings, and return the best on `judge` (titles, category ids).

    It tries at least three, and as many as can begin within `limit` seconds. fastText's own autotune was worse in that
    time, and hung."""
    best, tried, start = dict(f1=-1.), 0, time.perf_counter()
    for epoch, lr, words, (minn, maxn) in fasttext_settings:
        if tried >= 3 and time.perf_counter() - start > limit: break
        tried += 1
        options = dict(epoch=epoch, lr=lr, wordNgrams=words, minn=minn, maxn=maxn, dim=100, bucket=500_000)
        try: model = fasttext_model(*train, **options)
        except RuntimeError as e:
            if 'NaN' not in str(e): raise
            continue  # it diverges with some settings
        f1 = weighted_f1(judge[1], fasttext_ids(model, judge[0]), n_categories)
        if f1 > best['f1']: best = dict(f1=f1, model=model, options=options)
    return best | dict(tried=tried, seconds=time.perf_counter() - start)
