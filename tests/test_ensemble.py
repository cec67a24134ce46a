"Several networks as one: averages, saved pairs, interrupted and killed trainings, what is refused."
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import uuid
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import bpv_fastai.ensemble as module
from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.errors import CategorizerError, ResumeError, TitleWarning, TrainingDiverged
from bpv_fastai.data.files import remove_folder
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CharVocab, encode_titles
from bpv_fastai.distill import distill
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import TitleLearner, bpv_learner, ngram_learner
from bpv_fastai.models import average
from bpv_fastai.models.average import TitleEnsemble, fit_shares, members_ahead
from bpv_fastai.models.inference import gather_titles
from bpv_fastai.models.network import TitleClassifier
from bpv_fastai.models.ngrams import NgramBag, fold_characters, ngram_rows
from bpv_fastai.train import callbacks, members
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Member, Recipe
from bpv_fastai.train.resume import FitState
from bpv_fastai.use.format import description_checksum


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    path = tmp_path_factory.mktemp('ensemble')
    return TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path=path, verbose=False)


def train(dls, ngrams=False, linear=False, directions=(False, True), final=False, **given):
    "Train small networks, and a bag and a linear model where asked; what the networks do not take is for the training"
    options = {name: given.pop(name) for name in ('n_jobs', 'resume', 'keep', 'bf16', 'average', 'seed') if name in given}
    network = Recipe.pairs(0, **dict(epochs=1, nh=8) | given).members[0]
    networks = [replace(network, backwards=b) for b in directions]
    others = [Member('ngrams', 4, schedule='falling')] * ngrams + [Member('linear')] * linear
    return Ensemble.train(dls, Recipe(networks + others, final=final), **dict(n_jobs=1, progress=False) | options)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(['prob', 'log_prob']), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_an_ensemble_averages_its_members(n, bs, average, seed):
    torch.manual_seed(seed)
    nets = [TitleClassifier(30, 7, nh=4).eval() for _ in range(n)]
    backwards = [bool(b) for b in torch.randint(2, (n,))]
    lengths = torch.randint(1, 12, (bs, 1))
    x = torch.randint(1, 30, (bs, 12)).masked_fill(torch.arange(12) >= lengths, 0)
    with torch.no_grad(): probs = TitleEnsemble(nets, backwards, average)(x).exp()
    for i in range(bs):
        title = x[i][x[i] > 0]
        with torch.no_grad():
            each = torch.stack([m((title.flip(0) if b else title)[None]).softmax(-1)[0]
                                for m, b in zip(nets, backwards)])
        wanted = each.mean(0) if average == 'prob' else each.log().mean(0).softmax(-1)
        assert torch.allclose(probs[i], wanted, atol=1e-6)


@pytest.mark.parametrize('average', ['prob', 'log_prob'])
def test_a_saved_pair_predicts_the_same(dls, tmp_path, average):
    pair = train(dls, average=average)
    with pair.no_bar(): probs = pair.get_preds()[0].numpy()
    cat = Categorizer.load(Categorizer.from_learner(pair).save(tmp_path/'pair'))
    titles = [dls.valid_ds[i][0] for i in range(len(dls.valid_ds))]
    predicted = cat.predict(titles, top_k=dls.c, precision='fp32')
    calibrator = pair.decider.calibrator
    wanted = np.sort(np.clip(probs * calibrator.ratio(probs), 0, 1), 1)[:, ::-1]
    columns = [f'probability_{i + 1}' for i in range(dls.c)]
    np.testing.assert_allclose(predicted[columns].to_numpy(), wanted, atol=1e-5)
    with pair.no_bar(): assert pair.decide(titles)['category'].tolist() == predicted['category'].tolist()


def test_a_stopped_training_keeps_what_is_done(dls, monkeypatch):
    real, calls = members.train_member, []
    def stops(dls, spec, make_learner, folder, i, report):
        calls.append(i)
        if calls == [0, 1]: raise KeyboardInterrupt
        real(dls, spec, make_learner, folder, i, report)
    alone = train(dls)
    monkeypatch.setattr(members, 'train_member', stops)
    with pytest.raises(KeyboardInterrupt, match='continues from .*ensemble'): train(dls, resume=True)
    with pytest.raises(ResumeError, match='members of another training'): train(dls, resume=True, nh=12)
    again = train(dls, resume=True)
    assert calls == [0, 1, 1] and not (dls.path/'models'/'ensemble').exists()
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), again.model.parameters()))


def test_a_training_that_keeps_nothing_says_so(dls, monkeypatch):
    def stops(*args): raise KeyboardInterrupt('stopped; the same fit continues from 0.0.checkpoint')
    monkeypatch.setattr(members, 'train_member', stops)
    with pytest.raises(KeyboardInterrupt, match='^stopped; nothing is kept without resume=True$'): train(dls)


def test_side_by_side_and_a_member_that_fails(dls):
    pair = train(dls, n_jobs=2, directions=[True, False, False])
    assert pair.model.backwards == [True, False, False]
    assert pair.reports['member'].tolist() == ['backward', 'forward', 'forward']
    assert pair.reports['seed'].tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match='member [01] failed') as failure: train(dls, n_jobs=2, views=['none'])
    shown = ''.join(traceback.format_exception(failure.value))
    assert 'in check_views' in shown and 'in member_learner' in shown  # where it happened in the worker


def test_side_by_side_each_has_one_thread(dls, tmp_path):
    "And the weights are those of a training in this process with one thread"
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: alone, beside = (train(dls, n_jobs=n_jobs) for n_jobs in (1, 2))
    finally: torch.set_num_threads(n_threads)
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), beside.model.parameters()))

    def note_threads(dls, spec):
        (tmp_path/str(spec.seed)).write_text(f'{torch.get_num_threads()} {os.getpid()}')
        end = time.monotonic() + 60  # no member begins before both have a worker, however slowly one starts
        while not all((tmp_path/str(i)).exists() for i in range(2)) and time.monotonic() < end: time.sleep(.05)
        return module.member_learner(dls, spec)
    specs = [members.MemberSpec.for_loaders(dls, Member(epochs=1, kwargs=dict(nh=8)), seed=i) for i in range(2)]
    torch.set_num_threads(2)
    try:
        with members.members_folder(tmp_path) as folder:
            members.train_members(dls, specs, note_threads, folder, n_jobs=2, progress=False)
    finally: torch.set_num_threads(n_threads)
    notes = [(tmp_path/str(i)).read_text().split() for i in range(2)]
    assert [threads for threads, _ in notes] == ['1', '1'] and len({pid for _, pid in notes} - {str(os.getpid())}) == 2


def test_a_notebook_trains_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', ROOT)
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    code = [SCRIPT.format(epochs=1, n_titles=600), 'list(ensemble.reports.member)']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in code])
    folder = dict(metadata=dict(path=tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3', resources=folder).execute()
    assert notebook.cells[1].outputs[0].data['text/plain'] == "['forward', 'backward', 'forward']"


ROOT = str(Path(__file__).resolve().parents[1])

SCRIPT = '''
import torch
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Member, Recipe
torch.set_num_threads(2)
dls = TitleDataLoaders.from_df(synthetic_catalog({n_titles}, 6, seed=3), bs=16, verbose=False)
print('begins', flush=True)
recipe = Recipe([Member('bpv', {epochs}, b, kwargs=dict(nh=16)) for b in (False, True, False)])
ensemble = Ensemble.train(dls, recipe, minutes=.0001, n_jobs=2, resume=True, keep=True, progress=False)
print('done', flush=True)
'''


class Script:
    "A training in a script without a main guard, in a session of its own"
    def __init__(self, folder, epochs=200):
        self.mark, self.members = uuid.uuid4().hex, folder/'models'/'ensemble'
        (folder/'script.py').write_text(SCRIPT.format(epochs=epochs, n_titles=600))
        def listen():  # who starts the tests may ignore signals, as a shell in the background and nohup do
            for number in (signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_DFL)
        self.process = subprocess.Popen(
            [sys.executable, 'script.py'], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | dict(PYTHONPATH=ROOT, BPV_TEST=self.mark), start_new_session=True, preexec_fn=listen)

    def wait_for_checkpoints(self, n=2):
        deadline = time.monotonic() + 120
        while len(self.checkpoints()) < n:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(.05)

    def checkpoints(self): return sorted(p.name for p in self.members.glob('*.checkpoint'))

    def running(self) -> list:
        "Ids of processes with this script's mark in their environment, itself included unless it has ended"
        self.process.poll()
        ids = []
        for folder in Path('/proc').glob('[0-9]*'):
            try: marked = self.mark.encode() in (folder/'environ').read_bytes()
            except OSError: continue
            if marked: ids.append(int(folder.name))
        return ids

    def wait_until_gone(self, seconds=30.):
        deadline = time.monotonic() + seconds
        while self.running() and time.monotonic() < deadline: time.sleep(.1)
        left = self.running()
        for pid in left: os.kill(pid, signal.SIGKILL)
        assert not left, f'{len(left)} processes were still running after {seconds} seconds'


needs_proc = pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='processes are listed in /proc')


@needs_proc
def test_a_script_without_a_main_guard_trains_side_by_side(tmp_path):
    script = Script(tmp_path, epochs=1)
    out, err = script.process.communicate(timeout=300)
    assert script.process.returncode == 0, err
    assert out.split() == ['begins', 'done']  # the workers have not run the script again
    script.wait_until_gone()


@needs_proc
def test_a_killed_parent_leaves_checkpoints_and_no_processes(tmp_path):
    script = Script(tmp_path)
    script.wait_for_checkpoints()
    assert len(script.running()) >= 3
    script.process.kill()
    script.process.wait()
    script.wait_until_gone()
    names = sorted(p.name for p in script.members.iterdir())
    assert script.checkpoints() == ['0.0.checkpoint', '1.0.checkpoint'] and not [n for n in names if n.startswith('.')], names


@needs_proc
@pytest.mark.parametrize('seconds', [0., 2.])
def test_a_parent_killed_before_its_members_train_leaves_no_processes(tmp_path, seconds):
    script = Script(tmp_path)
    assert script.process.stdout.readline() == 'begins\n'
    time.sleep(seconds)
    script.process.kill()
    script.process.wait()
    script.wait_until_gone()
    for path in script.members.glob('[0-9]*.json'): msgspec.json.decode(path.read_bytes(), type=members.MemberSpec)


@needs_proc
@pytest.mark.parametrize('to, names', [('group', 'SIGINT'), ('group', 'SIGHUP SIGCONT SIGHUP SIGTERM'), ('parent', 'SIGTERM')])
def test_signals_leave_checkpoints(tmp_path, to, names):
    "Ctrl-C, the end of a cluster's lease, a terminal that closes, a notebook's server"
    script = Script(tmp_path)
    script.wait_for_checkpoints()
    before = {p: p.stat().st_mtime_ns for p in script.members.glob('*.checkpoint')}
    for name in names.split():
        number = getattr(signal, name)
        if to == 'group': os.killpg(script.process.pid, number)
        else: script.process.send_signal(number)
    out, err = script.process.communicate(timeout=60)
    assert script.process.returncode == -signal.SIGINT and out.split() == ['begins']
    assert err.count('Traceback') == 1  # the parent's alone
    assert err.rstrip().splitlines()[-1].startswith('KeyboardInterrupt: stopped; the same training continues from')
    assert script.checkpoints() == ['0.0.checkpoint', '1.0.checkpoint']
    assert all(p.stat().st_mtime_ns > written for p, written in before.items())
    script.wait_until_gone()


@needs_proc
def test_a_killed_member_is_named_and_the_others_leave_checkpoints(tmp_path):
    script = Script(tmp_path)
    script.wait_for_checkpoints()
    before = {p: p.stat().st_mtime_ns for p in script.members.glob('*.checkpoint')}
    workers = [pid for pid in script.running() if b'popen_loky' in Path(f'/proc/{pid}/cmdline').read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    out, err = script.process.communicate(timeout=60)
    assert script.process.returncode == 1 and out.split() == ['begins']
    last = err.rstrip().splitlines()[-1]
    assert re.search(r'the process of member [01] \((forward|backward)\) was killed', last) and 'resume=True' in last
    newer = [p.name for p, written in before.items() if p.stat().st_mtime_ns > written]
    assert script.checkpoints() == ['0.0.checkpoint', '1.0.checkpoint'] and newer
    script.wait_until_gone()


def test_a_member_in_validation_notices_that_it_should_stop(dls, tmp_path):
    spec = members.MemberSpec.for_loaders(dls, Member(epochs=2, lr_max=1., kwargs=dict(nh=8)))
    calls = []
    def report(n):
        calls.append(n)
        if calls.count(len(dls.train)) == 2: raise OSError('the receiver has closed')
    with pytest.raises(KeyboardInterrupt, match='continues from'):
        members.train_member(dls, spec, module.member_learner, tmp_path, 0, report)
    checkpoint, = tmp_path.glob('*.checkpoint')
    assert FitState.read(checkpoint).train_iter == len(dls.train) == max(calls)


@needs_proc
def test_ctrl_c_before_members_train_ends_them_too(tmp_path):
    script = Script(tmp_path)
    assert script.process.stdout.readline() == 'begins\n'
    time.sleep(.5)
    os.killpg(script.process.pid, signal.SIGINT)
    _, err = script.process.communicate(timeout=60)
    assert script.process.returncode == -signal.SIGINT and err.count('Traceback') == 1
    script.wait_until_gone()


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_after_a_divergence_nothing_is_left_and_another_rate_may_follow(dls, n_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(members.tempfile, 'tempdir', str(tmp_path))
    high = dict(n_jobs=n_jobs, lr_max=1e9, epochs=2)
    for resume in (False, True):
        with pytest.raises(TrainingDiverged, match='lower peak rate'): train(dls, resume=resume, **high)
    folder = dls.path/'models'/'ensemble'
    folder.mkdir(parents=True)
    (folder/'2.safetensors').touch()  # a bag beside the networks was done before they diverged
    with pytest.raises(TrainingDiverged, match='lower peak rate'): train(dls, resume=True, ngrams=True, **high)
    left = [p for p in tmp_path.iterdir() if not p.name.startswith('pymp-')]  # multiprocessing's own, until it ends
    assert not left and not folder.exists()
    assert len(train(dls, lr_max=.5, resume=True).model.members) == 2


def test_a_network_that_is_done_outlives_the_divergence_of_another(dls):
    folder = dls.path/'models'/'ensemble'
    folder.mkdir(parents=True)
    (folder/'0.safetensors').touch()
    with pytest.raises(TrainingDiverged): train(dls, lr_max=1e9, epochs=2, resume=True)
    assert (folder/'0.safetensors').exists()
    with pytest.raises(ResumeError, match='another training'): train(dls, lr_max=.5, resume=True)
    remove_folder(folder)


def test_killed_while_the_folder_is_removed(dls, monkeypatch):
    def killed(folder):
        (folder/'0.scores').unlink()
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('bpv_fastai.data.files.shutil.rmtree', killed)
        with pytest.raises(KeyboardInterrupt): train(dls, resume=True)
    assert len(train(dls, resume=True).reports) == 2 and not list((dls.path/'models').iterdir())


def test_a_damaged_spec_is_another_training(dls):
    folder = dls.path/'models'/'ensemble'
    folder.mkdir(parents=True)
    (folder/'0.json').write_text('{"kind": 3}')
    with pytest.raises(ResumeError, match='another training'): train(dls, resume=True)
    remove_folder(folder)


def test_numbers_of_numpy_describe_a_member(dls):
    made = train(dls, lr_max=np.float64(.5), seed=np.int64(0), nh=np.int64(8))
    assert made.reports['seed'].tolist() == [0, 1] and made.model.members[0].config['nh'] == 8


def test_epochs_of_the_bag_can_be_given(dls):
    made = Ensemble.train(dls, Recipe([Member('ngrams', 3)]), n_jobs=1, progress=False)
    assert len(made.curves[0].valid) == 3


def test_members_may_stay_where_they_were_trained(dls, monkeypatch):
    once = train(dls, resume=True, keep=True)
    monkeypatch.setattr(members, 'train_member', None)  # no member is trained again
    again = train(dls, resume=True)
    assert not (dls.path/'models'/'ensemble').exists() and again.reports.equals(once.reports)
    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), again.model.parameters()))


def test_shares_from_validation_titles_one_by_one(dls):
    one = TitleDataLoaders.from_dsets(dls.train_ds, dls.valid_ds, bs=32, val_bs=1)
    both = train(dls, ngrams=True)
    made = Ensemble([both], dls=one, weigh=True, progress=False)
    np.testing.assert_allclose(made.model.shares, both.model.shares, atol=.02)  # the search ends where little is gained


def test_a_student_of_a_bag_reads_sorted_titles(dls, monkeypatch):
    "A bag's own loaders do not sort"
    bag, windows = ngram_learner(dls), []
    with bag.quiet(): bag.fit_flat_cos(1, pct_start=0)
    def note(learn, *args, **kwargs): windows.append(learn.dls.train.sampler.window)
    monkeypatch.setattr(TitleLearner, 'fit_linear_cycle', note)
    distill(bag, epochs=1, nh=8, progress=False)
    assert bag.dls.train.sampler.window == 1 and windows == [50]


def test_a_student_learns_from_titles_without_label():
    df, student = synthetic_catalog(7_000, 8, seed=5), dict(nh=12, n_layers=1, cell='qrnn')
    dls = TitleDataLoaders.from_df(df[:1_000], bs=32, verbose=False)
    torch.manual_seed(0)
    teacher, alone = ngram_learner(dls, n_rows=2**12, dim=16), bpv_learner(dls, **student)
    with teacher.quiet(): teacher.fit_flat_cos(12, pct_start=0)
    with alone.quiet(): alone.fit_linear_cycle(3)
    taught = distill(teacher, 3, unlabelled=df['title'][1_000:].tolist(), weight=1., progress=False, **student)
    with taught.quiet(), alone.quiet(): assert taught.validate()[-1] > alone.validate()[-1] + .02


def test_reports_and_losses_follow_the_members(dls):
    three = train(dls, ngrams=True)
    with three.no_bar(): three.drop(0)
    assert three.reports['member'].tolist() == ['backward', 'n-grams'] and three.reports['seed'].tolist()[0] == 1
    other = bpv_learner(dls, nh=8, n_layers=1)
    with three.no_bar(): three.add(other).add(train(dls))
    assert three.reports['member'].tolist() == ['backward', 'n-grams', 'forward', 'forward', 'backward']
    assert three.reports['seconds'].notna().tolist() == [True, True, False, True, True]
    labels = [line.get_label() for line in three.plot_training()[0].lines]
    assert labels == ['backward', 'n-grams', 'forward', 'backward']
    with other.no_bar(): alone = Ensemble([other], progress=False)
    assert alone.reports.to_dict('list') == dict(member=['forward'])
    with pytest.raises(ValueError, match='before they came together'): alone.plot_training()


def test_what_is_refused(dls):
    cases = ((dict(schedule='steps'), "'linear', 'cosine', 'falling'"), (dict(optimizer='lion'), "'sgd', 'adam'"),
             (dict(average='median'), "'prob' or 'log_prob'"), (dict(cell=torch.nn.LSTM), 'numbers and text'))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message): train(dls, **wrong)


def test_the_members_of_an_ensemble_are_not_trained_together(dls):
    pair = train(dls)
    for method in (pair.fit, pair.fit_linear_cycle, pair.fit_one_cycle, pair.fit_flat_cos, pair.lr_find, pair.lr_sweep):
        with pytest.raises(TypeError, match='one by one'): method(1)


def test_a_student_reads_unlabelled_titles_and_keeps_the_loaders(dls):
    pair = train(dls)
    for backwards in (False, True):
        with pair.no_bar():
            student = distill(pair, 1, unlabelled=['no label'] * 50, nh=8, n_layers=1, backwards=backwards, k=3)
        assert len(student.dls.train_ds) == len(dls.train_ds) and student.dls.train.backwards == backwards
        assert student.predict('some title')[0] in dls.vocab


@given(st.lists(st.text(alphabet='aAbBéß1 -_&日', max_size=14), min_size=1, max_size=6),
       st.sampled_from([(3, 4, 5), (1, 2, 3), (2,)]))
@settings(max_examples=200, deadline=None)
def test_ngrams_against_slicing_strings(titles, sizes):
    "The n-grams of a batch are those of each title alone, each once, as many as slicing its words gives"
    vocab = CharVocab('aAbBéß1 -_&日')
    fold, n_letters = fold_characters(vocab.chars)
    encoded = encode_titles(titles, vocab)
    parts = [torch.as_tensor(a) for a in (encoded.buffer, encoded.offsets[:-1], encoded.lengths)]
    f = torch.tensor(fold)[gather_titles(*parts, int(encoded.lengths.max()))]
    rows = torch.cat(ngram_rows(f, 2**24, sizes, n_letters=n_letters), 1)
    for i, title in enumerate(titles):
        words = ''.join(c.lower() if c.isalnum() else ' ' for c in title).split()
        chunks = title.lower().split()
        edged = [f'<{w}>' for w in chunks]
        pieces = [w[j:j + n] for n in sizes for w in edged for j in range(len(w) - n + 1) if w[j:j + n].strip('<>')]
        mine = rows[i][rows[i] > 0]
        wanted = {('piece', p) for p in pieces} | set(words) | set(chunks) | set(zip(words, words[1:]))
        assert len(mine) == len(set(mine.tolist())) == len(wanted)


def test_a_bag_of_ngrams_is_a_member_like_any_other(dls, tmp_path):
    three = train(dls, ngrams=True)
    assert three.reports['member'].tolist() == ['forward', 'backward', 'n-grams'] and three.plot_training()[0].lines
    titles = [dls.valid_ds[i][0] for i in range(100)] + ['', 'a', '!!!']
    three.model.shares, three.f1_calibration.weigh = [.3, .3, .4], False  # whatever these few titles say
    with three.quiet(): three.f1_calibration.calibrate()
    cat = Categorizer.from_learner(three)
    again = Categorizer.load(cat.save(tmp_path/'three'))
    a, b = (c.predict(titles, top_k=3, precision='fp32') for c in (cat, again))
    assert a.equals(b) and len(a) == 103
    assert again.ensemble.shares == three.model.shares
    three.f1_calibration.weigh = True
    assert three.drop(0).model.shares != again.ensemble.shares and len(three.model.shares) == 2


    for shares in ([.5, .5], [1.5, -.5, 0.], [.5, .4, .2], ['a', 'b', 'c'], .3):
        with pytest.raises(CategorizerError, match='shares'): load_changed(tmp_path/'three', shares=shares)
    bag = again.describe()['networks'][2]
    n_tokens = len(cat.char_vocab)
    for change in (dict(n_rows=1000), dict(n_rows=2**40), dict(dim=0), dict(fold=[1]), dict(fold=[-1] * n_tokens),
                   dict(fold=[2**40] * n_tokens), dict(char_sizes=[10**9]), dict(word_sizes=[0]),
                   dict(char_sizes='345'), dict(vocab_sz=3)):
        networks = [*again.describe()['networks'][:2], bag | change]
        with pytest.raises(CategorizerError): load_changed(tmp_path/'three', networks=networks)


def load_changed(folder, **changes):
    "Load a model with another description; the file stays as it was"
    path = folder/'categorizer.json'
    before = path.read_text()
    contents = json.loads(before) | changes
    path.write_text(json.dumps(contents | dict(checksum=description_checksum(contents))))
    try: return Categorizer.load(folder)
    finally: path.write_text(before)


def test_a_bag_of_single_letters_is_saved_and_loaded(dls, tmp_path):
    bag = ngram_learner(dls)
    letters = fold_characters(dls.char_vocab.chars)
    bag.model = NgramBag(len(dls.char_vocab), dls.c, *letters, n_rows=2**12, dim=8, char_sizes=(1, 2, 3)).eval()
    with bag.no_bar(): bag.f1_calibration.calibrate()
    cat = Categorizer.from_learner(bag)
    again = Categorizer.load(cat.save(tmp_path/'bag'))
    assert again.predict(['tea', 'a'], precision='fp32').equals(cat.predict(['tea', 'a'], precision='fp32'))


def test_bfloat16_members(dls):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pair = train(dls, bf16=True)
    assert {p.dtype for p in pair.model.parameters()} == {torch.float32}
    assert np.isfinite(pair.reports['valid_loss']).all()
    if dls.device.type == 'cpu':
        assert [m.autocast for m in pair.model.members] == [torch.bfloat16] * 2
        assert train(dls).model.members[0].autocast is None


def test_all_titles_for_training_and_none_for_validation(tmp_path):
    "Scores are left out where there is nothing to score on"
    df = synthetic_catalog(300, 3)
    dls = TitleDataLoaders.from_df(df, valid_pct=0, bs=32, path=tmp_path, verbose=False)
    made = train(dls, ngrams=True)
    assert len(made.model.members) == 3 and made.model.shares is None and 'weighted_f1' not in made.reports


def test_a_bag_that_diverges_tries_half_the_rate(dls, monkeypatch):
    monkeypatch.setattr(module, 'ngram_learner', lambda *args, **kwargs: ngram_learner(*args, lr=100., **kwargs))
    with pytest.warns(TitleWarning, match='peak rate of 100 and was trained anew'):
        made = Ensemble.train(dls, Recipe([Member('ngrams', 20)]), n_jobs=1, progress=False)
    assert made.reports['weighted_f1'][0] > .3 and made.reports['lr_max'][0] in [100 / 2**n for n in range(1, 7)]


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_a_network_that_diverges_is_trained_at_half_the_rate(dls, n_jobs):
    with pytest.warns(TitleWarning, match='lr_max=') as warned: made = train(dls, lr_max=512., epochs=2, n_jobs=n_jobs)
    assert len(warned) == 2 and (made.reports['lr_max'] < 512).all()
    for rate, net in zip(made.reports['lr_max'], made.model.members):
        assert all(p.isfinite().all() for p in net.parameters())
    # From its own seed: the same as if begun so low. The same `n_jobs`, as sums by other numbers of threads differ.
    again = train(dls, lr_max=made.reports['lr_max'][0], epochs=2, n_jobs=n_jobs)
    same = [torch.equal(a, b) for a, b in zip(made.model.members[0].parameters(), again.model.members[0].parameters())]
    assert all(same)


def test_only_the_bag(dls):
    made = train(dls, directions=[], ngrams=True)
    assert made.reports['member'].tolist() == ['n-grams'] and made.model.shares is None
    with pytest.raises(ValueError, match='lists no members'): train(dls, directions=[])


def test_shares_are_for_log_probabilities(dls):
    with pytest.raises(ValueError, match="average='log_prob'"):
        Ensemble([bpv_learner(dls, nh=8)], 'prob', weigh=True)
    assert train(dls, ngrams=True, average='prob').model.shares is None


def some_members(n, n_categories, knowledge, seed):
    "Log-probabilities of members that know more or less, and the category ids"
    gen = torch.Generator().manual_seed(seed)
    targs = torch.randint(0, n_categories, (n,), generator=gen)
    one_hot = torch.nn.functional.one_hot(targs, n_categories)
    return [(k * one_hot + torch.randn(n, n_categories, generator=gen)).log_softmax(-1) for k in knowledge], targs


@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_shares_against_a_grid(n_members, n_categories, seed):
    "No shares have a smaller loss, at the scale of the equal average with the least log-loss"
    log_probs, targs = some_members(400, n_categories, range(n_members), seed)
    shares = fit_shares(log_probs, targs, pull=0., z=np.inf)
    assert abs(sum(shares) - 1) < 1e-6 and min(shares) >= 0
    mean = sum(log_probs) / n_members
    scales = np.linspace(.1, 10, 2_000)
    scale = scales[np.argmin([torch.nn.functional.cross_entropy(s * mean, targs).item() for s in scales])]
    def loss(shares):
        probs = (scale * sum(s * lp for s, lp in zip(shares, log_probs))).softmax(1)
        return 2 * (1 - probs[torch.arange(len(targs)), targs].sqrt()).mean().item()
    rng = np.random.default_rng(seed)
    assert loss(shares) <= min(loss(rng.dirichlet(np.ones(n_members))) for _ in range(200)) + 1e-3


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 99), st.floats(0, 3))
@settings(max_examples=20, deadline=None)
def test_members_that_are_left_out(n_members, n_categories, seed, z):
    "Against a loop over titles: who is left out is worse by z standard errors than the others are without"
    knowledge = np.random.default_rng(seed).uniform(0, 3, n_members)
    log_probs, targs = some_members(200, n_categories, knowledge, seed)
    def right(members):
        return np.array([int(sum(log_probs[m][i] for m in members).argmax()) == int(targs[i])
                         for i in range(len(targs))], float)
    kept = list(range(n_members))
    while len(kept) > 1:
        gains = {m: right([o for o in kept if o != m]) - right(kept) for m in kept}
        worst = max(kept, key=lambda m: gains[m].mean())
        if gains[worst].sum() <= z * ((gains[worst]**2).sum() + 4)**.5: break
        kept.remove(worst)
    assert members_ahead(log_probs, targs, z) == kept
    with pytest.MonkeyPatch.context() as m:
        m.setattr(average, '_best_scale', lambda *_: 1.)  # members that are calibrated
        shares = fit_shares(log_probs, targs, z=z)
    assert all(share == 0 for m, share in enumerate(shares) if m not in kept)


def test_views_of_a_bag_do_not_repeat_themselves():
    "A word that comes twice counts once"
    vocab = CharVocab('abcdefghij ')
    bag = NgramBag(len(vocab), 4, *fold_characters(vocab.chars), n_rows=2**12, dim=8).eval()
    torch.nn.init.normal_(bag.linear.weight)
    def logits(title):
        t = encode_titles([title], vocab)
        return bag(torch.tensor(t[0].astype('int64'))[None])
    assert torch.allclose(logits('abc abc'), logits('abc abc abc'), atol=1e-6)
    assert not torch.allclose(logits('abc'), logits('abd'), atol=1e-3)


def test_bfloat16_reaches_the_members(dls):
    pair = Ensemble([bpv_learner(dls, nh=8, backwards=b) for b in (False, True)], progress=False)
    titles = [dls.valid_ds[i][0] for i in range(50)]
    before, calibrator = pair.decide(titles).confidence, pair.decider.calibrator
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a processor that only emulates it
        assert pair.to_bf16() is pair
    assert [m.autocast for m in pair.model.members] == [torch.bfloat16] * 2
    after = pair.decide(titles).confidence
    assert 0 < (after - before).abs().max() < .1 and pair.decider.calibrator is calibrator
    assert pair.to_fp32() is pair and [m.autocast for m in pair.model.members] == [None] * 2
    assert pair.decide(titles).confidence.equals(before)


def test_decisions_follow_the_members(dls):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*were fitted for other weights')
        three = train(dls, ngrams=True)
        for change in (lambda: three.drop(0), lambda: three.add(bpv_learner(dls, nh=8))):
            before = three.decider.to_dict()
            with three.no_bar(): change()
            assert three.decider.is_fitted and three.decider.to_dict() != before
        shares = three.model.shares
        three.model.shares = [.5, .25, .25]
        with pytest.warns(TitleWarning, match='fitted for other weights'): assert not three.decider.is_fitted
        with three.no_bar(): three.f1_calibration.calibrate()
        assert three.decider.is_fitted and three.model.shares == shares


def test_too_few_different_validation_titles_neither_weigh_nor_calibrate(dls):
    df = synthetic_catalog(300, 3).assign(valid=False)
    df = pd.concat([df, df[:1].loc[[0] * 30].assign(valid=True)], ignore_index=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the title is on both sides
        copies = TitleDataLoaders.from_df(df, valid_col='valid', verbose=False)
    made = Ensemble([ngram_learner(copies), ngram_learner(copies)], weigh=True, progress=False)
    assert made.model.shares is None and not made.decider.is_fitted


def test_shares_are_not_judged_on_the_titles_that_they_were_fitted_to(dls, monkeypatch):
    "Each half of the table is decided with shares from the other half; decisions are fitted with those of all titles"
    calls, seen, given = [], [], ([.8, .2], [1., 0.], [0., 1.])
    def fit_shares(log_probs, targs):
        calls.append(targs.numpy())
        return given[len(calls) - 1]
    fit = callbacks.Decider.fit
    def note(halves, precision, k, folds, adapts):
        seen.extend((halves, folds))
        return fit(halves, precision, k, folds, adapts)
    monkeypatch.setattr(callbacks, 'fit_shares', fit_shares)
    monkeypatch.setattr(callbacks.Decider, 'fit', note)
    made = Ensemble([bpv_learner(dls, nh=8), bpv_learner(dls, nh=12)], progress=False, weigh=True)
    (first, second), ((fit_1, judged_2), (fit_2, judged_1)) = seen
    everything = [np.concatenate([first[1], second[1]]), first[1], second[1]]
    assert all(sorted(a) == sorted(b) for a, b in zip(calls, everything)) and made.model.shares == given[0]
    for (_, targs), half in zip((fit_1, judged_2, fit_2, judged_1), (first, second, second, first)):
        assert np.array_equal(targs, half[1])
    for shares, parts in zip(given, ((first, second), (fit_1, judged_2), (fit_2, judged_1))):
        made.model.shares = shares
        with made.no_bar(): probs = made.get_preds()[0].numpy()
        best = np.concatenate([top.values.max(1) for top, _ in parts])
        assert np.allclose(np.sort(best), np.sort(probs.max(1)), atol=1e-6)


def test_few_titles_pull_shares_together():
    rows = []
    for n in (20, 2_000):
        log_probs, targs = some_members(n, 20, (2., 2., 2.), n)
        log_probs = [average._best_scale(lp, targs) * lp for lp in log_probs]
        rows.append([max(fit_shares(log_probs, targs, pull, np.inf)) for pull in (0., 20., 1e6)])
    few, many = np.array(rows) - 1 / 3
    assert few[0] > .05 and few[1] < .7 * few[0] and abs(many[1] - many[0]) < .01 and abs(few[2]) < 1e-3
