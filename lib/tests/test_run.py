"""Notebooks run whole or not at all, and pages need no network and run nothing that a model wrote."""

import errno
import re
from html.parser import HTMLParser
from unittest.mock import Mock

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from emstudy import paths, run
from emstudy.__main__ import main
from emstudy.errors import UserError

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> [x](javascript:alert(3)) </p></article> ${7*7}"


def written(folder, *code, values=None):
    """A notebook with the parameters `limit` and `name` and these code cells, and a file of values for it."""
    parameters = new_code_cell("limit = 1\nname = 'a'", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# A title"), parameters, *map(new_code_cell, code)]
    notebook, values_file = folder / "tiny.ipynb", folder / "tiny.yaml"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebook)
    values_file.write_text(yaml.safe_dump(values if values is not None else {"limit": 2, "name": "b"}))
    return notebook, values_file, folder / "out" / "tiny.ipynb"


def test_an_unknown_parameter_is_an_error_that_lists_the_known_ones(tmp_path):
    given = written(tmp_path, values={"limit": 1, "name": "b", "limits": 2})
    with pytest.raises(UserError, match=r"tiny.yaml: tiny.ipynb has no parameter 'limits'; it takes limit, name"):
        run.execute(*given)
    assert not given[2].parent.exists()


def test_a_missing_parameter_is_an_error_not_a_default(tmp_path):
    given = written(tmp_path, values={"limit": 1})
    with pytest.raises(UserError, match=r"tiny.yaml: missing the parameter 'name' of tiny.ipynb"):
        run.execute(*given)


def test_an_absent_notebook_is_named(tmp_path):
    with pytest.raises(UserError, match=r"other.ipynb is not there"):
        run.check(tmp_path / "other.ipynb", {}, "x.yaml")


def test_a_failing_cell_is_named_with_its_cause_and_leaves_no_output(tmp_path):
    raising = "from emstudy.errors import UserError\nraise UserError('no such thing; do that instead')"
    notebook, values, output = written(tmp_path, "print('got here')", raising)
    with pytest.raises(UserError) as error:
        run.execute(notebook, values, output)
    text = str(error.value)
    assert text.startswith("tiny.ipynb failed for ")
    assert "in cell 4: no such thing; do that instead\n" in text  # parameters, what make injected, print, this
    assert "out/tiny.failed.ipynb" in text
    assert [p.name for p in output.parent.glob("[!.]*")] == ["tiny.failed.ipynb"]
    assert "got here" in (output.parent / "tiny.failed.ipynb").read_text()


REFUSED = {
    "open('nowhere/x', 'w')": r"No such file or directory: 'nowhere/x'",
    "raise OSError(28, 'No space left on device', '/disk/x')": r"No space left on device: '/disk/x'",
    "from safetensors.torch import save_file\nsave_file({}, 'nowhere/x')": r"No such file or directory",
}


def test_what_the_system_refuses_a_cell_is_a_sentence_that_names_the_file(tmp_path):
    for code, expected in REFUSED.items():
        with pytest.raises(UserError, match=rf"in cell 3: {expected}; mend that and run again\n  as far as it came"):
            run.execute(*written(tmp_path, code))


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_an_output_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, capsys, place):
    notebook, values, _ = written(tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["run", notebook.stem, str(values), str(tmp_path / place / "out.ipynb")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"\nerror: (a file stands where .*|Not a directory): '{tmp_path}/file.*'; mend that and run again\n", said
    )


def test_a_disk_that_is_full_or_read_only_is_one_sentence(tmp_path, monkeypatch, capsys):
    notebook, values, output = written(tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    for code, said in {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only file system"}.items():
        monkeypatch.setattr(run, "_execute", Mock(side_effect=OSError(code, said, "x.ipynb")))
        assert main(["run", notebook.stem, str(values), str(output)]) == 1
        assert capsys.readouterr().err == f"\nerror: {said}: 'x.ipynb'; mend that and run again\n"


def test_an_error_of_a_librarys_own_is_not_taken_for_the_systems(tmp_path, monkeypatch):
    notebook, values, output = written(tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run, "_execute", Mock(side_effect=OSError("odd")))
    with pytest.raises(OSError, match="odd"):
        main(["run", notebook.stem, str(values), str(output)])


def test_a_kernel_that_dies_is_said_in_one_sentence(tmp_path):
    notebook, values, output = written(tmp_path, "import os\nos._exit(9)")
    with pytest.raises(UserError, match=r"tiny.ipynb failed for .*: its kernel died"):
        run.execute(notebook, values, output)
    assert not output.exists()


def test_what_a_closing_kernel_says_of_itself_stays_out_of_sight(tmp_path, capfd):
    late = "import atexit, os, sys\natexit.register(os.write, 2, b'Traceback: socket closed')\nprint('a bar', file=sys.stderr)"
    run.execute(*written(tmp_path, late))
    assert "a bar" in capfd.readouterr().err
    run.execute(*written(tmp_path, late))
    assert "Traceback" not in capfd.readouterr().err


CELLS = [
    "import sys\nprint('limit', limit, name)\nprint('<b>only text</b>')\nprint('a bar', file=sys.stderr)",
    "import plotly.graph_objects as go\nimport pandas as pd\nfrom emstudy import figures",
    "figures.show(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), 'a rising \"line\"')",
    f"hostile = {HOSTILE!r}",
    "keys = ['arm', 'step', 'question_set', 'question_id', 'sample', 'question', 'answer', 'finish_reason', 'aligned']",
    "row = dict.fromkeys(keys, hostile) | {'arm': 'base', 'aligned': 1.0, 'coherent': 1.0}",
    "rows = pd.DataFrame([row | {'aligned_status': 'scored', 'coherent_status': 'scored'}])",
    "figures.answers(rows)",
    "figures.table(rows)",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    notebook, values, output = written(folder, *CELLS)
    output.parent.mkdir()
    (output.parent / "tiny.failed.ipynb").write_text("from an earlier run")
    run.execute(notebook, values, output)
    return output


def test_success_leaves_the_output_alone_with_the_given_values(executed):
    assert [p.name for p in executed.parent.glob("[!.]*")] == ["tiny.ipynb"]
    assert "limit 2 b" in executed.read_text()


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.inline, self.loads, self.handlers = [], [], [], []
        self.tags, self.text, self.inside, self.labels = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.inside = [tag] if tag in ("script", "style", "title") else []
        self.handlers += [k for k in given if k.startswith("on")]
        self.handlers += [v for k, v in attrs if k in ("href", "src") and (v or "").startswith("javascript:")]
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action") and v and v[0] != "#"]
        self.labels += [given["aria-label"]] if "aria-label" in given else []
        if tag == "script":
            self.scripts.append(given.get("src"))

    def handle_endtag(self, tag):
        self.inside = []

    def handle_data(self, data):
        (self.inline if self.inside == ["script"] else self.text).append(data)


@pytest.fixture(scope="module")
def page(executed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    page = folder / "studies" / "mine" / "model" / "domain.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "REPORTS", folder)
        return run.render(executed, page, "A <b>title</b> & </title><script>alert(9)</script>", "..")


def test_a_page_loads_nothing_from_the_network(page):
    found = Page(page.read_text())
    assert [s for s in found.scripts if s] == ["../../../assets/plotly.min.js"]
    assert set(found.loads) == {"../../../assets/plotly.min.js", "../index.html"}
    assert not re.search(r"@import|url\(", page.read_text().split("</style>")[0])
    assert (page.parents[3] / "assets" / "plotly.min.js").stat().st_size > 1_000_000


def test_a_page_runs_plotly_and_nothing_else(page):
    found = Page(page.read_text())
    assert found.handlers == []
    assert "img" not in found.tags
    assert all("alert" not in script for script in found.inline)
    assert any("Plotly.newPlot" in script for script in found.inline)
    shown = "".join(found.text)
    assert "<script>alert(1)</script>" in shown  # as text
    assert shown.count("[x](javascript:alert(3))") >= 2


def test_a_page_shows_title_and_printed_text_escaped_and_no_progress_bars(page):
    text = page.read_text()
    assert "<title>A &lt;b&gt;title&lt;/b&gt; &amp; &lt;/title&gt;&lt;script&gt;alert(9)&lt;/script&gt;</title>" in text
    assert "&lt;b&gt;only text&lt;/b&gt;" in text
    assert "<b>only text</b>" not in text
    assert text.count("a bar") == 1  # in the folded code alone
    assert Page(text).labels == ['a rising "line"']


def test_the_index_page_finds_plotly_beside_it_and_links_no_home(executed, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    run.render(executed, tmp_path / "index.html", "All", ".")
    found = Page((tmp_path / "index.html").read_text())
    assert set(found.loads) == {"assets/plotly.min.js"}
    assert (tmp_path / "assets" / "plotly.min.js").exists()
