"""One pass over the training loader: ours beside fastai's text pipeline with characters for tokens, and beside the bare
gather.

    python benchmarks/loader.py

All three take turns in one process; the ratio of each round is kept and the median reported. Padding is measured on all
USDA titles."""
from functools import partial
from statistics import median

import numpy as np
from common import save
from fastcore.script import call_parse
from splits import fastai_loaders
from timing import in_turns, median_ratio, seconds

from bpv_fastai.data.samples import usda_foods
from bpv_fastai.data.sampler import SortishSampler, cut_batches, padding_waste
from bpv_fastai.data.titles import CharVocab, encode_titles
from bpv_fastai.train.loaders import TitleDataLoaders


def one_pass(dl):
    for x, y in dl: pass


@call_parse
def main(
    rows: int = 20_000, # titles, all of them for training
    bs: int = 256, # titles in a batch
    rounds: int = 7, # measurements of each
    window: int = 50, # batches that are sorted together
):
    "Measure titles per second of loaders, and padding"
    foods = usda_foods()
    df = foods.sample(rows, random_state=42).reset_index(drop=True)
    options = dict(valid_pct=0, bs=bs, window=window, device='cpu', verbose=False)
    ours = TitleDataLoaders.from_df(df, **options).train
    theirs = fastai_loaders(df.assign(valid=np.arange(rows) < 1), 'valid', bs).train
    padding_id = theirs.vocab[0].index('xxpad')
    n_tokens = sum(int((x != padding_id).sum()) for x, _ in theirs)
    assert n_tokens > .9 * df['title'].str.len().sum(), f'{n_tokens} tokens: not one for each character'
    batches = cut_batches(ours.get_idxs(), bs)

    def bare_gather():
        for b in batches: ours.batch(b)
    one_pass(ours)
    bare_gather()
    took = in_turns(dict(fastai=partial(seconds, one_pass, theirs), ours=partial(seconds, one_pass, ours),
                         bare_gather=partial(seconds, bare_gather)), rounds)
    speed = {name: rows / median(t[name] for t in took) for name in ('ours', 'fastai', 'bare_gather')}
    lengths = encode_titles(foods.title, CharVocab.fit(foods.title)).lengths
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    padding = dict(titles=len(lengths), window=window,
                   sortish=padding_waste(lengths, SortishSampler(lengths, bs, window, seed=0)),
                   shuffled=padding_waste(lengths, [shuffled[i:i + bs] for i in range(0, len(shuffled), bs)]))
    to_fastai, to_gather = (median_ratio(took, name, 'ours') for name in ('fastai', 'bare_gather'))
    print('titles/s: ' + ', '.join(f'{k} {v:,.0f}' for k, v in speed.items()))
    print(f"ours is {to_fastai:.0f} times fastai's text pipeline and {to_gather:.2f} times the bare gather "
          f'(medians of {rounds} rounds)')
    print(f"padding of {padding['titles']:,} titles: {100 * padding['sortish']:.2f}% at window {window}, "
          f"{100 * padding['shuffled']:.1f}% shuffled")
    save('loader', dict(rows=rows, bs=bs, rounds=rounds, titles_per_second=speed, ratio_to_fastai=to_fastai,
                        ratio_to_bare_gather=to_gather, padding=padding))
