"""What `default_training` and `ngram_learner` choose from: weighted F1 of single members on validation titles, by size of the catalog.

    python benchmarks/grid.py --sizes 2000,10000          # half an hour on one core
    python benchmarks/grid.py --sizes 20000x600           # a synthetic catalog: so many training titles in so many categories
    python benchmarks/grid.py --tables

Splits of USDA titles are those of benchmarks/curve.py; validation titles judge, so that its test titles stay unseen. Forward networks, and bags of
n-grams, with the most probable category. Runs are kept in benchmarks/results/grid; what is there is not run again."""
import json

import pandas as pd
from common import results, save
from curve import loaders, split
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from variants import fit, log_probs, score

from bpv_fastai.all import *

runs = results/'grid'
networks = [dict(cell=cell, nh=nh, drop_mult=drop_mult, epochs=share) for share in (1., .6) for cell, nh, drop_mult in (('lstm', 128, 1.), ('lstm', 160, 1.), ('qrnn', 128, 1.), ('qrnn', 256, 1.5), ('qrnn', 256, 1.), ('qrnn', 256, .5), ('qrnn', 384, .5))]  # epochs: of the default ones
bags = [dict(dim=dim, output_p=p, epochs=1.) for dim, p in ((64, .7), (64, .5), (128, .5), (256, .5))]


def catalog(size: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Training and validation titles: USDA's, or synthetic ones where `size` is titles x categories"
    if 'x' not in size: return split(int(size), seed)[:2]
    n, n_categories = map(int, size.split('x'))
    df = synthetic_catalog(n + n // 3, n_categories, seed=seed).sample(frac=1, random_state=seed).reset_index(drop=True)
    return df[:n], df[n:][df['category'][n:].isin(set(df['category'][:n]))]


def one(dls, seed: int, setting: dict) -> dict:
    "Weighted F1 of one setting, and the seconds of one core"
    n, options = len(dls.train_ds), {k: v for k, v in setting.items() if k != 'epochs'}
    bag = 'dim' in setting
    epochs = max(1, round(setting['epochs'] * (ngram_epochs(n) if bag else default_epochs(n))))
    set_seed(seed)
    learn = ngram_learner(dls, **options) if bag else bpv_learner(dls.with_train(seed=seed), **options)
    try: seconds = fit(learn, epochs, bag=bag)
    except TrainingDiverged: return dict(setting=setting, epochs=epochs, f1=None)
    return dict(setting=setting, epochs=epochs, f1=score(log_probs(learn, dls.valid), dls.valid_ds.targets), seconds=seconds)


def table() -> pd.DataFrame:
    "A row for each setting and size, with the mean over splits"
    found = []
    for path in runs.glob('*.json'):
        size = path.stem.split('_')[0]
        which = dict(catalog='synthetic' if 'x' in size else 'USDA', titles=int(size.split('x')[0]))
        found += [which | {k: v for k, v in r.items() if k != 'setting'} | r['setting'] | dict(epochs=r['epochs']) for r in json.loads(path.read_text())]
    by = ['catalog', 'titles', 'cell', 'nh', 'drop_mult', 'dim', 'output_p', 'epochs']
    return pd.DataFrame(found).groupby(by, dropna=False).agg(f1=('f1', 'mean'), seconds=('seconds', 'median'), splits=('f1', 'count')).reset_index()


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
            found = json.loads(path.read_text()) if path.exists() else []
            dls = loaders(*catalog(size, seed), seed)
            for setting in networks + bags:
                if setting in [r['setting'] for r in found] or not any(o in json.dumps(setting) for o in only.split(';')): continue
                found.append(one(dls, seed, setting))
                path.parent.mkdir(exist_ok=True); path.write_text(json.dumps(found, indent=1))
                print(size, seed, found[-1], flush=True)
    rows = table()
    print(rows.round(4).to_string(index=False))
    save('grid', dict(rows=json.loads(rows.to_json(orient='records'))))
