"""Titles a second in training: a step inside fastai's `Learner`, the same arithmetic in a bare PyTorch loop, a QRNN,
and AWD-LSTM on characters.

    python benchmarks/train.py                      # CPU: widths 128 and 512, float32 and bfloat16
    python benchmarks/train.py --device cuda

All take turns in one process over the same titles; the ratio of each round is kept and the median reported. AWD-LSTM's
last layer is as wide as its embedding, so its embedding is given the width too. What a machine can do at most is
measured as a product of two large matrices."""
import time
from functools import partial
from statistics import median

import numpy as np
import torch
from common import save
from fastai.text.all import AWD_LSTM, text_classifier_learner
from fastcore.script import call_parse
from splits import fastai_loaders
from timing import epoch_seconds, in_turns, median_ratio
from torch.nn import functional as F

from bpv_fastai.data.samples import usda_foods
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.callbacks import F1Calibration
from bpv_fastai.train.loaders import TitleDataLoaders


def bare_loop(dl, model, opt) -> float:
    "Train for one epoch as fast as any framework could: the same batches, loss and optimizer. Returns the seconds"
    model.train()
    start = time.perf_counter()
    for x, y in dl:
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    loss.item()
    return time.perf_counter() - start


def peak(device: str, dtype: torch.dtype) -> float:
    "Measure multiply-adds a second of a large matrix product"
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    best = 0.
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(3): c = a @ b
        c[0, 0].item()
        best = max(best, 3 * 2048**3 / (time.perf_counter() - start))
    return best


def contenders(dls: TitleDataLoaders, df, nh: int, bs: int, device: str) -> dict:
    "Return for each contender a function that trains for one epoch and returns the seconds"
    def learner(**kwargs): return bpv_learner(dls, nh=nh, metrics=[], **kwargs).remove_cb(F1Calibration)
    def bare(autocast):
        net = learner().model
        net.autocast = autocast
        return partial(bare_loop, dls.train, net, torch.optim.SGD(net.parameters(), lr=.05, momentum=.95))
    config = dict(emb_sz=nh, n_hid=nh, n_layers=2, pad_token=1, bidir=False, output_p=.35, hidden_p=.25, input_p=.15,
                  embed_p=.02, weight_p=.2)
    awd_lstm = text_classifier_learner(fastai_loaders(df, 'is_valid', bs, device), AWD_LSTM, pretrained=False,
                                       config=config, metrics=[])
    return dict(
        ours=partial(epoch_seconds, learner()), bare=bare(None),
        ours_bf16=partial(epoch_seconds, learner().to_bf16()), bare_bf16=bare(torch.bfloat16),
        qrnn_bf16=partial(epoch_seconds, learner(cell='qrnn').to_bf16()),
        awd_lstm=partial(epoch_seconds, awd_lstm, 1e-3))


@call_parse
def main(
    device: str = 'cpu', # cpu or cuda
    rounds: int = 5, # measurements of each
    bs: int = 128, # titles in a batch
):
    "Measure, compare, save"
    peaks = {str(d).split('.')[-1]: peak(device, d) for d in (torch.float32, torch.bfloat16)}
    result = dict(peak=peaks)
    for nh, rows in ((128, 4_096), (512, 1_024)):
        rows *= 8 if device == 'cuda' else 1
        df = usda_foods().sample(rows + 64, random_state=0).reset_index(drop=True)
        df.loc[rows:, 'category'] = df['category'].value_counts().index[0]  # validation titles need a known category
        df['is_valid'] = np.arange(len(df)) >= rows
        dls = TitleDataLoaders.from_df(df, valid_col='is_valid', bs=bs, val_bs=bs, device=device, verbose=False)
        runs = contenders(dls, df, nh, bs, device)
        in_turns(runs, 1)  # warms up
        took = in_turns(runs, rounds)
        speed = {name: rows / median(t[name] for t in took) for name in runs}
        emb_sz = bpv_learner(dls, nh=nh).model.config['emb_sz']
        forward = sum(4 * nh * (width + nh) for width in (emb_sz, nh)) * float(dls.train_ds.titles.lengths.mean())
        multiply_adds = 3 * forward  # backward costs twice as much
        row = result[f'width_{nh}'] = dict(
            rows=rows, titles_per_second=speed,
            overhead=median_ratio(took, 'ours', 'bare'), overhead_bf16=median_ratio(took, 'ours_bf16', 'bare_bf16'),
            over_awd_lstm=median_ratio(took, 'awd_lstm', 'ours'),
            bf16_over_awd_lstm=median_ratio(took, 'awd_lstm', 'ours_bf16'),
            qrnn_over_lstm_bf16=median_ratio(took, 'ours_bf16', 'qrnn_bf16'),
            share_of_peak=speed['ours'] * multiply_adds / peaks['float32'],
            share_of_peak_bf16=speed['ours_bf16'] * multiply_adds / peaks['bfloat16'])
        print(f'width {nh}: ' + ', '.join(f'{name} {v:,.0f} titles/s' for name, v in speed.items()))
        print('  ' + ', '.join(f'{name} {v:.2f}' for name, v in row.items() if isinstance(v, float)), flush=True)
    save('train' if device == 'cpu' else f'train_{device}', result | dict(rounds=rounds, bs=bs))
