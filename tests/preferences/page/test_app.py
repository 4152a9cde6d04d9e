"""The server: who is let in, who may write, what it says about itself, and a disk that is full."""

import pytest
from label_pages import PORT, TOKEN, ColourDrawer, body, desk_of, full

TestClient = pytest.importorskip("starlette.testclient").TestClient
from dalle_ppo.preferences.page.app import build_app  # noqa: E402 (it needs starlette)
from dalle_ppo.preferences.store import Store  # noqa: E402

HERE = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def site(tmp_path):
    drawer = ColourDrawer(tmp_path)
    with desk_of(drawer) as desk:
        yield desk, build_app(desk, drawer.store, TOKEN, PORT)


def client(app, let_in=True, base=HERE):
    made = TestClient(app, base_url=base, follow_redirects=False)
    if let_in:
        assert made.get(f"/?token={TOKEN}").status_code == 200
    return made


def post(made, what, **headers):
    return made.post("/api/answer", json=what, headers={"Origin": HERE, **headers})


def test_the_token_in_the_address_becomes_a_cookie(site):
    stranger, guest = client(site[1], let_in=False), client(site[1], let_in=False)
    for path in ("/", "/static/page.js", "/api/state", "/?token=wrong", "/?token=%C3%A9", "/images/x.png"):
        refused = stranger.get(path)
        assert refused.status_code == 403 and TOKEN not in refused.text and len(refused.text) < 200
    first = guest.get(f"/?token={TOKEN}")
    cookie = first.headers["set-cookie"]
    assert first.status_code == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    for path in ("/", "/static/page.js", "/static/page.css", "/static/icon.svg", "/api/state"):
        assert guest.get(path).status_code == 200, path
    assert TOKEN not in guest.get("/").text


def test_another_name_for_this_machine_is_refused(site):
    """A page that binds its own name to 127.0.0.1 would else read everything (DNS rebinding)."""
    for base in ("http://evil.example:8765", "http://127.0.0.1:9999", "http://evil.example"):
        answer = client(site[1], False, base).get(f"/?token={TOKEN}")
        assert answer.status_code == 403 and "set-cookie" not in {k for k in answer.headers if TOKEN in k}
    assert client(site[1], base=f"http://localhost:{PORT}").get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://127.0.0.1:{PORT}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
    ],
)
def test_writes_from_elsewhere_are_refused(site, tmp_path, headers):
    desk, app = site
    given = body("Ann", full(desk, "Ann")["queue"][0])
    made = client(app)
    assert post(made, given, **headers).status_code == 403
    without = made.post("/api/answer", json=given)
    assert without.status_code == 403, "a browser always tells the origin of a write"
    assert client(app, False).post("/api/answer", json=given, headers={"Origin": HERE}).status_code == 403
    assert not Store(tmp_path).answers()
    assert post(made, given, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert len(Store(tmp_path).answers()) == 1


def test_nothing_from_outside_may_run_or_frame_the_page(site):
    made = client(site[1])
    for path in ("/", "/static/page.js", "/api/state", "/nowhere", "/?token=wrong"):
        headers = made.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and "unsafe" not in str(policy)
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
    page = made.get("/").text
    assert "http" not in page and "<style" not in page and " on" + "click" not in page


def test_pictures_are_kept_by_the_browser_and_no_path_leads_out(site, tmp_path):
    desk, app = site
    made = client(app)
    (tmp_path / "secret.png").write_bytes(b"x")
    key = full(desk, "Ann")["queue"][0]["images"][0]
    picture = made.get(f"/images/{key}.png")
    assert picture.content == Store(tmp_path).image_path(key).read_bytes()
    assert "immutable" in picture.headers["cache-control"] and picture.headers["content-type"] == "image/png"
    for name in ("../secret", "..%2f..%2fsecret", "a" * 64, key.upper()):
        assert made.get(f"/images/{name}.png").status_code == 404
    assert made.get("/static/..%2fapp.py").status_code == 404
    assert made.get("/static/page.html").status_code == 404


def test_bad_requests_are_told_in_one_line(site):
    made = client(site[1])
    for content in (b"", b"{", b"[" * 10_000, b"\xff", b"3"):
        answer = made.post(
            "/api/answer", content=content, headers={"Origin": HERE, "Content-Type": "application/json"}
        )
        assert answer.status_code == 400 and "\n" not in answer.json()["error"]
    assert post(made, {"x": "y" * 200_000}).status_code == 403
    assert made.get("/api/state?rater=").status_code == 400


def test_a_full_disk_is_told_and_the_set_stays(site, monkeypatch):
    desk, app = site
    made = client(app)
    showing = full(desk, "Ann")["queue"][0]
    given = body("Ann", showing)

    def fail(answer):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(desk._store, "append", fail)
        answer = post(made, given)
    assert answer.status_code == 503 and "No space left" in answer.json()["error"]
    assert desk.state("Ann")["queue"][0] == showing
    assert post(made, given).json()["figures"]["mine"] == 1, "sent again, it is kept"
