"The demo as a command."
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpv_fastai.catalog import synthetic_catalog


def demo(*args, cwd):
    return subprocess.run([Path(sys.executable).with_name('bpv_demo'), *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_demo_on_a_catalog_of_ones_own(tmp_path):
    synthetic_catalog(1_200, 6).to_csv(tmp_path/'mine.csv.gz', index=False)
    ran = demo('--catalog', 'mine.csv.gz', '--rows', 1_000, '--epochs', 1, '--nh', 8, '--out', 'deep/result', cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'deep'/'result'/'report.json').read_text())
    assert {'rows', 'categories', 'precision', 'recall', 'f1', 'linear_f1', 'train_seconds', 'titles_per_second', 'versions'} <= set(report)
    assert report['rows'] == 1_000 and report['categories'] == 6 and report['source'] == 'mine.csv.gz'
    assert (tmp_path/'deep'/'result'/'demo.png').stat().st_size > 10_000
    assert 'weighted F1' in ran.stdout and 'linear SVM' in ran.stdout and ran.stdout.count(' | ') >= 20


def test_demo_on_a_handful_of_titles(tmp_path):
    synthetic_catalog(40, 3).to_csv(tmp_path/'few.csv', index=False)
    ran = demo('--catalog', 'few.csv', '--epochs', 1, '--nh', 8, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'bpv_demo'/'report.json').read_text())
    assert report['decided_f1'] is None and 'decisions for F1' not in ran.stdout


@pytest.mark.parametrize('args,says', [(['--catalog', 'none.tsv'], 'there is no such file'), (['--epochs', 0], 'must be positive'), (['--catalog', 'one.tsv'], '1 columns')])
def test_errors_are_one_line(tmp_path, args, says):
    (tmp_path/'one.tsv').write_text('a title\n')
    ran = demo(*args, cwd=tmp_path)
    *before, last = ran.stderr.strip().split('\n')
    assert ran.returncode == 1 and last.startswith('bpv_demo: ') and says in last and 'Traceback' not in ran.stderr


def test_help_names_every_option(tmp_path):
    ran = demo('--help', cwd=tmp_path)
    assert all(f'--{o}' in ran.stdout for o in ('rows', 'epochs', 'nh', 'catalog', 'out'))
