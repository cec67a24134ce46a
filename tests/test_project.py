"The project itself: nothing skipped, README in step, and the rules of the house."
import ast
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
package = root/'bpv_fastai'
notebooks = sorted((root/'nbs').rglob('*.ipynb'))
by_hand = {'__init__', '_modidx', 'moved', 'all'}
modules = sorted(p for p in package.rglob('*.py') if p.stem not in by_hand)

# from the lowest to the highest; what stands in no folder is the top of the package
folders = ['data', 'decide', 'models', 'use', 'train', '', 'cli']
libraries_below_fastai = {'data', 'decide', 'models', 'use'}


def cells(path):
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']: yield cell['cell_type'], ''.join(cell['source'])


def room(path): return '.'.join(path.relative_to(package).with_suffix('').parts)


def folder(name): return name.rpartition('.')[0]


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def imports(path):
    "Modules that a module imports, those of the package by the name of the room"
    here = [*path.relative_to(package).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): yield from ((a.name, None) for a in node.names)
        if isinstance(node, ast.ImportFrom):
            own = here[:len(here) - node.level + 1] if node.level else []
            base = 'bpv_fastai.' * bool(node.level) + '.'.join([*own, node.module or ''])
            yield from ((base, a.name) for a in node.names)


def own_imports(path): return {base.removeprefix('bpv_fastai.') for base, _ in imports(path) if base.startswith('bpv_fastai.')}


def exported_rooms():
    "The notebook of each room"
    found = {}
    for path in notebooks:
        for kind, source in cells(path):
            name = re.match(r'#\| default_exp ([\w.]+)', source)
            if kind == 'code' and name: found[name[1]] = path
    return found


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_no_notebook_is_skipped_and_each_proves_something(path):
    assert not path.name.startswith('_')
    code = [s for kind, s in cells(path) if kind == 'code']
    for source in code:
        assert 'skip_exec' not in source and '#| eval: false' not in source
        if source.startswith('#| export'): assert 'import *' not in source
    if any(s.startswith('#| export') for s in code): assert any(re.search(r'^ *(test_\w+\(|assert )', s, re.M) for s in code)


def test_every_module_comes_from_a_notebook_in_the_same_folder():
    rooms = exported_rooms()
    assert {room(p) for p in modules if p.stem != '__init__'} == set(rooms)
    for name, path in rooms.items(): assert path.relative_to(root/'nbs').parent.as_posix().strip('.') == folder(name).replace('.', '/')


@pytest.mark.parametrize('path', modules, ids=room)
def test_a_room_imports_only_what_stands_to_its_left(path):
    name, numbers = room(path), {n: p.stem.split('_')[0] for n, p in exported_rooms().items()}
    for other in own_imports(path):
        ours, theirs = folders.index(folder(name)), folders.index(folder(other))
        assert theirs < ours or theirs == ours and numbers[other] < numbers[name], f'{name} imports {other}'


def test_the_test_of_imports_reads_imports():
    assert 'data.errors' in own_imports(package/'data'/'catalog.py') and 'train.loaders' in own_imports(package/'learner.py')


@pytest.mark.parametrize('path', [p for p in modules if folder(room(p)) in libraries_below_fastai or room(p) == 'categorizer'], ids=room)
def test_no_fastai_below_training(path):
    assert not [base for base, _ in imports(path) if base.split('.')[0] == 'fastai']


def test_labelling_needs_no_fastai():
    code = 'import sys, bpv_fastai.categorizer, bpv_fastai.cli.predict; sys.exit("fastai" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0


def test_no_private_name_of_another_module():
    for path in modules:
        private = [name for base, name in imports(path) if name and name.startswith('_') and base.startswith('bpv_fastai')]
        assert not private, f'{room(path)}: {private}'


def test_no_private_class_with_a_single_heir():
    bases, private = Counter(), set()
    for path in modules:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ClassDef): continue
            bases.update(base.id for base in node.bases if isinstance(base, ast.Name))
            if node.name.startswith('_'): private.add(node.name)
    assert not [name for name in private if bases[name] == 1]


def test_lines_end_by_column_120():
    for path in [*modules, *(package/f'{name}.py' for name in ('all', 'moved'))]:
        for i, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            assert len(line) <= 120 or line.startswith('__all__'), f'{room(path)}:{i} has {len(line)} characters'


def test_all_hands_on_what_users_call():
    names = import_module('bpv_fastai.all').__all__
    assert 40 <= len(names) <= 50 and {'TitleDataLoaders', 'bpv_learner', 'Ensemble', 'Categorizer', 'read_catalog'} <= set(names)


def test_every_public_name_is_documented():
    for path in modules:
        for node in tree(path).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
            if public: assert ast.get_docstring(node), f'{room(path)}: {node.name}'


def test_modules_that_moved_keep_their_names():
    from bpv_fastai.callbacks import TrainingDiverged
    from bpv_fastai.catalog import CatalogError, read_catalog, usda_foods
    from bpv_fastai.data import catalog, errors
    from bpv_fastai.dataloaders import TitleDataLoaders
    assert read_catalog is catalog.read_catalog and CatalogError is errors.CatalogError and TrainingDiverged is errors.TrainingDiverged
    from bpv_fastai.cli import bpv_demo, bpv_train
    assert bpv_demo and bpv_train and usda_foods and TitleDataLoaders.__module__ == 'bpv_fastai.train.loaders'
    moved = import_module('bpv_fastai.moved').moved
    for name in moved: assert import_module(f'bpv_fastai.{name}')
    with pytest.raises(ModuleNotFoundError): import_module('bpv_fastai.no_such_module')


def test_readme_is_the_index_notebook():
    pytest.importorskip('nbconvert', reason='a development tool')
    assert runpy.run_path(str(root/'readme.py'))['readme']() == (root/'README.md').read_text(encoding='utf-8')
