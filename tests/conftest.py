"Closes a run with the counts on a line of their own."
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two processes with two threads each would wait for each other


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if reporter is None or not reporter.stats: return
    counts = {k: len(reporter.stats.get(k, [])) for k in ('passed', 'failed', 'error')}
    print(f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed")
