"""One million titles through `bpv_predict`: peak memory, order of rows, titles a second beside a linear model.

    python benchmarks/label.py                      # a network 64 wide, 1,000,000 synthetic titles

The linear model is TF-IDF of words and pairs of words with a LinearSVC, trained on the same titles; only its `predict` is timed, in this process."""
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from common import save
from fastcore.script import call_parse

from bpv_fastai.all import *


def trained(folder: Path, nh: int, df: pd.DataFrame):
    "A saved network and a linear model, both trained on `df`"
    dls = TitleDataLoaders.from_df(df, bs=128, verbose=False)
    learn = bpv_learner(dls, nh=nh)
    with learn.no_bar(): learn.fit_linear_cycle(4, 1.)
    Categorizer.from_learner(learn).save(folder/'model')
    return linear_baseline(df['title'], df['category'])[0]


def label(folder: Path, out: str) -> tuple[float, float]:
    "Seconds of the command, reading and writing included, and the peak of its memory in GB"
    start = time.perf_counter()
    # the kernel's own high-water mark of the process: what `getrusage` says of a child includes the parent that it was forked from
    code = f"from bpv_fastai.label import bpv_predict; bpv_predict({str(folder/'model')!r}, {str(folder/'titles.tsv')!r}, {str(folder/out)!r}, quiet=True); print(open('/proc/self/status').read())"
    said = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - start, int(re.search(r'VmHWM:\s+(\d+) kB', said)[1]) / 1e6


@call_parse
def main(
    titles: int = 1_000_000, # titles to label
    categories: int = 1_000, # categories
    nh: int = 64, # width of the network
):
    "Label, compare, save"
    folder = Path(tempfile.mkdtemp())
    df = synthetic_catalog(titles, categories)
    df[['title']].to_csv(folder/'titles.tsv', sep='\t', header=False, index=False, quoting=3)
    linear = trained(folder, nh, df.sample(min(40_000, titles), random_state=0).reset_index(drop=True).groupby('category').filter(lambda g: len(g) > 1).reset_index(drop=True))
    seconds, peak = label(folder, 'predictions.tsv')
    start = time.perf_counter()
    linear.predict(df['title'])
    linear_seconds = time.perf_counter() - start
    with open(folder/'predictions.tsv', newline='') as f: rows = [line.rstrip('\n').split('\t') for line in f]
    in_order = [r[0] for r in rows] == df['title'].tolist() and all(len(r) == 2 and r[1] for r in rows)
    result = dict(titles=titles, categories=categories, nh=nh, mean_length=float(df['title'].str.len().mean()), seconds=seconds, titles_per_second=titles / seconds, peak_gb=peak, rows_in_order=in_order,
                  linear_seconds=linear_seconds, linear_titles_per_second=titles / linear_seconds)
    print('\n'.join(f'{k}: {v:,.2f}' if isinstance(v, float) else f'{k}: {v}' for k, v in result.items()))
    save('label', result)
    if not in_order or peak > 2: sys.exit('rows out of order, or more than 2 GB')
