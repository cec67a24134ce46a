"""Titles a second in training: a step inside fastai's `Learner`, the same arithmetic in a bare PyTorch loop, a QRNN, and AWD-LSTM on characters.

    python benchmarks/train.py                      # CPU: widths 128 and 512, float32 and bfloat16
    python benchmarks/train.py --device cuda

All take turns in one process over the same titles; the ratio of each round is kept and the median reported. AWD-LSTM's last layer is as wide as its
embedding, so its embedding is given the width too. What a machine can do at most is measured as a product of two large matrices."""
import time
from functools import partial
from statistics import median

import numpy as np
import torch
from common import save
from fastai.callback.core import Callback
from fastai.text.all import AWD_LSTM, text_classifier_learner
from fastcore.script import call_parse
from loader import fastai_loaders
from torch.nn import functional as F

from bpv_fastai.all import *


class _Clock(Callback):
    "Seconds from the first batch of training to the last, loading included"
    def before_train(self): self.start = time.perf_counter()
    def after_train(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start


def inside_learner(learn, lr: float = .05) -> float:
    clock = _Clock()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr, cbs=clock)
    return clock.seconds


def bare_loop(dl, model, opt) -> float:
    "What no framework can be faster than: the same batches, loss and optimizer"
    model.train()
    start = time.perf_counter()
    for x, y in dl:
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
    loss.item()
    return time.perf_counter() - start


def peak(device: str, dtype: torch.dtype) -> float:
    "Multiply-adds a second of a large matrix product"
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    best = 0.
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(3): c = a @ b
        c[0, 0].item()
        best = max(best, 3 * 2048**3 / (time.perf_counter() - start))
    return best


def contenders(df, nh: int, bs: int, device: str) -> tuple[dict, object]:
    "A function for each that trains for one epoch and gives its seconds, and our loaders"

    dls = TitleDataLoaders.from_df(df, valid_col='is_valid', bs=bs, val_bs=bs, device=device, verbose=False)
    def learner(**kwargs): return bpv_learner(dls, nh=nh, metrics=[], **kwargs).remove_cb(F1Calibration)
    def bare(half):
        net = learner().model
        net.autocast = torch.bfloat16 if half else None
        return partial(bare_loop, dls.train, net, torch.optim.SGD(net.parameters(), lr=.05, momentum=.95))
    theirs = fastai_loaders(df, 'is_valid', bs, device)
    config = dict(emb_sz=nh, n_hid=nh, n_layers=2, pad_token=1, bidir=False, output_p=.35, hidden_p=.25, input_p=.15, embed_p=.02, weight_p=.2)
    awd = text_classifier_learner(theirs, AWD_LSTM, pretrained=False, config=config, metrics=[])
    return dict(ours=partial(inside_learner, learner()), bare=bare(False), ours_bf16=partial(inside_learner, learner().to_bf16()), bare_bf16=bare(True), qrnn_bf16=partial(inside_learner, learner(cell='qrnn').to_bf16()), awd_lstm=partial(inside_learner, awd, 1e-3)), dls


@call_parse
def main(
    device: str = 'cpu', # cpu or cuda
    rounds: int = 5, # measurements of each
    bs: int = 128, # titles in a batch
):
    "Measure, compare, save"
    found = dict(peak={str(d).split('.')[-1]: peak(device, d) for d in (torch.float32, torch.bfloat16)})
    for nh, rows in ((128, 4_096), (512, 1_024)):
        rows *= 8 if device == 'cuda' else 1
        df = usda_foods().sample(rows + 64, random_state=0).reset_index(drop=True)
        top = df['category'].value_counts().index[0]
        df.loc[rows:, 'category'] = top  # so that every validation title has a category that is known
        df['is_valid'] = np.arange(len(df)) >= rows
        runs, dls = contenders(df, nh, bs, device)
        for run in runs.values(): run()
        took = [{n: run() for n, run in runs.items()} for _ in range(rounds)]
        speed = {n: rows / median(t[n] for t in took) for n in runs}
        net = bpv_learner(dls, nh=nh).model
        macs = 3 * sum(4 * nh * (w + nh) for w in (net.config['emb_sz'], nh)) * float(dls.train_ds.titles.lengths.mean())  # forward, and twice that backward
        found[f'width_{nh}'] = dict(rows=rows, titles_per_second=speed, overhead=median(t['ours'] / t['bare'] for t in took), overhead_bf16=median(t['ours_bf16'] / t['bare_bf16'] for t in took),
            over_awd_lstm=median(t['awd_lstm'] / t['ours'] for t in took), bf16_over_awd_lstm=median(t['awd_lstm'] / t['ours_bf16'] for t in took),
            qrnn_over_lstm_bf16=median(t['ours_bf16'] / t['qrnn_bf16'] for t in took), share_of_peak=speed['ours'] * macs / found['peak']['float32'], share_of_peak_bf16=speed['ours_bf16'] * macs / found['peak']['bfloat16'])
        print(f"width {nh}: " + ', '.join(f'{n} {v:,.0f} titles/s' for n, v in speed.items()))
        print('  ' + ', '.join(f'{n} {v:.2f}' for n, v in found[f'width_{nh}'].items() if isinstance(v, float)), flush=True)
    save('train' if device == 'cpu' else f'train_{device}', found | dict(rounds=rounds, bs=bs))
