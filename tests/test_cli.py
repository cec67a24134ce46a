"Commands as people run them: training, labelling, judging, and what they say when something is wrong."
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bpv_fastai import ensemble
from bpv_fastai.categorizer import Categorizer
from bpv_fastai.cli import plan, train
from bpv_fastai.cli.predict import bpv_predict
from bpv_fastai.cli.plan import TrainOptions
from bpv_fastai.data.errors import CatalogError, FileError, ResumeError
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.train.loaders import TitleDataLoaders
from commands import call, run

saved = Path(__file__).parent/'data'/'categorizer_v1'


def test_train_by_supplier(tmp_path):
    df = synthetic_catalog(900, 4)
    df['supplier'] = [f'supplier {i % 30}' if i % 10 else None for i in range(len(df))]
    df.to_csv(tmp_path/'catalog.csv', index=False)
    ran = call('bpv_train', 'catalog.csv', '--group', 'supplier', '--epochs', 1, '--pairs', 0, '--nh', 8, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'model'/'report.json').read_text())
    n, groups = report['valid_rows'], report['valid_groups']
    assert f'\non {n} titles of other suppliers ({groups} groups):\n' in ran.stdout and abs(n - 225) < 40
    assert report['group_col'] == 'supplier' and report['groups'] == 27 + 90 and 3 <= groups < 60
    assert 'on 900 in all' in ran.stdout and report['rows'] + report['not_judged'] == 900
    assert Categorizer.load(tmp_path/'model').report['group_col'] == 'supplier'
    ran = call('bpv_train', 'catalog.csv', '--group', 'shop', cwd=tmp_path)
    assert ran.returncode == 1 and "no column 'shop'" in ran.stderr


def test_readme_train_evaluate_predict(tmp_path):
    "The README's example on a TSV of one's own, word for word but for a smaller network"
    readme = (Path(__file__).parent.parent/'README.md').read_text()
    commands = [line.strip() for line in readme.splitlines() if line.strip().startswith('bpv_') and 'demo' not in line]
    assert [c.split()[0] for c in commands] == ['bpv_train', 'bpv_evaluate', 'bpv_predict']
    df = synthetic_catalog(1_500, 6)
    df[:1_200].to_csv(tmp_path/'catalog.tsv', sep='\t', header=False, index=False, quoting=3)
    df[1_200:].to_csv(tmp_path/'labelled.tsv', sep='\t', header=False, index=False, quoting=3)
    df[1_200:][['title']].to_csv(tmp_path/'titles.tsv', sep='\t', header=False, index=False, quoting=3)
    small = dict(bpv_train=['--epochs', 2, '--nh', 8])
    for command in commands:
        name, *args = command.split()
        ran = run(name, *args, *small.get(name, []), cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    predictions = [line.split('\t') for line in (tmp_path/'predictions.tsv').read_text().splitlines()]
    assert [p[0] for p in predictions] == df['title'][1_200:].tolist() and {p[1] for p in predictions} <= set(df['category'])
    report = json.loads((tmp_path/'model'/'report.json').read_text())
    assert {'rows', 'categories', 'precision', 'recall', 'f1', 'decided_f1', 'members', 'recipe', 'trained_on_all', 'train_seconds', 'versions'} <= set(report)
    assert report['rows'] == 1_200 and report['source'] == 'catalog.tsv'
    assert {p.name for p in (tmp_path/'model'/'evaluation').iterdir()} == {'by_category.csv', 'mistakes.csv', 'confidence.png'}
    assert not (tmp_path/'model'/'models').exists()


def test_stopped_while_it_is_judged_it_trains_nothing_anew(tmp_path, monkeypatch, capsys):
    synthetic_catalog(400, 3).to_csv(tmp_path/'c.csv', index=False)
    monkeypatch.chdir(tmp_path)
    def stops(*args, **kwargs): raise KeyboardInterrupt
    threads, options = torch.get_num_threads(), dict(epochs=1, nh=8, bs=32, threads=1)
    try:
        with monkeypatch.context() as m, pytest.raises(SystemExit):
            m.setattr(train, 'read_catalog', stops)
            train.bpv_train('c.csv', **options)
        assert capsys.readouterr().err.strip() == 'bpv_train: stopped' and not (tmp_path/'model').exists()
        with monkeypatch.context() as m, pytest.raises(SystemExit):
            m.setattr(train, 'judge_ensemble', stops)
            train.bpv_train('c.csv', **options)
        assert 'stopped; the same command continues from model/models/ensemble' in capsys.readouterr().err
        monkeypatch.setattr(ensemble.TitleLearner, 'fit', None)
        train.bpv_train('c.csv', **options)
    finally: torch.set_num_threads(threads)
    report = json.loads((tmp_path/'model'/'report.json').read_text())
    assert report['f1'] > 0 and report['train_seconds'] >= sum(m['seconds'] for m in report['members']) and not (tmp_path/'model'/'models').exists()


def test_titles_that_were_trained_on_are_not_scored(tmp_path, monkeypatch):
    "Random labels cannot be learned, however often each title stands in the catalog"
    rng = np.random.default_rng(0)
    df = synthetic_catalog(200, 5).drop_duplicates('title')
    df['category'] = rng.integers(0, 5, len(df)).astype(str)
    copies = [df, df, df.assign(title=df.title.str.upper()), df.assign(title='- ' + df.title)]
    pd.concat(copies).sample(frac=1, random_state=0).to_csv(tmp_path/'c.csv', index=False)
    ran = call('bpv_train', 'c.csv', '--epochs', 1, '--nh', 8, '--threads', 1, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'model'/'report.json').read_text())
    assert all(m['weighted_f1'] < .4 for m in report['members']) and report['f1'] < .4
    assert report['copies'] == 4 * len(df) and f"{4 * len(df)} rows with a copy, which a random split keeps together" in ran.stdout


def test_a_rate_that_is_too_high_is_said_in_a_line_and_a_lower_one_may_follow(tmp_path):
    synthetic_catalog(400, 3).to_csv(tmp_path/'c.csv', index=False)
    options = ['c.csv', '--epochs', 1, '--nh', 8, '--bs', 16, '--plain', '--nolinear', '--threads', 2]
    high = call('bpv_train', *options, '--lr', 1e9, cwd=tmp_path)
    assert high.returncode == 1 and len(high.stderr.strip().splitlines()) == 1 and 'with a lower peak rate, --lr' in high.stderr, high.stderr
    lower = call('bpv_train', *options, '--lr', .1, cwd=tmp_path)
    assert lower.returncode == 0, lower.stderr


def test_demo_on_a_catalog_of_ones_own(tmp_path):
    synthetic_catalog(1_200, 6).to_csv(tmp_path/'mine.csv.gz', index=False)
    ran = call('bpv_demo', '--catalog', 'mine.csv.gz', '--rows', 1_000, '--epochs', 1, '--nh', 8, '--out', 'deep/result', cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'deep'/'result'/'report.json').read_text())
    assert report['rows'] == 1_000 and report['categories'] == 6 and report['source'] == 'mine.csv.gz'
    assert (tmp_path/'deep'/'result'/'training.png').stat().st_size > 10_000
    assert 'weighted F1' in ran.stdout and '  linear ' in ran.stdout and ran.stdout.count(' | ') >= 20


def test_demo_on_a_handful_of_titles(tmp_path):
    synthetic_catalog(40, 3).to_csv(tmp_path/'few.csv', index=False)
    ran = call('bpv_demo', '--catalog', 'few.csv', '--epochs', 1, '--nh', 8, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'bpv_demo'/'report.json').read_text())
    assert report['decided_f1'] is None and 'decisions for F1' not in ran.stdout
    assert Categorizer.load(tmp_path/'bpv_demo').decider.calibrator is None


def test_every_form_of_file_gives_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    titles = synthetic_catalog(300, 12)['title'].tolist()
    titles[5], titles[7] = 'tab\tand "quote"', 'two\nlines'
    df = pd.DataFrame(dict(id=range(300), name=titles))
    df.to_csv(tmp_path/'t.csv', index=False); df.to_csv(tmp_path/'t.csv.gz', index=False); df.to_parquet(tmp_path/'t.parquet')
    for source in ('t.csv', 't.csv.gz', 't.parquet'):
        for out in ('o.tsv', 'o.tsv.gz', 'o.csv', 'o.parquet'): bpv_predict(str(saved), source, out, title='name', top=2, quiet=True)
    tsv = (tmp_path/'o.tsv').read_text().split('\n')[:-1]
    assert len(tsv) == 300 and all(line.count('\t') == 1 for line in tsv) and tsv[5].startswith('tab and "quote"\t') and tsv[7].startswith('two lines\t')
    assert gzip.decompress((tmp_path/'o.tsv.gz').read_bytes()).decode() == (tmp_path/'o.tsv').read_text()
    csv, parquet = pd.read_csv(tmp_path/'o.csv'), pd.read_parquet(tmp_path/'o.parquet')
    assert csv['title'].tolist() == parquet['title'].tolist() == titles
    assert csv['category'].tolist() == parquet['category'].tolist() == [line.split('\t')[1] for line in tsv]


def test_the_challenge_reads_our_predictions(tmp_path):
    "As its scorer does: line by line, two columns split at the tab, the titles of both files compared"
    df = synthetic_catalog(200, 12)
    df.to_csv(tmp_path/'gold.tsv', sep='\t', header=False, index=False, quoting=3); df[['title']].to_csv(tmp_path/'test.tsv', header=False, index=False, sep='\t', quoting=3)
    assert call('bpv_predict', saved, 'test.tsv', cwd=tmp_path).returncode == 0
    with open(tmp_path/'gold.tsv') as gold, open(tmp_path/'predictions.tsv') as predicted:
        pairs = [(g.rstrip('\n').split('\t'), p.rstrip('\n').split('\t')) for g, p in zip(gold, predicted, strict=True)]
    assert len(pairs) == 200 and all(len(p) == 2 and g[0] == p[0] and p[1] for g, p in pairs)


def test_pipes(tmp_path):
    ran = run('bpv_predict', saved, '-', '--out', '-', cwd=tmp_path, input=b'Olive oil\n\nCaf\xe9\nTea\n', text=False)
    lines = ran.stdout.split(b'\n')
    assert ran.returncode == 0 and [line.split(b'\t')[0] for line in lines] == [b'Olive oil', b'', b'Caf\xe9', b'Tea', b'']
    assert lines[1] == b'\t' and lines[2] == b'Caf\xe9\t' and len(lines[3]) > 5
    assert list(tmp_path.iterdir()) == []


def test_no_row_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, n in ((b'title\nTea\n\nOil\n', 3), (b'title,x\na,b\nq\0z\n"lone\rreturn",c\n', 3)):
        (tmp_path/'t.csv').write_bytes(source)
        for out in ('o.tsv', 'o.csv', 'o.parquet'):
            bpv_predict(str(saved), 't.csv', out, quiet=True)
            found = pd.read_parquet(out) if out == 'o.parquet' else pd.read_csv(out, sep='\t', header=None, quoting=3, skip_blank_lines=False) if out == 'o.tsv' else pd.read_csv(out)
            assert len(found) == n
    pd.DataFrame(dict(title=[1, 2])).to_parquet('n.parquet')
    bpv_predict(str(saved), 'n.parquet', 'o.csv', quiet=True)
    assert pd.read_csv('o.csv')['category'].notna().all()


def test_parts_belong_to_one_model_one_source_and_one_process(tmp_path, monkeypatch):
    "A run that failed half-way is continued only by the same work; two at once are told apart"
    from bpv_fastai.use.predict import map_file
    monkeypatch.chdir(tmp_path)
    def labels(name, fail=None):
        def label(titles):
            if fail in titles: raise RuntimeError('stopped')
            return pd.DataFrame(dict(title=titles, category=[name] * len(titles), reason=''), dtype=object)
        return label
    (tmp_path/'t.tsv').write_text('a\nb\nc\nd\n')
    with pytest.raises(RuntimeError): map_file('t.tsv', 'o.tsv', labels('old', 'c'), size=2, identity=dict(model='old'), progress=False)
    assert len(list(tmp_path.glob('.o.tsv.*.parts/000000'))) == 1
    map_file('t.tsv', 'o.tsv', labels('new'), size=2, identity=dict(model='new'), progress=False)
    assert (tmp_path/'o.tsv').read_text() == 'a\tnew\nb\tnew\nc\tnew\nd\tnew\n' and {p.name for p in tmp_path.iterdir()} == {'t.tsv', 'o.tsv'}
    def twice(titles):
        if titles: map_file('t.tsv', 'o.tsv', labels('other'), size=2, progress=False)
        return labels('mine')(titles)
    with pytest.raises(FileError, match='another process is writing this file'): map_file('t.tsv', 'o.tsv', twice, size=2, progress=False)


bad_input = {
    'no such file': ('bpv_train', ['none.tsv'], 'there is no such file'),
    'a kind nobody knows': ('bpv_train', ['a.xlsx'], 'its name does not tell what it is'),
    'empty': ('bpv_train', ['empty.tsv'], 'the file is empty'),
    'one column': ('bpv_train', ['one.tsv'], '1 column instead of 2'),
    'a row with a missing category': ('bpv_train', ['hole.csv'], "row 3, column 'category': empty"),
    'wrong column': ('bpv_train', ['hole.csv', '--title', 'product'], "no column 'product'; it has 'title', 'category'. Name yours with --title"),
    'not UTF-8': ('bpv_train', ['latin.csv'], 'byte 0xe9 is not UTF-8'),
    'damaged gzip': ('bpv_predict', [saved, 'bad.tsv.gz'], 'damaged or not gzip'),
    'no model': ('bpv_predict', ['nowhere', 'one.tsv'], 'there is no such folder'),
    'a folder that is no model': ('bpv_predict', ['.', 'one.tsv'], 'holds no categorizer'),
    'output of a kind nobody knows': ('bpv_predict', [saved, 'one.tsv', '--out', 'x.doc'], 'its name does not tell what it is'),
    'compressed twice': ('bpv_predict', [saved, 'one.tsv', '--out', 'x.parquet.gz'], 'Remove .gz from the name'),
    'a column that is not there': ('bpv_predict', [saved, 'one.tsv', '--columns', 'titel'], "no column 'titel'"),
    'a position that is not there': ('bpv_predict', [saved, 'one.tsv', '--title', '3'], 'no column 3'),
    'output over input': ('bpv_predict', [saved, 'one.tsv', '--out', 'one.tsv'], 'this is where the titles come from'),
    'no titles': ('bpv_predict', [saved, 'header.csv'], 'no titles'),
    'an unclosed quote': ('bpv_evaluate', [saved, 'quote.csv'], 'quote that is never closed'),
    'an epoch less than one': ('bpv_train', ['hole.csv', '--epochs', '0'], 'epochs must be positive'),
    'one column for both': ('bpv_train', ['hole.csv', '--title', 'title', '--category', 'title'], "must be two columns, not both 'title'"),
    'a cell nobody knows': ('bpv_train', ['hole.csv', '--cell', 'gru'], '--cell gru: it can be lstm, qrnn'),
    'a precision nobody knows': ('bpv_train', ['hole.csv', '--fresh', '--precision', 'fp8'], '--precision fp8: it can be auto, fp32, bf16'),
    'fewer rows than none': ('bpv_demo', ['--rows', '-5'], 'rows must be positive'),
    'fewer pairs than none': ('bpv_demo', ['--pairs', '-1'], 'pairs cannot be negative'),
    'confidence above one': ('bpv_predict', [saved, 'one.tsv', '--confidence', '1.5'], 'between 0 and 1'),
}


@pytest.mark.parametrize('command,args,says', bad_input.values(), ids=bad_input)
def test_errors_are_one_line(tmp_path, command, args, says):
    (tmp_path/'empty.tsv').touch(); (tmp_path/'one.tsv').write_text('a title\n'); (tmp_path/'a.xlsx').touch(); (tmp_path/'header.csv').write_text('title\n')
    (tmp_path/'hole.csv').write_text('title,category\nTea,drinks\nOil,\n'); (tmp_path/'latin.csv').write_bytes(b'title,category\nCaf\xe9,drinks\n')
    (tmp_path/'bad.tsv.gz').write_bytes(gzip.compress(b'a\n' * 9_999)[:-9]); (tmp_path/'quote.csv').write_text('title,category\n"Tea,drinks\n')
    before = {p.name for p in tmp_path.iterdir()}
    ran = call(command, *args, cwd=tmp_path)
    *_, last = ran.stderr.strip().split('\n')
    assert ran.returncode == 1 and last.startswith(f'{command}: ') and says in last and 'Traceback' not in ran.stderr
    assert {p.name for p in tmp_path.iterdir()} <= before | {'model'}


def test_bad_rows_can_be_left_out(tmp_path):
    df = synthetic_catalog(400, 4)
    df.loc[7, 'category'] = ''
    df.to_csv(tmp_path/'c.csv', index=False)
    options = ['--drop', '--epochs', 1, '--nh', 8, '--nolinear', '--plain', '--pairs', 0]
    ran = call('bpv_train', 'c.csv', *options, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert pd.read_csv(tmp_path/'model'/'bad_rows.csv')['row'].tolist() == [9] and 'linear' not in ran.stdout.split('weighted F1')[1]
    df.dropna().query('category != ""').to_csv(tmp_path/'good.csv', index=False)
    assert call('bpv_train', 'good.csv', *options, cwd=tmp_path).returncode == 0
    assert not (tmp_path/'model'/'bad_rows.csv').exists()  # which were another catalog's


def test_a_model_that_is_replaced_and_answers_that_nobody_accepts(tmp_path):
    synthetic_catalog(200, 4).to_csv(tmp_path/'c.csv', index=False)
    (tmp_path/'titles.tsv').write_text('tea\ngreen\ttea\n \n')
    options = ['c.csv', '--epochs', 1, '--nh', 8, '--longest', 9, '--nolinear']
    first, again = (call('bpv_train', *options, cwd=tmp_path) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert 'replaces' not in first.stdout and 'model holds a model, which this one replaces' in again.stdout
    assert 'on 50 titles not trained on' in first.stdout and 'no answer is marked as accepted' in first.stdout
    evaluated = call('bpv_evaluate', 'model', 'c.csv', cwd=tmp_path)
    assert evaluated.returncode == 0 and 'accepted without a person: 0.0%' in evaluated.stdout and 'no answer is marked as accepted' in evaluated.stdout
    def warned(ran): return [line for line in ran.stderr.splitlines() if line.startswith('bpv_')]
    assert len(warned(evaluated)) == 1 and 'cut there' in warned(evaluated)[0]
    labelled = call('bpv_predict', 'model', 'titles.tsv', '--quiet', cwd=tmp_path)
    assert len(warned(labelled)) == 1 and warned(labelled)[0].startswith('bpv_predict: 2 rows read now got no category')


def test_a_command_that_fails_ends_with_1_and_a_line(tmp_path):
    for command, *args in (('bpv_train', 'none.tsv'), ('bpv_evaluate', 'nowhere', 'c.tsv'), ('bpv_predict', 'nowhere', 't.tsv')):
        ran = run(command, *args, cwd=tmp_path)
        assert ran.returncode == 1 and ran.stderr.startswith(f'{command}: ') and len(ran.stderr.splitlines()) == 1


def test_bad_rows_of_an_evaluation_are_listed(tmp_path):
    df = synthetic_catalog(60, 5)
    df.loc[3, 'title'] = ''
    df.to_csv(tmp_path/'bad.csv', index=False)
    ran = call('bpv_evaluate', saved, 'bad.csv', '--drop', '--out', 'evaluation', cwd=tmp_path)
    assert 'evaluation/bad_rows.csv' in ran.stdout
    assert pd.read_csv(tmp_path/'evaluation'/'bad_rows.csv')['row'].tolist() == [5]


def test_a_file_where_a_folder_is_named(tmp_path):
    synthetic_catalog(40, 2).to_csv(tmp_path/'c.csv', index=False)
    ran = call('bpv_train', 'c.csv', '--out', 'c.csv', cwd=tmp_path)
    assert ran.returncode == 1 and ran.stderr.strip().endswith('Not a directory. Choose another place')


@pytest.mark.parametrize('titles, out, kept', [('t.tsv', 'o.tsv', True), ('t.tsv', '-', False), ('-', 'o.tsv', False)])
def test_a_stopped_labelling_says_whether_it_resumes(tmp_path, monkeypatch, capsys, titles, out, kept):
    def stops(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(Categorizer, 'load', stops)
    with pytest.raises(SystemExit): bpv_predict(str(tmp_path/'model'), titles, out, threads=1)
    assert ('the same command resumes with the rows that are missing' in capsys.readouterr().err) == kept


def test_debug_shows_the_traceback(tmp_path):
    ran = run('bpv_predict', 'nowhere', 'one.tsv', '--debug', cwd=tmp_path)
    assert ran.returncode == 1 and 'Traceback' in ran.stderr


@pytest.mark.parametrize('command', ['bpv_train', 'bpv_evaluate', 'bpv_predict', 'bpv_demo'])
def test_help_names_every_option(tmp_path, command):
    shown = call(command, '--help', cwd=tmp_path).stdout
    assert all(f'--{o}' in shown for o in ('title', 'out', 'threads', 'debug')) and 'default' in shown


def recipe_of_a_stopped_run(dls, options, out):
    "The recipe of a run that is stopped as soon as it has its recipe"
    with pytest.raises(KeyboardInterrupt), plan.resumed_recipe(dls, options, False, out) as recipe: raise KeyboardInterrupt
    return recipe


def test_a_run_that_resumes_keeps_its_recipe(tmp_path, monkeypatch):
    "How fast the machine is now must not change what a stopped run had begun"
    dls = TitleDataLoaders.from_df(synthetic_catalog(400, 4), bs=32, verbose=False)
    options = TrainOptions(minutes=1.)
    monkeypatch.setattr(plan, 'training_speed', lambda *args, **kwargs: 300.)
    first = recipe_of_a_stopped_run(dls, options, tmp_path)
    monkeypatch.setattr(plan, 'training_speed', lambda *args, **kwargs: 30_000.)
    assert recipe_of_a_stopped_run(dls, options, tmp_path) == first
    other = recipe_of_a_stopped_run(dls, TrainOptions(minutes=2.), tmp_path)
    assert other.members != first.members
    given = recipe_of_a_stopped_run(dls, TrainOptions(minutes=1., cell='qrnn', nh=7, epochs=3, lr=.1), tmp_path)
    networks = [m for m in given.members if m.kind == 'bpv']
    wanted = dict(epochs=3, lr_max=.1, kwargs=dict(nh=7, cell='qrnn', max_len=128))
    assert given.bs == 32 and all({name: getattr(m, name) for name in wanted} == wanted for m in networks)


def width(recipe): return recipe.members[-1].kwargs['nh']


def test_members_of_another_training_are_not_resumed(tmp_path):
    dls = TitleDataLoaders.from_df(synthetic_catalog(400, 4), bs=32, verbose=False)
    recipe_of_a_stopped_run(dls, TrainOptions(nh=8), tmp_path)
    (tmp_path/'models'/'ensemble'/'0.json').touch()
    assert width(recipe_of_a_stopped_run(dls, TrainOptions(nh=8, checkpoint=1.), tmp_path)) == 8
    with pytest.raises(ResumeError, match='members of another training'): recipe_of_a_stopped_run(dls, TrainOptions(nh=9), tmp_path)
    (tmp_path/plan.run_note).write_text('{"of": "an older version"}')
    with pytest.raises(ResumeError, match='members of another training'): recipe_of_a_stopped_run(dls, TrainOptions(nh=8), tmp_path)
    assert width(recipe_of_a_stopped_run(dls, TrainOptions(nh=9, fresh=True), tmp_path)) == 9 and not (tmp_path/'models'/'ensemble'/'0.json').exists()
