"What all benchmarks share: what they ran on, and where results go."
import json
import os
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from bpv_fastai.categorizer import usable_cores

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
