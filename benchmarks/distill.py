"""A student of a tenth of a pair's arithmetic: on labels alone, taught by a pair with n-grams, and taught with titles that have no label; beside fastText.

    python benchmarks/distill.py

The titles and the split are those of benchmarks/paper.py at its small scale; the titles without label are other USDA titles."""
import time

import numpy as np
from common import fasttext_search, half_interval, save
from fastai.torch_core import default_device, set_seed
from fastcore.script import call_parse
from paper import catalog, scales

from bpv_fastai.all import *


def f1_of(learn) -> float:
    with learn.no_bar(): best = best_preds(learn)
    return CategoryCounts(learn.dls.c).add(best['targs'], best['preds']).averages()['f1']


def titles_per_second(learn, titles: list) -> float:
    "With `Categorizer.predict`, the second of two passes"
    cat = Categorizer.from_learner(learn)
    cat.predict(titles[:5_000], progress=False)
    start = time.perf_counter()
    cat.predict(titles, progress=False)
    return len(titles) / (time.perf_counter() - start)


def fasttext_f1(dls) -> list:
    "Weighted F1 of fastText on the same split with the best of a few settings, on those titles themselves; nothing where it is not installed"
    titles, known = ([t.lower() for t in ds.titles.decode()] for ds in (dls.train_ds, dls.valid_ds))
    try: return [fasttext_search((titles, dls.train_ds.targets), (known, dls.valid_ds.targets), dls.c)['f1']]
    except ImportError: return []


@call_parse
def main(
    seeds: int = 3, # students of each kind
    nh: int = 90, # width of the student, which has one layer
    emb_sz: int = 24, # of the student
    epochs: int = 30, # of the student on labelled titles
    unlabelled: int = 200_000, # titles without label
    epochs_more: int = 12, # of the student on all of them
):
    "Train the pair, then the students"
    scale, bf16 = scales['small'], has_native_bf16(default_device())
    df = catalog(scale)
    dls = TitleDataLoaders.from_df(df, bs=scale['bs'], val_bs=256, seed=42, verbose=False)
    everything = usda_foods()
    more = everything[~everything['title'].isin(set(df['title']))].sample(unlabelled, random_state=0)['title'].tolist()
    start = time.perf_counter()
    teacher = Ensemble.train(dls, epochs=scale['long'][0], lr_max=scale['long'][1], nh=scale['nh'], n_jobs=2, bf16=bf16, ngrams=True, progress=False)
    student = dict(nh=nh, emb_sz=emb_sz, n_layers=1)
    found = dict(teacher=[f1_of(teacher)], fasttext=fasttext_f1(dls), alone=[], taught=[], taught_more=[])
    print('teacher', found['teacher'], 'fastText', found['fasttext'], f'{time.perf_counter() - start:.0f} s', flush=True)
    for seed in range(seeds):
        for name in ('alone', 'taught', 'taught_more'):
            set_seed(seed); start = time.perf_counter()
            if name == 'alone':
                learn = bpv_learner(dls, **student)
                if bf16: learn.to_bf16()
                learn.f1_calibration.verbose = False
                with learn.no_bar(), learn.no_logging(): learn.fit_linear_cycle(epochs, 1.)
            else: learn = distill(teacher, epochs_more if name == 'taught_more' else epochs, unlabelled=more if name == 'taught_more' else None, progress=False, bf16=bf16, **student)
            found[name].append(f1_of(learn))
            print(name, seed, round(found[name][-1], 4), f'{time.perf_counter() - start:.0f} s', flush=True)
    length = float(dls.train_ds.titles.lengths.mean())
    means, speeds = {n: float(np.mean(v)) for n, v in found.items()}, {'teacher': titles_per_second(teacher, more[:20_000]), 'student': titles_per_second(learn, more)}
    kept = {n: (means[n] - means['alone']) / (means['teacher'] - means['alone']) for n in ('taught', 'taught_more')}
    print(means, 'of the gain kept:', kept, speeds)
    save('distill', dict(f1=found, mean=means, half={n: half_interval(v) for n, v in found.items()}, kept=kept, titles_per_second=speeds, multiply_adds={'teacher': multiply_adds(teacher, length), 'student': multiply_adds(learn, length)},
                         bf16=bf16, nh=nh, emb_sz=emb_sz, epochs=epochs, unlabelled=unlabelled, epochs_more=epochs_more, train=len(dls.train_ds)))
