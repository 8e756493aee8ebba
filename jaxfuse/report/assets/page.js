"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const P = JSON.parse(document.getElementById("pictures").textContent);
const $ = id => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function draw(tag, attributes = {}, text = "") {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== "") node.textContent = text;
  return node;
}
function show(id) { $(id).hidden = false; }
function fill(select, names, labels = names) {
  select.replaceChildren(...names.map((name, i) => make("option", { value: name, text: labels[i] })));
}
const number = x => x === null || x === undefined || x === "" ? NaN : x === "inf" ? Infinity : x === "-inf" ? -Infinity : +x;
function text(x, digits = 4) {
  x = number(x);
  if (Number.isNaN(x)) return "undefined";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return x.toExponential(2).replace("-", "−");
  const places = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : digits;
  return x.toFixed(places).replace("-", "−");
}
const M = Object.fromEntries(D.metrics.map(m => [m.metric, m]));
const rows = D.methods.map(m => m.name);
const baseline = Object.fromEntries(D.methods.map(m => [m.name, m.kind === "baseline"]));
const arrow = m => m.direction === "higher" ? "higher is better" : m.direction === "lower" ? "lower is better" : "direction unclear";
const better = (metric, a, b) => M[metric].direction === "lower" ? a - b : b - a;

/* Sections that have something to say, and the way to them. */
function contents() {
  const nav = document.querySelector("nav");
  for (const section of document.querySelectorAll("main > section")) {
    if (!section.hidden) nav.append(make("a", { href: "#" + section.id, text: section.dataset.title }));
  }
}

/* In or out of distribution, where there are sets of both kinds. */
const place = set => new Set(D.datasets.map(d => d.role)).size < 2 ? "" : set.role === "in" ? ", in distribution" : ", out of distribution";

/* Ranking. */
function ranking() {
  if (!D.datasets.length) return;
  show("ranking");
  const on = D.datasets[0].ranked_on;
  const left = D.metrics.map(m => m.metric).filter(m => !on.includes(m));
  $("ranking-note").textContent = `Mean rank over ${on.length} metrics (1 is best; ties share a rank). ` +
    (left.length ? `Left out, for want of a clear direction or of any value: ${left.join(", ")}. ` : "") +
    "A row without a value, where others have one, is ranked last. " +
    "Baselines are pale: a metric that a baseline wins says little, and noise alone raises EN, SD, SF, AG and EI.";
  for (const set of D.datasets) {
    const names = Object.keys(set.ranks).sort((a, b) => set.ranks[a] - set.ranks[b]);
    const bars = make("div", { class: "bars" });
    for (const name of names) {
      const share = 100 * set.ranks[name] / rows.length;
      const bar = make("div", { class: "bar" + (baseline[name] ? " baseline" : "") });
      bar.style.width = share + "%";
      bars.append(make("span", { text: name }), make("div", {}, bar), make("span", { text: set.ranks[name].toFixed(2) }));
    }
    $("ranking-body").append(make("h3", { text: `${set.name}: ${set.stems.length} pairs` + place(set) }), bars);
    const last = Object.entries(set.ranked_last).map(([metric, names]) => `${metric}: ${names.join(", ")}`);
    if (last.length) $("ranking-body").append(make("p", { class: "note", text: `Ranked last because undefined: ${last.join("; ")}.` }));
  }
}

/* A table whose columns sort. cells: [{value, text, detail, best, second}] by row. */
function sortable(table, heads, body, first = "Method") {
  let sorted = -1, up = true;
  const head = make("tr");
  const rowsOf = make("tbody");
  function fillRows() {
    const order = body.slice();
    if (sorted >= 0) order.sort((a, b) => {
      const x = sorted ? a.cells[sorted - 1].value : a.name, y = sorted ? b.cells[sorted - 1].value : b.name;
      if (typeof x === "string") return (up ? 1 : -1) * x.localeCompare(y);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return up ? x - y : y - x;
    });
    rowsOf.replaceChildren(...order.map(row => make("tr", { class: row.baseline ? "baseline" : null },
      make("th", { scope: "row" }, ...(row.colour ? [make("span", { class: "swatch", style: `background: ${row.colour}` })] : []), row.name),
      ...row.cells.map(cell => {
        const td = make("td", { class: cell.best ? "best" : cell.second ? "second" : null, title: cell.title }, cell.text);
        if (cell.detail) td.append(make("small", { text: cell.detail }));
        return td;
      }))));
  }
  function sort(column, start) {
    up = sorted === column ? !up : start;
    sorted = column;
    [...head.children].forEach((th, i) => i === sorted ? th.setAttribute("aria-sort", up ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
    fillRows();
  }
  const column = (label, small, i, start, title) => make("th", { scope: "col", title },
    make("button", { type: "button", text: label, onclick: () => sort(i, start) }), make("small", { text: small }));
  head.append(column(first, "", 0, true), ...heads.map((h, i) => column(h.label, h.small, i + 1, h.up, h.title)));
  table.replaceChildren(make("thead", {}, head), rowsOf);
  fillRows();
}

function marks(values, metric) {
  // Best and second of a column; none where no direction is better.
  const found = {};
  if (M[metric].direction === "unclear") return found;
  const order = [...new Set(values.filter(v => !Number.isNaN(v)))].sort((a, b) => better(metric, a, b));
  if (order.length > 1) { found.best = order[0]; found.second = order[1]; }
  return found;
}

function scores() {
  if (!D.datasets.length) return;
  show("scores");
  const select = $("scores-set");
  fill(select, D.datasets.map(d => d.name));
  function update() {
    const set = D.datasets.find(d => d.name === select.value), intervals = $("scores-intervals").checked;
    const best = Object.fromEntries(D.metrics.map(m => [m.metric, marks(rows.map(r => number(set.summary[r][m.metric].mean)), m.metric)]));
    let undefinedCount = 0, infiniteCount = 0;
    sortable($("scores-table"),
      D.metrics.map(m => ({ label: m.metric, small: (m.direction === "higher" ? "↑ " : m.direction === "lower" ? "↓ " : "") + m.unit, up: m.direction === "lower",
        title: `${m.title}; ${arrow(m)}; convention ${m.convention}, ${m.channel}, version ${m.version}` })),
      rows.map(name => ({ name, baseline: baseline[name], cells: D.metrics.map(m => {
        const s = set.summary[name][m.metric], value = number(s.mean), test = set.tests[name] && set.tests[name][m.metric];
        undefinedCount += s.undefined;
        infiniteCount += s.infinite;
        const different = test && number(test.adjusted) < 0.05;
        return { value, text: text(value) + (different ? "*" : ""), best: value === best[m.metric].best, second: value === best[m.metric].second,
          detail: (intervals && !Number.isNaN(value) ? `${text(s.low)} to ${text(s.high)}` + (test ? `\np ${text(test.adjusted)}` : "") : "") + (s.undefined && !Number.isNaN(value) ? ` ${s.undefined} undefined` : "") + (s.infinite ? ` ${s.infinite} infinite` : ""),
          title: `${name}, ${m.metric}: ${text(value)}, 95 % interval ${text(s.low)} to ${text(s.high)}, ${s.count} images` +
            (test ? `; against ${D.reference}: p = ${text(test.p)}, ${text(test.adjusted)} after Holm` : "") };
      }) })));
    $("scores-note").textContent = `Means over ${set.stems.length} pairs, convention “${D.settings.convention}”. Bold is best, underlined second; ${set.significance}.` +
      (undefinedCount ? ` ${undefinedCount} values are undefined and are in no mean; cells say how many.` : "") +
      (infiniteCount ? ` ${infiniteCount} values are infinite (images without any error) and are in no mean.` : "");
  }
  select.onchange = $("scores-intervals").onchange = update;
  update();
}

function drop() {
  if (!D.drop || !D.drop.rows.length) return;
  show("drop");
  $("drop-note").textContent = `Mean of the in-distribution sets (${D.drop.inside.join(", ")}), then the change on each other set, in percent of it; ` +
    "a loss is negative, whatever the metric's direction.";
  const heads = [];
  for (const m of D.drop.metrics) {
    heads.push({ label: m, small: "in", up: M[m].direction === "lower" });
    for (const out of D.drop.outside) heads.push({ label: m, small: out + ", %", up: false });
  }
  sortable($("drop-table"), heads, D.drop.rows.map(row => ({ name: row.name, baseline: baseline[row.name],
    cells: row.cells.map((x, i) => ({ value: number(x), text: i % (1 + D.drop.outside.length) ? (number(x) > 0 ? "+" : "") + text(x, 1) : text(x) })) })));
}

/* Downstream: mIoU of every row, then IoU of every class. Shares are shown in percent. */
const percent = (x, sign = "") => Number.isNaN(number(x)) ? "undefined" : ((x > 0 ? sign : "") + (100 * x).toFixed(1)).replace("-", "−");
const span = (x, sign = "") => Number.isNaN(number(x.low)) ? "" : `${percent(x.low, sign)} to ${percent(x.high, sign)}`;
const highest = values => { const found = new Set(values.map(number).filter(Number.isFinite)); return found.size > 1 ? Math.max(...found) : NaN; };
function dotted(cells, title) {
  const all = rows.flatMap(r => [cells[r].miou.low, cells[r].miou.high, cells[r].miou.value, ...cells[r].seeds]).map(number).filter(Number.isFinite);
  if (!all.length) return make("p", { text: "No row has a value." });
  const low = Math.min(...all), room = Math.max(...all) - low || .01, width = 900, left = 150, step = 30, height = step * rows.length + 30;
  const at = x => left + (width - left - 30) * (x - low + room / 20) / (1.1 * room);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let i = 0; i <= 4; i++) {
    const x = low + room * i / 4;
    svg.append(draw("line", { class: "axis", x1: at(x), x2: at(x), y1: 4, y2: height - 24 }), draw("text", { class: "faint", x: at(x), y: height - 8, "text-anchor": "middle" }, percent(x)));
  }
  rows.forEach((name, i) => {
    const y = step * i + step / 2, c = cells[name], m = c.miou;
    svg.append(draw("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: baseline[name] ? "faint" : "" }, name));
    if (Number.isFinite(number(m.low))) svg.append(draw("rect", { class: "box", x: at(m.low), width: Math.max(1, at(m.high) - at(m.low)), y: y - 7, height: 14 }));
    for (const seed of c.seeds) if (Number.isFinite(number(seed))) svg.append(draw("circle", { class: "seed", cx: at(seed), cy: y, r: 3 }));
    if (Number.isFinite(number(m.value))) svg.append(draw("line", { class: "middle", x1: at(m.value), x2: at(m.value), y1: y - 7, y2: y + 7 }));
  });
  return svg;
}
function scrolling(label, fillIn) {
  const table = make("table");
  fillIn(table);
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label + ", scrolls sideways" }, table);
}
function segmentation() {
  const S = D.segmentation;
  if (!S) return;
  show("segmentation");
  fill($("segmentation-time"), S.times);
  $("segmentation-times").hidden = S.times.length < 2;
  $("segmentation-note").append(`${S.note} Gains are against ${S.reference}. Ranges are 95 % intervals; * differs from it: p < 0.05 in a paired test, after Holm over the rows of a table. Bold is best. ` +
    "Dots are single trainings, the box is the interval, its line the value.", ...S.remarks.map(r => make("div", { text: "Note: " + r })));
  function update() {
    const time = $("segmentation-time").value, body = $("segmentation-body");
    body.replaceChildren();
    for (const way of S.ways) {
      const times = S.summary[way.name], cells = times[time];
      const top = Object.fromEntries(S.times.map(t => [t, highest(rows.map(r => times[t][r].miou.value))]));
      const heads = [...S.times.map(t => ({ label: "mIoU, " + t, small: `↑ %, ${times[t][rows[0]].images} images`, up: false })),
        ...S.times.map(t => ({ label: "gain, " + t, small: "points", up: false, title: `mIoU minus that of ${S.reference}` }))];
      const lines = rows.map(name => ({ name, baseline: baseline[name], cells: [
        ...S.times.map(t => { const m = times[t][name].miou; return { value: number(m.value), text: percent(m.value), detail: span(m), best: m.value === top[t] }; }),
        ...S.times.map(t => { const c = times[t][name], d = c.difference;
          if (!d) return { value: NaN, text: name === S.reference ? "reference" : "" };
          const p = number(c.p);
          return { value: number(d.value), text: percent(d.value, "+") + (p < 0.05 ? "*" : ""), detail: span(d, "+") + (Number.isNaN(p) ? "" : `\np ${text(p)}`) }; })] }));
      const perClass = S.classes.map((c, k) => { const best = highest(rows.map(r => cells[r].classes[k].value));
        return { name: c.name, colour: c.colour, cells: rows.map(r => { const x = cells[r].classes[k]; return { value: number(x.value), text: percent(x.value), detail: span(x), best: x.value === best }; }) }; });
      body.append(make("h3", { text: `${way.name}: ${way.title}` }), make("p", { class: "note", text: `mIoU in %, ${time} images` }), dotted(cells, `mIoU of ${way.name}, ${time}`),
        scrolling(`mIoU, ${way.name}`, table => sortable(table, heads, lines, "Row")),
        make("details", { open: way === S.ways[0] ? "" : null }, make("summary", { text: `IoU of each class in %, ${time} images` }),
          scrolling(`IoU of each class, ${way.name}`, table => sortable(table, rows.map(r => ({ label: r, small: "↑", up: false })), perClass, "Class"))));
    }
  }
  $("segmentation-time").onchange = update;
  update();
  show("panels");
  $("panels-note").textContent = (S.panels.length ? "The pictures of every row, then labels and what the first training's networks saw, retrained and frozen. Click one for its own size. " : "") + S.panels_note;
  for (const p of S.panels) {
    const frame = make("button", { type: "button", class: "panel", "aria-label": `${p.stem} in its own size`, onclick: () => frame.classList.toggle("full") },
      make("img", { alt: `Pictures and predictions of ${p.stem}`, loading: "lazy", src: "data:image/webp;base64," + P[p.picture] }));
    $("panels-body").append(make("figure", {}, make("figcaption", { text: p.stem }), frame));
  }
}

/* Distributions: every image a dot, the quartiles a box. */
function spread() {
  if (!D.datasets.length) return;
  show("spread");
  fill($("spread-set"), D.datasets.map(d => d.name));
  fill($("spread-metric"), D.metrics.map(m => m.metric));
  function update() {
    const set = D.datasets.find(d => d.name === $("spread-set").value), metric = $("spread-metric").value;
    const all = rows.map(r => set.values[r][metric].map(number).filter(Number.isFinite));
    const flat = all.flat();
    $("spread-note").textContent = `${M[metric].title}, ${arrow(M[metric])}. Dots are images; the box holds the middle half, its line the median.` +
      (flat.length < rows.length * set.stems.length ? ` ${rows.length * set.stems.length - flat.length} values are undefined or infinite and not drawn.` : "");
    if (!flat.length) { $("spread-body").replaceChildren(make("p", { text: "No image has a finite value." })); return; }
    let low = Math.min(...flat), high = Math.max(...flat);
    if (low === high) { low -= 0.5; high += 0.5; }
    const width = 900, left = 150, step = 34, height = step * rows.length + 30;
    const at = v => left + (width - left - 20) * (v - low) / (high - low);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${metric} by method` });
    for (let i = 0; i <= 4; i++) {
      const v = low + (high - low) * i / 4;
      svg.append(draw("line", { class: "axis", x1: at(v), x2: at(v), y1: 4, y2: height - 24 }), draw("text", { class: "faint", x: at(v), y: height - 8, "text-anchor": "middle" }, text(v)));
    }
    rows.forEach((name, r) => {
      const y = step * r + step / 2, sorted = all[r].slice().sort((a, b) => a - b);
      svg.append(draw("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: baseline[name] ? "faint" : "" }, name));
      if (!sorted.length) return;
      const q = p => { const k = p * (sorted.length - 1), f = Math.floor(k); return sorted[f] + (k - f) * ((sorted[f + 1] ?? sorted[f]) - sorted[f]); };
      svg.append(draw("rect", { class: "box", x: at(q(.25)), width: Math.max(1, at(q(.75)) - at(q(.25))), y: y - 9, height: 18 }),
        draw("line", { class: "middle", x1: at(q(.5)), x2: at(q(.5)), y1: y - 9, y2: y + 9 }));
      set.values[name][metric].forEach((raw, i) => {
        const v = number(raw);
        if (!Number.isFinite(v)) return;
        const dot = draw("circle", { class: "mark", cx: at(v), cy: y + ((i * 7919) % 13 - 6), r: 2.6 });
        dot.append(draw("title", {}, `${set.stems[i]}: ${text(v)}`));
        svg.append(dot);
      });
    });
    $("spread-body").replaceChildren(svg);
  }
  $("spread-set").onchange = $("spread-metric").onchange = update;
  update();
}

/* Pictures: decoded when first looked at, the longest unused forgotten. */
const decoded = new Map();
function picture(index) {
  if (index === undefined || index === null || index < 0) return Promise.resolve(null);
  let entry = decoded.get(index);
  if (entry) decoded.delete(index);
  else {
    const image = new Image();
    entry = new Promise((resolve, reject) => { image.onload = () => resolve(image); image.onerror = () => reject(new Error("picture " + index)); });
    image.src = "data:image/webp;base64," + P[index];
  }
  decoded.set(index, entry);
  if (decoded.size > 80) decoded.delete(decoded.keys().next().value);
  return entry;
}
let openPair = () => {};
function images() {
  const sets = D.datasets.filter(d => Object.keys(d.pictures).length);
  if (!sets.length) return;
  show("images");
  const setChoice = $("images-set"), pairChoice = $("images-pair"), methodChoice = $("images-method");
  const leftChoice = $("wipe-left"), rightChoice = $("wipe-right"), slider = $("wipe-at"), wipe = $("wipe");
  fill(setChoice, sets.map(d => d.name));
  const VIEWS = ["visible", "infrared", "fused", "fused − visible", "fused − infrared"];
  const made = rows.filter(r => !baseline[r] && sets.some(d => d.pictures[r]));
  for (const choice of [leftChoice, rightChoice]) {
    fill(choice, [...VIEWS, ...made.map(r => "by " + r)], [...VIEWS, ...made]);
  }
  leftChoice.value = "visible"; rightChoice.value = "fused";
  let set, view = { scale: 1, x: .5, y: .5 }, loaded = {}, asked = 0;
  const canvases = [];

  function canvasIn(parent) { const c = make("canvas"); parent.append(c); return c; }
  const left = canvasIn(wipe), right = canvasIn(wipe);
  const line = make("div", { class: "line" }), leftTag = make("span", { class: "tag left" }), rightTag = make("span", { class: "tag right" });
  wipe.append(line, leftTag, rightTag);
  canvases.push({ frame: wipe, canvas: left, name: () => leftChoice.value }, { frame: wipe, canvas: right, name: () => rightChoice.value });
  for (const name of VIEWS) {
    const frame = make("div", { class: "view", role: "img", "aria-label": name });
    const canvas = canvasIn(frame);
    frame.append(make("span", { class: "tag left", text: name }));
    $("views").append(frame);
    canvases.push({ frame, canvas, name: () => name });
  }

  function put(context, image, width, height) {
    const w = width * view.scale, h = height * view.scale;
    context.drawImage(image, width / 2 - view.x * w, height / 2 - view.y * h, w, h);
  }
  function paint() {
    const half = .5 / view.scale;
    view.x = Math.min(1 - half, Math.max(half, view.x)); view.y = Math.min(1 - half, Math.max(half, view.y));
    for (const { frame, canvas, name } of canvases) {
      const ratio = window.devicePixelRatio || 1, width = Math.round(frame.clientWidth * ratio), height = Math.round(frame.clientHeight * ratio);
      if (!width || !height) continue;
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const context = canvas.getContext("2d"), [first, minus] = name().split(" − ");
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "#000"; context.fillRect(0, 0, width, height);
      context.imageSmoothingEnabled = view.scale < 6;
      if (loaded[first]) put(context, loaded[first], width, height);
      if (minus && loaded[minus]) {
        context.globalCompositeOperation = "difference";
        put(context, loaded[minus], width, height);
        context.globalCompositeOperation = "lighter";  // twice as bright: small differences show
        context.drawImage(canvas, 0, 0);
      }
    }
    right.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    line.style.left = slider.value + "%";
    const called = choice => choice.value.replace("fused", methodChoice.value || "fused").replace("by ", "");
    leftTag.textContent = called(leftChoice); rightTag.textContent = called(rightChoice);
    $("zoom-level").textContent = Math.round(100 * view.scale) + " %";
  }
  async function load() {
    const mine = ++asked, i = +pairChoice.value, pictures = set.pictures;
    const [h, w] = set.sizes[i];
    for (const { frame } of canvases) frame.style.aspectRatio = `${w} / ${h}`;
    try {
      const sides = [leftChoice.value, rightChoice.value].filter(name => name.startsWith("by "));
      const wanted = { visible: "visible", infrared: "infrared", fused: methodChoice.value, ...Object.fromEntries(sides.map(name => [name, name.slice(3)])) };
      const got = await Promise.all(Object.values(wanted).map(row => picture(pictures[row] && pictures[row][i])));
      if (mine !== asked) return;
      loaded = Object.fromEntries(Object.keys(wanted).map((name, k) => [name, got[k]]));
    } catch (error) { if (mine === asked) loaded = {}; console.error(error); }
    const absent = ["visible", "infrared", ...(methodChoice.value ? ["fused"] : [])].filter(name => !loaded[name]);
    const lacking = absent.length ? `Not in this page: ${absent.join(", ")}. ` : "";
    const shown = lacking + (loaded.fused ? `Shown at ${loaded.fused.naturalWidth}×${loaded.fused.naturalHeight}` + (loaded.fused.naturalWidth < w ? `, reduced from ${w}×${h}` : "") + ", lossy compressed." : "");
    $("images-note").textContent = shown + " Differences are shown twice as bright.";
    paint();
    pairTable(i);
  }
  function pairTable(i) {
    const best = Object.fromEntries(D.metrics.map(m => [m.metric, marks(rows.map(r => number(set.values[r][m.metric][i])), m.metric)]));
    sortable($("pair-table"), D.metrics.map(m => ({ label: m.metric, small: m.direction === "higher" ? "↑" : m.direction === "lower" ? "↓" : "", up: m.direction === "lower" })),
      rows.map(name => ({ name, baseline: baseline[name], cells: D.metrics.map(m => { const v = number(set.values[name][m.metric][i]); return { value: v, text: text(v), best: v === best[m.metric].best, second: v === best[m.metric].second }; }) })));
  }
  function chooseSet() {
    set = sets.find(d => d.name === setChoice.value);
    fill(pairChoice, set.stems.map((_, i) => String(i)), set.stems);
    const methods = rows.filter(r => set.pictures[r] && r !== "visible" && r !== "infrared"), before = methodChoice.value;
    fill(methodChoice, methods);
    if (methods.includes(before)) methodChoice.value = before;
    methodChoice.disabled = !methods.length;
    if (!methods.length) rightChoice.value = "infrared";
    load();
  }
  function step(by) {
    const n = set.stems.length;
    pairChoice.value = String((+pairChoice.value + by + n) % n);
    load();
  }
  function zoom(factor, x = .5, y = .5) {
    // The point under the pointer stays where it is.
    const scale = Math.min(32, Math.max(1, view.scale * factor));
    view.x += (x - .5) * (1 / view.scale - 1 / scale); view.y += (y - .5) * (1 / view.scale - 1 / scale);
    view.scale = scale;
    // At full size a finger or a wheel scrolls the page, as everywhere else.
    for (const { frame } of canvases) frame.classList.toggle("zoomed", scale > 1);
    paint();
  }
  function move(dx, dy) { view.x += dx / view.scale; view.y += dy / view.scale; paint(); }
  setChoice.onchange = chooseSet; pairChoice.onchange = methodChoice.onchange = load;
  leftChoice.onchange = rightChoice.onchange = load;
  slider.oninput = paint;
  $("images-previous").onclick = () => step(-1); $("images-next").onclick = () => step(1);
  $("zoom-in").onclick = () => zoom(1.5); $("zoom-out").onclick = () => zoom(1 / 1.5);
  $("zoom-reset").onclick = () => { view = { scale: 1, x: .5, y: .5 }; zoom(1); };
  for (const frame of new Set(canvases.map(c => c.frame))) {
    const fingers = new Map();
    let apart = 0, wiping = false;
    const where = event => { const box = frame.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    frame.addEventListener("wheel", event => {
      if (!event.ctrlKey && view.scale === 1 && document.activeElement !== wipe) return;
      if (view.scale === 1 && event.deltaY > 0) return;
      event.preventDefault(); zoom(Math.exp(-event.deltaY / 300), ...where(event)); }, { passive: false });
    frame.addEventListener("pointerdown", event => {
      frame.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, where(event));
      wiping = frame === wipe && (event.target === line || (fingers.size === 1 && view.scale === 1));
      if (wiping) { slider.value = 100 * where(event)[0]; paint(); }
      frame.classList.add("moving");
    });
    frame.addEventListener("pointermove", event => {
      if (!fingers.has(event.pointerId)) return;
      const now = where(event), before = fingers.get(event.pointerId);
      fingers.set(event.pointerId, now);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()], span = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (apart) zoom(span / apart, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        apart = span;
      } else if (wiping) { slider.value = 100 * now[0]; paint(); }
      else move(before[0] - now[0], before[1] - now[1]);
    });
    const lift = event => { fingers.delete(event.pointerId); apart = 0; wiping = false; frame.classList.remove("moving"); };
    frame.addEventListener("pointerup", lift); frame.addEventListener("pointercancel", lift);
  }
  document.addEventListener("keydown", event => {
    const typed = event.getModifierState("AltGraph");  // how many keyboards write brackets
    if (!typed && (event.ctrlKey || event.metaKey || event.altKey) || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const keys = { "[": () => step(-1), "]": () => step(1), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": () => $("zoom-reset").click() };
    if (event.target === wipe) Object.assign(keys, {
      ArrowLeft: () => view.scale > 1 ? move(-.1, 0) : (slider.value = +slider.value - 2, paint()),
      ArrowRight: () => view.scale > 1 ? move(.1, 0) : (slider.value = +slider.value + 2, paint()),
      ...(view.scale > 1 ? { ArrowUp: () => move(0, -.1), ArrowDown: () => move(0, .1) } : {}) });
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  new ResizeObserver(paint).observe(wipe);
  window.addEventListener("beforeprint", () => { for (const block of document.querySelectorAll("details")) block.open = true; paint(); });
  openPair = (name, i, method) => {
    if (setChoice.value !== name) { setChoice.value = name; chooseSet(); }
    pairChoice.value = String(i);
    if ([...methodChoice.options].some(o => o.value === method)) methodChoice.value = method;
    load();
    $("images").scrollIntoView();
    wipe.focus({ preventScroll: true });
  };
  chooseSet();
}

/* Best and worst. */
function extremes() {
  const sets = D.datasets.filter(d => Object.keys(d.pictures).length);
  if (!sets.length) return;
  show("extremes");
  fill($("extremes-set"), sets.map(d => d.name));
  fill($("extremes-metric"), D.metrics.filter(m => m.direction !== "unclear").map(m => m.metric));
  const methods = rows.filter(r => sets.some(d => d.pictures[r]));
  fill($("extremes-method"), methods);
  function update() {
    const set = sets.find(d => d.name === $("extremes-set").value), metric = $("extremes-metric").value, method = $("extremes-method").value;
    const order = set.values[method][metric].map((raw, i) => [number(raw), i]).filter(([v]) => !Number.isNaN(v)).sort((a, b) => better(metric, a[0], b[0]));
    const count = Math.min(6, Math.ceil(order.length / 2));
    const thumbs = list => make("div", { class: "thumbs" }, ...list.map(([v, i]) => {
      const at = set.pictures[method] ? set.pictures[method][i] : -1;
      const image = at >= 0 ? make("img", { alt: "", src: "data:image/webp;base64," + P[at] }) : make("span", { text: "not in this page" });
      return make("button", { type: "button", title: "Show it above", onclick: () => openPair(set.name, i, method) },
        make("span", { class: "frame" }, image), `${set.stems[i]}: ${text(v)}`);
    }));
    $("extremes-body").replaceChildren(make("h3", { text: `Best by ${metric} (${arrow(M[metric])})` }), thumbs(order.slice(0, count)),
      make("h3", { text: "Worst" }), thumbs(order.slice(-count).reverse()));
  }
  $("extremes-set").onchange = $("extremes-metric").onchange = $("extremes-method").onchange = update;
  update();
}

/* Training curves. */
function chart(title, curves) {
  const width = 380, height = 220, left = 56, bottom = 30;
  const points = curves.flatMap(c => c.points).filter(p => p[1] !== null);
  if (!points.length) return null;
  const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 === y1) { y0 -= Math.abs(y0) / 2 || .5; y1 += Math.abs(y1) / 2 || .5; }
  const X = x => left + (width - left - 12) * (x - x0) / (x1 - x0), Y = y => height - bottom - (height - bottom - 12) * (y - y0) / (y1 - y0);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let i = 0; i <= 3; i++) {
    const y = y0 + (y1 - y0) * i / 3;
    svg.append(draw("line", { class: "axis", x1: left, x2: width - 12, y1: Y(y), y2: Y(y) }), draw("text", { class: "faint", x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, text(y, 3)));
  }
  svg.append(draw("text", { class: "faint", x: left, y: height - 10 }, String(x0)), draw("text", { class: "faint", x: width - 12, y: height - 10, "text-anchor": "end" }, `step ${x1}`));
  curves.forEach((curve, i) => {
    let path = "", pen = "M";
    for (const [x, y] of curve.points) { if (y === null) pen = "M"; else { path += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`; pen = "L"; } }
    svg.append(draw("path", { class: "curve" + (i ? " second" : ""), d: path }));
    if (curves.length > 1) svg.append(draw("text", { class: i ? "faint" : "", x: width - 14, y: 22 + 15 * i, "text-anchor": "end" }, (i ? "- - " : "— ") + curve.name));
  });
  return make("figure", { style: "margin:0" }, make("figcaption", { text: title }), svg);
}
function training() {
  if (!D.training) return;
  show("training");
  $("training-note").textContent = D.training.note;
  for (const stage of D.training.stages) {
    const charts = stage.charts.map(c => chart(c.title, c.curves)).filter(Boolean);
    $("training-body").append(make("h3", { text: `Stage: ${stage.name}` }), make("div", { class: "charts" }, ...charts));
  }
}
function selection() {
  if (!D.selection) return;
  show("selection");
  const s = D.selection, body = $("selection-body");
  body.append(make("p", { text: s.text }));
  const table = make("table");
  table.append(make("thead", {}, make("tr", {}, ...["", "red", "green", "blue"].map(h => make("th", { text: h })))),
    make("tbody", {}, ...s.rows.map(r => make("tr", {}, make("td", { text: r.name }), ...r.values.map(v => make("td", { text: text(v) }))))));
  body.append(make("div", { class: "wide" }, table));
  for (const p of s.pictures) body.append(make("h3", { text: p.title }), make("img", { alt: p.title, src: "data:image/webp;base64," + P[p.picture] }));
  if (s.note) body.append(make("p", { class: "note", text: s.note }));
  const list = make("tbody", {}, ...s.patches.map((p, i) => make("tr", {}, make("td", { text: `${i + 1}. ${p.stem}` }), make("td", { text: `${p.x}, ${p.y}` }), make("td", { text: text(p.distance) }))));
  body.append(make("details", {}, make("summary", { text: `All ${s.patches.length} kept patches` }), make("div", { class: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { text: "image" }), make("th", { text: "x, y" }), make("th", { text: "distance, levels" }))), list))));
}
function configuration() {
  show("configuration");
  const body = $("configuration-body");
  const table = (heads, lines) => make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map(h => make("th", { text: h })))),
    make("tbody", {}, ...lines.map(l => make("tr", {}, ...l.map(c => make("td", { text: c })))))));
  if (D.methods.length) body.append(make("h3", { text: "Rows" }), table(["row", "what it is", "from"], D.methods.map(m => [m.name, m.kind, m.source])));
  if (D.metrics.length) body.append(make("h3", { text: "Metrics" }), table(["metric", "title", "convention", "channel", "direction", "unit", "range", "version"],
    D.metrics.map(m => [m.metric, m.title, m.convention, m.channel, m.direction, m.unit, `${m.low === null ? "−∞" : m.low} to ${m.high === null ? "∞" : m.high}`, String(m.version)])));
  if (D.sets_note) body.append(make("p", { class: "note", text: D.sets_note }));
  body.append(make("h3", { text: "Versions" }), table(["package", "version"], Object.entries(D.versions)));
  for (const block of D.configuration) body.append(make("details", {}, make("summary", { text: block.title }), make("pre", { text: block.text })));
}

$("about").textContent = D.about;
for (const label of document.querySelectorAll(".set-choice")) label.hidden = D.datasets.length < 2;
ranking(); scores(); drop(); segmentation(); spread(); images(); extremes(); training(); selection(); configuration(); contents();
document.documentElement.dataset.ready = "yes";
})();
