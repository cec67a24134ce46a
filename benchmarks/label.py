"""One million titles through `bpv_predict`: peak memory, order of rows, titles a second beside a linear model.

    python benchmarks/label.py                      # a network 64 wide, 1,000,000 synthetic titles

The linear model is TF-IDF of words and pairs of words with a LinearSVC, trained on the same titles; only its `predict`
is timed, in this process."""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import save
from fastcore.script import call_parse
from timing import seconds, timed

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.use.baseline import linear_svm

# The kernel's own high-water mark of the process; `getrusage` of a child includes the parent that it was forked from
command = """
from bpv_fastai.cli.predict import bpv_predict
bpv_predict({model!r}, {titles!r}, {out!r}, quiet=True)
print(open('/proc/self/status').read())"""


def train(folder: Path, nh: int, df: pd.DataFrame):
    "Train a network, which is saved, and a linear model, which is returned"
    learn = bpv_learner(TitleDataLoaders.from_df(df, bs=128, verbose=False), nh=nh)
    with learn.quiet(): learn.fit_linear_cycle(4, 1.)
    Categorizer.from_learner(learn).save(folder/'model')
    return linear_svm(df['title'], df['category'], C=1.)


def label(folder: Path) -> tuple[float, float]:
    "Run the command. Returns its seconds, reading and writing included, and the peak of its memory in GB"
    code = command.format(**{name: str(folder/file) for name, file in
                             dict(model='model', titles='titles.tsv', out='predictions.tsv').items()})
    process, took = timed(subprocess.run, [sys.executable, '-c', code], check=True, capture_output=True, text=True)
    return took, int(re.search(r'VmHWM:\s+(\d+) kB', process.stdout)[1]) / 1e6


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
    sample = df.sample(min(40_000, titles), random_state=0).reset_index(drop=True)
    linear = train(folder, nh, sample.groupby('category').filter(lambda g: len(g) > 1).reset_index(drop=True))
    took, peak = label(folder)
    linear_took = seconds(linear.predict, df['title'])
    with open(folder/'predictions.tsv', newline='') as f: rows = [line.rstrip('\n').split('\t') for line in f]
    in_order = [r[0] for r in rows] == df['title'].tolist() and all(len(r) == 2 and r[1] for r in rows)
    result = dict(titles=titles, categories=categories, nh=nh, mean_length=float(df['title'].str.len().mean()),
                  seconds=took, titles_per_second=titles / took, peak_gb=peak, rows_in_order=in_order,
                  linear_seconds=linear_took, linear_titles_per_second=titles / linear_took)
    print('\n'.join(f'{k}: {v:,.2f}' if isinstance(v, float) else f'{k}: {v}' for k, v in result.items()))
    save('label', result)
    if not in_order or peak > 2: sys.exit('rows out of order, or more than 2 GB')
