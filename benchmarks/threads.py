"""What processes on the same cores cost each other: two notebooks that train, commands, members side by side.

    python benchmarks/threads.py

Each line has the seconds of one alone and of two at once, with the threads that each takes by itself. With fair shares
the ratio is at most 2. The lines in which PyTorch is imported before this library are as it was without it: OpenMP's
threads spin while they wait. Further lines set how often GNU's OpenMP asks before a thread sleeps. The last line is the
members of one `Ensemble.train`, one after the other and side by side."""
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastcore.script import call_parse

from bpv_fastai.data.samples import synthetic_catalog
from common import save

TRAIN = '''
import time
{first}
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from fastai.callback.core import Callback, CancelFitException
import warnings
warnings.simplefilter('ignore')

class For(Callback):
    "Stop after some seconds and print those of a batch"
    def before_train(self): self.begin, self.n = None, 0
    def after_batch(self):
        if self.begin is None and time.time() >= {start}: self.begin, self.n = time.time(), -1
        self.n += 1
        if self.begin and time.time() - self.begin > {seconds}:
            print((time.time() - self.begin) / max(1, self.n))
            raise CancelFitException()

dls = TitleDataLoaders.from_df(synthetic_catalog(60_000, 50), bs=128, verbose=False)
learn = bpv_learner(dls, nh=128, cbs=For())
learn.remove_cb(learn.f1_calibration)
with learn.quiet(): learn.fit(9)
'''

ENSEMBLE = '''
import time
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Recipe
dls = TitleDataLoaders.from_df(synthetic_catalog(4_000, 50), bs=64, verbose=False)
begin = time.time()
Ensemble.train(dls, Recipe.pairs(epochs=1, nh=128), progress=False, n_jobs={n_jobs})
print(time.time() - begin)
'''


def run_all(commands: list, folder: Path, prints: bool = False, **variables) -> list:
    "Run programs at once; return the seconds of each, or the number that each prints last"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('OMP_', 'GOMP_', 'MKL_'))} | variables
    begin = time.time()
    def run(command):
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        if ran.returncode: raise RuntimeError(ran.stderr)
        return float(ran.stdout.split()[-1]) if prints else time.time() - begin
    with ThreadPoolExecutor(len(commands)) as pool: return list(pool.map(run, commands))


@call_parse
def main(
    seconds: float = 10., # that notebooks train
):
    "Measure, print a table and keep it"
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_catalog(3_000, 50).to_csv(folder/'catalog.csv', index=False)
        synthetic_catalog(30_000, 50, seed=1)[['title']].to_csv(folder/'titles.csv', index=False)
        def python(code, **values): return [sys.executable, '-W', 'ignore', '-c', code.format(**values)]
        def notebooks(n, first): return [python(TRAIN, first=first, start=time.time() + 20, seconds=seconds)] * n
        def command(name, *args): return [str(Path(sys.executable).with_name(name)), *map(str, args)]
        def train(i):
            return command('bpv_train', 'catalog.csv', '--out', f'model{i}', '--epochs', 1, '--nh', 64, '--nolinear')
        def predict(i): return command('bpv_predict', 'model0', 'titles.csv', '--out', f'out{i}.tsv', '--quiet')
        def note(what, alone, at_once):
            figures.append(dict(what=what, alone=round(alone, 3), two=[round(s, 3) for s in at_once],
                                ratio=round(max(at_once) / alone, 2)))
            print(*figures[-1].values(), sep='\t', flush=True)
        print('what', 'alone', 'two at once', 'ratio', sep='\t')
        def batches(first, **variables):
            alone, two = (run_all(notebooks(n, first), folder, True, **variables) for n in (1, 2))
            return alone[0], two
        note('a batch, fastai imported first', *batches('from fastai.text.all import *'))
        note('a batch', *batches(''))
        for count in ('0', '20000', '100000'):
            note(f'a batch, GOMP_SPINCOUNT={count}', *batches('', OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT=count))
        for what, made in (('bpv_train', train), ('bpv_predict', predict)):
            note(what, *run_all([made(0)], folder), run_all([made(0), made(1)], folder))
        one_by_one, beside = (run_all([python(ENSEMBLE, n_jobs=n)], folder, True)[0] for n in (1, 2))
        note('Ensemble.train, n_jobs=1 and n_jobs=2', one_by_one, [beside])
    save('threads', dict(figures=figures))
