"""The words of the search index: English ones stemmed, Chinese ones as pairs of neighbours.

Sphinx cuts Chinese text by a dictionary when it writes the index, but never cuts what the reader types, so that
断点续训 finds nothing on a page that was cut into 断点 and 续训. Here both sides cut alike: 断点, 点续, 续训,
and a page is found when it has them all. English pages are cut in the same way: a glossary holds Chinese terms.
"""

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

_HAN = "\u3400-\u9fff"
_WORD = re.compile(rf"[{_HAN}]+|[^\W{_HAN}]+")
_HAN_RUN = re.compile(rf"[{_HAN}]+")

# The same as `words` below, for what the reader types.
SPLITTER = r"""
var splitQuery = (query) =>
  (query.match(/[\u3400-\u9fff]+|[\p{Letter}\p{Number}_]+/gu) || [])
    .flatMap((run) => run.match(/[\u3400-\u9fff]+|[^\u3400-\u9fff]+/gu))
    .flatMap((run) =>
      /[\u3400-\u9fff]/.test(run) && run.length > 1
        ? Array.from({ length: run.length - 1 }, (_, i) => run.slice(i, i + 2))
        : [run]);
"""


def words(text: str) -> list[str]:
    """The words of a text; a run of Chinese characters gives its pairs, a single one itself."""
    found = []
    for run in _WORD.findall(text):
        if _HAN_RUN.fullmatch(run) and len(run) > 1:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


class English(SearchEnglish):
    js_splitter_code = SPLITTER

    def split(self, input: str) -> list[str]:
        return words(input)


class Chinese(English):
    lang = "zh"
    language_name = (
        "English"  # Sphinx names the stemmer of the browser after it, and Latin words have the English one
    )


def setup(app: Sphinx) -> None:
    app.add_search_language(English)
    app.add_search_language(Chinese)
