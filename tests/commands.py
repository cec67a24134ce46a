"Run commands of the package: in a process of their own, or in this one, which saves seconds of imports."
import contextlib
import io
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import torch

hidden_by_python = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def script(command): return Path(sys.executable).with_name(command)


def run(command, *args, cwd, **kwargs):
    "Run a command as a process"
    line = [script(command), *map(str, args)]
    return subprocess.run(line, capture_output=True, cwd=cwd, timeout=300, **{'text': True} | kwargs)


def call(command, *args, cwd):
    "Run a command's script in this process, with its own arguments, folder, output, warnings and threads"
    argv, sys.argv, threads = sys.argv, [command, *map(str, args)], torch.get_num_threads()
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with (contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
              warnings.catch_warnings()):
            warnings.resetwarnings()
            for category in hidden_by_python: warnings.simplefilter('ignore', category)
            runpy.run_path(str(script(command)), run_name='__main__')
    except SystemExit as end:
        code = 1 if isinstance(end.code, str) else end.code or 0
        if isinstance(end.code, str): print(end.code, file=err)
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess([command, *args], code, out.getvalue(), err.getvalue())
