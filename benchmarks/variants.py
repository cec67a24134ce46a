"""What else was tried in the network, and ways to join it with the bag of n-grams: weighted F1 on the same titles and
epochs, several seeds.

    python benchmarks/variants.py

10,000 USDA titles train, 20,000 others judge (the splits of benchmarks/curve.py; a seed is a split, weights and an
order of batches). One forward network 128 wide, 12 epochs, most probable category. `gain` is over the paper's network
(of ways to join: over the plain average of log-probabilities), seed by seed, with its 95% interval. Runs are kept in
benchmarks/results/variants and not repeated."""
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import f1_of_logits, fit, half_interval, log_probs_of, results, save
from fastai.callback.training import GradientClip
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.text.models.awdlstm import RNNDropout
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from splits import loaders, usda_split
from torch import nn
from torch.nn import functional as F

from bpv_fastai.data.errors import TrainingDiverged
from bpv_fastai.data.samples import usda_foods
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.models.average import fit_shares
from bpv_fastai.models.network import TitleEncoder
from bpv_fastai.models.ngrams import fold_characters
from bpv_fastai.models.pooling import pool_views
from bpv_fastai.models.precision import means_bf16
from bpv_fastai.train.recipe import ngram_epochs

runs = results/'variants'
n_titles, epochs = 10_000, 12


# Recurrent layers


class Layers(nn.Module):
    "Recurrent layers one by one, with something between them; called as nn.LSTM is"
    def __init__(self, n_in, nh, n_layers, batch_first, dropout, between, norm=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(n_in if i == 0 else nh, nh, batch_first=True) for i in range(n_layers))
        self.norms = nn.ModuleList(norm(nh) if norm else nn.Identity() for _ in self.layers)
        self.between = between(dropout)

    def forward(self, x):
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            if i: x = self.between(x)
            x = norm(layer(x)[0])
        return x, None


def variational(*args, **kwargs): return Layers(*args, **kwargs, between=RNNDropout)
def layer_norm(*args, **kwargs): return Layers(*args, **kwargs, between=nn.Dropout, norm=nn.LayerNorm)


class LearnedStart(nn.LSTM):
    "The first hidden and cell state are parameters"
    def __init__(self, n_in, nh, n_layers, **kwargs):
        super().__init__(n_in, nh, n_layers, **kwargs)
        self.h0, self.c0 = (nn.Parameter(torch.zeros(n_layers, 1, nh)) for _ in range(2))

    def forward(self, x):
        return super().forward(x, tuple(s.expand(-1, len(x), -1).contiguous() for s in (self.h0, self.c0)))


class CharConv(nn.Module):
    "A convolution over each character and its neighbours, before the recurrent layers"
    def __init__(self, width: int, size: int = 5):
        super().__init__()
        self.conv = nn.Conv1d(width, width, size, padding=size // 2)

    def forward(self, x): return x + self.conv(x.transpose(1, 2)).relu().transpose(1, 2)


class WordsFromChars(nn.Module):
    """Word embeddings convolved from characters, and an LSTM over the words, in the place of the encoder.

    As Kim et al. 2016, but the windows look into the neighbouring words, too."""
    def __init__(self, vocab_sz: int, letter_of: list, nh: int, emb_sz: int,
                 sizes: dict = {1: 16, 2: 32, 3: 48, 4: 64, 5: 64}):
        super().__init__()
        self.register_buffer('letter_of', torch.tensor(letter_of))
        self.emb = nn.Embedding(vocab_sz, emb_sz, padding_idx=0)
        self.emb_drop, self.word_drop = nn.Dropout(.15), nn.Dropout(.15)
        self.convs = nn.ModuleList(nn.Conv1d(emb_sz, n, size) for size, n in sizes.items())
        self.rnn = nn.LSTM(sum(sizes.values()), nh, 2, batch_first=True, dropout=.25)

    def forward(self, x):
        is_letter = self.letter_of[x] > 0
        begins = is_letter & ~F.pad(is_letter, (1, 0))[:, :-1]
        word = torch.where(is_letter, begins.long().cumsum(1), 0)  # from 1
        chars = self.emb_drop(self.emb(x)).transpose(1, 2)
        def padded(size): return F.pad(chars, (size // 2, size - 1 - size // 2))
        features = torch.cat([conv(padded(conv.kernel_size[0])) for conv in self.convs], 1).relu().transpose(1, 2)
        words = features.new_zeros(len(x), max(1, int(word.max())) + 1, features.shape[2])
        words = words.scatter_reduce(1, word[..., None].expand_as(features), features, 'amax')[:, 1:]
        mask = torch.arange(words.shape[1], device=x.device) >= word.amax(1, keepdim=True)
        return self.rnn(self.word_drop(words))[0], mask


# Heads


class Attention(nn.Module):
    "Additive attention beside the four views; a penalty keeps several hops apart"
    def __init__(self, nh: int, n_categories: int, hops: int, p: float = .35):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(nh, 64), nn.Tanh(), nn.Linear(64, hops, bias=False))
        self.drop, self.linear = nn.Dropout(p), nn.Linear((4 + hops) * nh, n_categories)

    def forward(self, input):
        output, mask = input
        output = output.float()
        a = self.score(output).masked_fill(mask[..., None], -1e4).softmax(1)  # (bs, longest, hops)
        overlap = a.transpose(1, 2) @ a - torch.eye(a.shape[2])
        self.penalty = overlap.square().sum((1, 2)).mean() if a.shape[2] > 1 else 0.
        views = torch.cat([pool_views(output, mask), (a.transpose(1, 2) @ output).flatten(1)], 1)
        return self.linear(self.drop(views)), output, output


class AdaptiveHead(nn.Module):
    "Adaptive softmax in the place of the linear layer; log-probabilities of all categories"
    def __init__(self, nh: int, n_categories: int, p: float = .35):
        super().__init__()
        self.drop = nn.Dropout(p)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(4 * nh, n_categories, [n_categories // 8, n_categories // 2])

    def forward(self, input): return self.softmax.log_prob(self.drop(pool_views(*input).float())), *input


# Variants: functions from loaders to an untrained learner


def with_attention(hops: int):
    def make(dls):
        learn = bpv_learner(dls, nh=128)
        learn.model.head = Attention(128, dls.c, hops)
        def loss_func(logits, y): return F.cross_entropy(logits, y) + .01 * learn.model.head.penalty
        if hops > 1: learn.loss_func = loss_func
        return learn
    return make


def changed(change):
    def make(dls):
        learn = bpv_learner(dls, nh=128)
        change(learn.model, dls)
        return learn
    return make


def with_options(**options):
    def make(dls): return bpv_learner(dls, **dict(nh=128) | options)
    return make


def conv_front(model, dls):
    model.encoder.emb_drop = nn.Sequential(model.encoder.emb_drop, CharConv(model.config['emb_sz']))


def words_from_chars(model, dls):
    letters, _ = fold_characters(dls.char_vocab.chars)
    model.encoder = WordsFromChars(len(dls.char_vocab), letters, 128, model.config['emb_sz'])


def adaptive(model, dls): model.head = AdaptiveHead(128, dls.c)


def variational_dropout(model, dls):
    model.encoder.emb_drop = RNNDropout(.15)
    model.encoder.rnn = variational(model.encoder.rnn.input_size, 128, 2, batch_first=True, dropout=.25)


variants = {
    'balanced pooling views, LSTM': with_options(),
    'GRU': with_options(cell=nn.GRU),
    'QRNN': with_options(cell='qrnn'),
    'one layer': with_options(n_layers=1),
    'attention as a fifth view': with_attention(1),
    'attention, 4 hops and penalty': with_attention(4),
    'variational dropout': changed(variational_dropout),
    'layer norm': with_options(cell=layer_norm),
    'learned first state': with_options(cell=LearnedStart),
    'gradients clipped at 1': lambda dls: bpv_learner(dls, nh=128, cbs=GradientClip(1.)),
    'label smoothing .1': with_options(loss_func=LabelSmoothingCrossEntropyFlat(eps=.1)),
    'adaptive softmax': changed(adaptive),
    'convolution before the LSTM': changed(conv_front),
    'words convolved from characters': changed(words_from_chars),
    'dropouts halved': with_options(drop_mult=.5),
}


# A pretrained encoder


def language_model(seed: int, judged: list, n: int = 100_000, n_epochs: int = 3) -> tuple[dict, float]:
    """Train an encoder to predict each next character of titles without labels, none of which is judged on.

    Returns its weights, and the seconds."""
    judged_id = zlib.crc32(repr(sorted(judged)).encode())
    path = Path(__file__).parent/'runs'/f'language_model_{seed}_{judged_id}.pt'
    if path.exists(): return torch.load(path)
    foods = usda_foods()
    others = foods[~foods['title'].isin(set(judged))].sample(n, random_state=seed)
    set_seed(seed)
    dls = loaders(others, others[:50], seed)  # its categories are not used
    start = time.process_time()
    net = TitleEncoder(len(dls.char_vocab), nh=128, emb_p=.05, hidden_p=.1)
    out = nn.Linear(128, len(dls.char_vocab))
    opt = torch.optim.Adam([*net.parameters(), *out.parameters()], lr=2e-3)
    n_steps = n_epochs * len(dls.train) + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=n_steps)
    smoothed_loss, bf16 = 0., means_bf16('auto', dls.device)
    for _ in range(n_epochs):
        for x, _ in dls.train:
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16): states, _ = net(x[:, :-1])
            loss = F.cross_entropy(out(states.float()).transpose(1, 2), x[:, 1:], ignore_index=0)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
            smoothed_loss = .99 * smoothed_loss + .01 * loss.item()
    model = dict(weights=net.state_dict(), chars=dls.char_vocab.chars, loss=smoothed_loss)
    result = model, time.process_time() - start
    path.parent.mkdir(exist_ok=True)
    torch.save(result, path)
    return result


def pretrained(dls, model: dict):
    "Create a learner with the encoder of a language model; a character new to it begins as the unknown one"
    learn = bpv_learner(dls, nh=128, emb_sz=model['weights']['emb.weight'].shape[1])
    id_of = {c: i for i, c in enumerate(model['chars'], 4)}
    ids = [0, 1, 2, 3] + [id_of.get(c, 3) for c in dls.char_vocab.chars]
    learn.model.encoder.load_state_dict(model['weights'] | {'emb.weight': model['weights']['emb.weight'][ids]})
    return learn


# Ways to join a network and a bag of n-grams


class OnTop(nn.Module):
    "A network that adds to the logits of a trained bag"
    autocast = None
    def __init__(self, bag, net):
        super().__init__()
        self.net, self.frozen = net, [bag.eval()]  # in a list: neither trained nor put into train mode

    def forward(self, x):
        with torch.no_grad(): logits = self.frozen[0](x)
        self.net.autocast = self.autocast
        return logits + self.net(x)


def gated(valid: list, targs: torch.Tensor, test: list) -> torch.Tensor:
    "Weigh network and bag by title, from how sure both are; the gate is fitted on validation titles"
    def features(pair):
        largest = [p.exp().amax(1) for p in pair]
        entropies = [-(p.exp() * p).sum(1) for p in pair]
        return torch.stack(largest + entropies, 1)

    gate = nn.Linear(4, 1)
    opt = torch.optim.LBFGS(gate.parameters(), max_iter=100)

    def mixed(pair):
        share = gate(features(pair)).sigmoid()
        return share * pair[0] + (1 - share) * pair[1]

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(mixed(valid), targs)
        loss.backward()
        return loss

    opt.step(closure)
    with torch.no_grad(): return mixed(test)


def joins(train, valid, test, seed: int) -> dict:
    "Score one network and one bag, joined in several ways"
    dls, valid_dl = loaders(train, test, seed), loaders(train, valid, seed).valid
    net, bag = bpv_learner(dls.with_train(seed=seed), nh=128), ngram_learner(dls)
    net_seconds = fit(net, epochs)
    bag_seconds = fit(bag, ngram_epochs(len(train)), bag=True)
    on_test = [log_probs_of(learn, dls.valid) for learn in (net, bag)]
    on_valid = [log_probs_of(learn, valid_dl) for learn in (net, bag)]
    valid_targs = torch.as_tensor(np.asarray(valid_dl.dataset.targets))
    shares = fit_shares(on_valid, valid_targs)
    top = bpv_learner(dls.with_train(seed=seed), nh=128)
    top.model = OnTop(bag.model, top.model)
    top_seconds = bag_seconds + fit(top, epochs)
    both_seconds = net_seconds + bag_seconds
    ways = {
        'network alone': (on_test[0], net_seconds),
        'bag alone': (on_test[1], bag_seconds),
        'probabilities averaged': (on_test[0].exp() + on_test[1].exp(), both_seconds),
        'log-probabilities averaged': (on_test[0] + on_test[1], both_seconds),
        'log-probabilities, shares fitted': (shares[0] * on_test[0] + shares[1] * on_test[1], both_seconds),
        'a gate by title': (gated(on_valid, valid_targs, on_test), both_seconds),
        'first the bag, the network on top': (log_probs_of(top, dls.valid), top_seconds)}
    return {way: dict(f1=f1_of_logits(logits, dls.valid_ds.targets), seconds=seconds)
            for way, (logits, seconds) in ways.items()}


def run(seed: int, judged: list):
    "Train and score all variants on one split, each kept as soon as it is done"
    path = runs/f'{seed}.json'
    done = json.loads(path.read_text()) if path.exists() else dict(variants={}, joins={})

    def keep():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(done, indent=1))

    train, valid, test = usda_split(n_titles, seed)
    dls = loaders(train, test, seed)
    def f1(learn): return f1_of_logits(log_probs_of(learn, dls.valid), dls.valid_ds.targets)
    for name, make in variants.items():
        if name in done['variants']: continue
        for lr in (1., .5, .25):  # halved where it diverges
            set_seed(seed)
            learn = make(dls.with_train(seed=seed))
            try: seconds = fit(learn, epochs, lr=lr)
            except TrainingDiverged as e:
                print(seed, name, lr, e, flush=True)
                continue
            done['variants'][name] = dict(f1=f1(learn), seconds=seconds, lr=lr)
            keep()
            break
        print(seed, name, done['variants'].get(name, 'diverged'), flush=True)
    if 'pretrained' not in done['variants']:
        model, model_seconds = language_model(0, judged)
        set_seed(seed)
        learn = pretrained(dls.with_train(seed=seed), model)
        seconds = model_seconds + fit(learn, epochs)
        done['variants']['pretrained'] = dict(f1=f1(learn), seconds=seconds, language_model_loss=model['loss'])
        keep()
        print(seed, 'pretrained', done['variants']['pretrained'], flush=True)
    if not done['joins']:
        set_seed(seed)
        done['joins'] = joins(train, valid, test, seed)
        keep()
        print(seed, done['joins'], flush=True)


def summary(scores: list, base: list) -> dict:
    "Average over seeds, with the gain over `base` and half its 95% interval"
    f1 = np.array([s['f1'] for s in scores])
    gain = f1 - np.array([s['f1'] for s in base])
    return dict(f1=float(f1.mean()), gain=float(gain.mean()), half=half_interval(gain), seeds=len(f1),
                seconds=float(np.median([s['seconds'] for s in scores])))


@call_parse
def main(
    seeds: int = 3, # splits
    tables: bool = False, # only the tables
):
    "Train, judge, save"
    judged = [title for seed in range(seeds) for title in usda_split(n_titles, seed)[2]['title']]
    if not tables:
        for seed in range(seeds): run(seed, judged)
    done = [json.loads(path.read_text()) for seed in range(seeds) if (path := runs/f'{seed}.json').exists()]
    result = {}
    for kind, base in (('variants', 'balanced pooling views, LSTM'), ('joins', 'log-probabilities averaged')):
        names = [name for name in done[0][kind] if all(name in d[kind] for d in done)]
        result[kind] = {n: summary([d[kind][n] for d in done], [d[kind][base] for d in done]) for n in names}
        print(pd.DataFrame(result[kind]).T.round(4).to_string())
    save('variants', result | dict(titles=n_titles, epochs=epochs, nh=128))
