// The list of examples: chosen, sorted, a page of it at a time; texts side by side with their differences.

const PREVIEW = 3000; // characters of a text that are shown before the rest is asked for
const PROMPT_PREVIEW = 600;

const against = comparisons.map((each) => get(each, "against")).find((label) => labels.includes(label)) ?? baseLabel();
const leftFirst = Math.max(models.findIndex((model) => model.label === against), 0);
const tuned = comparisons.map((each) => get(each, "of")).find((label) => labels.includes(label));
const rightFirst = models.findIndex((model, index) => (tuned === undefined ? index !== leftFirst : model.label === tuned));

const view = {
  left: models[leftFirst] ?? { label: undefined, name: NOTHING },
  right: models[Math.max(rightFirst, 0)] ?? { label: undefined, name: NOTHING },
  unit: "NLL",
  sort: "position",
  descending: false,
  page: 0,
  size: 20,
  filters: {},
  text: "",
  range: null,
};

// What is known of each item under the two models in view; made anew when they change.
let rows = [];
function compute() {
  const { left, right } = view;
  view.unit = unitOf(left, right);
  rows = items.map((item) => {
    const [a, b] = [likelihoodOf(item, left, view.unit), likelihoodOf(item, right, view.unit)];
    const tokens = answerOf(item, right).tokens;
    return {
      item,
      position: item.position,
      a,
      b,
      difference: a !== null && b !== null ? b - a : null,
      tokens: isNumber(tokens) ? tokens : null,
      trained: isNumber(item.trained) ? item.trained : null,
      checks: [answerOf(item, left).check, answerOf(item, right).check],
      verdict: verdictOf(item, left, right),
      error: Boolean(errorOf(item, left) ?? errorOf(item, right)),
      cut: answerOf(item, left).stop === "length" || answerOf(item, right).stop === "length",
    };
  });
}

const name = (model) => short(visible(model.name), 28);

// The columns by which the list can be sorted; one without a value is not shown.
const COLUMNS = [
  { key: "position", title: () => "#", show: (row) => counted(row.position) },
  { key: "a", title: () => `${view.unit}, ${name(view.left)}`, show: (row) => fixed(row.a) },
  { key: "b", title: () => `${view.unit}, ${name(view.right)}`, show: (row) => fixed(row.b) },
  { key: "difference", title: () => "difference", show: (row) => signed(row.difference) },
  { key: "trained", minor: true, title: () => "trained tokens", show: (row) => (row.trained === null ? NOTHING : counted(row.trained)) },
  { key: "tokens", minor: true, title: () => "answer tokens", show: (row) => (row.tokens === null ? NOTHING : counted(row.tokens)) },
];

// Each filter: its choices as [value, words, test]. One that would leave all or nothing is not shown.
const FILTERS = [
  {
    key: "change",
    title: () => "likelihood",
    choices: () => [
      ["improved", "improved", (row) => row.difference !== null && row.difference < 0],
      ["worsened", "worsened", (row) => row.difference !== null && row.difference > 0],
    ],
  },
  {
    key: "check",
    title: () => "check",
    choices: () => [
      ["fixed", `passed only by ${name(view.right)}`, (row) => row.checks[1] === true && row.checks[0] === false],
      ["broken", `passed only by ${name(view.left)}`, (row) => row.checks[0] === true && row.checks[1] === false],
      ["passed", `passed by ${name(view.right)}`, (row) => row.checks[1] === true],
      ["failed", `failed by ${name(view.right)}`, (row) => row.checks[1] === false],
    ],
  },
  {
    key: "verdict",
    title: () => `judge on ${name(view.right)}`,
    choices: () => [
      ["win", "win", (row) => row.verdict === "win"],
      ["tie", "tie", (row) => row.verdict === "tie"],
      ["loss", "loss", (row) => row.verdict === "loss"],
    ],
  },
  {
    key: "state",
    title: () => "answers",
    choices: () => [
      ["error", "with an error", (row) => row.error],
      ["cut", "cut at the length", (row) => row.cut],
      ["different", "different texts", (row) => isDifferent(row.item)],
      ["answered", "with answers", (row) => row.item.responses.size > 0],
    ],
  },
];

function isDifferent(item) {
  const [left, right] = [textBy(item, view.left), textBy(item, view.right)];
  return left !== null && right !== null && left !== right;
}

// The rows in view, filtered and in order. Rows without a value come last in either direction.
function chosen() {
  const tests = FILTERS.map((filter) => filter.choices().find(([value]) => value === view.filters[filter.key])?.[2]).filter(Boolean);
  const text = view.text.trim().toLowerCase();
  if (text) tests.push((row) => haystack(row.item).includes(text));
  const range = view.range;
  if (range) tests.push((row) => row.difference !== null && row.difference >= range.least && row.difference < range.most);
  const sign = view.descending ? -1 : 1;
  const key = view.sort;
  return rows
    .filter((row) => tests.every((test) => test(row)))
    .sort((x, y) => (x[key] === null) - (y[key] === null) || sign * (x[key] - y[key]) || x.position - y.position);
}

// Differences are made only for what comes into sight.
const pending = new Map();
const sight = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => mark(entry.target)),
  { rootMargin: "300px" },
);
function mark(element) {
  sight.unobserve(element);
  pending.get(element)?.();
  pending.delete(element);
}
addEventListener("beforeprint", () => [...pending.keys()].forEach(mark));

// Space after the last word of a change is not marked.
const marked = (found, tag) =>
  found.flatMap(([text, changed]) => {
    const bare = changed ? text.trimEnd() : "";
    return [...(bare ? [make(tag, null, visible(bare))] : []), document.createTextNode(visible(text.slice(bare.length)))];
  });

// A long text is cut, with a button for the rest.
function clipped(text, most, redraw) {
  if (text.length <= most) return [text, null];
  const button = make("button", { type: "button", class: "more", click: redraw }, `show all ${counted(text.length)} characters`);
  return [text.slice(0, most), button];
}

function promptOf(item) {
  const whole = item.prompt.reduce((sum, message) => sum + messageText(message).length, 0);
  const block = make("div", { class: "prompt" });
  const fill = (most) => {
    let left = most;
    const shown = [];
    for (const message of item.prompt) {
      if (left <= 0) break;
      const text = messageText(message).slice(0, left);
      left -= text.length;
      shown.push(make("p", { dir: "auto" }, make("span", { class: "role" }, isolated(get(message, "role") ?? "")), visible(text)));
    }
    block.replaceChildren(...shown);
    if (whole > most) block.append(clipped(" ".repeat(whole), most, () => fill(Infinity))[1]);
  };
  fill(PROMPT_PREVIEW);
  return block;
}

function badge(text, kind) {
  return make("span", { class: `badge ${kind ?? ""}` }, text);
}

function paneHead(item, model) {
  const answer = answerOf(item, model);
  const head = make("h4", null, isolated(model.name));
  if (typeof answer.check === "boolean") head.append(badge(answer.check ? "check passed" : "check failed", answer.check ? "better" : "worse"));
  if (answer.stop === "length") head.append(badge("cut at the length", "warn"));
  const facts = [
    isNumber(answer.tokens) ? `${counted(answer.tokens)} tokens` : null,
    isNumber(answer.chrf) ? `chrF ${fixed(answer.chrf, 1)}` : null,
    isNumber(answer.rouge_l) ? `ROUGE-L ${fixed(answer.rouge_l, 2)}` : null,
    answer.exact === true ? "as the reference" : null,
  ].filter(Boolean);
  if (facts.length) head.append(make("small", null, facts.join(" · ")));
  return head;
}

// Two texts side by side. They stand there at once; what differs is marked when they come into sight.
function panes(item) {
  const pair = [view.left, view.right];
  const texts = pair.map((model) => textBy(item, model));
  if (texts.every((text) => text === null) && !pair.some((model) => errorOf(item, model))) return null;
  const block = make("div", { class: "panes" });
  const fill = (most) => {
    const cut = texts.map((text) => (typeof text === "string" ? clipped(text, most, () => fill(Infinity)) : [null, null]));
    const bodies = cut.map(([text]) => make("div", { class: "text", dir: "auto" }, text === null ? "" : visible(text)));
    pair.forEach((model, k) => {
      const error = errorOf(item, model);
      if (texts[k] === null) {
        bodies[k].classList.add("gap");
        bodies[k].append(error ? `no answer: ${visible(error)}` : "no text");
      } else if (texts[k] === "") {
        bodies[k].classList.add("gap");
        bodies[k].append("(empty)");
      }
    });
    block.replaceChildren(
      ...pair.map((model, k) => make("section", { class: "pane" }, paneHead(item, model), bodies[k], cut[k][1])),
    );
    if (cut[0][0] !== null && cut[1][0] !== null && view.left !== view.right) {
      pending.set(block, () => {
        if (cut[0][0] === cut[1][0]) return block.classList.add("equal");
        const found = differences(cut[0][0], cut[1][0]);
        if (cut[0][0]) bodies[0].replaceChildren(...marked(found[0], "del"));
        if (cut[1][0]) bodies[1].replaceChildren(...marked(found[1], "ins"));
      });
      sight.observe(block);
    }
  };
  fill(PREVIEW);
  return block;
}

function referenceOf(item) {
  if (typeof item.reference !== "string" || view.left === REFERENCE || view.right === REFERENCE) return null;
  const block = make("div", { class: "reference" });
  const fill = (most) => {
    const [text, button] = clipped(item.reference, most, () => fill(Infinity));
    block.replaceChildren(make("h4", null, "reference"), make("div", { class: "text", dir: "auto" }, visible(text)), button ?? "");
  };
  fill(PREVIEW);
  return block;
}

function judgeOf(item) {
  const shown = item.verdicts.map((each) => {
    const orders = listOf(get(each, "orders")).map((order) =>
      make("li", { dir: "auto" }, isolated(get(order, "first") ?? NOTHING), ` first: ${visible(get(order, "verdict") ?? NOTHING)}. `, visible(get(order, "reason") ?? "")),
    );
    const verdict = get(each, "verdict");
    const summary = make("summary", null, "judge: ", isolated(get(each, "of") ?? ""), " against ", isolated(get(each, "against") ?? ""), " ");
    summary.append(badge(visible(verdict ?? NOTHING), { win: "better", loss: "worse" }[verdict]));
    return make("details", { class: "judge" }, summary, make("ul", null, ...orders));
  });
  return shown.length ? make("div", null, ...shown) : null;
}

function example(row, columns) {
  const kind = { difference: row.difference < 0 ? "better" : row.difference > 0 ? "worse" : "" };
  const cells = columns.map((column) =>
    make(
      column.key === "position" ? "th" : "td",
      { role: column.key === "position" ? "rowheader" : "cell", class: `${column.minor ? "minor" : ""} ${kind[column.key] ?? ""}`, scope: column.key === "position" ? "row" : null },
      make("span", { class: "small-name", "aria-hidden": "true" }, `${column.title()} `),
      column.show(row),
    ),
  );
  const body = [promptOf(row.item), panes(row.item), referenceOf(row.item), judgeOf(row.item)].filter(Boolean);
  return make(
    "tbody",
    { role: "rowgroup", tabindex: -1, "data-position": row.position },
    make("tr", { role: "row", class: "values" }, ...cells),
    make("tr", { role: "row", class: "body" }, make("td", { role: "cell", colspan: columns.length }, ...body)),
  );
}

// Roles are given, for a narrow page shows parts of the table as blocks, which then are no table to a screen reader.
const table = make("table", { role: "table", class: "examples", "aria-labelledby": "examples-title" });
const status = make("p", { class: "status", role: "status" });
const pagers = [make("nav", { class: "pager", "aria-label": "Pages of examples" }), make("nav", { class: "pager", "aria-label": "Pages of examples, again" })];
const chips = make("div", { class: "chips" });

function show() {
  const found = chosen();
  const pages = Math.max(Math.ceil(found.length / view.size), 1);
  view.page = Math.min(Math.max(view.page, 0), pages - 1);
  const columns = COLUMNS.filter(({ key }) => key === "position" || rows.some((row) => row[key] !== null));
  const start = view.page * view.size;
  const shown = found.slice(start, start + view.size);
  sight.disconnect();
  pending.clear();
  table.replaceChildren(header(columns), ...shown.map((row) => example(row, columns)));
  const place = shown.length ? `, ${counted(start + 1)} to ${counted(start + shown.length)} shown` : "";
  status.textContent = `${counted(found.length)} of ${counted(items.length)} examples${place}`;
  for (const pager of pagers) {
    const turn = (text, page, off) =>
      make("button", { type: "button", disabled: off, click: () => ((view.page = page), show(), table.scrollIntoView()) }, text);
    pager.replaceChildren(
      turn("First", 0, view.page === 0),
      turn("Back", view.page - 1, view.page === 0),
      make("span", null, `page ${counted(view.page + 1)} of ${counted(pages)}`),
      turn("Next", view.page + 1, view.page === pages - 1),
      turn("Last", pages - 1, view.page === pages - 1),
    );
    pager.hidden = pages === 1;
  }
  chips.replaceChildren();
  if (view.range) {
    const remove = () => ((view.range = null), (view.page = 0), show());
    chips.append(make("button", { type: "button", class: "chip", click: remove }, `difference ${view.range.text}`, make("span", { "aria-label": "remove" }, " ×")));
  }
}

function header(columns) {
  const sortBy = (column) => {
    view.descending = view.sort === column.key ? !view.descending : false;
    view.sort = column.key;
    view.page = 0;
    show();
    table.querySelector(`th[data-key="${column.key}"] button`).focus();
  };
  const heads = columns.map((column) => {
    const active = view.sort === column.key;
    const arrow = make("span", { class: "arrow", "aria-hidden": "true" }, active ? (view.descending ? " ▼" : " ▲") : "");
    return make(
      "th",
      { role: "columnheader", scope: "col", "data-key": column.key, "aria-sort": active ? (view.descending ? "descending" : "ascending") : "none" },
      make("button", { type: "button", title: "sort", click: () => sortBy(column) }, column.title(), arrow),
    );
  });
  return make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads));
}

// Shows an example wherever it is: without filters, if they hide it.
function goTo(item) {
  const index = () => chosen().findIndex((row) => row.item === item);
  if (index() < 0) {
    Object.assign(view, { filters: {}, text: "", range: null });
    refreshControls();
  }
  view.page = Math.floor(index() / view.size);
  show();
  const body = table.querySelector(`tbody[data-position="${item.position}"]`);
  body.scrollIntoView({ block: "start" });
  body.focus({ preventScroll: true });
  body.classList.add("found");
}

function field(title, control) {
  return make("label", null, make("span", null, title), control);
}

function select(choices, value, change, key) {
  const control = make("select", { name: key, change: () => change(control.value) });
  control.append(...choices.map(([each, text]) => make("option", { value: each }, text)));
  control.value = value;
  return control;
}

const controls = make("form", { class: "controls", role: "search", submit: (event) => event.preventDefault() });

function refreshControls() {
  const parts = [];
  const indexed = models.map((model, index) => [String(index), name(model)]);
  if (models.length > 1) {
    for (const side of ["left", "right"]) {
      const change = (value) => ((view[side] = models[Number(value)]), (view.page = 0), (view.range = null), pairChanged());
      parts.push(field(side, select(indexed, String(models.indexOf(view[side])), change, side)));
    }
  }
  const search = make("input", { type: "search", name: "search", placeholder: "in prompts and answers", input: () => ((view.text = search.value), (view.page = 0), show()) });
  search.value = view.text;
  parts.push(field("search", search));
  for (const filter of FILTERS) {
    const useful = filter.choices().map(([value, text, test]) => [value, text, rows.filter(test).length]).filter(([, , count]) => count > 0);
    if (!useful.some(([, , count]) => count < rows.length)) continue;
    const choices = [["", "all"], ...useful.map(([value, text, count]) => [value, `${text} (${counted(count)})`])];
    const change = (value) => ((view.filters[filter.key] = value), (view.page = 0), show());
    parts.push(field(filter.title(), select(choices, view.filters[filter.key] ?? "", change, filter.key)));
  }
  const sizes = [20, 50, 100].map((size) => [String(size), String(size)]);
  parts.push(field("a page", select(sizes, String(view.size), (value) => ((view.size = Number(value)), (view.page = 0), show()), "size")));
  controls.replaceChildren(...parts);
}
