"""What `Recipe.for_catalog` and `ngram_learner` choose from: weighted F1 of single members on validation titles, by
size of the catalog.

    python benchmarks/grid.py --sizes 2000,10000     # half an hour on one core
    python benchmarks/grid.py --sizes 20000x600      # a synthetic catalog: training titles x categories
    python benchmarks/grid.py --tables

Splits of USDA titles are those of benchmarks/curve.py; validation titles judge, so that its test titles stay unseen.
Forward networks, and bags of n-grams, with the most probable category. Runs are kept in benchmarks/results/grid and not
repeated."""
import json

import pandas as pd
from common import f1_of_logits, fit, log_probs_of, results, save
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from splits import loaders, usda_split

from bpv_fastai.data.errors import TrainingDiverged
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import default_epochs, ngram_epochs

runs = results/'grid'
shapes = (('lstm', 128, 1.), ('lstm', 160, 1.), ('qrnn', 128, 1.), ('qrnn', 256, 1.5), ('qrnn', 256, 1.),
          ('qrnn', 256, .5), ('qrnn', 384, .5))
networks = [dict(cell=cell, nh=nh, drop_mult=drop_mult, epochs=share)  # epochs: share of the default ones
            for share in (1., .6) for cell, nh, drop_mult in shapes]
bags = [dict(dim=dim, output_p=p, epochs=1.) for dim, p in ((64, .7), (64, .5), (128, .5), (256, .5))]


def catalog(size: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Return training and validation titles: USDA's, or synthetic ones where `size` is titles x categories"
    if 'x' not in size: return usda_split(int(size), seed)[:2]
    n, n_categories = map(int, size.split('x'))
    df = synthetic_catalog(n + n // 3, n_categories, seed=seed).sample(frac=1, random_state=seed).reset_index(drop=True)
    train, valid = df[:n], df[n:]
    return train, valid[valid['category'].isin(set(train['category']))]


def run_setting(dls: TitleDataLoaders, seed: int, setting: dict) -> dict:
    "Train one setting. Returns weighted F1 and the seconds of one core"
    n, bag = len(dls.train_ds), 'dim' in setting
    options = {k: v for k, v in setting.items() if k != 'epochs'}
    epochs = max(1, round(setting['epochs'] * (ngram_epochs(n) if bag else default_epochs(n))))
    set_seed(seed)
    learn = ngram_learner(dls, **options) if bag else bpv_learner(dls.with_train(seed=seed), **options)
    try: seconds = fit(learn, epochs, bag=bag)
    except TrainingDiverged: return dict(setting=setting, epochs=epochs, f1=None)
    f1 = f1_of_logits(log_probs_of(learn, dls.valid), dls.valid_ds.targets)
    return dict(setting=setting, epochs=epochs, f1=f1, seconds=seconds)


def table() -> pd.DataFrame:
    "Average each setting and size over splits"
    rows = []
    for path in runs.glob('*.json'):
        size = path.stem.split('_')[0]
        catalog = dict(catalog='synthetic' if 'x' in size else 'USDA', titles=int(size.split('x')[0]))
        for run in json.loads(path.read_text()):
            scores = {k: v for k, v in run.items() if k != 'setting'}
            rows.append(catalog | run['setting'] | scores)  # `epochs` of the run, not their share
    by = ['catalog', 'titles', 'cell', 'nh', 'drop_mult', 'dim', 'output_p', 'epochs']
    scores = dict(f1=('f1', 'mean'), seconds=('seconds', 'median'), splits=('f1', 'count'))
    return pd.DataFrame(rows).groupby(by, dropna=False).agg(**scores).reset_index()


@call_parse
def main(
    sizes: str = '2000,10000,40000,200000,20000x600', # training titles, with x and categories where they are synthetic
    seeds: int = 1, # splits of each size
    only: str = '', # only settings whose text holds one of these, with semicolons between
    tables: bool = False, # only the table
):
    "Train, judge, save"
    for size in [] if tables else sizes.split(','):
        for seed in range(seeds):
            path = runs/f'{size}_{seed}.json'
            done = json.loads(path.read_text()) if path.exists() else []
            dls = loaders(*catalog(size, seed), seed)
            for setting in networks + bags:
                if setting in [run['setting'] for run in done]: continue
                if not any(text in json.dumps(setting) for text in only.split(';')): continue
                done.append(run_setting(dls, seed, setting))
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(done, indent=1))
                print(size, seed, done[-1], flush=True)
    rows = table()
    print(rows.round(4).to_string(index=False))
    save('grid', dict(rows=json.loads(rows.to_json(orient='records'))))
