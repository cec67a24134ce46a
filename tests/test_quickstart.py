"The quickstart, cell by cell, the slow ones too, on a small sample."
import json
from pathlib import Path

import matplotlib
import pytest

import bpv_fastai.all
from bpv_fastai.data.samples import usda_foods

notebook = Path(__file__).parent.parent/'nbs'/'tutorials'/'10_quickstart.ipynb'


@pytest.mark.filterwarnings('ignore')
def test_every_cell_runs(monkeypatch, tmp_path):
    matplotlib.use('Agg')
    monkeypatch.chdir(tmp_path)
    sample = usda_foods().sample(6_000, random_state=0).reset_index(drop=True)
    monkeypatch.setattr(bpv_fastai.all, 'usda_foods', lambda: sample)
    names = {}
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    assert any('nh=64' in source for source in code)
    for source in code:
        small = source.replace('epochs=5', 'epochs=1').replace('for_loaders(dls, ', 'for_loaders(dls, final=False, ')
        exec(small.replace('nh=64', 'nh=16'), names)
    assert sum('slow' in source for source in code) > 5 and names['learn'].dls.c > 50
    assert 0 < names['linear_f1'] < 1 and names['cat'].vocab == names['dls'].vocab
