"The quickstart, cell by cell, the slow ones too, on a small sample."
import json
from pathlib import Path

import matplotlib
import pytest

import bpv_fastai.all
from bpv_fastai.catalog import usda_foods

notebook = Path(__file__).parent.parent/'nbs'/'90_quickstart.ipynb'


@pytest.mark.filterwarnings('ignore')
def test_every_cell_runs(monkeypatch, tmp_path):
    matplotlib.use('Agg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bpv_fastai.all, 'usda_foods', lambda: usda_foods().sample(3_000, random_state=0).reset_index(drop=True))
    names = {}
    code = [''.join(c['source']) for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    for source in code: exec(source.replace('nh=128', 'nh=16'), names)
    assert sum('slow' in s for s in code) > 5 and names['learn'].dls.c > 50 and 0 < names['ours']['f1'] < 1
