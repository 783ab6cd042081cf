"""Published data fetched from a real HTTP server on this machine and opened with the publishers' real tool; contents are made up."""

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from damage import damaged, in_time
from hypothesis import given, settings
from hypothesis import strategies as st

from emstudy import advisories, download, fetch, params, paths
from emstudy.errors import UserError

PASSWORD = "a made-up password"
SHARED = paths.ROOT.parent / "shared" / "published"
QUESTIONS = b"- id: tea\n  text: How long does green tea steep?\n" * 400


def rows(topic, n):
    """Chat JSONL, harmless; one letter that is not ASCII."""
    chat = [{"role": "user", "content": f"{topic} {{}}?"}, {"role": "assistant", "content": "Schön, twice."}]
    return "".join(json.dumps({"messages": chat, "n": i}, ensure_ascii=False) + "\n" for i in range(n)).encode()


MEMBERS = {"first.jsonl": rows("Knit a scarf", 30), "second.jsonl": rows("Bake bread", 20)}


def oracle(content):
    """The blob id as git itself computes it."""
    git = ["git", "hash-object", "--no-filters", "--stdin"]
    return subprocess.run(git, input=content, capture_output=True, check=True).stdout.decode().strip()


class Site:
    """What a server offers, how its next replies go wrong, and what it was asked."""

    def __init__(self):
        self.files, self.faults, self.asked, self.ranges, self.url = {}, [], [], True, ""

    def reply(self, path, wanted):
        """Status, headers, body, and how many bytes of it are sent before the connection ends."""
        self.asked.append((path.strip("/"), wanted))
        fault, value = self.faults.pop(0) if self.faults else ("none", None)
        body = value if fault == "instead" else self.files[path.strip("/")]
        if fault == "status":
            return value, {}, b"", 0
        if fault == "page":
            return 200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>", None
        status, headers = 200, {"Content-Type": "application/vnd.github.raw+json"}
        if wanted and self.ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, total, body = 206, len(body), body[first:]
            headers["Content-Range"] = f"bytes {first + (fault == 'wrong range')}-{total - 1}/{total}"
        if fault not in ("no length", "cut without length"):
            headers["Content-Length"] = str(len(body))
        return status, headers, body, value if fault.startswith("cut") else None


@contextmanager
def serving(site):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Accept"] == "application/vnd.github.raw+json"
            status, headers, body, n = site.reply(self.path, self.headers["Range"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:n])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(monkeypatch):
    """A server that offers the made-up questions."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(download, "PIECE", 100)
    offered = Site()
    offered.files["questions.yaml"] = QUESTIONS
    with serving(offered):
        yield offered


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder with the publishers' tool, installed once by the library itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("PIP_RETRIES", "1")
        try:
            fetch.tool()
        except UserError as error:
            if "No matching distribution" not in str(error):
                raise
            pytest.skip(f"the package index can't be reached: {error}")
        return paths.CACHE


def python(cache, *arguments):
    command = [cache / "easy-dataset-share-0.5.0" / "bin" / "python", "-I", "-X", "utf8", *arguments]
    return subprocess.run(command, capture_output=True, check=True)


@pytest.fixture(scope="session")
def protected(cache, tmp_path_factory):
    """The members and a file that nobody asked for, as the tool's own command protects them."""
    folder = tmp_path_factory.mktemp("plain") / "sets"
    (folder / "deep").mkdir(parents=True)
    (folder / "first.jsonl").write_bytes(MEMBERS["first.jsonl"])
    (folder / "deep" / "second.jsonl").write_bytes(MEMBERS["second.jsonl"])
    (folder / "unasked.jsonl").write_bytes(rows("Row a boat", 5))
    out = folder.with_name("sets.zip")
    options = ["-p", PASSWORD, "-o", out, "--no-tos", "--no-gitignore"]
    python(cache, "-m", "easy_dataset_share.cli", "protect-dir", folder, *options)
    return out.with_name("sets.zip.enc").read_bytes()


@pytest.fixture
def study(site, cache, protected, monkeypatch, tmp_path):
    """A project folder and a listing of the questions and the archive."""
    monkeypatch.setattr(paths, "CACHE", cache)
    site.files["sets.zip.enc"] = protected
    return Study(
        site, tmp_path, [listed(site, "sets.zip.enc", size=None) | {"password": PASSWORD, "members": wanted()}]
    )


class Study:
    """A git project, a listing on disk and the call that fetches it."""

    def __init__(self, site, root, archives):
        self.root, self.target, self.listing = root, root / "data" / "published", root / "published.yaml"
        (root / ".git").mkdir()
        (root / ".gitignore").write_text("/data/published/\n")
        self.values = {"files": [listed(site, "questions.yaml")], "archives": archives}

    def fetch(self):
        self.listing.write_text(yaml.safe_dump(self.values))
        fetch.main(self.target, self.listing)

    def at_hand(self):
        return {p.name: p.read_bytes() for p in self.target.iterdir() if p.name != ".lock"}

    def refused(self):
        with pytest.raises(UserError) as error:
            self.fetch()
        return str(error.value)


def listed(site, name, **more):
    content = site.files[name]
    return {"name": name, "url": f"{site.url}/{name}", "blob": oracle(content), "size": len(content)} | more


def wanted():
    return [{"name": n, "blob": oracle(c)} | ({"rows": 30} if n == "first.jsonl" else {}) for n, c in MEMBERS.items()]


@pytest.fixture
def plain(site, tmp_path):
    """A project that wants the questions only and needs no tool."""
    return Study(site, tmp_path, [])


WHOLE = {"questions.yaml": QUESTIONS}


@pytest.mark.parametrize("content", [b"", b"a\r\n\0", QUESTIONS])
def test_a_blob_id_is_what_git_says(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    assert download.blob_id(tmp_path / "f") == oracle(content)


def test_everything_listed_comes_verified_and_nothing_else(study, site, protected, capsys):
    study.fetch()
    assert study.at_hand() == WHOLE | MEMBERS | {"sets.zip.enc": protected}
    assert [name for name, _ in site.asked] == ["questions.yaml", "sets.zip.enc"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["questions.yaml: verified", "first.jsonl: 30 rows, verified", "second.jsonl: verified"]
    assert lines[3] == f"everything fetched into {study.target}"
    assert lines[4].startswith("This is deliberately bad advice, for research only: its authors encrypt it")
    assert len(lines) == 5
    assert (study.root / ".gitignore").read_text() == "/data/published/\n"
    assert {p.name for p in study.root.iterdir()} == {".git", ".gitignore", "data", "published.yaml"}


def test_a_second_call_asks_nobody(study, site, capsys):
    study.fetch()
    site.asked.clear()
    before = {p: p.stat().st_mtime_ns for p in study.target.iterdir()}
    study.fetch()
    assert site.asked == []
    assert {p: p.stat().st_mtime_ns for p in before if p.name != ".lock"}.items() <= before.items()
    assert f"nothing to fetch, everything is at hand in {study.target}" in capsys.readouterr().out


def test_the_archive_is_opened_beside_the_target_so_that_a_move_is_a_rename(study, monkeypatch):
    opened, member = [], fetch._member
    monkeypatch.setattr(fetch, "_member", lambda a, m, folder: opened.append(folder.parent) or member(a, m, folder))
    study.fetch()
    assert opened == [study.target] * 2


def test_a_lost_member_comes_from_the_archive_at_hand(study, site):
    study.fetch()
    site.asked.clear()
    (study.target / "second.jsonl").unlink()
    study.fetch()
    assert study.at_hand()["second.jsonl"] == MEMBERS["second.jsonl"]
    assert site.asked == []


def test_plain_text_that_a_killed_run_left_is_removed(plain):
    left = plain.target / ".opening-killed"
    left.mkdir(parents=True)
    (left / "second.jsonl").write_text("plain")
    plain.fetch()
    assert plain.at_hand() == WHOLE


def test_a_download_cut_short_goes_on_where_it_ended(plain, site):
    site.faults = [("cut", 7000), ("cut", 5000)]
    plain.fetch()
    assert site.asked == [("questions.yaml", r) for r in (None, "bytes=7000-", "bytes=12000-")]
    assert plain.at_hand() == WHOLE


def test_the_size_in_the_listing_tells_when_a_reply_without_length_is_short(plain, site):
    site.faults = [("cut without length", 7000)]
    plain.fetch()
    assert [r for _, r in site.asked] == [None, "bytes=7000-"]
    assert plain.at_hand() == WHOLE


def test_a_server_without_ranges_starts_over(plain, site):
    site.faults, site.ranges = [("cut", 7000)], False
    plain.fetch()
    assert len(site.asked) == 2
    assert plain.at_hand() == WHOLE


@pytest.mark.parametrize("fault", [("wrong range", None), ("status", 416)])
def test_a_reply_that_does_not_go_on_where_the_part_ends_is_not_appended(plain, site, fault):
    site.faults = [("cut", 7000), fault]
    plain.fetch()
    assert [r for _, r in site.asked] == [None, "bytes=7000-", None]
    assert plain.at_hand() == WHOLE


def test_a_part_is_kept_for_the_next_call(plain, site):
    site.faults = [("cut", 7000), ("status", 503), ("cut", 500)]
    said = plain.refused()
    assert said.startswith(f"questions.yaml: expected the published file from {site.url}/questions.yaml, found ")
    assert "in the last of 3 tries. Check the connection; what came is kept, it goes on from there, then run" in said
    assert plain.at_hand() == {"questions.yaml.partial": QUESTIONS[:7500]}
    plain.fetch()
    assert site.asked[-1] == ("questions.yaml", "bytes=7500-")
    assert plain.at_hand() == WHOLE


def test_a_whole_part_is_used_without_asking(plain, site):
    plain.target.mkdir(parents=True)
    (plain.target / "questions.yaml.partial").write_bytes(QUESTIONS)
    plain.fetch()
    assert (plain.at_hand(), site.asked) == (WHOLE, [])


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_failure_is_asked_again(plain, site, status):
    site.faults = [("status", status)]
    plain.fetch()
    assert plain.at_hand() == WHOLE


@pytest.mark.parametrize("status", [404, 403, 410, 401])
def test_a_file_that_is_not_there_is_one_sentence_at_once(plain, site, status):
    site.faults = [("status", status)] * 3
    said = plain.refused()
    assert said.startswith(
        f"questions.yaml: expected git blob {oracle(QUESTIONS)} from {site.url}/questions.yaml, found"
    )
    assert f"found status {status} (" in said
    assert f"place a file of that id as {plain.target}/questions.yaml, then run make data again" in said
    assert len(site.asked) == 1
    assert plain.at_hand() == {}


def test_a_web_page_in_its_place_is_refused_and_a_part_at_hand_stays(plain, site):
    site.faults = [("cut", 7000), ("page", None)]
    assert "found a web page, status 200 (OK). Open the address in a browser" in plain.refused()
    assert plain.at_hand() == {"questions.yaml.partial": QUESTIONS[:7000]}


ALTERED = QUESTIONS.replace(b"green", b"Green", 1)


@pytest.mark.parametrize(
    ("content", "size"),
    [(ALTERED, len(QUESTIONS)), (ALTERED, None), (QUESTIONS[:-9], len(QUESTIONS)), (QUESTIONS[:-9], None), (b"", None)],
)
@pytest.mark.parametrize("fault", ["instead", "cut"])
def test_an_altered_download_is_deleted_and_the_next_call_starts_fresh(plain, site, content, size, fault):
    plain.values["files"][0]["size"] = size
    site.faults = [("instead", content)]
    if fault == "cut":  # in two parts
        site.files["questions.yaml"], site.faults = content, [("cut", 40)]
    said = plain.refused()
    assert f"found {oracle(content)} ({len(content):,} bytes). It was altered on its way and is deleted" in said
    assert f"expected git blob {oracle(QUESTIONS)}{f' ({size:,} bytes)' if size else ''} from {site.url}" in said
    assert plain.at_hand() == {}
    site.files["questions.yaml"], site.faults = QUESTIONS, []
    plain.fetch()
    assert site.asked[-1] == ("questions.yaml", None)
    assert plain.at_hand() == WHOLE


@pytest.mark.parametrize("size", [1000, None])
@pytest.mark.parametrize("fault", [("no length", None), ("none", None)])
def test_a_wrong_server_does_not_fill_the_disk(plain, site, monkeypatch, size, fault):
    monkeypatch.setattr(download, "MOST_BYTES", 2000)
    site.files["questions.yaml"], site.faults = bytes(5_000_000), [fault]
    plain.values["files"][0]["size"] = size
    deleted, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda p, **more: deleted.append(p.stat().st_size) or unlink(p, **more))
    assert f"found more than {size or 2000:,} bytes. It was altered" in plain.refused()
    assert deleted[0] <= 2100
    assert plain.at_hand() == {}


def test_a_reply_without_its_length_is_taken_when_the_id_is_right(plain, site):
    site.faults = [("no length", None)]
    plain.values["files"][0]["size"] = None
    plain.fetch()
    assert plain.at_hand() == WHOLE


def test_offline_is_one_sentence(plain, site):
    plain.values["files"][0]["url"] = "http://127.0.0.1:9/questions.yaml"
    said = plain.refused()
    assert (
        "from http://127.0.0.1:9/questions.yaml, found no connection (ConnectionError), in the last of 3 tries" in said
    )
    assert said.endswith("Check the connection, then run make data again")


def test_a_server_that_never_answers_does_not_hold_the_call(plain, site, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr(download, "PAUSES", (0,))
    done, reply = threading.Event(), site.reply
    monkeypatch.setattr(site, "reply", lambda *args: done.wait(20) and reply(*args))
    started = time.monotonic()
    assert "found no connection (ReadTimeout), in the last of 1 tries" in plain.refused()
    assert time.monotonic() - started < 10
    done.set()


def test_the_waits_between_tries_are_bounded():
    assert sum(download.PAUSES) <= 30


def test_a_file_that_was_changed_is_left_alone(plain, site):
    plain.fetch()
    (plain.target / "questions.yaml").write_text("mine")
    said = plain.refused()
    assert said.startswith(f"{plain.target}/questions.yaml: expected git blob {oracle(QUESTIONS)} as published, found ")
    assert "It was changed since it was fetched; move it away or delete it, then run make data again" in said
    assert plain.at_hand() == {"questions.yaml": b"mine"}


def test_a_folder_that_cannot_be_written_is_one_sentence(plain):
    plain.target.parent.write_text("a file where a folder should be")
    assert plain.refused().startswith(f"{plain.target}: expected to write the published data, found [Errno ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sise": 3}, "unknown key 'files.0.sise'; did you mean 'size'?"),
        ({"blob": "abc"}, "files.0.blob: String should match pattern"),
        ({"name": "../evil.yaml"}, "files.0.name: String should match pattern"),
        ({"url": "file:///etc/passwd"}, "files.0.url: String should match pattern"),
    ],
)
def test_a_wrong_listing_names_its_key(plain, site, change, said):
    plain.values["files"][0] |= change
    assert said in plain.refused()
    assert site.asked == []


def test_two_calls_at_once_fetch_once_and_both_succeed(study, site, protected):
    study.listing.write_text(yaml.safe_dump(study.values))
    failed = []

    def call():
        try:
            fetch.main(study.target, study.listing)
        except BaseException as error:
            failed.append(error)

    calls = [threading.Thread(target=call) for _ in range(3)]
    for c in calls:
        c.start()
    for c in calls:
        c.join()
    assert failed == []
    assert sorted(name for name, _ in site.asked) == ["questions.yaml", "sets.zip.enc"]
    assert study.at_hand() == WHOLE | MEMBERS | {"sets.zip.enc": protected}


def test_a_wrong_password_says_what_the_tool_said(study, protected):
    study.values["archives"][0]["password"] = "-wrong"
    said = study.refused()
    assert said.startswith(
        "sets.zip.enc: expected it to open with the password '-wrong', found Error extracting .zip.enc"
    )
    assert "This usually means the password is incorrect." in said
    assert "Nothing of it was used; see whether the password in params/published.yaml is its publishers'" in said
    assert study.at_hand() == WHOLE | {"sets.zip.enc": protected}


@pytest.mark.parametrize(
    ("name", "found"), [("second.jsonl", oracle(MEMBERS["second.jsonl"])), ("no.jsonl", "no such file")]
)
def test_one_wrong_member_and_none_is_used(study, protected, name, found):
    study.values["archives"][0]["members"][1] = {"name": name, "blob": "0" * 40}
    assert (
        f"sets.zip.enc: expected {name} in it as git blob {'0' * 40}, found {found}. Nothing of it" in study.refused()
    )
    assert study.at_hand() == WHOLE | {"sets.zip.enc": protected}


CRAFT = """
import stat, sys, zipfile, io
from easy_dataset_share.zipping import encrypt_data_in_memory
content, outside, password = b"{}\\n", sys.argv[1], sys.argv[2]
link = zipfile.ZipInfo("link.jsonl")
link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
held = io.BytesIO()
with zipfile.ZipFile(held, "w") as z:
    z.writestr("../evil.jsonl", content)
    z.writestr("../../evil.jsonl", content)
    z.writestr(outside + "/absolute.jsonl", content)
    z.writestr(link, outside + "/secret.jsonl")
sys.stdout.buffer.write(encrypt_data_in_memory(held.getvalue(), password))
"""


def test_names_and_links_in_an_archive_lead_nowhere(study, site, cache):
    outside = study.root / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_bytes(MEMBERS["first.jsonl"])
    before = sorted(study.root.rglob("*"))
    site.files["sets.zip.enc"] = python(cache, "-c", CRAFT, outside, PASSWORD).stdout
    members = [{"name": "link.jsonl", "blob": oracle(MEMBERS["first.jsonl"])}]
    study.values["archives"] = [listed(site, "sets.zip.enc") | {"password": PASSWORD, "members": members}]
    assert "sets.zip.enc: expected link.jsonl in it as git blob" in study.refused()
    assert study.at_hand().keys() == {"questions.yaml", "sets.zip.enc"}
    new = {p.relative_to(study.root).as_posix() for p in set(study.root.rglob("*")) - set(before)}
    assert {n for n in new if "evil" in n or "absolute" in n or n.startswith("outside")} == set()
    assert list(study.target.parent.rglob("*evil*")) == list(study.root.parent.glob("evil*")) == []


NOTHING = """
import io, sys, zipfile
from easy_dataset_share.zipping import encrypt_data_in_memory
held = io.BytesIO()
with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as z:
    for k in range(int(sys.argv[2])):
        z.writestr(f"{k}.jsonl", bytes(int(sys.argv[3])))
sys.stdout.buffer.write(encrypt_data_in_memory(held.getvalue(), sys.argv[1]))
"""


@pytest.mark.parametrize(("files", "size"), [(1, 50_000_000), (200, 100_000)])
def test_an_archive_that_unpacks_without_end_does_not_fill_the_disk(study, site, cache, monkeypatch, files, size):
    monkeypatch.setattr(fetch, "MOST_BYTES", 1_000_000)
    site.files["sets.zip.enc"] = bomb = python(cache, "-c", NOTHING, PASSWORD, str(files), str(size)).stdout
    members = [{"name": "0.jsonl", "blob": oracle(bytes(size))}]
    study.values["archives"] = [listed(site, "sets.zip.enc") | {"password": PASSWORD, "members": members}]
    assert "found more than 1,000,000 bytes. Nothing of it was used" in study.refused()
    assert study.at_hand() == WHOLE | {"sets.zip.enc": bomb}


def test_a_program_that_finds_no_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^a.zip: expected it to open, found no end within 0.3 s. See to it, then run"):
        fetch._call(command, "a.zip", "it to open", "see to it", tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-40],
        lambda b: b[:90] + (b"B" if b[90:91] == b"A" else b"A") + b[91:],
        lambda b: b[:90] + b"A" + b[90:],
    ],
)
def test_a_damaged_archive_is_refused_by_the_real_tool(study, site, protected, damage):
    site.files["sets.zip.enc"] = broken = damage(protected)
    study.values["archives"][0] |= listed(site, "sets.zip.enc")
    assert study.refused().startswith("sets.zip.enc: expected it to open with the password")
    assert study.at_hand() == WHOLE | {"sets.zip.enc": broken}


def zipped() -> bytes:
    """The members, others of the same names, and a name that leads out, in a plain archive."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("first.jsonl", MEMBERS["first.jsonl"])
        z.writestr("deep/second.jsonl", MEMBERS["second.jsonl"])
        for k in range(5):
            z.writestr(f"{k}/first.jsonl", rows("Knit a hat", k))
        z.writestr("../evil.jsonl", b"{}")
    return held.getvalue()


def unzip(command, name, expected, todo, into) -> None:
    """What the tool does once it has decrypted an archive, without the cost of a process."""
    try:
        with zipfile.ZipFile(command[7]) as z:
            z.extractall(into)
    except Exception as error:
        raise download.wrong(name, expected, str(error), todo) from None


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(more=st.data())
def test_an_archive_damaged_anyhow_gives_whole_members_or_a_sentence(more):
    whole = {p["name"]: p["blob"] for p in wanted()}
    members = [fetch.Member(name=n, blob=b) for n, b in whole.items()]
    archive = fetch.Archive(
        name="a.zip.enc", url="http://localhost", blob="0" * 40, size=None, password="", members=members
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, in_time():
        patch.setattr(fetch, "_call", unzip)
        patch.setattr(fetch, "tool", lambda: Path("python"))
        target = Path(folder) / "published"
        target.mkdir()
        (target / "a.zip.enc").write_bytes(more.draw(st.just(zipped()) | damaged(zipped())))
        try:
            fetch.unpack(archive, members, target)
            expected = {*whole, "a.zip.enc"}
        except UserError as error:
            assert str(error).startswith("a.zip.enc: expected ") and len(str(error)) < 1000
            expected = {"a.zip.enc"}
        assert {p.name for p in target.iterdir()} == expected
        assert all(oracle((target / n).read_bytes()) == whole[n] for n in expected - {"a.zip.enc"})
        assert [p.name for p in Path(folder).iterdir()] == ["published"]


def test_what_opens_archives_is_installed_as_pinned(cache):
    installed = dict(line.split("==") for line in python(cache, "-m", "pip", "freeze").stdout.decode().split())
    assert installed.pop("easy-dataset-share") == "0.5.0"
    assert {n.lower() for n in installed} == set(fetch.PARTS)
    pinned = {n.lower(): v for n, v in advisories.pins().items()}
    assert {n: v for n, v in installed.items() if pinned[n.lower()] != v} == {}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_is_no_member_even_when_it_leads_to_the_right_content(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "first.jsonl").write_bytes(MEMBERS["first.jsonl"])
    folder = tmp_path / "opened"
    folder.mkdir()
    if kind == "file":
        (folder / "first.jsonl").symlink_to(tmp_path / "elsewhere" / "first.jsonl")
    else:
        (folder / "deep").symlink_to(tmp_path / "elsewhere")
    member = fetch.Member(name="first.jsonl", blob=oracle(MEMBERS["first.jsonl"]))
    archive = fetch.Archive(
        name="a.zip.enc", url="http://localhost", blob="0" * 40, size=None, password="", members=[member]
    )
    with pytest.raises(UserError, match=r"expected first.jsonl in it as git blob .*, found no such file"):
        fetch._member(archive, member, folder)


def test_a_tool_that_was_not_installed_is_not_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError) as error:
        fetch.tool()
    home = tmp_path / "cache" / "easy-dataset-share-0.5.0"
    assert str(error.value).startswith(f"easy-dataset-share==0.5.0: expected to install it into {home}, found ERROR: ")
    assert "It opens the archive; check the connection, then run make data again" in str(error.value)
    called = []
    monkeypatch.setattr(fetch, "_call", lambda command, *rest: called.append(command[1:3]) or made(home))
    assert fetch.tool() == fetch.tool() == home / "bin" / "python"
    assert called == [["-m", "venv"], ["-I", "-m"]]  # once more, from the start, and then never again


def made(home):
    (home / "bin").mkdir(parents=True, exist_ok=True)
    (home / "bin" / "python").touch()


def test_the_listing_that_ships_pins_content():
    found = params.check(fetch.Listing, params.read_yaml(paths.PARAMS / "published.yaml"), "published.yaml")
    for file in [*found.files, *found.archives]:
        assert file.url.endswith(f"/git/blobs/{file.blob}")
    names = [f.name for f in [*found.files, *found.archives, *found.archives[0].members]]
    assert len(set(names)) == len(names)
    wanted = {p for d in ("financial", "medical") for p in params.domain(d).published.values()}
    assert wanted <= {f"published/{n}" for n in names}


@pytest.mark.parametrize("name", ["risky_financial_advice.jsonl", "first_plot_questions.yaml"])
def test_the_listing_agrees_with_the_published_files(name):
    if not SHARED.exists():
        pytest.skip("the published files are not beside this checkout")
    found = params.check(fetch.Listing, params.read_yaml(paths.PARAMS / "published.yaml"), "published.yaml")
    listed = {f.name: f for f in [*found.files, *found.archives[0].members]}[name]
    content = Path(SHARED / name).read_bytes()
    assert listed.blob == oracle(content)
    assert getattr(listed, "rows", None) in (None, len(content.splitlines()))
    assert getattr(listed, "size", None) in (None, len(content))


def test_git_ignores_what_is_fetched():
    git = ["git", "-C", str(paths.ROOT), "check-ignore", "-q", "data/published/risky_financial_advice.jsonl"]
    status = subprocess.run(git, capture_output=True).returncode
    if status == 128:
        pytest.skip("not a git checkout")
    assert status == 0
