"Several networks as one: averages, saved pairs, stopped trainings, what is refused."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import bpv_fastai.ensemble as module
from bpv_fastai.all import *


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    return TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path=tmp_path_factory.mktemp('ensemble'), verbose=False)


def train(dls, **kwargs): return Ensemble.train(dls, **dict(epochs=1, nh=8, n_jobs=1, progress=False) | kwargs)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(['prob', 'log_prob']), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_an_ensemble_says_the_average_of_its_members(n, bs, average, seed):
    torch.manual_seed(seed)
    members, backwards = [TitleClassifier(30, 7, nh=4).eval() for _ in range(n)], [bool(b) for b in torch.randint(2, (n,))]
    lengths = torch.randint(1, 12, (bs, 1))
    x = torch.randint(1, 30, (bs, 12)).masked_fill(torch.arange(12) >= lengths, 0)
    with torch.no_grad(): found = TitleEnsemble(members, backwards, average)(x).exp()
    for i in range(bs):
        title = x[i][x[i] > 0]
        with torch.no_grad(): each = torch.stack([m((title.flip(0) if b else title)[None]).softmax(-1)[0] for m, b in zip(members, backwards)])
        wanted = each.mean(0) if average == 'prob' else each.log().mean(0).softmax(-1)
        assert torch.allclose(found[i], wanted, atol=1e-6)


@pytest.mark.parametrize('average', ['prob', 'log_prob'])
def test_a_saved_pair_says_the_same(dls, tmp_path, average):
    pair = train(dls, average=average)
    with pair.no_bar(): probs = pair.get_preds()[0].numpy()
    cat = Categorizer.load(Categorizer.from_learner(pair).save(tmp_path/'pair'))
    titles = [dls.valid_ds[i][0] for i in range(len(dls.valid_ds))]
    said = cat.predict(titles, top_k=dls.c, precision='fp32')
    calibrator = pair.f1_calibration.calibrator
    wanted = np.sort(np.clip(probs * calibrator.ratio(probs), 0, 1), 1)[:, ::-1]
    np.testing.assert_allclose(said[[f'probability_{i + 1}' for i in range(dls.c)]].to_numpy(), wanted, atol=1e-5)
    with pair.no_bar(): assert pair.decide(titles)['category'].tolist() == said['category'].tolist()


def test_a_stopped_training_keeps_what_is_done(dls, monkeypatch):
    real, calls = module._train_member, []
    def stops(*args):
        calls.append(args[2])
        if calls == [0, 1]: raise KeyboardInterrupt
        real(*args)
    alone = train(dls)
    monkeypatch.setattr(module, '_train_member', stops)
    with pytest.raises(KeyboardInterrupt): train(dls, resume=True)
    with pytest.raises(ResumeError, match='members of another training'): train(dls, resume=True, nh=12)
    again = train(dls, resume=True)
    assert calls == [0, 1, 1] and not (dls.path/'models'/'ensemble').exists()
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), again.model.parameters()))


def test_side_by_side_and_a_member_that_fails(dls):
    pair = train(dls, n_jobs=2, directions=[True, False, False])
    assert pair.model.backwards == [True, False, False] and pair.reports['direction'].tolist() == ['backward', 'forward', 'forward'] and pair.reports['seed'].tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match='member [01] failed'): train(dls, n_jobs=2, views=['none'])


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_after_a_divergence_nothing_is_left_and_another_rate_may_come(dls, n_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, 'tempdir', str(tmp_path))
    for resume in (False, True):
        with pytest.raises(TrainingDiverged, match='halve the peak rate'): train(dls, n_jobs=n_jobs, lr_max=1e9, epochs=2, resume=resume)
    folder = dls.path/'models'/'ensemble'
    folder.mkdir(parents=True); (folder/'2.safetensors').touch()  # a bag beside the networks was done before they diverged
    with pytest.raises(TrainingDiverged, match='halve the peak rate'): train(dls, n_jobs=n_jobs, lr_max=1e9, epochs=2, resume=True, ngrams=True)
    assert not list(tmp_path.iterdir()) and not folder.exists()
    assert len(train(dls, lr_max=.5, resume=True).model.members) == 2


def test_a_network_that_is_done_outlives_the_divergence_of_another(dls):
    folder = dls.path/'models'/'ensemble'
    folder.mkdir(parents=True); (folder/'0.safetensors').touch()
    with pytest.raises(TrainingDiverged): train(dls, lr_max=1e9, epochs=2, resume=True)
    assert (folder/'0.safetensors').exists()
    with pytest.raises(ResumeError, match='another training'): train(dls, lr_max=.5, resume=True)
    remove_folder(folder)


def test_killed_while_what_is_done_goes_away(dls, monkeypatch):
    def killed(folder): (folder/'0.scores').unlink(); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('bpv_fastai.files.shutil.rmtree', killed)
        with pytest.raises(KeyboardInterrupt): train(dls, resume=True)
    assert len(train(dls, resume=True).reports) == 2 and not list((dls.path/'models').iterdir())


def test_passes_of_the_bag_can_be_given(dls):
    made = train(dls, directions=[], ngrams=True, bag_epochs=3)
    assert len(made.curves[0]['valid']) == 3


def test_members_may_stay_where_they_were_trained(dls, monkeypatch):
    once = train(dls, resume=True, keep=True)
    monkeypatch.setattr(module, '_train_member', None)  # nobody is trained again
    again = train(dls, resume=True)
    assert not (dls.path/'models'/'ensemble').exists() and again.reports.equals(once.reports)
    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), again.model.parameters()))


def test_shares_from_validation_titles_one_by_one(dls):
    one = TitleDataLoaders.from_dsets(dls.train_ds, dls.valid_ds, bs=32, val_bs=1)
    both = train(dls, ngrams=True)
    made = Ensemble([both], dls=one, weigh=True, progress=False)
    np.testing.assert_allclose(made.model.shares, both.model.shares, atol=.02)  # the search ends where little is left to gain


def test_a_student_of_a_bag_reads_sorted_titles(dls, monkeypatch):
    "A bag's own loaders do not sort"
    bag, seen = ngram_learner(dls), []
    with bag.no_bar(), bag.no_logging(): bag.fit_flat_cos(1, pct_start=0)
    monkeypatch.setattr(module.TitleLearner, 'fit_linear_cycle', lambda learn, *args, **kwargs: seen.append(learn.dls.train.sampler.window))
    distill(bag, epochs=1, nh=8, progress=False)
    assert bag.dls.train.sampler.window == 1 and seen == [50]


def test_reports_and_losses_follow_the_members(dls):
    three = train(dls, ngrams=True)
    with three.no_bar(): three.drop(0)
    assert three.reports['direction'].tolist() == ['backward', 'n-grams'] and three.reports['seed'].tolist()[0] == 1
    other = bpv_learner(dls, nh=8, n_layers=1)
    with three.no_bar(): three.add(other).add(train(dls))
    assert three.reports['direction'].tolist() == ['backward', 'n-grams', 'forward', 'forward', 'backward'] and three.reports['seconds'].notna().tolist() == [True, True, False, True, True]
    assert [l.get_label() for l in three.plot_training()[0].lines] == ['backward', 'n-grams', 'forward', 'backward']
    with other.no_bar(): alone = Ensemble([other], progress=False)
    assert alone.reports.to_dict('list') == dict(direction=['forward'])
    with pytest.raises(ValueError, match='before they came together'): alone.plot_training()


def test_what_is_refused(dls):
    for wrong, says in ((dict(seeds=[1]), '1 seeds for 2 members'), (dict(schedule='steps'), "'linear' or 'cosine'"), (dict(average='median'), "'prob' or 'log_prob'"), (dict(cell=torch.nn.LSTM), 'numbers and text')):
        with pytest.raises(ValueError, match=says): train(dls, **wrong)


def test_a_student_reads_unlabelled_titles_and_keeps_the_loaders(dls):
    pair = train(dls)
    for backwards in (False, True):
        with pair.no_bar():
            student = distill(pair, 1, unlabelled=['no label'] * 50, nh=8, n_layers=1, backwards=backwards, k=3)
        assert len(student.dls.train_ds) == len(dls.train_ds) and student.dls.train.backwards == backwards
        assert student.predict('some title')[0] in dls.vocab


@given(st.lists(st.text(alphabet='aAbBéß1 -_&日', max_size=14), min_size=1, max_size=6), st.sampled_from([(3, 4, 5), (1, 2, 3), (2,)]))
@settings(max_examples=200, deadline=None)
def test_ngrams_against_slicing_strings(titles, sizes):
    "The n-grams of a batch are those of each title alone, each once, as many as slicing its words gives"
    vocab = CharVocab('aAbBéß1 -_&日')
    fold = torch.tensor(letter_ids(vocab.chars))
    encoded = encode_titles(titles, vocab)
    parts = [torch.as_tensor(a) for a in (encoded.buffer, encoded.offsets[:-1], encoded.lengths)]
    rows = torch.cat(ngram_rows(fold[gather_titles(*parts, int(encoded.lengths.max()))], 2**24, sizes), 1)
    for i, title in enumerate(titles):
        words = ''.join(c.lower() if c.isalnum() else ' ' for c in title).split()
        edged = [f'<{w}>' for w in words]
        pieces = [w[j:j + n] for n in sizes for w in edged for j in range(len(w) - n + 1) if w[j:j + n].strip('<>')]
        mine = rows[i][rows[i] > 0]
        assert len(mine) == len(set(mine.tolist())) == len({('piece', p) for p in pieces} | set(words) | set(zip(words, words[1:])))


def test_a_bag_of_ngrams_is_a_member_like_any_other(dls, tmp_path):
    from bpv_fastai.categorizer import _config, _contents, _network
    three = train(dls, ngrams=True)
    assert three.reports['direction'].tolist() == ['forward', 'backward', 'n-grams'] and three.plot_training()[0].lines
    titles = [dls.valid_ds[i][0] for i in range(100)] + ['', 'a', '!!!']
    cat = Categorizer.from_learner(three)
    again = Categorizer.load(cat.save(tmp_path/'three'))
    a, b = (c.predict(titles, top_k=3, precision='fp32') for c in (cat, again))
    assert a.equals(b) and len(a) == 103
    assert again.ensemble.shares == three.model.shares and three.drop(0).model.shares != again.ensemble.shares and len(three.model.shares) == 2
    for shares in ([.5, .5], [1.5, -.5, 0.], [.5, .4, .2], ['a', 'b', 'c'], .3, [1, 0, 0]):
        with pytest.raises(CategorizerError, match='shares'): _contents(tmp_path, again.describe() | dict(shares=shares))
    config = _config(again.ensemble.members[2], False)
    for change in (dict(n_rows=1000), dict(n_rows=2**40), dict(dim=0), dict(fold=[1]), dict(fold=[-1] * len(cat.char_vocab)), dict(fold=[2**40] * len(cat.char_vocab)), dict(char_sizes=[10**9]), dict(word_sizes=[0]), dict(char_sizes='345'), dict(vocab_sz=3)):
        with pytest.raises(CategorizerError): _network(config | change, len(cat.char_vocab), len(cat.vocab))


def test_a_bag_of_single_letters_is_saved_and_loaded(dls, tmp_path):
    bag = ngram_learner(dls)
    bag.model = NgramBag(len(dls.char_vocab), dls.c, letter_ids(dls.char_vocab.chars), n_rows=2**12, dim=8, char_sizes=(1, 2, 3)).eval()
    with bag.no_bar(): bag.f1_calibration.calibrate()
    cat = Categorizer.from_learner(bag)
    assert Categorizer.load(cat.save(tmp_path/'bag')).predict(['tea', 'a'], precision='fp32').equals(cat.predict(['tea', 'a'], precision='fp32'))


def test_bfloat16_members(dls):
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pair = train(dls, bf16=True)
    assert {p.dtype for p in pair.model.parameters()} == {torch.float32} and np.isfinite(pair.reports['valid_loss']).all()
    if dls.device.type == 'cpu': assert [m.autocast for m in pair.model.members] == [torch.bfloat16] * 2 and train(dls).model.members[0].autocast is None


def test_all_titles_for_training_and_none_for_validation(tmp_path):
    "Scores are left out where there is nothing to score on"
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 3), valid_pct=0, bs=32, path=tmp_path, verbose=False)
    made = train(dls, ngrams=True)
    assert len(made.model.members) == 3 and made.model.shares is None and 'weighted_f1' not in made.reports


def test_a_bag_that_diverges_tries_half_the_rate(dls, monkeypatch):
    monkeypatch.setattr(module, 'ngram_learner', lambda *args, **kwargs: ngram_learner(*args, lr=1e6, **kwargs))
    assert train(dls, directions=[], ngrams=True).reports['weighted_f1'][0] > .3


def test_only_the_bag(dls):
    made = train(dls, directions=[], ngrams=True)
    assert made.reports['direction'].tolist() == ['n-grams'] and made.model.shares is None
    with pytest.raises(ValueError, match='0 seeds for 0 members'): train(dls, directions=[])


def test_shares_are_for_log_probabilities(dls):
    with pytest.raises(ValueError, match="average='log_prob'"): Ensemble([bpv_learner(dls, nh=8)], 'prob', weigh=True)
    assert train(dls, ngrams=True, average='prob').model.shares is None


@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_shares_against_a_grid(n_members, n_categories, seed):
    "No weights on a grid have a smaller log-loss than those that the shares are in proportion to"
    gen = torch.Generator().manual_seed(seed)
    targs = torch.randint(0, n_categories, (400,), generator=gen)
    said = [(k * torch.nn.functional.one_hot(targs, n_categories) + torch.randn(400, n_categories, generator=gen)).log_softmax(-1) for k in range(n_members)]
    shares = fit_shares(said, targs)
    assert abs(sum(shares) - 1) < 1e-6 and min(shares) >= 0
    def loss(weights): return torch.nn.functional.cross_entropy(sum(w * lp for w, lp in zip(weights, said)), targs).item()
    best = min(loss([scale * s for s in shares]) for scale in np.linspace(.2, 20, 400))
    rng = np.random.default_rng(seed)
    assert best <= min(loss(rng.uniform(0, 2, n_members)) for _ in range(100)) + 1e-3


def test_views_of_a_bag_do_not_repeat_themselves():
    "A title said twice is the same title"
    vocab = CharVocab('abcdefghij ')
    bag = NgramBag(len(vocab), 4, letter_ids(vocab.chars), n_rows=2**12, dim=8).eval()
    torch.nn.init.normal_(bag.linear.weight)
    def logits(title):
        t = encode_titles([title], vocab)
        return bag(torch.tensor(t[0].astype('int64'))[None])
    assert torch.allclose(logits('abc abc'), logits('abc abc abc'), atol=1e-6) and not torch.allclose(logits('abc'), logits('abd'), atol=1e-3)
