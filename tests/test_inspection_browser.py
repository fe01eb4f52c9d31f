# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The page in a real browser: what it shows, what its script does, and who can use it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api")

import torch.nn.functional as F
from torch import nn

from poolkit.inspection import inspect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path"),
    pytest.mark.filterwarnings("ignore"),  # of what drives the browser
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.first = nn.AvgPool2d(3, 1, 1)
        self.second = nn.MaxPool2d(3, 1, 1)
        self.third = nn.MaxPool2d(3, 1, 1)
        self.last = nn.MaxPool2d(3)

    def forward(self, x):
        x = self.first(F.silu(self.stem(x)))
        return self.last(F.silu(self.third(F.silu(self.second(x))))).mean((2, 3))


NAMES = ["stem", "first", "second", "third", "last", "(model)"]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    torch.manual_seed(0)
    report = inspect(Net(), torch.rand(2, 3, 32, 32), name="<Net> & co", seconds=0.001)
    path = report.to_html(tmp_path_factory.mktemp("page") / "report.html")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address) -> Iterator[object]:
    """The page, opened from disk; at the end nothing may have been complained about or fetched."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    context.close()


def names(page) -> list[str]:
    """The layers that the table shows, in its order."""
    return page.locator("#layers tbody tr:visible th a").all_inner_texts()


def articles(page) -> list[str]:
    return page.locator("article.layer:visible h3 code").all_inner_texts()


# ---------------------------------------------------------------- what it shows


def test_every_layer_has_a_row_and_an_article(page):
    assert page.title() == "<Net> & co: pooling, inspected"
    assert names(page) == articles(page) == NAMES
    assert page.locator("article .strip img").count() == len(NAMES)
    broken = "images => images.filter(i => !i.complete || !i.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
    assert page.locator("svg.sees use").count() == 6


def test_the_table_reads_without_a_script(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert names(page) == articles(page) == NAMES
    assert not page.locator("#tools").is_visible()
    assert page.locator("#layers thead button").count() == 0
    assert page.locator("#large").is_hidden()
    context.close()


@pytest.mark.parametrize("width", [1400, 1000, 380])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---------------------------------------------------------------- the script


def test_columns_sort_both_ways_and_by_number(page):
    head = page.locator("#layers thead th", has_text="Gradient coverage")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = page.locator("#layers tbody tr").evaluate_all(
        "(rows) => rows.map(row => Number(row.cells[13].dataset.v))"
    )
    assert values == sorted(values, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert names(page)[-1] in ("stem", "first", "(model)")
    # What has no figure comes last, whichever way.
    column = page.locator("#layers thead th", has_text="Reconstruction")
    for _ in range(2):
        column.locator("button").click()
        assert names(page)[-1] == "stem"
    page.locator("#layers thead th").first.locator("button").click()
    assert names(page) == NAMES
    assert page.locator("#layers thead [aria-sort]").count() == 1


def test_a_search_and_a_kind_filter_rows_and_articles(page):
    page.fill("#search", "MAX")
    assert names(page) == articles(page) == ["second", "third", "last"]
    assert page.inner_text("#told") == "3 of 6 shown"
    page.select_option("#kind", "wrong")
    assert names(page) == ["last"]
    page.fill("#search", "drops-border")
    assert names(page) == ["last"]
    page.fill("#search", "nothing like it")
    assert names(page) == []
    assert page.locator("#none").is_visible()
    page.fill("#search", "")
    page.select_option("#kind", "convolution")
    assert names(page) == ["stem"]


def test_identical_blocks_are_folded(page):
    page.check("#fold")
    assert names(page) == ["stem", "first", "second", "last", "(model)"]
    assert page.locator("tr", has_text="second").locator(".twins").first.inner_text() == "×2"
    page.uncheck("#fold")
    assert names(page) == NAMES
    assert not page.locator(".twins").first.is_visible()


def test_links_lead_to_layers_even_if_they_are_filtered(page, address):
    page.locator("#layers tbody th a", has_text="third").click()
    assert page.url.endswith("#layer-third")
    assert page.locator("#layer-third").evaluate("e => e.getBoundingClientRect().top < 100")
    page.fill("#search", "stem")
    page.goto(f"{address}#layer-last")
    assert page.locator("#layer-last").is_visible()
    assert page.input_value("#search") == ""


def test_keys(page):
    page.keyboard.press("/")
    page.keyboard.type("pool")
    assert page.evaluate("document.activeElement.id") == "search"
    assert page.input_value("#search") == "pool"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    for key, name in (("j", "stem"), ("j", "first"), ("j", "second"), ("k", "first")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.innerText") == name
    page.keyboard.press("Enter")
    assert page.url.endswith("#layer-first")


def test_every_control_is_reached_by_the_tab_key(page):
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.className "
                          "|| document.activeElement.tagName")
        )  # fmt: skip
    assert {"skip", "search", "kind", "fold", "scroll", "BUTTON"} <= reached


def test_pictures_open_large_and_close_again(page):
    picture = page.locator("#layer-second .strip a.enlarge")
    picture.click()
    dialog = page.locator("#large")
    assert dialog.is_visible()
    assert "second: 16×16 → 16×16" in page.inner_text("#large-words")
    small, large = picture.bounding_box(), page.locator("#large img").bounding_box()
    assert large["width"] > 1.2 * small["width"] or large["height"] > 600
    assert page.locator("#large img").get_attribute("alt").startswith("Before, after")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.closest('article').id") == "layer-second"
    page.locator("#layer-second .heat").click()
    assert page.locator("#large svg rect").count() == 9
    page.click("#large-close")
    assert not dialog.is_visible()


# ---------------------------------------------------------------- dark, print, accessible

#: What an audit would look for, by the Web Content Accessibility Guidelines 2.2, level AA.
AUDIT = """() => {
  const found = [];
  const say = (rule, e) => found.push(rule + ': ' + e.outerHTML.slice(0, 120));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const name = (e) => (e.getAttribute('aria-label') || e.getAttribute('alt') || e.title ||
    (e.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean)
      .map(id => document.getElementById(id)?.textContent ?? '').join(' ') ||
    [...(e.labels ?? [])].map(l => l.textContent).join(' ') || e.textContent ||
    [...e.querySelectorAll('[alt],[aria-label]')].map(x => x.alt || x.ariaLabel).join(' ')).trim();
  if (!document.documentElement.lang) say('no language', document.documentElement);
  if (all('main').length !== 1) say('not one main', document.body);
  if (all('h1').length !== 1) say('not one h1', document.body);
  all('img').filter(e => !e.alt).forEach(e => say('no alternative', e));
  all('svg').filter(e => e.ariaHidden !== 'true' && !(e.role === 'img' && name(e)))
    .forEach(e => say('no alternative', e));
  all('a[href], button, input, select, dialog, iframe').filter(e => !name(e))
    .forEach(e => say('no name', e));
  const ids = all('[id]').map(e => e.id);
  all('[id]').filter(e => ids.indexOf(e.id) !== ids.lastIndexOf(e.id))
    .forEach(e => say('id twice', e));
  all('[aria-labelledby]').filter(e => !document.getElementById(e.getAttribute('aria-labelledby')))
    .forEach(e => say('label that is not there', e));
  all('a[href^="#"]').filter(e => !document.getElementById(decodeURIComponent(e.hash.slice(1))))
    .forEach(e => say('link to nowhere', e));
  let level = 0;
  all('h1, h2, h3, h4').forEach(e => {
    if (Number(e.tagName[1]) > level + 1) say('heading skips a level', e);
    level = Number(e.tagName[1]);
  });
  all('th').filter(e => !e.scope).forEach(e => say('head without scope', e));
  all('table').filter(e => !e.querySelector('thead th')).forEach(e => say('table without head', e));
  all('dl > *').filter(e => !['DT', 'DD', 'DIV'].includes(e.tagName))
    .forEach(e => say('not of a list', e));
  all('*').filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0 &&
    ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
    .forEach(e => say('no key scrolls', e));

  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== 'transparent' && channels(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  for (const e of all('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('svg, script, style') || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(style.color), light(behind(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) say('contrast ' + ratio.toFixed(2), e);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_use_it(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(AUDIT) == []
    page.locator("#layer-second .strip a.enlarge").click()
    assert [text for text in page.evaluate(AUDIT) if "contrast" in text] == []


BROKEN = {
    "no alternative": "<img src='data:,'>",
    "no name": "<button></button>",
    "id twice": "<p id='search'></p>",
    "link to nowhere": "<a href='#nowhere'>there</a>",
    "heading skips a level": "<h4>deep</h4>",
    "head without scope": "<table><thead><tr><th>x</th></tr></thead></table>",
    "contrast": "<p class='soft'><span class='faint'>faint</span></p>",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_audit_finds_what_is_wrong(page, fault):
    html = BROKEN[fault]
    page.evaluate(
        "html => document.querySelector('header').insertAdjacentHTML('beforeend', html)", html
    )
    page.evaluate("for (const e of document.querySelectorAll('.faint')) e.style.color = '#ccc'")
    assert any(text.startswith(fault) for text in page.evaluate(AUDIT))


def test_dark_is_dark(page):
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\\\d+/g).map(Number)"
    shade = shade.replace("\\\\", "\\")
    page.emulate_media(color_scheme="light")
    assert min(page.evaluate(shade)) > 230
    page.emulate_media(color_scheme="dark")
    assert max(page.evaluate(shade)) < 40


def test_it_prints(page):
    page.emulate_media(color_scheme="dark", media="print")
    assert not page.locator("#tools").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    # A4 across, less the margins, in CSS pixels.
    page.set_viewport_size({"width": 1032, "height": 703})
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
