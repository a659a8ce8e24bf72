"use strict";
// Draws the curves and the samples of the data in the page. Texts are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0969da", "#d1480b", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0598a5", "#57606a"];
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const hidden = new Set();

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function drawing(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function written(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(2);
  if (size >= 1e6) return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 });
  return value.toLocaleString("en", { maximumSignificantDigits: 5 });
}

// ---- curves

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((one) => one >= raw) || unit;
  const places = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) places.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return places;
}

function smoothed(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function setting(id) {
  return document.getElementById(id);
}

function drawChart(chart) {
  const width = 420, height = 230, left = 58, right = 10, top = 8, bottom = 24;
  const axis = setting("axis").value, weight = Number(setting("smoothing").value);
  const metrics = [...new Set(chart.series.map((one) => one.metric))];
  const series = chart.series.filter((one) => !hidden.has(one.run)).map((one) => ({
    ...one,
    x: one[axis],
    y: smoothed(one.values, weight),
    colour: data.runs.length > 1 ? COLOURS[one.run % COLOURS.length] : COLOURS[metrics.indexOf(one.metric) % COLOURS.length],
    dash: data.runs.length > 1 ? DASHES[metrics.indexOf(one.metric) % DASHES.length] : "",
    label: data.runs.length > 1 ? `${data.runs[one.run]} ${one.metric}` : one.metric,
  }));
  const all = series.flatMap((one) => one.y).filter((value) => value !== null);
  const logarithmic = setting("logarithmic").checked && all.length > 0 && all.every((value) => value > 0);
  const scaled = (value) => (logarithmic ? Math.log10(value) : value);
  const xs = series.flatMap((one) => one.x);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...all.map(scaled)), Math.max(...all.map(scaled))];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((scaled(y) - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title });
  const legend = element("div", { className: "legend" });
  const panel = element("div", { className: "chart" }, element("h3", { textContent: chart.title }), svg, legend);
  if (all.length) {
    for (const at of ticks(y0, y1, 5)) {
      const y = height - bottom - ((at - y0) / (y1 - y0)) * (height - top - bottom);
      svg.append(drawing("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }));
      svg.append(drawing("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, written(logarithmic ? 10 ** at : at)));
    }
    for (const at of ticks(x0, x1, 5)) {
      svg.append(drawing("text", { x: px(at), y: height - 7, "text-anchor": "middle" }, written(at)));
    }
  }
  for (const one of series) {
    let path = "", pen = "M";
    one.x.forEach((x, n) => {
      if (one.y[n] === null) { pen = "M"; return; }
      path += `${pen}${px(x).toFixed(1)},${py(one.y[n]).toFixed(1)}`;
      pen = "L";
    });
    svg.append(drawing("path", { class: "curve", d: path, stroke: one.colour, "stroke-dasharray": one.dash }));
    if (one.y.filter((value) => value !== null).length < 30) {
      one.x.forEach((x, n) => {
        if (one.y[n] !== null) svg.append(drawing("circle", { cx: px(x), cy: py(one.y[n]), r: 2.2, fill: one.colour }));
      });
    }
  }
  const cursor = drawing("line", { class: "grid", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(cursor);
  const describe = (at) => {
    legend.replaceChildren(...series.map((one) => {
      let n = one.x.length - 1;
      if (at !== null) one.x.forEach((x, m) => { if (Math.abs(x - at) < Math.abs(one.x[n] - at)) n = m; });
      const where = at === null ? "" : ` at ${written(one.x[n])}`;
      const swatch = element("span", { className: "swatch" });
      swatch.style.borderColor = one.colour;
      if (one.dash) swatch.style.borderTopStyle = "dashed";
      return element("span", {}, swatch, `${one.label}${where}: ${written(one.values[n])}`);
    }));
  };
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = x0 + (((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * (x1 - x0);
    cursor.setAttribute("x1", px(at));
    cursor.setAttribute("x2", px(at));
    cursor.setAttribute("visibility", at >= x0 && at <= x1 ? "visible" : "hidden");
    describe(Math.min(Math.max(at, x0), x1));
  });
  svg.addEventListener("mouseleave", () => { cursor.setAttribute("visibility", "hidden"); describe(null); });
  describe(null);
  return panel;
}

function drawCharts() {
  setting("charts").replaceChildren(...data.charts.map(drawChart));
}

for (const id of ["axis", "smoothing", "logarithmic"]) setting(id).addEventListener("input", drawCharts);
if (data.runs.length > 1) {
  data.runs.forEach((name, run) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("input", () => { box.checked ? hidden.delete(run) : hidden.add(run); drawCharts(); });
    const label = element("label", {}, box, ` ${name} `);
    label.style.color = COLOURS[run % COLOURS.length];
    setting("runs").append(label);
  });
}
drawCharts();

// ---- samples

const PROMPTS = ["problem", "prompt"], OUTPUTS = ["generated", "completion"];
const NOT_DRAWN = ["sample", "correct"];  // of a row: its number, and what the first score tells too
let shown = 30;

function scores(row) {
  return Object.entries(row || {}).filter(([key, value]) => key !== "sample" && typeof value === "number");
}

function score(row) {
  const numbers = scores(row);
  const reward = numbers.find(([key]) => key === "reward");
  if (reward) return reward[1];
  return numbers.length ? numbers.reduce((sum, [, value]) => sum + value, 0) / numbers.length : null;
}

function columns() {
  return data.samples.filter((one) => one.set === setting("set").value)
    .flatMap((one) => one.steps.map((step) => ({ label: data.runs.length > 1 ? `${one.run}, step ${step.step}` : `step ${step.step}`, ...step })));
}

function fillColumns() {
  const labels = columns().map((one) => one.label);
  for (const id of ["left", "right"]) {
    setting(id).replaceChildren(...labels.map((label, n) => element("option", { value: n, textContent: label })));
  }
  setting("left").value = 0;
  setting("right").value = labels.length - 1;
}

// The rows of a step by number and prompt. Rollouts, which have no number, are counted within their prompt.
function keyed(rows) {
  const seen = new Map();
  return new Map(rows.map((row, n) => {
    const prompt = first(row, PROMPTS), count = (seen.get(prompt) ?? 0) + 1;
    seen.set(prompt, count);
    const number = row.sample ?? (prompt === undefined ? n + 1 : count);
    return [JSON.stringify([number, prompt ?? null]), { row, title: row.sample ?? n + 1 }];
  }));
}

// Samples of the same prompt at both steps, side by side; one whose prompt is not at the other step stands alone.
function pairs() {
  const [left, right] = ["left", "right"].map((id) => columns()[Number(setting(id).value)] || { rows: [] });
  const [lefts, rights] = [keyed(left.rows), keyed(right.rows)];
  return [...new Set([...lefts.keys(), ...rights.keys()])].map((key) => {
    const [before, after] = [lefts.get(key), rights.get(key)];
    return { title: (before ?? after).title, left: before?.row, right: after?.row };
  });
}

function matches(pair) {
  const filter = setting("filter").value, search = setting("search").value.toLowerCase();
  const [before, after] = [score(pair.left), score(pair.right)];
  const comparable = before !== null && after !== null;
  if (filter === "changed" && !(pair.left && pair.right && output(pair.left) !== output(pair.right))) return false;
  if (filter === "rose" && !(comparable && after > before)) return false;
  if (filter === "fell" && !(comparable && after < before)) return false;
  return !search || [pair.left, pair.right].some((row) => Object.values(row || {}).some((value) => String(value).toLowerCase().includes(search)));
}

function first(row, keys) {
  const key = keys.find((one) => row && row[one] !== undefined);
  return key === undefined ? undefined : String(row[key]);
}

function output(row) {
  return first(row, OUTPUTS);
}

function block(key, text) {
  return [element("div", { className: "key", textContent: key }), element("div", { className: "text", textContent: text })];
}

function side(row, other, withPrompt) {
  const box = element("div");
  if (!row) return box;
  for (const [key, value] of Object.entries(row)) {
    const repeated = !withPrompt && (PROMPTS.includes(key) || key === "reference");
    if (typeof value === "number" || value === null || NOT_DRAWN.includes(key) || repeated) continue;
    box.append(...block(key, typeof value === "string" ? value : JSON.stringify(value)));
  }
  for (const [key, value] of Object.entries(row)) {
    if (NOT_DRAWN.includes(key) || !(typeof value === "number" || value === null)) continue;
    const before = other && typeof other[key] === "number" ? other[key] : null;
    const change = before === null || value === null || value === before ? "" : value > before ? " rose" : " fell";
    box.append(element("span", { className: `score${change}`, textContent: `${key} ${written(value)}` }));
  }
  return box;
}

function drawSamples() {
  let rows = pairs().filter(matches);
  const order = setting("order").value;
  const by = (pair) => score(pair.right) ?? score(pair.left) ?? 0;
  if (order === "lowest") rows.sort((a, b) => by(a) - by(b));
  if (order === "highest") rows.sort((a, b) => by(b) - by(a));
  const sides = ["left", "right"].map((id) => columns()[Number(setting(id).value)]).filter(Boolean);
  const cut = sides.find((one) => one.count > one.rows.length);
  const unread = sides.reduce((sum, one) => sum + one.unread, 0);
  setting("count").textContent = `${rows.length} samples`
    + (cut ? `; the page has the first ${cut.rows.length} of ${cut.count}` : "")
    + (unread ? `; lines that cannot be read: ${unread}` : "");
  setting("rows").replaceChildren(...rows.slice(0, shown).map((pair) => {
    const same = pair.left && pair.right;
    const card = element("div", { className: "sample" }, element("div", { className: "key", textContent: `sample ${pair.title}` }));
    if (same) {
      card.append(...block("prompt", first(pair.left, PROMPTS) ?? ""));
      if (pair.left.reference !== undefined) card.append(...block("reference", String(pair.left.reference)));
    }
    const titled = (name, box) => { box.prepend(element("div", { className: "key", textContent: name })); return box; };
    const [leftName, rightName] = ["left", "right"].map((id) => setting(id).selectedOptions[0]?.textContent ?? "");
    card.append(element("div", { className: "sides" },
      titled(leftName, side(pair.left, null, !same)), titled(rightName, side(pair.right, pair.left, !same))));
    return card;
  }));
  setting("more").hidden = rows.length <= shown;
}

if (data.samples.length) {
  const sets = [...new Set(data.samples.map((one) => one.set))];
  setting("set").replaceChildren(...sets.map((name) => element("option", { value: name, textContent: name })));
  setting("set").addEventListener("input", () => { fillColumns(); drawSamples(); });
  for (const id of ["left", "right", "filter", "order", "search"]) {
    setting(id).addEventListener("input", () => { shown = 30; drawSamples(); });
  }
  setting("more").addEventListener("click", () => { shown += 100; drawSamples(); });
  fillColumns();
  drawSamples();
}
