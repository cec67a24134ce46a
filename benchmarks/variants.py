"""What else was tried in the network, and ways to join it with the bag of n-grams: weighted F1 on the same titles and epochs, several seeds.

    python benchmarks/variants.py

10,000 USDA titles train, 20,000 others judge (the splits of benchmarks/curve.py; a seed is a split, weights and an order of batches). One forward
network 128 wide, 12 epochs, most probable category. `gain` is over the paper's network (of ways to join: over
the plain average of log-probabilities), seed by seed, with its 95% interval. Runs are kept in
benchmarks/results/variants; what is there is not run again."""
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import half_interval, results, save
from curve import loaders, split
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.training import GradientClip
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.text.models.awdlstm import RNNDropout
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from torch import nn
from torch.nn import functional as F

from bpv_fastai.all import *

runs = results/'variants'
n_titles, epochs = 10_000, 12


class NoValidation(Callback):
    "Scores are taken once, at the end"
    def before_validate(self): raise CancelValidException()


class Layers(nn.Module):
    "Recurrent layers one by one, with something between them; called as nn.LSTM is"
    def __init__(self, n_in, nh, n_layers, batch_first, dropout, between, norm=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(n_in if i == 0 else nh, nh, batch_first=True) for i in range(n_layers))
        self.norms, self.between = nn.ModuleList(norm(nh) if norm else nn.Identity() for _ in self.layers), between(dropout)

    def forward(self, x):
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms)): x = norm(layer(self.between(x) if i else x)[0])
        return x, None


def variational(*args, **kwargs): return Layers(*args, **kwargs, between=RNNDropout)
def layer_norm(*args, **kwargs): return Layers(*args, **kwargs, between=nn.Dropout, norm=nn.LayerNorm)


class LearnedStart(nn.LSTM):
    "The first hidden and cell state are parameters"
    def __init__(self, n_in, nh, n_layers, **kwargs):
        super().__init__(n_in, nh, n_layers, **kwargs)
        self.h0, self.c0 = (nn.Parameter(torch.zeros(n_layers, 1, nh)) for _ in range(2))

    def forward(self, x): return super().forward(x, tuple(s.expand(-1, len(x), -1).contiguous() for s in (self.h0, self.c0)))


class CharConv(nn.Module):
    "Each character and its neighbours, before the recurrent layers"
    def __init__(self, width: int, size: int = 5):
        super().__init__()
        self.conv = nn.Conv1d(width, width, size, padding=size // 2)

    def forward(self, x): return x + self.conv(x.transpose(1, 2)).relu().transpose(1, 2)


class WordsFromChars(nn.Module):
    "Word embeddings convolved from characters (as Kim et al. 2016, but the windows look into the neighbouring words, too), and an LSTM over the words, in the place of the encoder"
    def __init__(self, vocab_sz: int, letter_of: list, nh: int, emb_sz: int, sizes: dict = {1: 16, 2: 32, 3: 48, 4: 64, 5: 64}):
        super().__init__()
        self.register_buffer('letter_of', torch.tensor(letter_of))
        self.emb, self.emb_drop, self.word_drop = nn.Embedding(vocab_sz, emb_sz, padding_idx=0), nn.Dropout(.15), nn.Dropout(.15)
        self.convs = nn.ModuleList(nn.Conv1d(emb_sz, n, size) for size, n in sizes.items())
        self.rnn = nn.LSTM(sum(sizes.values()), nh, 2, batch_first=True, dropout=.25)

    def forward(self, x):
        letter = self.letter_of[x] > 0
        begins = letter & ~F.pad(letter, (1, 0))[:, :-1]
        word = torch.where(letter, begins.long().cumsum(1), 0)  # from 1
        chars = self.emb_drop(self.emb(x)).transpose(1, 2)
        found = torch.cat([conv(F.pad(chars, ((size := conv.kernel_size[0]) // 2, size - 1 - size // 2))) for conv in self.convs], 1).relu().transpose(1, 2)
        words = found.new_zeros(len(x), max(1, int(word.max())) + 1, found.shape[2]).scatter_reduce(1, word[..., None].expand_as(found), found, 'amax')[:, 1:]
        return self.rnn(self.word_drop(words))[0], torch.arange(words.shape[1], device=x.device) >= word.amax(1, keepdim=True)


class Attention(nn.Module):
    "Additive attention beside the four views; several hops are kept apart by a penalty"
    def __init__(self, nh: int, n_categories: int, hops: int, p: float = .35):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(nh, 64), nn.Tanh(), nn.Linear(64, hops, bias=False))
        self.drop, self.linear = nn.Dropout(p), nn.Linear((4 + hops) * nh, n_categories)

    def forward(self, input):
        output, mask = input
        output = output.float()
        a = self.score(output).masked_fill(mask[..., None], -1e4).softmax(1)  # (bs, longest, hops)
        self.penalty = (a.transpose(1, 2) @ a - torch.eye(a.shape[2])).square().sum((1, 2)).mean() if a.shape[2] > 1 else 0.
        return self.linear(self.drop(torch.cat([pool_views(output, mask), (a.transpose(1, 2) @ output).flatten(1)], 1))), output, output


class AdaptiveHead(nn.Module):
    "Adaptive softmax in the place of the linear layer; log-probabilities of all categories"
    def __init__(self, nh: int, n_categories: int, p: float = .35):
        super().__init__()
        self.drop, self.softmax = nn.Dropout(p), nn.AdaptiveLogSoftmaxWithLoss(4 * nh, n_categories, [n_categories // 8, n_categories // 2])

    def forward(self, input): return self.softmax.log_prob(self.drop(pool_views(*input).float())), *input


def with_attention(hops: int):
    def made(dls):
        learn = bpv_learner(dls, nh=128)
        learn.model.head = Attention(128, dls.c, hops)
        if hops > 1: learn.loss_func = lambda logits, y: F.cross_entropy(logits, y) + .01 * learn.model.head.penalty
        return learn
    return made


def changed(change):
    def made(dls):
        learn = bpv_learner(dls, nh=128)
        change(learn.model, dls)
        return learn
    return made


def conv_front(model, dls): model.encoder.emb_drop = nn.Sequential(model.encoder.emb_drop, CharConv(model.config['emb_sz']))
def words_from_chars(model, dls): model.encoder = WordsFromChars(len(dls.char_vocab), letter_ids(dls.char_vocab.chars), 128, model.config['emb_sz'])
def adaptive(model, dls): model.head = AdaptiveHead(128, dls.c)
def variational_dropout(model, dls):
    model.encoder.emb_drop, old = RNNDropout(.15), model.encoder.rnn
    model.encoder.rnn = variational(old.input_size, 128, 2, batch_first=True, dropout=.25)


variants = {
    'balanced pooling views, LSTM': lambda dls: bpv_learner(dls, nh=128),
    'GRU': lambda dls: bpv_learner(dls, nh=128, cell=nn.GRU),
    'QRNN': lambda dls: bpv_learner(dls, nh=128, cell='qrnn'),
    'one layer': lambda dls: bpv_learner(dls, nh=128, n_layers=1),
    'attention as a fifth view': with_attention(1),
    'attention, 4 hops and penalty': with_attention(4),
    'variational dropout': changed(variational_dropout),
    'layer norm': lambda dls: bpv_learner(dls, nh=128, cell=layer_norm),
    'learned first state': lambda dls: bpv_learner(dls, nh=128, cell=LearnedStart),
    'gradients clipped at 1': lambda dls: bpv_learner(dls, nh=128, cbs=GradientClip(1.)),
    'label smoothing .1': lambda dls: bpv_learner(dls, nh=128, loss_func=LabelSmoothingCrossEntropyFlat(eps=.1)),
    'adaptive softmax': changed(adaptive),
    'convolution before the LSTM': changed(conv_front),
    'words convolved from characters': changed(words_from_chars),
    'dropouts halved': lambda dls: bpv_learner(dls, nh=128, drop_mult=.5),
}


def fit(learn, n_epochs: int = 0, bag: bool = False, lr: float = 1.) -> float:
    "Train quietly; gives the seconds of one core"
    learn.remove_cb(F1Calibration)
    if not bag and means_bf16('auto', learn.dls.device): learn.to_bf16()
    start = time.process_time()
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValidation()):
        if bag: learn.fit_flat_cos(n_epochs, pct_start=0)
        else: learn.fit_linear_cycle(n_epochs or epochs, lr)
    return time.process_time() - start


def log_probs(learn, dl) -> torch.Tensor:
    with learn.no_bar(): return learn.get_preds(dl=dl)[0].clamp(min=1e-9).log()


def score(logits: torch.Tensor, targs) -> float: return CategoryCounts(logits.shape[1]).add(np.asarray(targs), logits.argmax(1).numpy()).averages()['f1']


def language_model(seed: int, judged, n: int = 100_000, n_epochs: int = 3) -> tuple[dict, float]:
    "An encoder that learned to guess each next character of titles without labels, none of which is judged on; gives its weights and the seconds"
    path = Path(__file__).parent/'runs'/f'language_model_{seed}_{zlib.crc32(repr(sorted(judged)).encode())}.pt'
    if path.exists(): return torch.load(path)
    rest = usda_foods()
    rest = rest[~rest['title'].isin(set(judged))].sample(n, random_state=seed)
    set_seed(seed)
    dls = loaders(rest, rest[:50], seed)  # its categories are not used
    net, start = TitleEncoder(len(dls.char_vocab), nh=128, emb_p=.05, hidden_p=.1), time.process_time()
    out = nn.Linear(128, len(dls.char_vocab))
    opt = torch.optim.Adam([*net.parameters(), *out.parameters()], lr=2e-3)
    schedule, total = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=n_epochs * len(dls.train) + 1), 0.
    for _ in range(n_epochs):
        for x, _ in dls.train:
            with torch.autocast('cpu', torch.bfloat16, enabled=means_bf16('auto', dls.device)): states = net(x[:, :-1])[0]
            loss = F.cross_entropy(out(states.float()).transpose(1, 2), x[:, 1:], ignore_index=0)
            opt.zero_grad(); loss.backward(); opt.step(); schedule.step(); total = .99 * total + .01 * loss.item()
    found = dict(weights=net.state_dict(), chars=dls.char_vocab.chars, loss=total), time.process_time() - start
    path.parent.mkdir(exist_ok=True)
    torch.save(found, path)
    return found


def pretrained(dls, found: dict):
    "A network that begins with the encoder of a language model; a character that it has not met begins as the unknown one"
    learn, theirs, mine = bpv_learner(dls, nh=128, emb_sz=found['weights']['emb.weight'].shape[1]), {c: i for i, c in enumerate(found['chars'], 4)}, dls.char_vocab.chars
    weights = dict(found['weights'])
    at = [0, 1, 2, 3] + [theirs.get(c, 3) for c in mine]
    weights['emb.weight'] = weights['emb.weight'][at]
    learn.model.encoder.load_state_dict(weights)
    return learn


class OnTop(nn.Module):
    "A network that adds to the logits of a bag that is trained already"
    autocast = None
    def __init__(self, bag, net):
        super().__init__()
        self.net, self.frozen = net, [bag.eval()]  # in a list: neither trained nor put into train mode

    def forward(self, x):
        with torch.no_grad(): known = self.frozen[0](x)
        self.net.autocast = self.autocast
        return known + self.net(x)


def gated(valid: list, targs: torch.Tensor, test: list) -> torch.Tensor:
    "The share of the network by title, from how sure both are; fitted on validation titles"
    def features(pair): return torch.stack([p.exp().amax(1) for p in pair] + [-(p.exp() * p).sum(1) for p in pair], 1)
    gate = nn.Linear(4, 1)
    opt = torch.optim.LBFGS(gate.parameters(), max_iter=100)
    def mixed(pair): g = gate(features(pair)).sigmoid(); return g * pair[0] + (1 - g) * pair[1]
    def closure(): opt.zero_grad(); loss = F.cross_entropy(mixed(valid), targs); loss.backward(); return loss
    opt.step(closure)
    with torch.no_grad(): return mixed(test)


def joins(train, valid, test, seed: int) -> dict:
    "One network and one bag, joined in several ways"
    dls, held = loaders(train, test, seed), loaders(train, valid, seed).valid
    net, bag, targs = bpv_learner(dls.with_train(seed=seed), nh=128), ngram_learner(dls), dls.valid_ds.targets
    seconds = [fit(net), fit(bag, ngram_epochs(len(train)), bag=True)]
    both, known = [log_probs(m, dls.valid) for m in (net, bag)], [log_probs(m, held) for m in (net, bag)]
    held_targs = torch.as_tensor(np.asarray(held.dataset.targets))
    shares = fit_shares(known, held_targs)
    top = bpv_learner(dls.with_train(seed=seed), nh=128)
    top.model = OnTop(bag.model, top.model)
    more = fit(top)
    def row(logits, took): return dict(f1=score(logits, targs), seconds=took)
    return {'network alone': row(both[0], seconds[0]), 'bag alone': row(both[1], seconds[1]), 'probabilities averaged': row(both[0].exp() + both[1].exp(), sum(seconds)),
            'log-probabilities averaged': row(both[0] + both[1], sum(seconds)), 'log-probabilities, shares fitted': row(shares[0] * both[0] + shares[1] * both[1], sum(seconds)),
            'a gate by title': row(gated(known, held_targs, both), sum(seconds)), 'first the bag, the network on top': row(log_probs(top, dls.valid), seconds[1] + more)}


def run(seed: int, judged: list):
    path = runs/f'{seed}.json'
    found = json.loads(path.read_text()) if path.exists() else dict(variants={}, joins={})
    def keep(): path.parent.mkdir(exist_ok=True); path.write_text(json.dumps(found, indent=1))
    train, valid, test = split(n_titles, seed)
    dls = loaders(train, test, seed)
    for name, made in variants.items():
        if name in found['variants']: continue
        for lr in (1., .5, .25):  # halved where it diverges
            set_seed(seed)
            learn = made(dls.with_train(seed=seed))
            try: seconds = fit(learn, lr=lr)
            except TrainingDiverged as e: print(seed, name, lr, e, flush=True); continue
            found['variants'][name] = dict(f1=score(log_probs(learn, dls.valid), dls.valid_ds.targets), seconds=seconds, lr=lr); keep()
            break
        print(seed, name, found['variants'].get(name, 'diverged'), flush=True)
    if 'pretrained' not in found['variants']:
        lm, more = language_model(0, judged)
        set_seed(seed)
        learn = pretrained(dls.with_train(seed=seed), lm)
        seconds = fit(learn)
        found['variants']['pretrained'] = dict(f1=score(log_probs(learn, dls.valid), dls.valid_ds.targets), seconds=seconds + more, language_model_loss=lm['loss']); keep()
        print(seed, 'pretrained', found['variants']['pretrained'], flush=True)
    if not found['joins']: set_seed(seed); found['joins'] = joins(train, valid, test, seed); keep(); print(seed, found['joins'], flush=True)


def summed(one: list, base: list) -> dict:
    "Means, and the gain over `base` with half a 95% interval"
    f1, gain = np.array([o['f1'] for o in one]), np.array([o['f1'] - b['f1'] for o, b in zip(one, base)])
    return dict(f1=float(f1.mean()), gain=float(gain.mean()), half=half_interval(gain), seeds=len(f1), seconds=float(np.median([o['seconds'] for o in one])))


@call_parse
def main(
    seeds: int = 3, # splits
    tables: bool = False, # only the tables
):
    "Train, judge, save"
    judged = [t for s in range(seeds) for t in split(n_titles, s)[2]['title']]
    if not tables:
        for seed in range(seeds): run(seed, judged)
    found = [json.loads((runs/f'{s}.json').read_text()) for s in range(seeds) if (runs/f'{s}.json').exists()]
    result = {}
    for kind, base in (('variants', 'balanced pooling views, LSTM'), ('joins', 'log-probabilities averaged')):
        names = [n for n in found[0][kind] if all(n in f[kind] for f in found)]
        result[kind] = {n: summed([f[kind][n] for f in found], [f[kind][base] for f in found]) for n in names}
        print(pd.DataFrame(result[kind]).T.round(4).to_string())
    save('variants', result | dict(titles=n_titles, epochs=epochs, nh=128))
