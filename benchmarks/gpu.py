"""What a GPU makes of the challenge's size: seconds for an epoch, the share of time outside the recurrent kernels,
members side by side.

    python benchmarks/gpu.py         # two layers of 512, 600,000 synthetic titles; needs a GPU
    python benchmarks/gpu.py --device cpu --titles 3000 --nh 64 --bs 64         # only to see that it runs

Loading included, everything warmed up by one epoch before it is timed. A profile tells the recurrent kernels from the
others."""
import gc
from statistics import median

import torch
from common import save
from fastcore.script import call_parse
from timing import epoch_seconds, seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.train.recipe import Member, Recipe
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.callbacks import F1Calibration
from bpv_fastai.train.loaders import TitleDataLoaders

# the loop of its own in which wide networks train on a CPU in bfloat16 is not told apart
recurrent = ('aten::_cudnn_rnn', 'aten::_cudnn_rnn_backward', 'aten::_thnn_fused_lstm_cell', 'aten::mkldnn_rnn_layer',
             'aten::mkldnn_rnn_layer_backward')


def learner(dls, nh: int, precision: str):
    "Create a learner that trains in a precision, without scores"
    learn = bpv_learner(dls, nh=nh, metrics=[]).remove_cb(F1Calibration)
    return learn if precision == 'fp32' else getattr(learn, f'to_{precision}')()


def outside_recurrence(learn, device: str) -> float:
    "Compute the share of the time of one epoch (of GPU kernels, or of the CPU) outside the recurrent layers"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=activities) as profiler: epoch_seconds(learn)
    own_time, total_time = 'self_cpu_time_total', 'cpu_time_total'
    if device == 'cuda': own_time, total_time = 'self_device_time_total', 'device_time_total'
    events = profiler.key_averages()
    kernels = events
    if device == 'cuda':  # what launched a kernel has its time, too
        kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    in_recurrence = sum(getattr(e, total_time) for e in events if e.key in recurrent)
    return 1 - in_recurrence / sum(getattr(e, own_time) for e in kernels)


def members_seconds(dls, n: int, nh: int, precision: str) -> float:
    """Train `n` members at once for one epoch, with calibration. Returns the seconds.

    One is trained in this process, several in processes of their own, whose start counts."""
    recipe = Recipe([Member('bpv', 1, i % 2 == 1, lr_max=1., kwargs=dict(nh=nh)) for i in range(n)])
    return seconds(Ensemble.train, dls, recipe, n_jobs=n, bf16=precision == 'bf16', progress=False)


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
    few_titles = df.drop(df.index[20 * bs:titles])  # enough for a profile
    few = TitleDataLoaders.from_df(few_titles, char_vocab=dls.char_vocab, vocab=dls.vocab, **options)
    result = dict(titles=len(dls.train_ds), mean_length=float(dls.train_ds.titles.lengths.mean()), nh=nh, bs=bs,
                  members=members, precisions={})
    for precision in ('fp32', 'bf16', *(['fp16'] if device == 'cuda' else [])):
        learn = None  # frees the memory of the one before
        if device == 'cuda':
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        learn = learner(dls, nh, precision)
        epoch_seconds(learn)
        row = dict(seconds_per_epoch=median(epoch_seconds(learn) for _ in range(rounds)),
                   outside_recurrence=outside_recurrence(learner(few, nh, precision), device))
        if device == 'cuda': row['gb'] = torch.cuda.max_memory_allocated() / 1e9
        result['precisions'][precision] = row
        print(precision, {k: round(v, 3) for k, v in row.items()}, flush=True)
    one, many = (members_seconds(dls, n, nh, 'bf16') for n in (1, members))
    result |= dict(one_member=one, all_members=many, ratio=many / one)
    print(f'{members} members side by side: {many:.1f} s, one alone {one:.1f} s, {many / one:.2f} times')
    if device == 'cuda': save('gpu', result)
