"""Sphinx's settings, read by Sphinx itself. The language comes from the command line (`-D language=zh_CN`)."""

from pathlib import Path

from course.site.extension import linkcode_resolve as linkcode_resolve

HERE = Path(__file__).parent

project = "trainer-from-scratch"
author = ""
html_title = project
language = "en"
locale_dirs = ["locale"]  # of the source tree, see assemble.py
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "course.site.extension",
]

# Pages: what GitHub shows, no more.
myst_enable_extensions = ["dollarmath", "html_image", "strikethrough", "tasklist"]
myst_heading_anchors = 6
myst_heading_anchors_html_ids = True
myst_all_links_external = True  # extension.py resolves them
myst_dmath_double_inline = True
highlight_language = "text"
default_role = "literal"

# The reference: signatures as they are written, types in them and not again in the text.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch writes its own for other readers
autodoc_default_options = {"ignore-module-all": True}  # an object is described where it is written
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = False
add_module_names = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
templates_path = [str(HERE / "theme" / "templates")]
html_static_path = [str(HERE / "theme" / "static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = str(HERE / "theme" / "static" / "favicon.svg")
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_use_index = False
html_domain_indices = False
html_permalinks_icon = "#"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Formulas are drawn from glyphs inside this one script: no fonts to load, the same from a file and from a server.
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_copy_empty_lines = False
copybutton_selector = "div:not(.output) > div.highlight pre"
