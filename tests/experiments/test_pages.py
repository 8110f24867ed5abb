"""Every page in a browser: on a phone and on a desk, in light and in dark, by keyboard alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.report.collect import COMMITTED, collect
from experiments.report.page import page as report_page
from tests._committed import needs_results
from tests.experiments.test_report import CHROMIUM

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.base")
pytestmark = [needs_results, pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")]

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
LOOKED_AT = [(PHONE, "light"), (PHONE, "dark"), (DESK, "dark"), (DESK, "light")]
OTHERS = {"_static", "_modules"}  # the theme's own, and listings of code
SAMPLE = 12  # one of so many pages of names, which one template makes

# What the theme and Sphinx write wrong, and where. Whatever else is found is ours to mend.
UPSTREAM = {
    "summary-name": ".bd-sidebar-primary",  # arrows that fold the menu have no words
    "region": ".bd-sidebar-primary",  # the site's name is in no landmark
    "definition-list": "dl.py",  # parameters are definitions without a term
}

STILL = "*, ::before, ::after { transition: none !important; animation: none !important }"

# Elements that are cut off at the right, though nothing that holds them scrolls; words too small.
LOOKS = """() => {
  const scrolls = e => e.className !== "bd-article" && e.parentElement && (
    ["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const words = e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
  const seen = [...document.querySelectorAll("main *, footer *")].filter(e => e.checkVisibility());
  const cut = seen.filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e));
  const small = seen.filter(e => words(e) && !e.closest("math, sup")
    && parseFloat(getComputedStyle(e).fontSize) < 12);
  const begin = what => e => what + e.outerHTML.slice(0, 120);
  return [...cut.map(begin("cut off: ")), ...small.map(begin("small: "))] }"""

# A rule that fails, and where. Contrast costs most and depends on few things: one element for each
# of their combinations that no page before had is enough.
RULES = """async ([all, upstream, met]) => {
  const colours = e => e ? [getComputedStyle(e).backgroundColor, getComputedStyle(e).opacity,
    ...colours(e.parentElement)] : [];
  const key = e => { const style = getComputedStyle(e);
    return [style.color, style.fontSize, style.fontWeight, ...colours(e)].join() };
  const words = e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
  const known = new Set(met);
  const fresh = [...document.body.querySelectorAll("*")].filter(e => words(e)
    && e.checkVisibility({opacityProperty: true}) && !known.has(key(e)) && known.add(key(e)));
  const options = {preload: false, resultTypes: ["violations"]};
  const runs = [];
  if (fresh.length) runs.push(
    await axe.run({include: fresh}, {...options, runOnly: ["color-contrast"]}));
  if (all) runs.push(
    await axe.run({...options, rules: {"color-contrast": {enabled: false}}}));
  const found = runs.flatMap(run => run.violations).flatMap(v => v.nodes.filter(node =>
    !document.querySelector(node.target[0]).closest(upstream[v.id] ?? "none")
  ).map(node => [v.id, node.html.slice(0, 120), node.failureSummary].join(": ")));
  return [found, [...known]] }"""

FOCUSED = """() => {
  const e = document.activeElement, box = e.getBoundingClientRect();
  const ringed = [e, ...e.querySelectorAll("*")].map(x => getComputedStyle(x)).some(s =>
    (s.outlineStyle !== "none" && parseFloat(s.outlineWidth)) || s.boxShadow !== "none");
  const inside = box.width && box.bottom > 0 && box.top < innerHeight;
  return {
    html: e.outerHTML.slice(0, 120), body: e === document.body,
    shown: Boolean(ringed && inside && getComputedStyle(e).opacity > 0),
    kinds: ["a", "summary", ".copybtn", ".search-button-field", ".theme-switch-button"].filter(
      kind => e.matches(kind) && (kind.length > 7 || e.closest("main"))) } }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One process for all pages."""
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All that people write, the laboratory, some of the reference, and the report."""
    every = {path.relative_to(site).with_suffix(""): path for path in sorted(site.rglob("*.html"))}
    found = {name.as_posix(): path for name, path in every.items() if name.parts[0] not in OTHERS}
    names = [name for name in found if name.startswith("reference/") and name.count("/") == 2]
    for name in set(names) - set(names[::SAMPLE]):
        del found[name]
    folder = tmp_path_factory.mktemp("report")
    for name, results in {"report": COMMITTED, "short report": COMMITTED / "depth"}.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(report_page(collect([results])), encoding="utf-8")
    return found


def opened(browser: Any, errors: list[str], **options: Any) -> Any:
    """A window that notes what goes wrong in it."""
    window = browser.new_page(reduced_motion="reduce", **options)
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("requestfailed", lambda request: errors.append(f"not loaded: {request.url}"))
    window.on(
        "console",
        lambda said: errors.append(said.text) if said.type in ("error", "warning") else None,
    )
    return window


def test_pages_fit_are_legible_and_pass_axe(browser, pages):
    """With everything unfolded, in both widths and both schemes.

    What axe says of structure it says in the first of them.
    """
    found: dict[str, set[str]] = {name: set() for name in pages}
    errors, met = [], []
    window = opened(browser, errors)
    for name, path in pages.items():
        window.set_viewport_size(PHONE)
        window.goto(path.as_uri())
        window.add_style_tag(content=STILL)
        window.evaluate("document.querySelectorAll('main details').forEach(d => d.open = true)")
        window.evaluate(axe.AXE_SCRIPT)
        for size, scheme in LOOKED_AT:
            window.set_viewport_size(size)
            window.emulate_media(color_scheme=scheme)
            # On a desk there is the menu as well, everywhere the same.
            everything = (size, scheme) == LOOKED_AT[0] or (size is DESK and name == "index")
            wrong, met = window.evaluate(RULES, [everything, UPSTREAM, met])
            found[name] |= {*window.evaluate(LOOKS), *wrong, *errors}
            errors.clear()
    window.close()
    assert not {name: words for name, words in found.items() if words}
    assert len(met) > 20


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("guides/masks", {"a", ".copybtn", ".search-button-field", ".theme-switch-button"}),
        ("laboratory/depth", {"a", "summary", ".search-button-field", ".theme-switch-button"}),
        ("short report", {"a", "summary"}),
    ],
)
def test_the_tab_key_reaches_everything_visibly_and_comes_out_again(browser, pages, name, kinds):
    window = opened(browser, [], viewport=DESK)
    window.goto(pages[name].as_uri())
    window.add_style_tag(content=STILL)
    met, unseen = set(), []
    for _ in range(1000):
        window.keyboard.press("Tab")
        focused = window.evaluate(FOCUSED)
        if focused["body"]:
            break
        met |= set(focused["kinds"])
        unseen += [] if focused["shown"] else [focused["html"]]
    else:
        pytest.fail("the focus never leaves the page")
    window.close()
    assert kinds <= met and unseen == []


def test_search_theme_and_folded_details_answer_to_keys(browser, pages):
    errors = []
    window = opened(browser, errors, viewport=DESK)
    window.goto(pages["laboratory/depth"].as_uri())
    details = window.locator("main details").first
    details.locator("summary").press("Enter")
    assert details.evaluate("d => d.open")
    window.locator(".theme-switch-button").press("Enter")
    for key in ("Tab", "Tab", "Tab", "Enter"):  # past the system's, and light
        window.keyboard.press(key)
    assert window.evaluate("document.documentElement.dataset.theme") == "dark"
    assert errors == []
    # On a disk, a page may not read others for the excerpts of what is found, and says so.
    window.locator(".search-button-field").first.press("Enter")
    window.keyboard.type("recalibrate")
    window.keyboard.press("Enter")
    window.locator("ul.search li a").first.wait_for()
    assert "recalibrate" in window.locator("ul.search").inner_text()
    window.close()
