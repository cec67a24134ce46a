"The wording of errors for the library and for commands, and their way between processes."
import ast
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest

from bpv_fastai.cli.demo import bpv_demo
from bpv_fastai.cli.errors import option_names
from bpv_fastai.cli.evaluate import bpv_evaluate
from bpv_fastai.cli.predict import bpv_predict
from bpv_fastai.cli.train import bpv_train
from bpv_fastai.data.errors import (CatalogError, CategorizerError, Remedy, ResumeError, TitleError, TitleWarning,
                                    TrainingDiverged)

options = {'title_col': '--title', 'category_col': '--category', 'on_bad': '--drop', 'rule': '--decide best'}


@pytest.mark.parametrize('remedy,library,command', [
    (Remedy('Name yours with {title_col}'), 'Name yours with title_col=', 'Name yours with --title'),
    (Remedy('Leave such rows out with {on_bad}', on_bad='drop'), "Leave such rows out with on_bad='drop'", 'Leave such rows out with --drop'),
    (Remedy('Use {rule} or {k}', rule='best', k=3), "Use rule='best' or k=3", 'Use --decide best or k=3'),
    (Remedy('Fetch it again'), 'Fetch it again', 'Fetch it again')])
def test_a_remedy_names_arguments_or_options(remedy, library, command):
    assert remedy.worded() == library and remedy.worded(options) == command
    error = CatalogError('no', remedy=remedy)
    assert str(error) == f'no. {library}' and error.worded(options) == f'no. {command}'


@pytest.mark.parametrize('parts,text', [
    ({}, 'empty'),
    (dict(path='a.csv'), 'a.csv: empty'),
    (dict(path='a.csv', row=3), 'a.csv, row 3: empty'),
    (dict(path='DataFrame', row='x', column='title'), "DataFrame, row 'x', column 'title': empty"),
    (dict(row=0, column=0), 'row 0, column 0: empty'),
    (dict(path='a.csv', remedy='Fill it'), 'a.csv: empty. Fill it')])
def test_parts_that_are_not_known_are_left_out(parts, text): assert str(TitleError('empty', **parts)) == text


@pytest.mark.parametrize('kind,builtin', [(CatalogError, ValueError), (CategorizerError, ValueError), (ResumeError, RuntimeError), (TrainingDiverged, RuntimeError)])
def test_errors_keep_their_class_and_parts_in_a_pickle(kind, builtin):
    error = kind('empty', path='a.csv', row=3, column='title', remedy=Remedy('Use {on_bad}', on_bad='drop'))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and isinstance(copy, TitleError) and isinstance(copy, builtin)
    assert str(copy) == str(error) and copy.worded(options) == error.worded(options)
    assert (copy.problem, copy.path, copy.row, copy.column) == ('empty', 'a.csv', 3, 'title')


def test_a_warning_words_its_remedy_as_an_error_does():
    with pytest.warns(TitleWarning, match='cut. Use max_len=') as caught:
        warnings.warn(TitleWarning('cut', remedy=Remedy('Use {max_len}')))
    assert isinstance(caught[0].message, UserWarning) and caught[0].message.worded(dict(max_len='--longest')) == 'cut. Use --longest'


def remedies(source):
    "The texts of a module that are given to `Remedy`, or are put together as a `remedy`"
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'Remedy'
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        if is_call or any(getattr(target, 'id', '') == 'remedy' for target in targets):
            yield from (text.value for text in ast.walk(node) if isinstance(text, ast.Constant) and isinstance(text.value, str))


def test_every_argument_in_a_remedy_is_an_option_of_a_command():
    "Otherwise a command would print the library's word, which nobody can type"
    package = Path(__file__).parent.parent/'bpv_fastai'
    named = {name for path in package.rglob('*.py') for text in remedies(path.read_text(encoding='utf-8')) for name in re.findall(r'{(\w+)}', text)}
    assert {'title_col', 'category_col', 'on_bad', 'path', 'max_len', 'decide'} <= named <= set(option_names), named - set(option_names)
    options = {f'--{name}' for command in (bpv_train, bpv_demo, bpv_predict, bpv_evaluate) for name in inspect.signature(command).parameters}
    assert {value.split()[0] for value in option_names.values() if value.startswith('-')} <= options
