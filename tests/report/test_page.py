"""The page in a real browser: what is on screen, where clicks and keys lead, and that it asks nobody for anything."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.synthetic_reports import TAPS, finding, report
from tests.report.conftest import make_page

if TYPE_CHECKING:
    from testbed.browser import Browser

FIRST = "attn_output layer_id=3 step=0"
MARKUP = (
    "<img src=x onerror=\"document.title='broken'\"></script><script>document.title='broken'</script>&amp;\u202e'\""
)


@pytest.fixture(autouse=True)
def _nothing_to_complain(browser: Browser) -> object:
    """No error on the console and no request, whatever a test does."""
    browser.size(1280, 900)
    browser.prefers("light")
    yield
    assert browser.complaints() == []
    assert browser.requests() == []


def links(browser: Browser) -> list[str]:
    return list(browser.run("return [...document.querySelectorAll('#list td.tensor')].map((cell) => cell.innerText)"))


def test_the_answer_is_on_screen_and_leads_to_the_first_divergence(browser: Browser, faulty: Path) -> None:
    browser.open(faulty)
    assert browser.text("#outcome") == "The runs do not agree"
    assert "error is introduced at attn_output layer 3" in browser.text(".words")
    place = browser.run("return document.getElementById('first-divergence').getBoundingClientRect().bottom")
    assert 0 < place < 900
    browser.run("document.getElementById('first-divergence').click()")
    browser.wait("document.getElementById('tensor')")
    assert FIRST in browser.text("#tensor")
    assert "introduced here" in browser.text("#view")
    assert "tp 1/2" in browser.text("#view")


def test_a_click_on_the_map_opens_the_tensor(browser: Browser, faulty: Path) -> None:
    browser.open(faulty)
    browser.wait("document.getElementById('found')")
    place = browser.run(
        "const box = document.getElementById('map').getBoundingClientRect(); return [box.left, box.top, box.width]"
    )
    width = min(56, (1280 - 32 - 64 - 4) // len(TAPS))
    x, y = place[0] + 64 + 2.5 * width, place[1] + 130 + 3.5 * 22
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        if kind == "mouseMoved":
            assert "attn_output layer_id=3: failed" in browser.text("#map-cell")
            assert "introduced here" in browser.text("#map-cell")
    browser.wait("document.getElementById('tensor')")
    assert "attn_output layer_id=3 step=" in browser.text("#tensor")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("s:introduced", 3),
        ("s:failed layer:3", 3 * 4),
        ("layer:3-4 !s:failed", 3 * 2),
        ("s:passed step:1", 3 * 6 + 2),
        ("o_proj layer:0 step:<2", 2),
        ("layer_id:7 rank:1 mlp_", 3 * 2),
        ("rank:2", 0),
        ('"mlp_output layer_id=2"', 3),
        ("times:>2", 3 * (8 * 6 - 3 * 6 - 2)),
        ("!times:>2 !s:skipped", 3 * (3 * 6 + 2)),
        ("s:inherited tap:forward#2:attn_output", 3 * 4),
    ],
)
def test_search(browser: Browser, faulty: Path, query: str, expected: int) -> None:
    browser.open(faulty)
    browser.run(
        "const box = document.getElementById('search'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input', { bubbles: true }))",
        query,
    )
    browser.wait(f"document.getElementById('found')?.innerText.startsWith('{expected} of 144')")
    address = str(browser.run("return location.href"))
    browser.open(faulty, address.partition("#")[2])  # the text is the address
    assert browser.run("return document.getElementById('search').value") == query
    assert browser.text("#found") == f"{expected} of 144 tensors"


def test_a_search_that_makes_no_sense_is_said(browser: Browser, faulty: Path) -> None:
    browser.open(faulty, "q=s%3Abroken")
    assert "takes one of passed, skipped, failed" in browser.text("#search-error")
    browser.go("q=layer%3Aone")
    assert "takes a number" in browser.text("#search-error")
    browser.go("q=%")
    assert browser.text("#found") == "0 of 144 tensors"


def test_links_to_views(browser: Browser, faulty: Path) -> None:
    browser.open(faulty, "tensor=mlp_output%20layer_id%3D5%20step%3D2")
    assert "mlp_output layer_id=5 step=2" in browser.text("#tensor")
    assert "inherited from attn_output layer 3" in browser.text("#view")
    browser.run("document.getElementById('before').click()")
    browser.wait("document.getElementById('tensor')?.innerText.startsWith('moe_router_logits layer_id=5 step=2')")
    browser.go("view=coverage")
    assert "96 of 96" in browser.text("#accounts")
    browser.go("step=1&q=layer%3A0")
    assert browser.text("#found") == "6 of 144 tensors"
    assert all(text.endswith("step=1") for text in links(browser))
    browser.go("axis=steps")
    assert "8 rows and 3 columns" in browser.run("return document.getElementById('map').getAttribute('aria-label')")
    browser.go("tensor=nothing%20of%20the%20kind")
    assert "no such tensor" in browser.text("#view")


def test_sorting(browser: Browser, faulty: Path) -> None:
    browser.open(faulty)
    browser.wait("document.querySelectorAll('.sort').length")
    browser.run("document.querySelectorAll('.sort')[2].click()")
    browser.wait("document.querySelectorAll('th')[2]?.ariaSort === 'descending'")
    cells = browser.run("return [...document.querySelectorAll('#list td.times')].map((cell) => Number(cell.innerText))")
    assert cells == sorted(cells, reverse=True)
    assert len(cells) == 100
    browser.run("document.getElementById('more').click()")
    assert len(links(browser)) == 144


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        browser.command("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        browser.command("Input.dispatchKeyEvent", type="keyUp", key=key)


def test_keyboard(browser: Browser, faulty: Path) -> None:
    browser.open(faulty)
    browser.wait("document.getElementById('found')")
    press(browser, "/")
    assert browser.run("return document.activeElement.id") == "search"
    press(browser, *"layer:1")
    browser.wait("document.getElementById('found')?.innerText.startsWith('18 of')")
    press(browser, "Escape", "f")
    browser.wait("document.getElementById('tensor')")
    assert FIRST in browser.text("#tensor")
    press(browser, "j")
    browser.wait("document.getElementById('tensor')?.innerText.startsWith('pre_mlp_residual layer_id=3 step=0')")
    press(browser, "Escape")
    browser.wait("document.getElementById('list')")
    browser.run("document.getElementById('map').focus()")
    press(browser, "ArrowRight", "ArrowRight", "ArrowDown")
    assert "attn_pre_o_proj layer_id=1" in browser.text("#map-cell")
    press(browser, "Enter")
    browser.wait("document.getElementById('tensor')?.innerText.startsWith('attn_pre_o_proj layer_id=1')")


def pixel(browser: Browser) -> list[int]:
    """A pixel of the map's first cell, whose error is below the tolerance."""
    script = (
        "const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });"
        "copy.drawImage(document.getElementById('map'), -80, -140); return [...copy.getImageData(0, 0, 1, 1).data]"
    )
    return list(browser.run(script))


def test_dark_and_light(browser: Browser, faulty: Path) -> None:
    browser.prefers("dark")
    browser.open(faulty)
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
    dark = pixel(browser)
    browser.run("document.getElementById('theme').click()")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    light = pixel(browser)
    assert sum(light[:3]) - sum(dark[:3]) > 200


def test_paper_is_light_and_has_no_buttons(browser: Browser, faulty: Path) -> None:
    browser.prefers("dark")
    browser.open(faulty)
    dark = pixel(browser)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert sum(pixel(browser)[:3]) - sum(dark[:3]) > 200
    browser.command("Emulation.setEmulatedMedia", media="print")
    shown = "return [...document.querySelectorAll('button, input, nav')].filter((one) => one.offsetParent).length"
    assert browser.run(shown) == browser.run("return document.querySelectorAll('th button').length")
    assert browser.text("#outcome") == "The runs do not agree"
    browser.command(
        "Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert pixel(browser) == dark


def test_a_narrow_window(browser: Browser, faulty: Path) -> None:
    browser.size(360, 700)
    for address in ("", "tensor=" + FIRST.replace(" ", "%20"), "view=coverage"):
        browser.open(faulty, address)
        assert browser.run("return document.documentElement.scrollWidth") <= 360


def test_the_evidence_of_a_tensor(browser: Browser, pictured: Path) -> None:
    browser.open(pictured, "tensor=out%20layer_id%3D3%20step%3D0")
    browser.wait("document.querySelectorAll('.uplot').length === 4")
    tabs = browser.run("return [...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText)")
    assert tabs == ["Difference", "Baseline", "Target", "Side by side", "Slider"]
    for at, canvases in enumerate((1, 1, 1, 2, 1)):
        browser.run("document.querySelectorAll('[role=tab]')[arguments[0]].click()", at)
        assert browser.run("return document.querySelectorAll('.around canvas').length") == canvases
    browser.size(360, 700)
    browser.open(pictured, "tensor=out%20layer_id%3D3%20step%3D1")
    assert browser.run("return document.documentElement.scrollWidth") <= 360


def test_tokens_and_routing(browser: Browser, pictured: Path) -> None:
    browser.open(pictured, "view=tokens")
    assert "Sequence 0: 5 tokens" in browser.text("#view")
    assert browser.run("return document.querySelectorAll('.token').length") == 5
    browser.run("document.querySelectorAll('.token')[3].click()")
    browser.wait("document.getElementById('axis-note')")
    assert browser.text("#axis-note") == "errors of sequence 0, position 3"
    browser.run("document.getElementById('map').focus()")
    press(browser, "ArrowRight")
    assert "times the tolerance, introduced here" in browser.text("#map-cell")
    browser.go("axis=tokens")
    assert "5 columns" in browser.run("return document.getElementById('map').getAttribute('aria-label')")
    browser.go("view=routing")
    assert "no router's logits were recorded" in browser.text("#view")


def test_without_the_runs_there_are_no_tokens(browser: Browser, faulty: Path) -> None:
    browser.open(faulty, "view=tokens")
    assert "was made without the runs" in browser.text("#view")
    for axis in ("tokens", "experts"):
        browser.go(f"axis={axis}")
        assert browser.run("return document.getElementById('axis').value") == axis
        assert "was made without the runs" in browser.text("#axis-note")
        assert "6 columns" in browser.run("return document.getElementById('map').getAttribute('aria-label')")
    browser.go("axis=ranks")  # all ranks together
    assert "2 columns" in browser.run("return document.getElementById('map').getAttribute('aria-label')")


def walk(browser: Browser, *keys: str) -> str:
    """What the cell says that arrow keys lead to from the first one."""
    browser.run("document.getElementById('map').focus()")
    press(browser, *keys)
    return browser.text("#map-cell")


def test_the_map_of_ranks_tells_which_rank_is_wrong(browser: Browser, mixture: Path) -> None:
    browser.open(mixture, "axis=ranks")
    assert "errors of what each rank of the target holds" in browser.text("#axis-note")
    right = walk(browser, "ArrowRight", "ArrowDown")
    assert "attn_pre_o_proj layer_id=1: passed" in right
    wrong = walk(browser, "ArrowRight")
    assert "attn_pre_o_proj layer_id=1: failed" in wrong
    assert "introduced here" in wrong
    press(browser, "Enter")
    browser.wait("document.getElementById('tensor')?.innerText.startsWith('attn_pre_o_proj layer_id=1')")


def test_the_map_of_experts_and_their_load(browser: Browser, mixture: Path) -> None:
    browser.open(mixture, "axis=experts")
    assert "median error of the tokens that chose an expert" in browser.text("#axis-note")
    assert "8 columns" in browser.run("return document.getElementById('map').getAttribute('aria-label')")
    first = walk(browser, "ArrowRight")
    assert "layer_id=0: passed, 0.001 times" in first
    browser.go("view=routing")
    browser.wait("document.querySelectorAll('.uplot').length === 3")
    assert "Rows that chose each expert" in browser.text("#view")
    assert "baseline" in browser.text(".u-legend")
    assert "target" in browser.text(".u-legend")


def test_failures_without_pictures_say_so(browser: Browser, mixture: Path) -> None:
    browser.open(mixture, "q=s%3Afailed")
    assert "--pictures N" in browser.text(".facts .missing")
    failed = links(browser)
    browser.go(f"tensor={failed[0].replace(' ', '%20')}")
    assert "--pictures" not in browser.text("#view")
    browser.go(f"tensor={failed[1].replace(' ', '%20')}")
    assert "This failure has no pictures" in browser.text("#view")


def test_copy(browser: Browser, faulty: Path) -> None:
    browser.open(faulty)
    browser.run("window.copied = null; document.execCommand = () => { window.copied = document.activeElement.value }")
    browser.run("navigator.clipboard && (navigator.clipboard.writeText = () => Promise.reject(new Error('none')))")
    browser.run("document.getElementById('copy').click()")
    text = str(browser.wait("window.copied"))
    assert text.startswith("The runs do not agree\n\nThe runs differ: error is introduced at attn_output layer 3.")
    assert f"- First divergence: {FIRST}" in text
    assert "- Target: runs/two" in text


def test_nothing_of_a_run_is_markup(browser: Browser, tmp_path: Path) -> None:
    """Names, tags, messages, paths and tokens that would break the page if they were taken for HTML or script."""
    taps = (MARKUP, "a&b<b>c", "${alert(1)}{{7*7}}", "__proto__", "a=b step=9")
    records = list(report(2, 1, fault=1, taps=taps))
    odd = finding("constructor", 0, 0, random.Random(1), bad=True)
    odd["tags"] = {"layer_id": "0", MARKUP: MARKUP}
    odd["infos"] = [{"kind": "warning", "category": "scaled", "message": MARKUP}]
    odd["first_bad_token"] = MARKUP
    records.insert(-3, odd)
    records[0]["config"] = {"baseline": MARKUP, "target": MARKUP}
    records[-3]["words"] = MARKUP
    records[-1]["errors"] = [{"kind": "error", "category": "nothing-compared", "message": MARKUP}]
    page = make_page(records, tmp_path / "odd.html")
    browser.open(page)
    browser.wait("document.getElementById('found')")
    assert f"{MARKUP} layer_id=0 step=0" in links(browser)
    assert browser.text(".words") == MARKUP
    for at in range(len(links(browser))):
        browser.open(page)
        name = links(browser)[at]
        browser.run("document.querySelectorAll('#list td.tensor a')[arguments[0]].click()", at)
        browser.wait("document.getElementById('tensor')")
        assert browser.text("#tensor").startswith(name)
    browser.go("view=coverage")
    assert "broken" not in browser.run("return document.title.replace(arguments[0], '')", MARKUP)
    assert browser.run("return document.querySelectorAll('img').length") == 0


def test_the_policy_lets_nothing_in(browser: Browser, faulty: Path) -> None:
    """The page refuses scripts, styles and requests that are not its own, whatever puts them there."""
    browser.open(faulty)
    assert not re.search(r"unsafe|\bon[a-z]+=", faulty.read_text().partition("<style>")[0])
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])",
        "<img id=odd src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' onerror='window.broken = 1'>",
    )
    browser.run(
        "const script = document.createElement('script'); script.textContent = 'window.broken = 1';"
        "document.body.append(script); fetch('data:,x').catch(() => { window.refused = 1 })"
    )
    browser.wait("window.refused")
    assert browser.run("return window.broken") is None
    assert len(browser.complaints()) >= 2
    browser.driver.get("about:blank")  # what was refused is in the page's list of requests


def test_an_interrupted_report(browser: Browser, tmp_path: Path) -> None:
    browser.open(make_page(list(report(2, 1, fault=1))[:9], tmp_path / "part.html"))
    assert "incomplete" in browser.text("#outcome")
    assert "lines end before the summary" in browser.text(".words")


def test_ten_thousand_tensors(browser: Browser, tmp_path: Path) -> None:
    page = make_page(report(84, 20, fault=42), tmp_path / "large.html")
    assert page.stat().st_size < 5e6
    browser.open(page)
    # The first picture is drawn before any block of rows or details is inflated. benchmarks/paging.py has the times.
    assert browser.run("return performance.getEntriesByName('map')[0].detail.inflated") == 0
    browser.go("q=s%3Aintroduced")
    assert browser.text("#found") == "20 of 10080 tensors"
    browser.go("tensor=mlp_output%20layer_id%3D83%20step%3D19")
    assert "inherited from attn_output layer 42" in browser.text("#view")


@pytest.mark.slow
def test_two_hundred_thousand_tensors(browser: Browser, tmp_path: Path) -> None:
    page = make_page(report(84, 397, fault=42), tmp_path / "huge.html")
    assert page.stat().st_size < 25e6
    browser.open(page)
    assert browser.run("return performance.getEntriesByName('map')[0].detail.inflated") == 0
    browser.go("q=s%3Aintroduced")
    assert browser.text("#found") == "397 of 200088 tensors"
