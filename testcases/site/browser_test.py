"""The site in a real browser: every page in both languages, search, switch, light and dark.

DOCS_BROWSER=required makes a missing Chromium a failure.
"""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from course.site.browser import Walk, set_width, walk
from course.site.search import words

LESSON = "tutorial/stage01_optimizers/lesson01_sgd/index.html"


def until(driver, condition, message=""):
    return WebDriverWait(driver, 20, 0.05).until(condition, message)


def errors(driver, address):
    seen = Walk()
    seen.logs(driver, driver.current_url, address)
    return seen.problems


def test_every_page_in_both_languages_is_whole(site, chromium):
    seen = walk(site)
    print(dict(seen.counts))
    assert seen.problems == []
    assert seen.counts["pages"] == sum(1 for _ in site.rglob("*.html")) == 2 * seen.counts["switches clicked"]
    assert seen.counts["formulas"] > 400


FAULTS = {
    "<script>undefinedFunction()</script>": "undefinedFunction is not defined",
    "<script>fetch('http://localhost:9/x').catch(() => 0)</script>": "asks for http://localhost:9/x",
    "<p>So $x$ is left.</p>": "a formula is left as text: 'So $x$ is left.'",
    '<span class="math">\\(x\\)</span>': "of 1 formulas 0 are rendered",
    '<div style="overflow: hidden"><b style="display: block; width: 800px">x</b></div>': "B. is wider than a window",
    '<p style="width: 800px">wide</p>': "the page is wider than a window of 390 pixels",
    '<img src="gone.png" alt="">': "gone.png is not shown",
    "<style>@media (max-width: 400px) { a { display: none } }</style>": "no switch can be seen in a window of 390",
    "<a class='language-switch' href='index.html'>x</a>": "the switch leads to",
}


def test_walk_names_each_fault_of_a_page(tmp_path, chromium):
    (tmp_path / "zh").mkdir()
    page = (
        '<!doctype html><html lang="{}"><head><meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,"></head><body><article>'
        '<a class="language-switch" href="{}">x</a>{}</article></body></html>'
    )
    (tmp_path / "zh" / "index.html").write_text(page.format("zh-CN", "../index.html", ""))
    for name, faults in (("good", ""), ("index", "\n".join(FAULTS))):
        (tmp_path / f"{name}.html").write_text(page.format("en", f"zh/{name}.html", faults))
        (tmp_path / "zh" / f"{name}.html").write_text(page.format("zh-CN", f"../{name}.html", ""))
    problems = walk(tmp_path).problems
    for fault, words_ in FAULTS.items():
        assert any(line.startswith("index.html: ") and words_ in line for line in problems), (fault, problems)
    assert not any(line.startswith(("good.html", "zh/")) for line in problems), problems


def search(driver, page, query):
    """Type a query into the search field of a page; returns the titles of the results."""
    driver.get(page)
    field = driver.find_element(By.CSS_SELECTOR, "input.sidebar-search")
    field.send_keys(query)
    field.submit()
    until(driver, lambda d: "search.html" in d.current_url)
    until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#search-results .search-summary"))
    until(driver, lambda d: d.find_element(By.CSS_SELECTOR, ".search-summary").text.strip(), "no summary")
    return driver.find_elements(By.CSS_SELECTOR, "#search-results ul.search > li > a")


@pytest.mark.parametrize(
    ("page", "query", "title", "address_part"),
    [
        ("index.html", "bias correction", "Lesson 02 · AdamW", "lesson02_adamw/index.html"),
        (
            "docs/recovery.html",
            "CheckpointManager",
            "CheckpointManager",
            "reference/training.checkpoint.html",
        ),
        ("zh/index.html", "断点续训", "断点续训", "zh/"),
        (
            "zh/index.html",
            "偏差修正",
            "第 02 课 · AdamW",
            "zh/tutorial/stage01_optimizers/lesson02_adamw/index.html",
        ),
        (f"zh/{LESSON}", "梯度裁剪 found_inf", "", "zh/"),
    ],
)
def test_search_finds_the_page_and_leads_to_it(driver, address, page, query, title, address_part):
    results = search(driver, address + page, query)
    matching = [a for a in results if title in a.text and address_part in a.get_attribute("href")]
    assert matching, [a.text for a in results]
    target = matching[0].get_attribute("href").partition("#")[0]
    matching[0].click()
    until(driver, lambda d: d.current_url.startswith(target))
    text = driver.find_element(By.TAG_NAME, "article").text.lower()
    assert all(word.lower() in text for word in query.split())
    assert errors(driver, address) == []


def test_search_for_what_is_nowhere_finds_nothing(driver, address):
    assert search(driver, address + "zh/index.html", "紫色大象") == []


@pytest.mark.parametrize("text", ["断点续训", "用 AdamW优化器, found_inf!", "bias-correction x²", "—"])
def test_browser_cuts_a_query_like_the_index(driver, address, text):
    driver.get(address + "zh/search.html")
    assert driver.execute_script("return splitQuery(arguments[0])", text) == words(text)


@pytest.mark.parametrize("page", [LESSON, f"zh/{LESSON}"])
def test_light_and_dark_change_the_page_with_its_formulas(driver, address, page):
    driver.get(address + page)
    driver.execute_async_script("MathJax.startup.promise.then(arguments[0])")

    def colours():
        return driver.execute_script(
            "const of = (s) => getComputedStyle(document.querySelector(s));"
            "return [of('body').backgroundColor, of('article p').color, of('.math svg').color]"
        )

    seen = {}
    for _ in range(3):  # auto → light → dark → auto, from wherever it is
        driver.find_element(By.CSS_SELECTOR, ".theme-toggle-content .theme-toggle").click()
        seen[driver.find_element(By.TAG_NAME, "body").get_attribute("data-theme")] = colours()
    assert set(seen) == {"auto", "light", "dark"}
    assert seen["light"][0] != seen["dark"][0]
    for _, text, formula in seen.values():
        assert formula == text
    assert errors(driver, address) == []


def test_switch_on_a_phone_can_be_seen_and_touched(driver, address):
    set_width(driver, 390)
    driver.get(address + LESSON)
    link = driver.find_element(By.CSS_SELECTOR, ".article-language")
    assert link.text == "中文"
    link.click()
    until(driver, lambda d: d.current_url == f"{address}zh/{LESSON}")


def test_code_has_a_copy_button_that_leaves_the_prompt_out(driver, address):
    driver.get(address + LESSON)
    driver.execute_script(
        "addEventListener('copy', (event) => { window.copied = event.target.value; }, true)"
    )
    until(driver, lambda d: d.find_element(By.CSS_SELECTOR, "button.copybtn")).click()
    text = until(driver, lambda d: d.execute_script("return window.copied"))
    assert text == "python -m solutions.stage01_optimizers.lesson01_sgd.run"


def test_site_works_from_a_disk_without_a_server(driver, site):
    root = site.as_uri() + "/"
    for page in (LESSON, f"zh/{LESSON}"):
        driver.get(root + page)
        driver.execute_async_script("MathJax.startup.promise.then(arguments[0])")
        assert driver.find_elements(By.CSS_SELECTOR, ".math mjx-container svg")
    results = search(driver, root + "zh/index.html", "偏差修正")
    assert "第 02 课 · AdamW" in [a.text for a in results]
    assert errors(driver, root) == []
