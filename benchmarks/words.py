"""One epoch of the network over words: beside a plain one of the same idea, and beside a QRNN over characters.

    python benchmarks/words.py
    python benchmarks/words.py --score    # trains it, too, and scores it on test titles

All take turns in one process on one thread; the ratio of each round is kept and the median reported. The plain network
is what one writes first: words and pieces by Python loops, an LSTM 256 wide in each direction in float32, PyTorch's own
optimizers. Seconds are those of the processor, as others may use the machine."""
import re
import time
import zlib
from functools import partial

import torch
from common import NoValidation, f1_of_logits, log_probs_of, save
from fastai.basics import Adam, set_seed
from fastcore.script import call_parse
from splits import labelled_split
from timing import in_turns, median_ratio
from torch import nn

from bpv_fastai.learner import bpv_learner, words_learner
from bpv_fastai.models.precision import means_bf16
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import word_epochs


class PlainWords(nn.Module):
    "An LSTM in each direction over words, which are means of hashed pieces"
    def __init__(self, n_categories: int, n_rows: int = 2**18, dim: int = 128, nh: int = 256):
        super().__init__()
        self.n_rows, self.embedding = n_rows, nn.EmbeddingBag(n_rows, dim, mode='mean', sparse=True)
        self.rnn, self.drop = nn.LSTM(dim, nh, batch_first=True, bidirectional=True), nn.Dropout(.5)
        self.linear = nn.Linear(6 * nh, n_categories)

    def rows(self, word: str) -> list:
        edged = f'<{word}>'
        pieces = [word] + [edged[i:i + n] for n in (3, 4, 5) for i in range(len(edged) - n + 1)]
        return [zlib.crc32(piece.encode()) % self.n_rows for piece in pieces]

    def forward(self, titles: list): # of lists of words
        rows = [torch.tensor(self.rows(word)) for words in titles for word in words]
        starts = torch.tensor([0] + [len(r) for r in rows[:-1]]).cumsum(0)
        vectors = self.embedding(torch.cat(rows), starts).split([len(words) for words in titles])
        packed = nn.utils.rnn.pack_sequence(vectors, enforce_sorted=False)
        states, lengths = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=-9.)
        is_word = (torch.arange(states.shape[1]) < lengths[:, None])[..., None]
        mean = (states * is_word).sum(1) / lengths[:, None]
        last = states[torch.arange(len(states)), lengths - 1]
        return self.linear(self.drop(torch.cat([last, mean, states.amax(1)], 1)))


def plain_epoch(dls, titles: list, bs: int) -> float:
    "Train the plain network for an epoch. Returns the seconds"
    net, targs = PlainWords(dls.c).train(), torch.as_tensor(dls.train_ds.targets)
    opts = torch.optim.SparseAdam(net.embedding.parameters()), torch.optim.Adam(
        [p for name, p in net.named_parameters() if 'embedding' not in name])
    start = time.process_time()
    for ids in torch.randperm(len(titles)).split(bs):
        words = [re.findall(r'\w+', titles[i].lower()) or ['-'] for i in ids.tolist()]
        nn.functional.cross_entropy(net(words), targs[ids]).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
    return time.process_time() - start


def epoch(make) -> float:
    "Train a learner's network for its second epoch. Returns the seconds"
    learn = make()
    if means_bf16('auto', learn.dls.device): learn.to_bf16()
    learn.remove_cb(learn.f1_calibration)
    with learn.quiet():
        learn.fit(1)
        start = time.process_time()
        learn.fit(1)
    return time.process_time() - start


@call_parse
def main(
    rows: int = 10_000, # labelled titles
    bs: int = 128, # titles in a batch
    rounds: int = 3, # measurements of each
    score: bool = False, # train with default epochs, and score on test titles
):
    "Measure the seconds of an epoch, and weighted F1"
    torch.set_num_threads(1)
    train, test = labelled_split('usda', rows, 0)
    dls = TitleDataLoaders.from_split(train, test[:bs], bs=bs, device='cpu')
    make = partial(words_learner, dls)
    contenders = dict(words=partial(epoch, make), plain=partial(plain_epoch, dls, train['title'].tolist(), bs),
                      qrnn=partial(epoch, partial(bpv_learner, dls, nh=128, cell='qrnn', opt_func=Adam)))
    measured = in_turns(contenders, rounds)
    result = dict(titles=rows, bs=bs, seconds=measured,
                  plain_to_words=median_ratio(measured, 'plain', 'words'),
                  words_to_qrnn=median_ratio(measured, 'words', 'qrnn'))
    if score:
        set_seed(0)
        dls = TitleDataLoaders.from_split(train, test, bs=bs, val_bs=256, device='cpu')
        learn = words_learner(dls)
        if means_bf16('auto', dls.device): learn.to_bf16()
        learn.remove_cb(learn.f1_calibration)
        start = time.process_time()
        with learn.quiet(), learn.added_cbs(NoValidation()): learn.fit_flat_cos(word_epochs(rows), pct_start=0.)
        result |= dict(epochs=word_epochs(rows), training_seconds=time.process_time() - start,
                       f1=f1_of_logits(log_probs_of(learn, dls.valid), dls.valid_ds.targets))
    print(result)
    save('words', result)
