"""Ten million titles in ten thousand categories: seconds and peak memory of reading, encoding and one epoch.

    python benchmarks/scale.py                      # 10,000,000 titles, a network 32 wide
    python benchmarks/scale.py --titles 1000000

The catalog is made and written by another process, so that only what the library holds is counted. Peaks are the
kernel's own high-water marks of resident memory, set back before each stage."""
import multiprocessing
import re
import sys
import tempfile
from pathlib import Path

from common import save
from fastcore.script import call_parse
from timing import timed

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.loaders import TitleDataLoaders


def write_catalog(path: Path, titles: int, categories: int):
    "Write a TSV without header"
    synthetic_catalog(titles, categories).to_csv(path, sep='\t', header=False, index=False, quoting=3)


class Stages(dict):
    "Seconds and peak memory of each stage"
    def run(self, name: str, f, *args, **kwargs):
        "Call a function and note what it took"
        Path('/proc/self/clear_refs').write_text('5')  # sets the high-water mark back to what is held now
        result, seconds = timed(f, *args, **kwargs)
        peak_kb = int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
        self[name] = dict(seconds=seconds, peak_gb=peak_kb / 1e6)
        print(f"{name:<12} {seconds:>8,.1f} s {self[name]['peak_gb']:>6.2f} GB", flush=True)
        return result


def train(learn, lr_max: float):
    "Train for one epoch. Returns the scores of validation titles with and without decisions"
    with learn.quiet(): learn.fit_linear_cycle(1, lr_max)
    return learn.decider.table


@call_parse
def main(
    titles: int = 10_000_000, # rows of the catalog
    categories: int = 10_000, # categories
    nh: int = 32, # width of the network, one layer
    bs: int = 512, # titles in a batch
    valid_pct: float = .02, # share of titles for validation
    limit_gb: float = 6, # more than this is a failure
):
    "Measure, save"
    with tempfile.TemporaryDirectory() as folder:
        path, stages = Path(folder)/'catalog.tsv', Stages()
        spawn = multiprocessing.get_context('spawn')
        maker = spawn.Process(target=write_catalog, args=(path, titles, categories))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        dls = stages.run('loaders', TitleDataLoaders.from_csv, path, bs=bs, valid_pct=valid_pct)
    learn = bpv_learner(dls, nh=nh, n_layers=1)
    table = stages.run('epoch', train, learn, 1.)
    stages.run('save', Categorizer.from_learner(learn).save, Path(tempfile.mkdtemp())/'model')
    peak = max(s['peak_gb'] for s in stages.values())
    save('scale', dict(titles=titles, categories=len(dls.vocab), nh=nh, bs=bs, valid_titles=len(dls.valid_ds),
                       stages=stages, peak_gb=peak,
                       weighted_f1={' '.join(row): float(v) for row, v in table['f1'].items()}))
    if peak > limit_gb: sys.exit(f'{peak:.2f} GB')
