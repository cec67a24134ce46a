"What all benchmarks share: what they ran on, and where results go."
import json
import os
import platform
import random
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student_t

from bpv_fastai.categorizer import usable_cores
from bpv_fastai.metrics import CategoryCounts

results = Path(__file__).parent/'results'


def machine() -> dict:
    "Processor, cores, threads, accelerator and versions"
    cpu = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')), '') if os.path.exists('/proc/cpuinfo') else platform.processor()
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                python=platform.python_version(), date=str(date.today()), **{n: version(n) for n in ('torch', 'fastai', 'fastcore', 'numpy', 'pandas', 'scikit-learn')})


def save(name: str, result: dict) -> Path:
    "Write a result as JSON, beside first, and say where"
    path = results/f'{name}.json'
    beside = path.with_suffix('.tmp')
    beside.write_text(json.dumps(result | dict(machine=machine()), indent=1) + '\n')
    beside.replace(path)
    print(f'written: benchmarks/results/{path.name}')
    return path


def fasttext_model(titles, targs, **options):
    "fastText trained on titles and category ids. Raises `ImportError` where it is not installed"
    import fasttext
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write(''.join(f'__label__{y} {t}\n' for t, y in zip(titles, targs))); file.flush()
        return fasttext.train_supervised(file.name, verbose=0, thread=usable_cores(), **options)


def fasttext_ids(model, titles) -> np.ndarray:
    "The category id that it gives each title"
    return np.array([int(labels[0].removeprefix('__label__')) for labels in model.predict(list(titles))[0]])


fasttext_settings = [(25, .5, 2, (2, 5)), (50, .5, 2, (2, 5)), (25, 1., 1, (2, 5))]  # epochs, rate, words in a row, lengths of pieces
fasttext_settings += random.Random(0).sample([s for s in product((25, 50, 100), (.3, .5, 1.), (1, 2, 3), ((0, 0), (2, 5), (3, 6))) if s not in fasttext_settings], 40)


def fasttext_search(train: tuple, judge: tuple, n_categories: int, limit: float = 0.) -> dict:
    "fastText with the best, on the titles and category ids `judge`, of the settings for which there is time; at least three. (Its own autotune found worse ones in that time, and hung)"
    best, tried, start = dict(f1=-1.), 0, time.perf_counter()
    for epoch, lr, words, (minn, maxn) in fasttext_settings:
        if tried >= 3 and time.perf_counter() - start > limit: break
        options, tried = dict(epoch=epoch, lr=lr, wordNgrams=words, minn=minn, maxn=maxn, dim=100, bucket=500_000), tried + 1
        try: model = fasttext_model(*train, **options)
        except RuntimeError as e:
            if 'NaN' not in str(e): raise
            continue  # it diverges with some settings
        f1 = CategoryCounts(n_categories).add(judge[1], fasttext_ids(model, judge[0])).averages()['f1']
        if f1 > best['f1']: best = dict(f1=f1, model=model, options=options)
    return best | dict(tried=tried, seconds=time.perf_counter() - start)


def half_interval(values) -> float | None:
    "Half the 95% interval of the mean (t distribution); nothing for one value"
    values = np.asarray(values, dtype=float)
    return float(student_t.ppf(.975, len(values) - 1) * values.std(ddof=1) / len(values)**.5) if len(values) > 1 else None
