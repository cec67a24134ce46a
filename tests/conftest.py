"Closes a run with the counts on a line of their own."
import os

os.environ.setdefault('OMP_NUM_THREADS', '2')


def pytest_terminal_summary(terminalreporter):
    passed = len(terminalreporter.stats.get('passed', []))
    failed = len(terminalreporter.stats.get('failed', [])) + len(terminalreporter.stats.get('error', []))
    terminalreporter.write_line(f'{passed} passed, {failed} failed')
