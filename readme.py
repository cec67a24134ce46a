"README.md from nbs/index.ipynb: `python readme.py` writes it."
import re
from pathlib import Path

root = Path(__file__).parent


def readme() -> str:
    "The index notebook as Markdown, with paths as seen from the top of the project"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'\]\((?!http|#)([\w./-]+)\)', r'](nbs/\1)', text).replace('](nbs/../', '](')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
