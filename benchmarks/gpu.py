"""What a GPU makes of the challenge's size: seconds for an epoch, the share of time outside the recurrent kernels, members side by side.

    python benchmarks/gpu.py                                              # two layers of 512, 600,000 synthetic titles; needs a GPU
    python benchmarks/gpu.py --device cpu --titles 3000 --nh 64 --bs 64    # only to see that it runs

Loading included, everything warmed up by one epoch before it is timed. A profile tells the recurrent kernels from the rest."""
import gc
import time
from statistics import median

import torch
from common import save
from fastcore.script import call_parse
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train import inside_learner

from bpv_fastai.all import *

recurrent = ('aten::_cudnn_rnn', 'aten::_cudnn_rnn_backward', 'aten::_thnn_fused_lstm_cell', 'aten::mkldnn_rnn_layer', 'aten::mkldnn_rnn_layer_backward')  # the loop of its own in which wide networks train on a CPU in bf16 is not told apart


def learner(dls, nh: int, precision: str):
    learn = bpv_learner(dls, nh=nh, metrics=[]).remove_cb(F1Calibration)
    return learn if precision == 'fp32' else getattr(learn, f'to_{precision}')()


def outside_recurrence(learn, device: str) -> float:
    "Share of the time of one epoch (of the GPU's kernels, or of the CPU's) that is not in the recurrent layers"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')) as found: inside_learner(learn)
    mine, whole = ('self_device_time_total', 'device_time_total') if device == 'cuda' else ('self_cpu_time_total', 'cpu_time_total')
    events = found.key_averages()
    kernels = [e for e in events if device == 'cpu' or e.device_type != DeviceType.CPU and not e.is_user_annotation]  # what launched a kernel has its time, too
    return 1 - sum(getattr(e, whole) for e in events if e.key in recurrent) / sum(getattr(e, mine) for e in kernels)


def side_by_side(dls, members: int, nh: int, precision: str) -> tuple[float, float]:
    "Seconds for one epoch of one member, in this process, and of `members` at once, each in a process of its own whose start is counted; both with calibration"
    def seconds(n):
        start = time.perf_counter()
        Ensemble.train(dls, directions=[i % 2 == 1 for i in range(n)], epochs=1, n_jobs=n, nh=nh, bf16=precision == 'bf16', progress=False)
        return time.perf_counter() - start
    return seconds(1), seconds(members)


@call_parse
def main(
    device: str = 'cuda', # cuda or cpu
    titles: int = 600_000, # synthetic titles to train on
    categories: int = 3_000, # of them
    nh: int = 512, # width
    bs: int = 256, # titles in a batch
    members: int = 6, # side by side
    rounds: int = 5, # epochs timed, for each precision
):
    "Measure, save"
    df = synthetic_catalog(titles + 1_000, categories)
    df['is_valid'] = df.index >= titles
    options = dict(valid_col='is_valid', bs=bs, val_bs=512, device=device, on_bad='drop', verbose=False)
    dls = TitleDataLoaders.from_df(df, **options)
    few = TitleDataLoaders.from_df(df.drop(df.index[20 * bs:titles]), char_vocab=dls.char_vocab, vocab=dls.vocab, **options)  # enough for a profile
    found = dict(titles=len(dls.train_ds), mean_length=float(dls.train_ds.titles.lengths.mean()), nh=nh, bs=bs, members=members, precisions={})
    for precision in ('fp32', 'bf16', *(['fp16'] if device == 'cuda' else [])):
        learn = None
        if device == 'cuda': gc.collect(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        learn = learner(dls, nh, precision)
        inside_learner(learn)
        row = dict(seconds_per_epoch=median(inside_learner(learn) for _ in range(rounds)), outside_recurrence=outside_recurrence(learner(few, nh, precision), device))
        if device == 'cuda': row['gb'] = torch.cuda.max_memory_allocated() / 1e9
        found['precisions'][precision] = row
        print(precision, {k: round(v, 3) for k, v in row.items()}, flush=True)
    one, many = side_by_side(dls, members, nh, 'bf16')
    found |= dict(one_member=one, all_members=many, ratio=many / one)
    print(f'{members} members side by side: {many:.1f} s, one alone {one:.1f} s, {many / one:.2f} times')
    if device == 'cuda': save('gpu', found)
