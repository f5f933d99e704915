"""The site: the repository's own pages, in English and Chinese, as HTML that needs no other machine.

Run: ``python -m course docs build``, then open site/index.html. Read downward:

    contents.py    docs/contents.toml: which pages there are, in which order
    assemble.py    one source tree for each language, from the pages where they lie
    notebook.py    a notebook with its outputs, as Markdown
    flowchart.py   the diagrams in the lessons, as pictures          layered.py  places their boxes
    conf.py        Sphinx's settings                                 extension.py  what we add to Sphinx
    links.py       where a link leads                                sources.py  pages that show source files
    docstrings.py  docstrings, as Sphinx wants them                  tidy.py     small changes to pages
    search.py      words of both languages                           theme/      style, templates, words
    build.py       runs Sphinx twice                                 check.py    links, anchors, pictures
    browser.py     opens every page                                  command.py  `course docs`
"""
