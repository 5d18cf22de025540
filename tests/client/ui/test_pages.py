"""The page without a browser and without a server: who is let in, what is shown, what forms do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlencode

import psutil
import pytest

from plurum.client.ui import ReviewStore
from plurum.client.ui.pages import member_votes, percentage
from plurum.client.ui.pictures import RecentImage, RecentImages, picture_from_image
from plurum.errors import ImageError
from plurum.images.image_formats import FORMATS, format_of
from tests.client.samples import bomb, png, prediction
from tests.client.ui.browser import page_at

EVIL = '<img src=x onerror="alert(1)">.png'


class PageReply(NamedTuple):
    status: int
    text: str
    headers: dict[str, str]


class RunningPage(NamedTuple):
    """A running page whose server is away, and its store."""

    address: str
    store: ReviewStore

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> PageReply:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            return PageReply(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})
        finally:
            connection.close()

    def post(self, path: str, **fields: object) -> PageReply:
        return self.send("POST", path, urlencode(fields).encode(), Accept="text/html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    folder = tmp_path_factory.mktemp("ui") / "reviews"
    with page_at("--url", "127.0.0.1:1", "--store", folder, "--reviewer", "Ada", "--max-image-mib", "1") as url:
        yield RunningPage(url.removeprefix("http://"), ReviewStore(folder))


@pytest.fixture
def sha256(page: RunningPage) -> Iterator[str]:
    """An image that waits for this test's decision."""
    sha256 = page.store.add(png(7), EVIL, prediction())
    yield sha256
    page.store.delete(sha256)


def test_headers_forbid_foreign_content_and_caching(page: RunningPage) -> None:
    for path in ("/", "/review", "/static/page.css", "/absent"):
        headers = page.send("GET", path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/review"])
def test_pages_load_nothing_from_other_machines(page: RunningPage, sha256: str, path: str) -> None:
    text = page.send("GET", f"/review/{sha256}" if path == "/review" else path).text
    assert re.findall(r"""(?:src|href|action)=["'](?!/|#)""", text) == []
    assert re.findall(r"""\sstyle=|<script>|\son[a-z]+=["']""", text.replace("onerror=&#34;", "")) == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "a b"])
def test_foreign_host_names_are_refused(page: RunningPage, sha256: str, host: str) -> None:
    reply = page.send("GET", f"/pictures/{sha256}", Host=host)
    # An empty or impossible one is refused before, as no HTTP.
    assert reply.status in {400, 421}
    assert "PNG" not in reply.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8085", "[::1]:8085", "10.1.2.3:8085", "LOCALHOST"])
def test_addresses_and_own_names_are_accepted(page: RunningPage, host: str) -> None:
    assert page.send("GET", "/", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_other_sites_can_not_decide(page: RunningPage, sha256: str, headers: dict[str, str]) -> None:
    body = urlencode({"label": "LAA", "seen": 0}).encode()
    assert page.send("POST", f"/review/{sha256}", body, **headers).status == 403
    assert page.send("POST", f"/review/{sha256}/delete", b"", **headers).status == 403
    assert page.store.history(sha256) == []
    assert page.store.item(sha256) is not None


def test_own_origin_is_accepted(page: RunningPage, sha256: str) -> None:
    body = urlencode({"label": "LAA", "seen": 0}).encode()
    assert page.send("POST", f"/review/{sha256}", body, Origin=f"http://{page.address}").status == 303


def test_file_names_are_escaped(page: RunningPage, sha256: str) -> None:
    text = page.send("GET", f"/review/{sha256}").text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;.png" in text


def test_decision_leads_to_the_next_image_and_can_be_undone(page: RunningPage, sha256: str) -> None:
    assert page.send("GET", "/review").headers["location"] == f"/review/{sha256}"
    decided = page.post(f"/review/{sha256}", label="LAA", seen=0)
    assert (decided.status, decided.headers["location"]) == (303, f"/review?done={sha256}")
    done = page.send("GET", decided.headers["location"]).text
    assert "All 1 decided" in done
    assert "0 confirmed, 1 corrected" in done
    item = page.store.item(sha256)
    assert item is not None
    assert item.decision is not None
    assert (item.label, item.decision.reviewer) == ("LAA", "Ada")
    assert page.post(f"/review/{sha256}/undo", seen=item.seen).headers["location"] == f"/review/{sha256}"
    assert [one.label for one in page.store.history(sha256)] == ["LAA", None]


def test_decision_on_an_old_page_shows_the_new_state(page: RunningPage, sha256: str) -> None:
    page.post(f"/review/{sha256}", label="LAA", seen=0)
    late = page.post(f"/review/{sha256}", label="CE", seen=0)
    assert late.status == 409
    assert "Your decision was not saved" in late.text
    assert "Ada has chosen <b>LAA</b>" in late.text
    (seen,) = re.findall(r'id="decision".*?name="seen" value="(\d+)"', late.text, flags=re.DOTALL)
    assert page.post(f"/review/{sha256}", label="CE", seen=seen).status == 303
    assert [one.label for one in page.store.history(sha256)] == ["LAA", "CE"]


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"label": "elephant", "seen": 0}, 422, "Unknown class &#39;elephant&#39;"),
        ({"seen": 0}, 422, "Unknown class"),
        ({"label": "CE"}, 422, "does not state which decision"),
        *(
            ({"label": "CE", "seen": seen}, 422, "does not state which decision")
            for seen in ("9" * 5_000, "-1", "+0", "0.0", "1e3", "null", "", "\0", " 0", "٠", "1_0", "0x0", "inf")
        ),
        ({"label": "CE", "seen": "9" * 18}, 409, "Your decision was not saved"),
        ({"label": "\0", "seen": 0}, 422, "Unknown class"),
        ({"label": "CE", "seen": 0, "more": "x" * 70_000}, 413, "too large"),
    ],
)
def test_invalid_forms_decide_nothing(
    page: RunningPage, sha256: str, fields: dict[str, object], status: int, reason: str
) -> None:
    reply = page.post(f"/review/{sha256}", **fields)
    assert reply.status == status
    assert reason in reply.text
    assert page.store.history(sha256) == []


def test_deleted_images_are_not_shown(page: RunningPage, sha256: str) -> None:
    assert page.send("GET", f"/pictures/{sha256}").status == 200
    assert page.post(f"/review/{sha256}/delete").headers["location"] == "/review"
    assert page.send("GET", f"/pictures/{sha256}").status == 404
    assert page.send("GET", f"/review/{sha256}", Accept="text/html").status == 404
    assert "Nothing to review" in page.send("GET", "/review").text


def test_unknown_page_gives_one_line(page: RunningPage) -> None:
    reply = page.send("GET", "/absent", Accept="text/html")
    assert reply.status == 404
    assert "This page does not exist." in reply.text
    assert page.send("GET", "/static/../app.py").status == 404


def test_unavailable_server_gives_one_line_with_a_fix(page: RunningPage) -> None:
    for reply in (page.send("GET", "/served"), page.send("POST", "/answers", png(1), X_File_Name="a.png")):
        assert reply.status == 503
        assert "no gRPC server responds at 127.0.0.1:1" in reply.text
        assert "plurum serve REPO" in reply.text
    assert page.store.items() == []


def test_large_files_are_refused(page: RunningPage) -> None:
    reply = page.send("POST", "/answers", b"x" * ((1 << 20) + 1))
    assert (reply.status, reply.text) == (413, '{"error":"this file is larger than 1 MiB"}')


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes that are not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image"),
        (b"GIF89a", "6 bytes that are not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image"),
        (png(1)[:60], "image is corrupt or truncated"),
        (bomb(), "image of 60000 x 60000 pixels is too large: at most 64,000,000 pixels are decoded"),
    ],
    ids=["empty", "another kind", "torn", "bomb"],
)
def test_invalid_images_are_refused_without_a_server(page: RunningPage, data: bytes, reason: str) -> None:
    reply = page.send("POST", "/answers", data, X_File_Name="a.png")
    assert reply.status == 422
    assert reason in reply.text
    assert reply.text.count("\n") == 0


def test_corrections_are_exported_as_a_file(page: RunningPage, sha256: str) -> None:
    page.post(f"/review/{sha256}", label="LAA", seen=0)
    reply = page.send("GET", "/corrections.csv")
    assert reply.headers["content-disposition"] == 'attachment; filename="corrections.csv"'
    header, row = reply.text.splitlines()
    assert header.startswith("path,label,")
    assert row.startswith(f"{page.store.folder}/images/{sha256}.png,LAA,CE,0.600000,")


def test_without_a_run_there_are_no_maps(page: RunningPage, sha256: str) -> None:
    assert "Where is the evidence?" not in page.send("GET", f"/review/{sha256}").text
    reply = page.send("GET", f"/evidence/{sha256}?label=CE")
    assert reply.status == 404
    assert "--run RUN" in reply.text


@pytest.mark.parametrize(
    ("reasons", "because"),
    [(("outlier",), False), (("confidence", "outlier"), True), (("confidence",), True), (None, True)],
)
def test_a_review_of_an_outlier_says_so(page: RunningPage, reasons: tuple[str, ...] | None, because: bool) -> None:
    p_value = None if reasons is None else 0.004
    of = replace(prediction(), prediction_set=("CE",), review_reason=reasons, outlier=p_value)
    sha256 = page.store.add(png(8), "a.png", of)
    text = page.send("GET", f"/review/{sha256}").text
    page.store.delete(sha256)
    assert ("unlike those of the fit (p = 0.004)" in text) == ("outlier" in (reasons or ()))
    assert ("sends such probabilities to review" in text) == because
    assert ("<dt>Outlier</dt><dd><b>0.004</b>" in text) == (reasons is not None)


def test_an_image_that_a_cascade_settled_says_how_many_members_ran(page: RunningPage) -> None:
    of = prediction()
    left = replace(of, members_used=("two",), member_probabilities=of.member_probabilities | {"one": None})
    for number, (answer, says) in enumerate(
        ((left, True), (replace(of, members_used=("one", "two")), False), (of, False))
    ):
        sha256 = page.store.add(png(20 + number), "a.png", answer)
        text = page.send("GET", f"/review/{sha256}").text
        assert ("1 of 2 members ran" in text) == says
        assert ('<th scope="row">one</th>' in text) != says
        page.store.delete(sha256)


def test_probabilities_are_not_rounded_to_certainty() -> None:
    assert [percentage(value) for value in (0.0, 1e-9, 0.1234, 0.99949, 0.9999, 1.0)] == [
        "0.0%",
        "< 0.1%",
        "12.3%",
        "99.9%",
        "> 99.9%",
        "100.0%",
    ]


def test_differing_members_are_marked() -> None:
    one, two = member_votes(prediction())
    assert (one.label, one.agrees) == ("CE", True)
    assert (two.label, two.probability, two.agrees) == ("LAA", 0.7, False)


def test_oldest_images_are_dropped_first() -> None:
    recent = RecentImages(20)
    for name in "abc":
        recent.add(name, RecentImage(name, b"x" * 8, prediction()))
    assert [recent.get(name) is not None for name in "abc"] == [False, True, True]
    recent.forget("b")
    assert recent.get("b") is None


def test_pictures_have_formats_of_browsers() -> None:
    content, kind = picture_from_image(png(1))
    assert (kind, format_of(content)) == ("image/png", FORMATS["PNG"])
    with pytest.raises(ImageError, match="not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM"):
        picture_from_image(b"no image")


@pytest.mark.parametrize(
    "path",
    [
        f"/evidence/SHA256/{'9' * 5_000}",
        "/evidence/SHA256/-1",
        "/evidence/SHA256/0?label=%00",
        "/pictures/%00",
        f"/pictures/{'0' * 20_000}",
        "/pictures/..%2f..%2freviews.sqlite",
        "/review/%ED%B2%80",
        "/review/SHA256?done=%00",
        "/static/%00",
        f"/static/{'x' * 5_000}",
        "/static/..%2fstore.py",
        "/static/%2e%2e/store.py",
        "/static//etc/passwd",
    ],
)
def test_unknown_paths_give_one_line(page: RunningPage, sha256: str, path: str) -> None:
    reply = page.send("GET", path.replace("SHA256", sha256), Accept="text/html")
    assert reply.status in ({200} if "done=" in path else {404, 405})
    assert "sqlite" not in reply.text


def test_image_deleted_in_another_tab_gives_one_line(page: RunningPage) -> None:
    """Each of these finds the image in one moment and not in the next."""
    statuses = set()
    for round_ in range(12):
        sha256 = page.store.add(png(200), "gone.png", prediction())
        requests = [
            ("POST", f"/review/{sha256}", b"label=CE&seen=0"),
            ("POST", f"/review/{sha256}", b"label=LAA&seen=0"),
            ("POST", f"/review/{sha256}/undo", b"seen=0"),
            ("GET", f"/pictures/{sha256}", None),
            ("POST", f"/review/{sha256}/delete", b""),
        ]
        requests = requests[round_ % 5 :] + requests[: round_ % 5]
        with ThreadPoolExecutor(len(requests)) as pool:
            statuses |= {reply.status for reply in pool.map(lambda request: page.send(*request), requests)}
        with contextlib.suppress(KeyError):
            page.store.delete(sha256)
    assert statuses <= {200, 303, 404, 409}


def test_missing_or_corrupt_pictures_give_one_line(page: RunningPage, sha256: str) -> None:
    item = page.store.item(sha256)
    assert item is not None
    item.file.write_bytes(b"spoilt")
    assert page.send("GET", f"/pictures/{sha256}").status == 422
    item.file.unlink()
    assert page.send("GET", f"/pictures/{sha256}").status == 404


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /review/\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5_000 + b"\r\n",
        b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nX-File-Name: %ff%00%ED%B2%80\xff\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_malformed_requests_never_get_500(page: RunningPage, head: bytes) -> None:
    host, port = page.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            said = file.readline()
    assert said == b"" or said.split()[1] in {b"400", b"404", b"413", b"421", b"422"}


def test_endless_trailers_take_no_memory(page: RunningPage) -> None:
    host, port = page.address.split(":")
    (owner,) = [
        one.pid
        for one in psutil.net_connections("tcp")
        if one.laddr and one.laddr.port == int(port) and one.status == psutil.CONN_LISTEN
    ]
    before = psutil.Process(owner).memory_info().rss
    with socket.create_connection((host, int(port)), timeout=2) as connection, contextlib.suppress(OSError):
        connection.sendall(b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        for number in range(2_000):
            connection.sendall(b"x-%d: " % number + b"y" * 30_000 + b"\r\n")
    assert psutil.Process(owner).memory_info().rss - before < 8 << 20
