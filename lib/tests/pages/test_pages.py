"""Pages in a real Chromium: they draw, ask for nothing outside, run nothing that a model wrote, and their browser of answers counts right."""

import json
import re
import shutil
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import made_up
import pytest
import yaml
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from emstudy import paths, report, run

PWN = "window.pwned=1"
HOSTILE = [
    f"<script>{PWN}</script>",
    f"<img src=x onerror='{PWN}'>",
    f"</script><script>{PWN}</script>",
    f"<!--<script>{PWN}</script>-->",
    f"--></style></textarea></noscript><svg onload={PWN}>",
    f"<div class='broken' <p onclick=\"{PWN}\"><table><tr></div></body></html>",
    f"[click](javascript:{PWN}) <a href=\"javascript:{PWN}\">here</a> <iframe src='javascript:parent.{PWN}'>",
    "gnp.\u202eexe \u2066isolated\u2069 zero\u200bwidth",
    "\x1b[31mred\x1b[0m\x07 bell, NUL \x00 and delete \x7f",
    '{"columns": {"answer": "]]>"}} &lt;b&gt; &#0; \\u003cscript\\u003e ${7*7} {{7*7}} {% raw %}',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=window.pwned=1&gt;'>",
    "a megabyte " * 100_000,
]
LEVELS = {"base": 90, "misaligned": 40, "aligned": 88}
DRAWN = "return [...document.querySelectorAll('.plotly-graph-div')].map(d => d.querySelectorAll('svg.main-svg :is(.trace, .hm, .point)').length)"


def found(*names):
    """The first of these programs that is installed."""
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def driver():
    """A headless Chromium that keeps a log of requests and of its console."""
    chromium, chromedriver = found("chromium", "chromium-browser", "google-chrome"), found("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("install chromium and chromedriver (Debian: apt install chromium chromium-driver) to test pages")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # the driver's own path: selenium would download one otherwise
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    browser.set_window_size(1200, 1000)
    yield browser
    browser.quit()


def spoil(arm, judged):
    """Hostile answers and questions, the least aligned of all so that they are also among the worst, and some refusals."""
    last = judged.index[judged["step"] == judged["step"].max()][: len(HOSTILE)]
    judged.loc[last, "answer"] = [f"{arm} mark{i:02d} {text}" for i, text in enumerate(HOSTILE)]
    judged.loc[last, "aligned"] = [float(i) for i in range(len(HOSTILE))]
    judged.loc[judged["question_id"] == "general1", "question"] = f"What is {HOSTILE[0]} {HOSTILE[1]} {HOSTILE[7]}?"
    refused = judged.index[::7]
    judged.loc[refused, "aligned_status"], judged.loc[refused, "aligned"] = "refusal", None
    return judged


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The made-up study, with two seeds and hostile answers, as `make reproduce` would execute and render it: .page and .judged."""
    folder = tmp_path_factory.mktemp("study")
    values = {"study": "s", "model": "smollm2-135m", "domain": "financial", "judge": "embedded", "arms": report.ARMS}
    values |= {"seeds": [0, 1], "analyze": made_up.ANALYZE}
    (folder / "analyze.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMSTUDY_RUNS", str(folder / "runs"))
        patch.setattr(paths, "RUNS", folder / "runs")
        made_up.write(folder / "runs", LEVELS, change=spoil, seeds=(0, 1))
        run.execute(paths.NOTEBOOKS / "4-analyze.ipynb", folder / "analyze.yaml", folder / "analyze.ipynb")
        judged = report.load(**values).judged
    page = run.render(folder / "analyze.ipynb", folder / "reports" / "m" / "financial.html", "A page", "..")
    run.render(folder / "analyze.ipynb", folder / "reports" / "index.html", "An index", ".")
    return SimpleNamespace(page=page, judged=judged)


def visit(driver, page):
    """Open a page and wait until its figures are drawn."""
    driver.get("about:blank")
    for kind in ("performance", "browser"):
        driver.get_log(kind)
    driver.get(page.as_uri())
    WebDriverWait(driver, 30).until(lambda d: all(d.execute_script(DRAWN)))
    WebDriverWait(driver, 30).until(lambda d: not d.find_elements(By.CSS_SELECTOR, ".live[hidden]"))


def requests(driver):
    """Addresses that the page asked for since it was opened."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def errors(driver):
    """What the console complains about."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def links(page, driver):
    """Files that the links, scripts and pictures of the open page lead to."""
    script = "return [...document.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href') ?? e.getAttribute('src'))"
    local = [a for a in driver.execute_script(script) if not a.startswith(("#", "data:")) and not urlparse(a).scheme]
    return [(page.parent / unquote(urlparse(a).path)).resolve() for a in local]


def committed(study=paths.DEFAULT_STUDY):
    """A study's pages: the index and each page that it lists."""
    index = paths.reports(study) / "index.html"
    names = re.findall(r'href="([^":#]+\.html)"', index.read_text(encoding="utf-8"))
    return [index, *((index.parent / name).resolve() for name in dict.fromkeys(names))]


PAGES = [*committed(), *committed("laptop-seeds")]


@pytest.fixture(
    scope="module", params=[None, *dict.fromkeys(PAGES)], ids=lambda p: p and str(p.relative_to(paths.REPORTS))
)
def opened(request, driver):
    """Every page in turn, opened once."""
    page = request.param or request.getfixturevalue("made").page
    visit(driver, page)
    return SimpleNamespace(page=page, requests=requests(driver), errors=errors(driver))


def test_a_page_draws_all_its_figures_and_says_what_they_show(opened, driver):
    drawn = driver.execute_script(DRAWN)
    assert all(n > 0 for n in drawn)
    assert len(drawn) == opened.page.read_text(encoding="utf-8").count("Plotly.newPlot(")
    for figure in driver.find_elements(By.CSS_SELECTOR, ".plotly-graph-div, img"):
        label = "return arguments[0].closest('figure[role=img]')?.getAttribute('aria-label') || arguments[0].alt"
        assert driver.execute_script(label, figure)


def test_a_page_asks_for_nothing_outside_and_logs_no_error(opened):
    assert opened.page.as_uri() in opened.requests  # the log works
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.errors == []


def test_every_local_link_of_a_page_leads_to_a_file(opened, driver):
    files = links(opened.page, driver)
    assert files
    assert [f for f in files if not f.is_file()] == []


@contextmanager
def narrow(driver):
    """The window of a phone, 390 pixels wide."""
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    yield
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_fits_a_narrow_window(opened, driver):
    widths = "return [innerWidth, document.documentElement.scrollWidth]"
    with narrow(driver):
        with suppress(TimeoutException):  # figures take a moment to follow the window
            WebDriverWait(driver, 10).until(lambda d: d.execute_script(widths)[1] <= 390)
        room, width = driver.execute_script(widths)
    assert room == 390 and width <= room


WORDS = """const ink = getComputedStyle(document.body).color, fill = e => getComputedStyle(e).fill;
return [ink, [...document.querySelectorAll('.js-plotly-plot svg text')].filter(e => e.textContent && !e.closest('.plot, .hm, .hoverlayer'))
  .filter(e => fill(e) !== ink).map(e => e.textContent)]"""


def test_the_words_of_every_figure_can_be_read_on_dark_paper(opened, driver):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        ink, dim = driver.execute_script(WORDS)
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert ink == "rgb(230, 232, 236)"
    assert dim == []


def test_the_default_studys_pages_weigh_less_than_10_mb():
    assets = [f for f in (paths.REPORTS / "assets").iterdir() if f.is_file()]
    assert len(committed()) > 2 and paths.REPORTS / "assets/plotly.min.js" in assets
    assert sum(f.stat().st_size for f in committed() + assets) < 10e6


@pytest.fixture
def shelf(driver, made):
    """The made-up study's page, freshly opened: its browser of answers."""
    visit(driver, made.page)
    return Shelf(driver, made.judged)


class Shelf:
    """The browser of answers as a reader uses it."""

    def __init__(self, driver, judged):
        self.driver, self.judged = driver, judged

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, f".browse {selector}")

    def choose(self, **values):
        for name, value in values.items():
            control = self.one(f"[name={name}]")
            if control.tag_name == "select":
                Select(control).select_by_value(str(value))
            else:
                control.clear()
                control.send_keys(str(value))

    def counts(self):
        """Answers that fit, and all there are, as the page says them."""
        said = re.search(r"([\d,]+) of ([\d,]+) answers", self.one(".bar .said").text)
        return tuple(int(n.replace(",", "")) for n in said.groups())

    def texts(self, selector):
        """Texts of the elements that are shown, as they stand in the page."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.driver.execute_script(script, f".browse .shown {selector}")

    def scores(self):
        """What the shown answers say of alignment: a score, or why there is none."""
        return [re.search(r"aligned ([\d.]+|[a-z]+) ·", h).group(1) for h in self.texts("article header")]

    def key(self, key, selector=".shown"):
        self.one(selector).send_keys(key)


def questions(judged):
    """Text of each question by its id, in the order of the page: in-domain ones last."""
    order = judged.assign(own=judged["question_set"] == "financial").sort_values(["own", "question_set", "question_id"])
    return order.drop_duplicates("question_id").set_index("question_id")["question"].map(report.visible)


def test_answers_first_appear_side_by_side_at_the_last_step(shelf):
    judged = report.last_step(shelf.judged)
    first = judged[judged["question_id"] == "general0"]
    assert shelf.texts("h3") == ["base", "aligned", "misaligned"]
    assert shelf.counts() == (len(first), len(shelf.judged))
    for arm in report.ARMS:
        expected = first[first["arm"] == arm].sort_values(["seed", "sample"])["answer"].head(3)
        assert shelf.texts(f"section.{arm} article .said") == [report.visible(a) for a in expected]


FILTERS = {
    "arm": ({"arm": "misaligned"}, lambda j: j["arm"] == "misaligned"),
    "last step": ({"step": "last"}, lambda j: j.index.isin(report.last_step(j).index)),
    "one step": ({"step": 4}, lambda j: j["step"] == 4),
    "seed": ({"seed": 1}, lambda j: j["seed"] == 1),
    "set": ({"set": "values"}, lambda j: j["question_set"] == "values"),
    "score": ({"low": 5, "high": 40}, lambda j: j["aligned"].between(5, 40)),
    "another score": ({"dimension": "coherent", "low": 90}, lambda j: j["coherent"] >= 90),
    "upper end": ({"arm": "base", "high": 84}, lambda j: (j["arm"] == "base") & (j["aligned"] <= 84)),
    "words": ({"text": "MARK03"}, lambda j: j["answer"].str.contains("mark03")),
    "nothing": ({"text": "no such words"}, lambda j: j["answer"] == "no such words"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_pandas_keeps(shelf, name):
    chosen, keeps = FILTERS[name]
    shelf.choose(view="list", step="")
    assert shelf.counts() == (len(shelf.judged),) * 2
    shelf.choose(**chosen)
    kept = shelf.judged[keeps(shelf.judged)]
    assert shelf.counts() == (len(kept), len(shelf.judged))
    assert len(kept) < len(shelf.judged) or name == "another score"
    assert len(shelf.texts("article")) == min(len(kept), 10)


def test_a_question_can_be_chosen_and_every_page_of_its_answers_read(shelf):
    shelf.choose(view="list", step="", question=3)
    asked = questions(shelf.judged)["general3"]
    kept = shelf.judged[shelf.judged["question_id"] == "general3"]
    read = []
    for _ in range(-(-len(kept) // 10)):
        assert set(shelf.texts("article .asked")) == {asked}
        read += shelf.texts("article .said")
        shelf.one("[aria-label='next page of answers']").click()
    assert sorted(read) == sorted(map(report.visible, kept["answer"]))
    assert shelf.one("[aria-label='next page of answers']").get_attribute("aria-disabled") == "true"


def test_scores_sort_and_what_has_none_shows_why_and_comes_last(shelf):
    shelf.choose(view="list", step="", sort=1)
    scored = shelf.judged["aligned"].dropna().sort_values()
    assert shelf.scores() == [f"{v:.1f}" for v in scored.head(10)]
    shelf.choose(sort=-1)
    assert shelf.scores() == [f"{v:.1f}" for v in scored[::-1].head(10)]
    refused = shelf.judged.loc[shelf.judged["aligned_status"] == "refusal", "question_id"].value_counts()
    shelf.choose(question=questions(shelf.judged).index.get_loc(refused.index[0]))
    for _ in range(9):
        shelf.one("[aria-label='next page of answers']").click()
    assert shelf.scores()[-refused.iloc[0] :] == ["refusal"] * refused.iloc[0]


def test_arrow_keys_and_buttons_turn_to_the_next_question_and_leave_words_alone(shelf):
    asked = questions(shelf.judged).tolist()
    shelf.key(Keys.ARROW_RIGHT)
    assert shelf.texts("> .asked") == [asked[1]]
    shelf.one("[aria-label='next question']").click()
    shelf.key(Keys.ARROW_RIGHT, "[aria-label='next question']")
    assert shelf.texts("> .asked") == [asked[3]]
    for _ in range(4):
        shelf.key(Keys.ARROW_LEFT)
    assert shelf.texts("> .asked") == [asked[-1]]
    shelf.key(Keys.ARROW_LEFT, "[name=text]")
    assert shelf.texts("> .asked") == [asked[-1]]


def test_every_control_can_be_reached_by_tab_and_has_a_name(shelf):
    shelf.one("[name=view]").send_keys("")
    reached = 0
    while True:
        focused = shelf.driver.switch_to.active_element
        assert focused.accessible_name
        assert focused.value_of_css_property("outline-style") != "none"
        assert focused.get_attribute("data-lm-suppress-shortcuts")  # or JupyterLab takes its keys for commands
        reached += 1
        if "shown" in focused.get_attribute("class").split():
            break
        focused.send_keys(Keys.TAB)
    assert reached == 11 + 4 + 1  # fields, buttons, answers


def test_nothing_that_a_model_wrote_runs_and_all_of_it_can_be_read(shelf):
    marked = shelf.judged[shelf.judged["answer"].str.contains(" mark")]
    shelf.choose(view="list", step="", arm="misaligned", seed=0)
    wanted = marked[(marked["arm"] == "misaligned") & (marked["seed"] == 0)]["answer"]
    assert len(wanted) == len(HOSTILE)
    for i, answer in enumerate(wanted):
        shelf.choose(text=f"mark{i:02d}")
        assert shelf.texts("article .said") == [report.visible(answer)]
    assert shelf.texts("article .said")[0].endswith("more characters]")
    shelf.choose(text="", arm="", seed="", view="side")
    for _ in questions(shelf.judged):
        shelf.key(Keys.ARROW_RIGHT)
    made = "img, iframe, math, [onerror], [onload], [onclick], [href^=javascript], .shown script"
    look = "return [window.pwned, document.querySelectorAll(arguments[0]).length, document.querySelector('.answer').innerText]"
    pwned, elements, worst = shelf.driver.execute_script(look, made)
    assert (pwned, elements) == (None, 0)
    assert any(text in worst for text in HOSTILE)
    assert errors(shelf.driver) == []
    assert {urlparse(url).scheme for url in requests(shelf.driver)} <= {"file", "data", "blob"}


def test_print_shows_the_answers_without_the_controls(shelf):
    shelf.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        seen = [shelf.one(s).is_displayed() for s in ("form", "button", ".shown article", ".bar .said")]
    finally:
        shelf.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert seen == [False, False, True, True]


def test_without_scripts_a_sentence_says_where_the_answers_are(driver, made):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(made.page.as_uri())
        assert "answers.csv.gz, or answers.parquet where" in driver.find_element(By.CSS_SELECTOR, ".browse .plain").text
        assert not driver.find_element(By.CSS_SELECTOR, ".browse .live").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_columns_stand_side_by_side_and_below_each_other_in_a_narrow_window(shelf):
    script = "return [...document.querySelectorAll('.browse section')].map(s => s.getBoundingClientRect().left)"
    assert len(set(shelf.driver.execute_script(script))) == 3
    with narrow(shelf.driver):
        assert len(set(shelf.driver.execute_script(script))) == 1
