// Unpacks, filters and shows the answers of the block that this script stands in.
// Text reaches the page through textContent alone, so that whatever a model wrote stays text.
(() => {
  "use strict";
  const root = document.currentScript.closest(".browse");
  const shown = root.querySelector(".shown");
  const at = root.querySelector("form").elements;
  const ARMS = ["base", "aligned", "misaligned"];
  const PER_PAGE = { side: 3, list: 10 }; // answers an arm, answers in all
  let rows = [];
  let questions = [];
  let page = 0;

  async function unpack(part) {
    const text = root.querySelector(`script[data-part="${part}"]`).textContent;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain).json();
  }

  function toRows({ columns, scores }) {
    const read = (table, i) => Object.fromEntries(Object.entries(table).map(([k, c]) => [k, c.of[c.at[i]]]));
    return columns.arm.at.map((_, i) => ({ ...read(columns, i), scores: read(scores, i) }));
  }

  function make(tag, text, className = "") {
    const node = document.createElement(tag);
    node.textContent = text;
    node.className = className;
    return node;
  }

  function option([value, text]) {
    const node = make("option", text);
    node.value = value;
    return node;
  }

  // Offers choices as [value, text]; what was chosen stays chosen where it is still on offer.
  function offer(select, choices) {
    const before = select.selectedOptions[0]?.value;
    select.replaceChildren(...choices.map(option));
    if (choices.some(([value]) => String(value) === before)) select.value = before;
  }

  const distinct = (values) => [...new Set(values)];
  const same = (values) => values.map((v) => [v, v]);

  function offerAll(data) {
    const { arm, step, seed } = data.columns;
    const steps = step.of.toSorted((a, b) => a - b);
    offer(at.arm, [["", "every arm"], ...same(ARMS.filter((a) => arm.of.includes(a)))]);
    offer(at.step, [["last", "last"], ["", "every step"], ...same(steps)]);
    offer(at.seed, [["", "every seed"], ...same(seed.of.toSorted((a, b) => a - b))]);
    offer(at.set, [["", "every set"], ...same(distinct(questions.map(([set]) => set)))]);
    offer(at.dimension, same(Object.keys(data.scores)));
    at.seed.parentElement.hidden = seed.of.length < 2;
  }

  // The questions of the chosen set; only a list can hold those of every question at once.
  function offerQuestions() {
    const all = questions.map(([set, id, text], i) => [i, `${set}/${id}: ${text.slice(0, 90)}`, set]);
    const kept = all.filter(([, , set]) => !at.set.value || set === at.set.value);
    offer(at.question, at.view.value === "list" ? [["", "every question"], ...kept] : kept);
  }

  // The base arm was never trained: side by side it stands next to any step of the others.
  function inStep(row) {
    if (at.step.value === "last") return row.last;
    return !at.step.value || String(row.step) === at.step.value || (at.view.value === "side" && row.arm === "base");
  }

  function inRange(row) {
    if (!at.low.value && !at.high.value) return true;
    const score = row.scores[at.dimension.value];
    const low = at.low.value ? Number(at.low.value) : -Infinity;
    const high = at.high.value ? Number(at.high.value) : Infinity;
    return typeof score === "number" && low <= score && score <= high;
  }

  function fits(row) {
    const [set, , question] = row.question;
    const text = at.text.value.toLowerCase();
    return (
      (!at.arm.value || row.arm === at.arm.value) &&
      (!at.seed.value || String(row.seed) === at.seed.value) &&
      (!at.set.value || set === at.set.value) &&
      (!at.question.value || row.question === questions[at.question.value]) &&
      inStep(row) &&
      inRange(row) &&
      (!text || row.answer.toLowerCase().includes(text) || question.toLowerCase().includes(text))
    );
  }

  // What has no score comes last in either direction.
  function sorted(found) {
    const sign = Number(at.sort.value);
    const key = (row) => row.scores[at.dimension.value];
    const place = (row) => (typeof key(row) === "number" ? sign * key(row) : Infinity);
    return sign ? found.toSorted((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b))) : found;
  }

  const number = (score) => (typeof score === "number" ? score.toFixed(1) : score);

  function card(row, full) {
    const node = make("article", "", row.arm);
    const head = make("header", "");
    const scores = Object.entries(row.scores).map(([name, score]) => `${name} ${number(score)}`).join(" · ");
    const [set, id, question] = row.question;
    const seed = at.seed.options.length > 2 ? [`seed ${row.seed}`] : [];
    const end = { stop: [], "": [], length: ["cut off"] }[row.finish_reason] ?? [row.finish_reason];
    const where = [...(full ? [`${set}/${id}`] : []), `step ${row.step}`, ...seed, `sample ${row.sample}`, ...end].join(", ");
    head.append(make("strong", full ? `${row.arm}: ${scores}` : scores), make("span", where));
    node.append(head);
    if (full) node.append(make("p", question, "asked"));
    node.append(make("p", row.answer, "said"));
    return node;
  }

  const turned = (found) => found.slice(page * PER_PAGE[at.view.value], (page + 1) * PER_PAGE[at.view.value]);

  function column(arm, found) {
    const node = make("section", "", arm);
    node.append(make("h3", arm), ...turned(found).map((row) => card(row, false)));
    if (!found.length) node.append(make("p", "No answer fits.", "none"));
    return node;
  }

  function sideBySide(found) {
    const arms = [...at.arm.options].map((o) => o.value).filter((a) => a && (!at.arm.value || a === at.arm.value));
    const columns = arms.map((arm) => found.filter((row) => row.arm === arm));
    const table = make("div", "", "columns");
    table.append(...arms.map((arm, i) => column(arm, columns[i])));
    shown.replaceChildren(make("p", questions[at.question.value][2], "asked"), table);
    return Math.max(...columns.map((c) => c.length));
  }

  function list(found) {
    shown.replaceChildren(...turned(found).map((row) => card(row, true)));
    if (!found.length) shown.append(make("p", "No answer fits.", "none"));
    return found.length;
  }

  function draw() {
    const found = sorted(rows.filter(fits));
    const side = at.view.value === "side";
    const pages = Math.max(1, Math.ceil((side ? sideBySide(found) : list(found)) / PER_PAGE[at.view.value]));
    const which = side ? `question ${at.question.selectedIndex + 1} of ${at.question.options.length}, ` : "";
    const count = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} answers`;
    root.querySelector(".bar .said").textContent = `${which}${count}, page ${page + 1} of ${pages}`;
    for (const button of root.querySelectorAll("[data-page]")) {
      const to = page + Number(button.dataset.page);
      button.setAttribute("aria-disabled", to < 0 || to >= pages); // a disabled button would lose the focus
    }
  }

  function redraw(event) {
    page = 0;
    offerQuestions();
    if (event?.target === at.view && at.view.value === "list") at.question.value = ""; // a list begins with all
    draw();
  }

  function turn({ question, page: by }) {
    const n = at.question.options.length;
    if (question) at.question.selectedIndex = (at.question.selectedIndex + Number(question) + n) % n;
    page = question ? 0 : page + Number(by);
    draw();
    if (shown.getBoundingClientRect().top < 0) shown.scrollIntoView();
  }

  function onKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const other = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
    if (!by || other || event.target.matches("input, select")) return;
    event.preventDefault();
    turn({ question: by });
  }

  function listen() {
    const form = root.querySelector("form");
    for (const kind of ["input", "change"]) form.addEventListener(kind, redraw); // not every browser says both of a select
    form.addEventListener("submit", (event) => event.preventDefault());
    root.querySelector(".bar").addEventListener("click", (event) => {
      const button = event.target.closest("button:not([aria-disabled=true])");
      if (button) turn(button.dataset);
    });
    root.addEventListener("keydown", onKey);
    for (const node of root.querySelectorAll("form *, button, .shown")) {
      node.dataset.lmSuppressShortcuts = "true"; // in JupyterLab "dd" would delete the cell
    }
  }

  async function start() {
    const data = { columns: await unpack("columns"), scores: await unpack("scores") };
    rows = toRows(data);
    questions = data.columns.question.of;
    offerAll(data);
    redraw();
    listen();
    root.querySelector(".plain").hidden = true;
    root.querySelector(".live").hidden = false;
  }

  start();
})();
