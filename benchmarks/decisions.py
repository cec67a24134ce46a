"""What calibration and decisions bring on real probabilities, and what they cost at the challenge's size.

    python benchmarks/decisions.py            # a minute, from the probabilities in benchmarks/results/usda_probs.npz
    python benchmarks/decisions.py --train    # make these anew: a network 128 wide on 198,000 USDA titles, 5 epochs

Every figure is cross-fitted: half of the validation titles is judged by what was fitted on the other half, over several random halvings."""
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
from common import results, save
from fastcore.script import call_parse

from bpv_fastai.all import *

saved = results/'usda_probs.npz'


def train(epochs: int, nh: int):
    "Train on three quarters of the USDA titles; keep the 24 largest probabilities of each of the others"
    dls = TitleDataLoaders.from_df(usda_foods(), bs=256, seed=42)
    learn = bpv_learner(dls, nh=nh)
    learn.fit_linear_cycle(epochs, 1.)
    with learn.no_bar(): probs, targs = learn.get_preds()
    top = as_top_probs(probs.numpy(), k=24)
    np.savez_compressed(saved, values=top.values.astype(np.float16), ids=top.ids.astype(np.int16), targs=targs.numpy().astype(np.int16),
                        n_categories=dls.c, nh=nh, epochs=epochs, train_titles=len(dls.train_ds))


@call_parse
def main(
    train_first: bool = False, # train the network and save its probabilities anew
    epochs: int = 5, # of that training
    nh: int = 128, # width of that network
):
    "Measure decisions"
    if train_first or not saved.exists(): train(epochs, nh)
