"""Open every page in a real browser: errors, requests, formulas, widths, the language switch.

Run: ``python -m course docs browse``. Needs Chromium and its chromedriver on the PATH
(Debian: ``apt-get install chromium chromium-driver``); `install` does that where it may.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from course.errors import CourseError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium with its chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
WIDTHS = (390, 1280)  # a phone, a desktop

# What one look at a page tells. $…$ in running text is a formula that nobody rendered.
LOOK = r"""
const done = arguments[arguments.length - 1];
const formulas = document.querySelectorAll(".math").length;
const look = () => {
  const raw = [];
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    if (!node.parentElement.closest("pre, code, script, style, mjx-container, svg")
        && /\$[^$\n]{1,200}\$|\\\(|\\\[/.test(node.data)) raw.push(node.data.trim().slice(0, 60));
  done({
    formulas, raw,
    rendered: document.querySelectorAll(".math > mjx-container > svg").length,
    broken: document.querySelectorAll("mjx-merror, [data-mml-node=merror]").length,
    images: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
    language: document.documentElement.lang.slice(0, 2),
    switches: [...document.querySelectorAll(".language-switch")].map((link) => link.href),
  });
};
if (formulas && window.MathJax?.startup?.promise) MathJax.startup.promise.then(look); else look();
"""
# Wider than the window, or hidden by a box that swallows what is too wide without a scroll bar.
TOO_WIDE = """
const width = document.documentElement.clientWidth, bad = [];
if (document.documentElement.scrollWidth > width) bad.push("the page");
for (const element of document.querySelectorAll("article *")) {
  const box = element.getBoundingClientRect();
  if (box.right <= width + 1 || !box.width) continue;
  let parent = element.parentElement;
  while (parent && !/auto|scroll/.test(getComputedStyle(parent).overflowX)) parent = parent.parentElement;
  if (!parent) { bad.push(element.tagName + "." + element.className); break; }
}
return bad;
"""
SWITCH_SEEN = (
    "return [...document.querySelectorAll('.language-switch')].some((link) => link.checkVisibility());"
)


def find() -> tuple[str, str] | None:
    """The paths of Chromium and of chromedriver, or None."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def install() -> str:
    """Install Chromium with apt-get where this is Debian and we are root; returns what was done, or why not."""
    if find():
        return f"Chromium is here: {find()}"
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return f"not installed: {MISSING}"
    for arguments in (
        ["update"],
        ["install", "-y", "--no-install-recommends", "chromium", "chromium-driver"],
    ):
        command = ["apt-get", "-qq", *arguments]
        done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
        if done.returncode != 0:
            return f"not installed: {' '.join(command)} ended with {done.returncode}"
    return f"installed Chromium: {find()}"


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """The site on a free port of this machine; yields its address."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def driving() -> Iterator[Any]:
    """A browser with an empty profile, as a selenium driver. Raises CourseError where there is none."""
    found = find()
    if found is None:
        raise CourseError(MISSING)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = found[0]
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(found[1]))
        try:
            driver.set_script_timeout(30)
            driver.get("about:blank")
            for kind in ("browser", "performance"):  # forget what the browser's own first page did
                driver.get_log(kind)
            yield driver
        finally:
            driver.quit()


@dataclass
class Walk:
    """What was seen on the way, and what is wrong, one sentence each."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def logs(self, driver: Any, page: str, address: str) -> None:
        """Take the browser's logs since the last call: errors of scripts, and requests to other hosts."""
        for entry in driver.get_log("browser"):
            if entry["level"] in ("SEVERE", "WARNING"):
                self.problems.append(f"{page}: the console says {entry['message']}")
        for entry in driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                self.counts["requests"] += 1
                if not url.startswith((address, "data:", "blob:")):
                    self.problems.append(f"{page}: asks for {url}")


def set_width(driver: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def walk(site: Path) -> Walk:
    """Open every page in both languages, going from one to the other by the switch."""
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    english = [name for name in names if not name.startswith("zh/")]
    result = Walk()
    with serving(site) as address, driving() as driver:
        for number, name in enumerate(english):
            # By turns from English to Chinese and back, so that both switches are clicked.
            first, second = (name, f"zh/{name}") if number % 2 == 0 else (f"zh/{name}", name)
            driver.get(address + first)
            _look(driver, address, first, second, result)
            driver.execute_script(
                "[...document.querySelectorAll('.language-switch')].find((l) => l.checkVisibility()).click()"
            )
            _wait_for(driver, address + second)
            _look(driver, address, second, first, result)
            result.counts["switches clicked"] += 1
    return result


def _wait_for(driver: Any, url: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20, 0.02).until(
        lambda d: d.current_url == url and d.execute_script("return document.readyState") == "complete",
        f"the language switch did not lead to {url}, but to {driver.current_url}",
    )


def _look(driver: Any, address: str, page: str, twin: str, result: Walk) -> None:
    seen = driver.execute_async_script(LOOK)
    result.counts["pages"] += 1
    result.counts["formulas"] += seen["formulas"]
    if seen["rendered"] != seen["formulas"] or seen["broken"]:
        result.problems.append(
            f"{page}: of {seen['formulas']} formulas {seen['rendered']} are rendered, {seen['broken']} with errors"
        )
    result.problems += [f"{page}: a formula is left as text: {text!r}" for text in seen["raw"]]
    result.problems += [f"{page}: the picture {image} is not shown" for image in seen["images"]]
    if seen["language"] != ("zh" if page.startswith("zh/") else "en"):
        result.problems.append(f"{page}: its language is said to be {seen['language']!r}")
    if not seen["switches"] or any(link != address + twin for link in seen["switches"]):
        result.problems.append(f"{page}: the switch leads to {seen['switches']}")
    for width in WIDTHS:
        set_width(driver, width)
        for what in driver.execute_script(TOO_WIDE):
            result.problems.append(f"{page}: {what} is wider than a window of {width} pixels")
        if not driver.execute_script(SWITCH_SEEN):
            result.problems.append(f"{page}: no switch can be seen in a window of {width} pixels")
    result.logs(driver, page, address)
