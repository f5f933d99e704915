"""The site, built once for all tests (or the one in the folder DOCS_SITE); a browser, or why there is none."""

import os
from pathlib import Path

import pytest

from course.site import browser
from course.site.build import build


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    if os.environ.get("DOCS_SITE"):
        return Path(os.environ["DOCS_SITE"]).resolve()
    out = tmp_path_factory.mktemp("built") / "site"
    build(out)
    return out


@pytest.fixture(scope="session")
def chromium():
    """Tests that use this skip where there is no Chromium; with DOCS_BROWSER=required (CI) they fail."""
    if browser.find() is None:
        if os.environ.get("DOCS_BROWSER") == "required":
            pytest.fail(f"DOCS_BROWSER=required, and there is {browser.MISSING}")
        pytest.skip(browser.MISSING)


@pytest.fixture
def driver(chromium):
    with browser.driving() as driver:
        browser.set_width(driver, 1280)
        yield driver


@pytest.fixture
def address(site):
    with browser.serving(site) as address:
        yield address
