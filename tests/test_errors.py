"The wording of errors for the library and for commands, and their way between processes."
import pickle
import warnings

import pytest

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
