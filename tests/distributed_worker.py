"One of several processes that train a network together; prints one line of JSON for each scenario (see test_distributed.py)."
import datetime
import json
import os
import sys

import torch
from fastai.basics import Callback, rank_distrib, set_seed
from fastai.callback.all import SaveModelCallback, TerminateOnNaNCallback
from fastai.distributed import *

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders

rank, bs = rank_distrib(), int(sys.argv[1])
several = 'WORLD_SIZE' in os.environ
torch.set_num_threads(1)
if several: torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=20))


def loaders(**kwargs):
    return TitleDataLoaders.from_df(synthetic_catalog(640, 4), valid_pct=.2, bs=bs, verbose=False, device='cpu', **kwargs)


def learner(kind='lstm', seed=0, **kwargs):
    set_seed(seed)
    if kind == 'bag': return ngram_learner(loaders(**kwargs), n_rows=2**12, dim=8, output_p=0.)
    return bpv_learner(loaders(**kwargs), nh=8, cell=kind, drop_mult=0.)


def fit(learn, n_epoch=2, lr=.5, **kwargs):
    with learn.quiet(), learn.distrib_ctx(): learn.fit(n_epoch, lr, **kwargs)
    return learn


def trained(kind):
    learn = fit(learner(kind, seed=rank))  # the weights of the first process count
    with learn.quiet():
        probs, targs, losses = learn.get_preds(with_loss=True)
        with learn.distrib_ctx(): inside, *_ = learn.get_preds()
    weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    new = synthetic_catalog(50, 4).title
    return dict(weights=weights[::7].tolist(), probs=probs.flatten().tolist(), inside=inside.flatten().tolist(),
                targs=targs.tolist(), losses=losses.tolist(), scores=list(learn.final_record)[1:],
                confidence=learn.decide(new).confidence.tolist())


def error(f):
    try: f()
    except Exception as e: return f'{type(e).__name__}: {e}'


class Poison(Callback):
    "Make the loss of the second process NaN"
    def after_pred(self):
        if rank == 1 and self.training and self.train_iter == 3: self.learn.pred = self.pred * torch.nan


def diverged():
    learn = learner()
    message = error(lambda: fit(learn, cbs=Poison()))
    return dict(message=message, stopped=learn.train_iter, whole=len(learn.dls.train), model=type(learn.model).__name__)


def found():
    learn = learner()
    with learn.quiet(), learn.distrib_ctx(): return error(learn.lr_find)


def saved():
    learn = fit(learner(), cbs=SaveModelCallback())
    best = min(values[1] for values in learn.recorder.values)
    with learn.quiet(): return abs(learn.validate()[0] - best) < 1e-5


scenarios = dict(
    lstm=lambda: trained('lstm'), qrnn=lambda: trained('qrnn'), bag=lambda: trained('bag'))
if several:
    scenarios |= dict(
        diverged=diverged, saved=saved, found=found, resumed=lambda: error(lambda: fit(learner(), resume=True)),
        nan=lambda: error(lambda: fit(learner(), cbs=TerminateOnNaNCallback())),
        seeds=lambda: error(lambda: fit(bpv_learner(loaders(seed=rank), nh=8))),
        plain=lambda: error(lambda: learner().add_cb(DistributedTrainer(cpu=True))))
print(json.dumps({name: scenario() for name, scenario in scenarios.items()}))
