"Closes a run with the counts on a line of their own."
import os

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two processes with two threads each would wait for each other


@pytest.fixture
def two_threads():
    import torch  # in a process that collects tests alone it is not needed
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if reporter is None or not reporter.stats: return
    counts = {k: len(reporter.stats.get(k, [])) for k in ('passed', 'failed', 'error')}
    print(f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed")
