"""One pass over the training loader: ours beside fastai's text pipeline with characters for tokens, and beside the bare gather.

    python benchmarks/loader.py

All three take turns in one process; the ratio of each round is kept and the median reported. Padding is measured on all USDA titles."""
import time
from statistics import median

import numpy as np
from common import save
from fastai.text.all import CategoryBlock, ColReader, ColSplitter, DataBlock, TextBlock
from fastcore.script import call_parse

from bpv_fastai.all import *


class Characters:
    "A tokenizer for fastai: every character is a token"
    def __call__(self, items): return (list(t) for t in items)


def fastai_loaders(df, valid_col: str, bs: int, device: str = 'cpu'):
    "fastai's text pipeline, in this process, with a token for each character"
    text = TextBlock.from_df('title', tok=Characters(), rules=[])
    block = DataBlock((text, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('category'), splitter=ColSplitter(valid_col))
    return block.dataloaders(df, bs=bs, num_workers=0, device=device)


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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
    ours = TitleDataLoaders.from_df(df, valid_pct=0, bs=bs, window=window, device='cpu', verbose=False).train
    theirs = fastai_loaders(df.assign(valid=np.arange(rows) < 1), 'valid', bs).train
    tokens = sum(int((x != theirs.vocab[0].index('xxpad')).sum()) for x, _ in theirs)
    assert tokens > .9 * df['title'].str.len().sum(), f'{tokens} tokens: not one for each character'
    batches = cut_batches(ours.get_idxs(), bs)

    def bare():
        for b in batches: ours.batch(b)
    for run in (lambda: one_pass(ours), bare): run()
    took = [(seconds(lambda: one_pass(theirs)), seconds(lambda: one_pass(ours)), seconds(bare)) for _ in range(rounds)]
    fastai_s, ours_s, bare_s = (median(t) for t in zip(*took))
    lengths = encode_titles(foods.title, CharVocab.fit(foods.title)).lengths
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    result = dict(rows=rows, bs=bs, rounds=rounds, titles_per_second=dict(ours=rows / ours_s, fastai=rows / fastai_s, bare_gather=rows / bare_s),
                  ratio_to_fastai=median(f / o for f, o, _ in took), ratio_to_bare_gather=median(b / o for _, o, b in took),
                  padding=dict(titles=len(lengths), window=window, sortish=padding_waste(lengths, SortishSampler(lengths, bs, window, seed=0)),
                               shuffled=padding_waste(lengths, [shuffled[i:i + bs] for i in range(0, len(shuffled), bs)])))
    speed, padding = result['titles_per_second'], result['padding']
    print('titles/s: ' + ', '.join(f'{k} {v:,.0f}' for k, v in speed.items()))
    print(f"ours is {result['ratio_to_fastai']:.0f} times fastai's text pipeline and {result['ratio_to_bare_gather']:.2f} times the bare gather (medians of {rounds} rounds)")
    print(f"padding of {padding['titles']:,} titles: {100 * padding['sortish']:.2f}% at window {window}, {100 * padding['shuffled']:.1f}% shuffled")
    save('loader', result)
