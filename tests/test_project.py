"The project itself: nothing skipped, README in step, house rules that a machine can read."
import ast
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
notebooks = sorted((root/'nbs').glob('*.ipynb'))


def cells(path): return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_no_notebook_is_skipped_and_cells_are_short(path):
    assert not path.name.startswith('_')
    for kind, source in cells(path):
        assert 'skip_exec' not in source and '#| eval: false' not in source
        if kind == 'code' and source.startswith('#| export'):
            assert 'import *' not in source and len(source.splitlines()) <= 45
    code = [s for k, s in cells(path) if k == 'code']
    if any(s.startswith('#| export') for s in code): assert any(re.search(r'^ *test_\w+\(|; test_\w+\(', s, re.M) for s in code)


def test_every_module_comes_from_a_notebook():
    exported = {re.search(r'#\| default_exp (\w+)', s)[1] for p in notebooks for k, s in cells(p) if '#| default_exp' in s and k == 'code'}
    assert {p.stem for p in (root/'bpv_fastai').glob('*.py')} == exported | {'__init__', '_modidx', 'all'}


def test_only_lower_numbers_are_imported():
    number = {re.search(r'#\| default_exp (\w+)', s)[1]: p.stem[:2] for p in notebooks for k, s in cells(p) if '#| default_exp' in s and k == 'code'}
    plain = {'catalog', 'files', 'titles', 'sampler', 'lstm', 'qrnn', 'encoder', 'pooling', 'members', 'ngrams', 'metrics', 'baseline', 'probabilities', 'calibration', 'decisions', 'categorizer', 'onnx', 'label'}
    for name, own in number.items():
        tree = ast.parse((root/'bpv_fastai'/f'{name}.py').read_text(encoding='utf-8'))
        nodes = list(ast.walk(tree))
        ours = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level]
        others = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level] + [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        assert ours or own in ('00', '11', '18', '19', '20', '22', '23', '29', '30', '33', '40'), f'{name} imports nothing of ours: is this test still reading imports?'
        for m in ours: assert number[m] < own, f'{name} imports {m}'
        if name in plain: assert not any(m.split('.')[0] == 'fastai' for m in others), f'{name} knows fastai'


def test_every_public_name_is_documented():
    for path in (root/'bpv_fastai').glob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'): assert ast.get_docstring(node), f'{path.name}: {node.name}'


def test_readme_is_the_index_notebook():
    pytest.importorskip('nbconvert', reason='a development tool')
    import runpy
    assert runpy.run_path(str(root/'readme.py'))['readme']() == (root/'README.md').read_text(encoding='utf-8')
