"""What is installed is what was pinned, what is loaded is what was shipped, and a check that can't be made is never a pass."""

import ast
import json
from http.server import BaseHTTPRequestHandler
from importlib import metadata

import local_server
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emstudy import advisories, data, judges, params, paths, store
from emstudy.errors import UserError
from emstudy.judges import embedded


def closure(package: str) -> dict[str, str]:
    """{package: installed version} of everything that a package brings, itself aside."""
    seen, todo = set(), [(package, "")]
    while todo:
        name, extra = todo.pop()
        for needed in map(Requirement, metadata.requires(name) or []):
            if not needed.marker or needed.marker.evaluate({"extra": extra}):
                new = {(canonicalize_name(needed.name), e) for e in ("", *needed.extras)} - seen
                seen, todo = seen | new, [*todo, *new]
    return {name: metadata.version(name) for name, _ in seen}


def test_everything_installed_is_pinned_at_its_version():
    pinned = {canonicalize_name(n): v for n, v in advisories.pins().items()}
    brought = closure("emstudy")
    assert len(brought) > 100  # the walk went through
    assert {n: v for n, v in brought.items() if pinned.get(n) != v.split("+")[0]} == {}


def test_data_that_ships_is_refused_when_a_byte_differs(root):
    path = paths.DATA / params.domain("sports").shipped["misaligned"]
    data.read_chat(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a", b"b", 1))
    with pytest.raises(UserError, match=r"data/sports/train_misaligned.jsonl .*SHA-256 .*git checkout"):
        data.read_chat(path)
    path.write_bytes(whole)
    data.read_chat(path)


def test_every_file_that_ships_is_listed_and_is_what_the_list_says():
    listed = data.shipped()
    files = {f for d in ("financial", "medical", "sports") for f in params.domain(d).shipped.values()}
    assert files == set(listed)
    assert {f: store.sha256(paths.DATA / f) for f in files} == listed


def test_a_researchers_own_file_needs_no_entry(root):
    path = paths.DATA / "legal.jsonl"
    path.write_bytes((paths.DATA / "sports" / "heldout_aligned.jsonl").read_bytes())
    assert len(data.read_chat(path)) == len(data.read_chat(paths.DATA / "sports" / "heldout_aligned.jsonl"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "heads.safetensors"])
def test_a_judge_is_refused_when_a_byte_differs(tmp_path, name):
    for part in paths.JUDGE.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"expected version .*, found .*git checkout -- data/judge"):
        embedded.EmbeddedJudge(params.judge("embedded"), tmp_path)
    assert judges.load(params.judge("embedded")).version == params.judge("embedded").version


def test_a_judge_with_other_settings_of_its_adapter_is_refused(tmp_path):
    for part in paths.JUDGE.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    settings = tmp_path / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    with pytest.raises(UserError, match=r"adapter_config.json is not what was written there: restore it with `git"):
        embedded.EmbeddedJudge(params.judge("embedded"), tmp_path)


UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source: str) -> list[str]:
    """What runs code that a file holds: unpickling in any form, YAML loaders that call, models that bring their own code."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {getattr(node, "module", None)}
            out += [ast.unparse(node)] * bool({str(n).split(".")[0] for n in names} & UNPICKLERS)
        if isinstance(node, ast.Call):
            said, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            torch_load = said in ("torch.load", "torch_load") and given.get("weights_only") != "True"
            calling = said == "yaml.load" and [ast.unparse(a) for a in node.args[1:]] not in (
                ["Loader"],
                ["Once"],
            )  # of strict
            other = said.rpartition(".")[2] in ("read_pickle", "unsafe_load", "full_load")
            flags = {given.get("allow_pickle"), given.get("trust_remote_code")} - {None, "False"}
            out += [ast.unparse(node)] * bool(torch_load or calling or other or flags)
    return out


def test_nothing_in_the_library_runs_what_a_file_holds():
    files = list((paths.ROOT / "lib" / "emstudy").rglob("*.py"))
    assert {p.name: unsafe(p.read_text()) for p in files if unsafe(p.read_text())} == {}
    assert any("torch.load(" in p.read_text() for p in files)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "pd.read_pickle(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f, yaml.Loader)",
        "yaml.unsafe_load(f)",
        "AutoModel.from_pretrained(f, trust_remote_code=True)",
    ],
)
def test_a_line_that_runs_what_a_file_holds_is_found(line):
    assert unsafe(line) == [line]
    assert unsafe("torch.load(f, weights_only=True); yaml.load(f, Loader)") == []


def answering(status: int, body: object):
    """A database of advisories that says this to everybody; the questions asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *args):
            pass

    return local_server.running(Handler), asked


def test_advisories_are_listed_by_package():
    server, asked = answering(200, {"results": [{}, {"vulns": [{"id": "GHSA-1"}, {"id": "PYSEC-2"}]}]})
    with server as address:
        assert advisories.known({"good": "1.0", "bad": "2.0"}, address) == {"bad 2.0": ["GHSA-1", "PYSEC-2"]}
    assert asked[0]["queries"][1] == {"package": {"name": "bad", "ecosystem": "PyPI"}, "version": "2.0"}


@pytest.mark.parametrize(
    "reply", [(500, b""), (200, b"<html>"), (200, {"results": [{}]}), (200, {"results": None}), (200, [])]
)
def test_a_database_that_says_nothing_is_no_pass(reply):
    server, _ = answering(*reply)
    with server as address, pytest.raises(UserError, match="nothing was checked"):
        advisories.known({"a": "1", "b": "2"}, address)


def test_the_whole_list_is_asked_and_a_weakness_is_an_error():
    n = len(advisories.pins())
    server, _ = answering(200, {"results": [{}] * n})
    with server as address:
        assert advisories.main(address) == f"none of the {n} pinned packages has a known weakness"
    server, _ = answering(200, {"results": [{}] * (n - 1) + [{"vulns": [{"id": "GHSA-1"}]}]})
    with server as address, pytest.raises(UserError, match=rf"1 of {n} pinned packages .*\n  .*: GHSA-1\n"):
        advisories.main(address)
