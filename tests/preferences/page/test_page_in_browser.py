"""The page in a real browser: keys, undo, reload, raters, a flagged picture, a server that goes and comes."""

import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
from label_pages import HOSTILE, ColourDrawer, desk_of, full, page_of, wait_for

from dalle_ppo.preferences.store import Store

api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium"),
]
NEXT_SET = """async (key) => {
  const before = document.getElementById("caption").textContent, start = performance.now();
  document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  const images = [...document.querySelectorAll("#pictures img")];
  return {
    ms: performance.now() - start,
    changed: document.getElementById("caption").textContent !== before,
    loaded: images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0),
  };
}"""


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def tab_of(browser, address, rater="Ann", **options):
    """An open page with a rater; anything that its console calls an error fails the test."""
    context = browser.new_context(**options)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    enter(page, rater)
    page.errors = errors
    yield page
    context.close()
    assert not errors


def enter(page, rater):
    page.fill("#name", rater)
    page.keyboard.press("Enter")
    page.wait_for_selector("#set:visible .picture")


def caption(page):
    return page.text_content("#caption")


def press(page, key):
    """Presses a key and waits for another set."""
    before = caption(page)
    page.keyboard.press(key)
    wait_for(lambda: caption(page) != before)


def rows(folder, number):
    """The standing answers, once there are so many."""
    return wait_for(lambda: len(found := Store(folder).answers()) == number and found)


def test_a_round_of_pairs_with_keys_undo_and_a_reload(browser, tmp_path):
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address, tab_of(browser, address) as page:
        assert "token" not in page.url
        shown = []
        for key in ("1", "2", "ArrowLeft", "ArrowRight", "t", "ArrowUp", "b", "ArrowDown", "s"):
            shown.append(caption(page))
            press(page, key)
        given = rows(tmp_path, 9)
        assert [row.caption for row in given] == shown and HOSTILE in shown and page.title() != "broken"
        assert [(row.kind, row.ranks, row.all_bad) for row in given] == [
            *[("ranking", ranks, False) for ranks in [(1, 2), (2, 1)] * 2 + [(1, 1)] * 2],
            *[("ranking", (1, 1), True)] * 2,
            ("skip", None, False),
        ]
        at = caption(page)
        page.reload()
        page.wait_for_selector("#set:visible .picture")
        assert caption(page) == at, "a reload in the middle changes nothing"
        press(page, "u")
        assert caption(page) == shown[-1]
        press(page, "Backspace")
        assert caption(page) == shown[-2] and [row.id for row in rows(tmp_path, 7)] == [
            row.id for row in given[:7]
        ]
        press(page, "2")
        assert rows(tmp_path, 8)[-1].ranks == (2, 1)
        page.get_by_text("8 of 20 answers", exact=True).wait_for()


def test_the_next_set_is_there_within_a_tenth_of_a_second(browser, tmp_path):
    """Pictures of 512 pixels; the server is not asked in between."""
    drawer = ColourDrawer(tmp_path)
    drawer.size = 512
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address:
        full(desk, "Ann")
        with tab_of(browser, address) as page:
            found = timings(page)
    print(found)
    assert all(each["changed"] and each["loaded"] for each in found)
    assert sorted(each["ms"] for each in found)[4] < 100


def timings(page):
    """What happens within two frames of each of eight keys."""
    found = []
    for _ in range(8):
        page.wait_for_timeout(300)
        found.append(page.evaluate(NEXT_SET, "1"))
    return found


def test_four_pictures_are_ranked_by_keys_arrows_and_clicks(browser, tmp_path):
    drawer = ColourDrawer(tmp_path, num_images=4)
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address, tab_of(browser, address) as page:
        page.keyboard.press("3")
        page.keyboard.press("1")
        page.keyboard.press("u")  # takes the pick back, not an answer
        page.keyboard.press("3")  # is picked already
        page.keyboard.press("2")
        press(page, "4")
        page.keyboard.press("2")
        press(page, "t")
        for key in ("ArrowRight", "ArrowDown", "Enter", "ArrowUp", "Enter"):
            page.keyboard.press(key)
        assert page.locator(".ranked").count() == 2
        page.locator(".picture").nth(3).click()
        assert [row.ranks for row in rows(tmp_path, 3)] == [(4, 2, 1, 3), (2, 1, 2, 2), (2, 4, 1, 3)]


def test_a_flagged_picture_is_blurred_until_space_is_held(browser, tmp_path):
    drawer = ColourDrawer(tmp_path)
    blur = "getComputedStyle(document.querySelector('.flagged img')).filter"
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address, tab_of(browser, address) as page:
        press(page, "1")
        press(page, "1")
        assert page.locator(".flagged").count() == 1 and "blur" in page.evaluate(blur)
        page.keyboard.down(" ")
        assert page.evaluate(blur) == "none"
        page.keyboard.up(" ")
        assert "blur" in page.evaluate(blur)
        page.locator("#see").hover()
        page.mouse.down()
        assert page.evaluate(blur) == "none"
        page.mouse.up()
        assert "blur" in page.evaluate(blur) and len(rows(tmp_path, 2)) == 2


def test_two_raters_at_once(browser, tmp_path):
    drawer = ColourDrawer(tmp_path)
    with (
        desk_of(drawer) as desk,
        page_of(desk, drawer.store) as address,
        tab_of(browser, address, "Ann") as one,
        tab_of(browser, address, "<b>Bob</b>") as other,
    ):
        for key in "121":
            press(one, key)
            press(other, key)
        assert Counter(row.rater for row in rows(tmp_path, 6)) == {"Ann": 3, "<b>Bob</b>": 3}
        other.get_by_text("6 of 20 answers, 3 by you").wait_for()
        other.click("#rater")
        enter(other, "Cy")
        press(other, "1")
        assert rows(tmp_path, 7)[-1].rater == "Cy"


def test_answers_wait_in_the_browser_while_the_program_is_gone(browser, tmp_path):
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        enter(page, "Ann")
        press(page, "1")
        rows(tmp_path, 1)
        page.wait_for_timeout(300)
        page.context.set_offline(True)
        press(page, "2")
        page.wait_for_selector("text=1 answer waits")
        press(page, "u")
        press(page, "t")
        page.wait_for_selector("text=1 answer waits")
        page.context.set_offline(False)
        assert [row.ranks for row in rows(tmp_path, 2)] == [(1, 2), (1, 1)], "sent without a key"


def test_answers_outlive_the_program_and_its_address(browser, tmp_path):
    """The server ends, an answer is given, and a new server has another token on the same port."""
    drawer = ColourDrawer(tmp_path)
    with browser.new_context() as context:
        page = context.new_page()
        with desk_of(drawer) as desk, page_of(desk, drawer.store) as address:
            page.goto(address)
            enter(page, "Ann")
            press(page, "1")
            rows(tmp_path, 1)
        press(page, "2")
        page.get_by_text("does not answer").wait_for()
        port = int(address.split(":")[2].split("/")[0])
        drawer = ColourDrawer(tmp_path)
        with desk_of(drawer) as desk, page_of(desk, drawer.store, port, "another") as address:
            page.get_by_text("1 answer waits").wait_for()
            page.get_by_text("with a new address").wait_for(timeout=15_000)
            assert len(rows(tmp_path, 1)) == 1
            page.goto(address)
            assert [row.ranks for row in rows(tmp_path, 2)] == [(1, 2), (2, 1)]


def test_a_page_left_open_says_so_and_takes_the_first_key_for_a_sign_of_life(browser, tmp_path):
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk, page_of(desk, drawer.store) as address, browser.new_context() as context:
        page = context.new_page()
        page.clock.install()
        page.goto(address)
        enter(page, "Ann")
        press(page, "1")
        page.clock.fast_forward(8 * 3600 * 1000)
        page.wait_for_selector("text=Paused after 5 minutes")
        before = caption(page)
        page.keyboard.press("2")
        page.wait_for_selector("#line", state="hidden")
        assert caption(page) == before and len(rows(tmp_path, 1)) == 1
        press(page, "2")
        assert rows(tmp_path, 2)[-1].seconds < 60, "the night is not counted"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(360, 740), (1280, 800)])
@pytest.mark.parametrize("num_images", [2, 4])
def test_all_is_on_the_screen(browser, tmp_path, scheme, width, height, num_images):
    drawer = ColourDrawer(tmp_path, num_images)
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    options |= {"has_touch": width < 500, "is_mobile": width < 500}
    with (
        desk_of(drawer) as desk,
        page_of(desk, drawer.store) as address,
        tab_of(browser, address, **options) as page,
    ):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert dark == (scheme == "dark")
        if width < 500:
            page.locator(".picture").nth(0).tap()
            page.locator("[data-do=tie]").tap()
            assert rows(tmp_path, 2 if num_images == 2 else 1)
