// Elements, numbers as text, and the charts. Nothing here makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";
const NOTHING = "–";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const make = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const isolated = (text) => make("bdi", null, visible(text));

// Controls have no shape of their own; their pictures have.
const visible = (text) =>
  String(text).replace(/[\0-\x08\x0b-\x1f\x7f]/g, (c) => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)));

const minus = (text) => text.replace("-", "−");
const fixed = (value, digits = 3) => (isNumber(value) ? minus(value.toFixed(digits)) : NOTHING);
const signed = (value, digits = 3) => (isNumber(value) ? (value > 0 ? "+" : "") + minus(value.toFixed(digits)) : NOTHING);
const counted = (count) => count.toLocaleString("en");
const short = (text, most) => (text.length > most ? `${text.slice(0, most).trimEnd()}…` : text);

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(step))), 20);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found.map((value) => [value, Math.abs(value) >= 1e5 ? minus(value.toExponential(0)) : minus((value + 0).toFixed(digits))]);
}

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);
const at = (value) => value.toFixed(1);

// The frame of a chart: axes with their ticks and names. `x` and `y` are {low, high, name}.
function frame(width, height, x, y, label) {
  const box = { left: 52, right: width - 10, top: 10, bottom: height - 40 };
  const toX = scale(x.low, x.high, box.left, box.right);
  const toY = scale(y.low, y.high, box.bottom, box.top);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": label });
  for (const [value, text] of ticks(x.low, x.high, Math.max(3, width / 90))) {
    svg.append(draw("line", { class: "grid", x1: at(toX(value)), x2: at(toX(value)), y1: box.top, y2: box.bottom }));
    svg.append(draw("text", { class: "tick", x: at(toX(value)), y: box.bottom + 16, "text-anchor": "middle" }, text));
  }
  for (const [value, text] of ticks(y.low, y.high, Math.max(3, height / 60))) {
    svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: at(toY(value)), y2: at(toY(value)) }));
    svg.append(draw("text", { class: "tick", x: box.left - 6, y: at(toY(value) + 4), "text-anchor": "end" }, text));
  }
  svg.append(draw("text", { class: "name", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, visible(x.name)));
  const middle = (box.top + box.bottom) / 2;
  svg.append(draw("text", { class: "name", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, visible(y.name)));
  return { svg, box, toX, toY };
}

// One path for many dots: a browser draws it at once, where thousands of circles take their time.
const dots = (points, name) => draw("path", { class: `dots ${name}`, d: points.map(([x, y]) => `M${at(x)} ${at(y)}h0`).join("") });

// Lets a pointer or the arrow keys walk over points [x, y, what]: `tell` hears of each, `choose` of a click or Enter.
function walkable(svg, points, tell, choose) {
  const ring = draw("circle", { class: "ring", r: 7, visibility: "hidden" });
  svg.append(ring);
  build(svg, { tabindex: 0, role: "application" }, []);
  const order = points.toSorted((a, b) => a[0] - b[0] || a[1] - b[1]);
  let now = -1;
  const go = (index) => {
    now = Math.min(Math.max(index, 0), order.length - 1);
    build(ring, { cx: at(order[now][0]), cy: at(order[now][1]), visibility: "visible" }, []);
    tell(order[now][2]);
  };
  const nearest = (event) => {
    const rect = svg.getBoundingClientRect();
    const zoom = svg.viewBox.baseVal.width / rect.width;
    const [x, y] = [(event.clientX - rect.left) * zoom, (event.clientY - rect.top) * zoom];
    let best = 0;
    order.forEach((point, index) => {
      if (Math.hypot(point[0] - x, point[1] - y) < Math.hypot(order[best][0] - x, order[best][1] - y)) best = index;
    });
    return best;
  };
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
  svg.addEventListener("pointermove", (event) => go(nearest(event)));
  svg.addEventListener("click", (event) => (go(nearest(event)), choose?.(order[now][2])));
  svg.addEventListener("focus", () => now < 0 && go(0));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && now >= 0) choose?.(order[now][2]);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(order.length - 1);
    else if (steps[event.key]) go(now + steps[event.key]);
    else return;
    event.preventDefault();
  });
}

// The likelihood of each example under two models: below the diagonal the second does better.
function scatter(points, names, unit, width, tell, choose) {
  const values = points.flatMap((point) => [point.a, point.b]);
  let [low, high] = [Math.min(...bounds(values)), Math.max(...bounds(values))];
  const margin = (high - low) * 0.04 || 0.5;
  [low, high] = [Math.max(low - margin, Math.min(low, 0)), high + margin];
  const height = Math.min(width, 440);
  const axis = (name) => ({ low, high, name: `${unit}, ${short(name, 24)}` });
  const label = `${unit} of each example, ${names[0]} against ${names[1]}. Arrow keys go from example to example, Enter shows it.`;
  const { svg, toX, toY } = frame(width, height, axis(names[0]), axis(names[1]), label);
  svg.append(draw("line", { class: "diagonal", x1: at(toX(low)), y1: at(toY(low)), x2: at(toX(high)), y2: at(toY(high)) }));
  const placed = points.map((point) => [toX(point.a), toY(point.b), point]);
  svg.append(dots(placed.filter(([, , point]) => point.b > point.a), "worse"));
  svg.append(dots(placed.filter(([, , point]) => point.b === point.a), "same"));
  svg.append(dots(placed.filter(([, , point]) => point.b < point.a), "better"));
  walkable(svg, placed, tell, choose);
  return svg;
}

// [lowest, highest]; Math.min(...values) overflows the stack where there are very many.
const bounds = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

// Bins of equal width with an edge at 0, so that none holds both better and worse. Far values are gathered at the ends.
function binned(values) {
  const sorted = Float64Array.from(values).sort();
  const quantile = (share) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)];
  const [first, last] = [sorted[0], sorted.at(-1)];
  let [low, high] = [quantile(0.005), quantile(0.995)];
  if (last - first <= 2 * (high - low)) [low, high] = [first, last];
  const spread = high - low || Math.abs(high) || 1;
  const wanted = (2 * (quantile(0.75) - quantile(0.25))) / Math.cbrt(sorted.length);
  const rough = Math.min(Math.max(wanted, spread / 40), spread / 6);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const [from, to] = [Math.floor(low / step), Math.max(Math.floor(high / step), Math.floor(low / step))];
  const bins = Array.from({ length: to - from + 1 }, (_, k) => ({
    low: (from + k) * step,
    high: (from + k + 1) * step,
    // What a bin holds: far values too, at the ends.
    least: k === 0 ? -Infinity : (from + k) * step,
    most: k === to - from ? Infinity : (from + k + 1) * step,
    count: 0,
  }));
  for (const value of sorted) bins[Math.min(Math.max(Math.floor(value / step) - from, 0), bins.length - 1)].count++;
  return { bins, digits: Math.max(0, Math.ceil(-Math.log10(step) + 1e-9) + (String(step / power).includes(".") ? 1 : 0)) };
}

function histogram(values, unit, width, tell, choose) {
  const { bins, digits } = binned(values);
  const high = Math.max(...bins.map((bin) => bin.count));
  const x = { low: Math.min(0, bins[0].low), high: Math.max(0, bins.at(-1).high), name: `difference of ${unit}` };
  const height = Math.min(width, 440);
  const { svg, box, toX, toY } = frame(width, height, x, { low: 0, high: high * 1.05, name: "examples" }, `Differences of ${unit}`);
  build(svg, { role: "group" }, []);
  for (const bin of bins) {
    if (!bin.count) continue;
    const ends = [bin.least === -Infinity ? "" : signed(bin.low, digits), bin.most === Infinity ? "" : signed(bin.high, digits)];
    const range = !ends[0] && !ends[1] ? "all" : !ends[0] ? `below ${ends[1]}` : !ends[1] ? `from ${ends[0]}` : `${ends[0]} to ${ends[1]}`;
    const text = `${range}: ${counted(bin.count)} example${bin.count === 1 ? "" : "s"}`;
    const pick = () => choose({ least: bin.least, most: bin.most, text: range });
    svg.append(
      draw("rect", {
        class: `bar ${bin.low < 0 ? "better" : "worse"}`,
        x: at(toX(bin.low) + 0.5),
        width: at(Math.max(toX(bin.high) - toX(bin.low) - 1, 1)),
        y: at(toY(bin.count)),
        height: at(box.bottom - toY(bin.count)),
        tabindex: 0,
        role: "button",
        "aria-label": `difference ${text}; shows them`,
        focus: () => tell(text),
        pointerenter: () => tell(text),
        click: pick,
        keydown: (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), pick()),
      }),
    );
  }
  svg.append(draw("line", { class: "zero", x1: at(toX(0)), x2: at(toX(0)), y1: box.top, y2: box.bottom }));
  return svg;
}

// A log may have many more steps than there is room for: of each stretch the lowest and the highest stay.
function thinned(points, most) {
  if (points.length <= most) return points;
  const stretch = Math.ceil((2 * points.length) / most);
  const found = [];
  for (let start = 0; start < points.length; start += stretch) {
    const part = points.slice(start, start + stretch);
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    found.push(...(low[0] <= high[0] ? [low, high] : [high, low]));
  }
  return found;
}

// The mean of each point with its neighbours, a twenty-fifth of the log on either side together.
function smooth(points) {
  const reach = Math.floor(points.length / 50);
  if (reach < 1) return null;
  const sums = [0];
  for (const [, value] of points) sums.push(sums.at(-1) + value);
  return points.map(([step], index) => {
    const [from, to] = [Math.max(index - reach, 0), Math.min(index + reach + 1, points.length)];
    return [step, (sums[to] - sums[from]) / (to - from)];
  });
}

const finitePairs = (entries, key) =>
  listOf(entries).map((entry) => [get(entry, "step"), get(entry, key)]).filter(([step, value]) => isNumber(step) && isNumber(value));

// The runs of which a log is there: {name, steps, evals}, both as [step, value].
function trainings() {
  return keysOf(results.models)
    .map((label) => [label, get(get(results.models, label), "training")])
    .map(([name, log]) => ({
      name,
      steps: finitePairs(get(log, "steps"), "loss"),
      // Evaluations that are judged by something else than a loss have no place beside one.
      evals: ["nll", "loss"].flatMap((key) => finitePairs(get(log, "evals"), key)),
    }))
    .filter((run) => run.steps.length || run.evals.length);
}

// The loss of other methods is none of tokens.
function trainedOn() {
  const methods = keysOf(results.models).map((label) => get(get(get(get(results.models, label), "training"), "config"), "method"));
  return methods.every((method) => (method ?? "sft") === "sft") ? "NLL per trained token" : "loss";
}

function curves(runs, width, tell) {
  const all = runs.flatMap((run) => [...run.steps, ...run.evals]);
  const [first, last] = bounds(all.map(([step]) => step));
  const [low, high] = bounds(all.map(([, value]) => value));
  const margin = (high - low) * 0.05 || 0.1;
  const x = { low: first, high: last > first ? last : first + 1, name: "step" };
  const y = { low: Math.max(low - margin, Math.min(low, 0)), high: high + margin, name: trainedOn() };
  const { svg, toX, toY } = frame(width, 360, x, y, "Loss and evaluations by step. Arrow keys go from point to point.");
  const placed = [];
  const path = (points) => points.map(([step, value], k) => `${k ? "L" : "M"}${at(toX(step))} ${at(toY(value))}`).join("");
  runs.forEach((run, index) => {
    const colour = `series${index % 6}`;
    const calm = smooth(run.steps);
    svg.append(draw("path", { class: `curve ${colour}${calm ? " faint" : ""}`, d: path(thinned(run.steps, 2 * width)) }));
    if (calm) svg.append(draw("path", { class: `curve ${colour}`, d: path(thinned(calm, 2 * width)) }));
    svg.append(draw("path", { class: `curve evals ${colour}`, d: path(run.evals) }));
    for (const [step, value] of run.evals) svg.append(draw("circle", { class: `eval ${colour}`, cx: at(toX(step)), cy: at(toY(value)), r: 3.5 }));
    const add = (what) => ([step, value]) =>
      placed.push([toX(step), toY(value), `${run.name}, step ${counted(step)}: ${what} ${fixed(value, 4)}`]);
    thinned(run.steps, 2 * width).forEach(add("loss"));
    run.evals.forEach(add("evaluation"));
  });
  walkable(svg, placed, tell);
  return svg;
}
