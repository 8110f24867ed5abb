// Draws figure.chart, each when it comes into view and again when the colours of the page change.
// SPECS, of every kind of chart, stands before this.
"use strict";
(() => {
const ON_LIGHT = ["#c24e00", "#0072b2", "#00805d", "#a8498a", "#8a6100", "#2a7fa8", "#5a5a5a", "#6a3fb5", "#8c2d04", "#3d7a1f"];
const ON_DARK = ["#ff8a3d", "#58a6ff", "#3fcf9f", "#e59bc9", "#f0b429", "#7fd3ff", "#b4bcc6", "#b99bff", "#ffb59e", "#a5d76e"];
const DASHES = [[6, 3], [1, 0], [2, 2], [8, 2, 2, 2], [10, 4], [1, 0], [4, 2], [2, 4], [6, 3], [1, 0]];
const PERCENTILES = ["p5", "p25", "p50", "p75", "p95"];
const drawn = new Map();  // figure: what draws it again

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

// On a page that has to stand alone, Vega is packed in it.
let vega;
const ready = () => vega ??= (async () => {
  const script = document.getElementById("vega");
  if (script) (0, eval)(await unpack(script.textContent));
})();

async function dataOf(figure) {
  return JSON.parse(await unpack(figure.querySelector("script[type]").textContent));
}

// The page's own colours and letters, whatever scheme it is in.
function look(figure) {
  const style = getComputedStyle(figure), text = style.color;
  const [red, green, blue] = text.match(/[\d.]+/g).map(Number);
  const dark = red + green + blue > 384;
  const axis = { labelColor: text, titleColor: text, gridColor: text, domainColor: text, tickColor: text,
    gridOpacity: .15, domainOpacity: .4, tickOpacity: .4, labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal" };
  const legend = { labelColor: text, titleColor: text, labelFontSize: 13, labelLimit: 0, symbolStrokeWidth: 2.5,
    orient: "top", symbolType: "stroke", symbolSize: 400, symbolOpacity: 1, direction: "horizontal", columnPadding: 14 };
  return { text, palette: dark ? ON_DARK : ON_LIGHT,
    ink: name => style.getPropertyValue("--" + name).trim(),
    config: { background: null, font: style.fontFamily, aria: false, view: { stroke: null }, axis, legend,
      autosize: { type: "fit-x", contains: "padding" }, padding: 2 } };
}

async function embed(figure, spec, params, { text, config }) {
  for (const param of spec.params) if (param.name in params) param.value = params[param.name];
  const place = figure.querySelector(".plot");
  const found = await vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, config,
    tooltip: { disableDefaultStyle: true, id: "chart-tooltip" } });
  place.querySelector("svg").setAttribute("aria-hidden", "true");  // its place says what it shows
  figure.classList.add("drawn");
  return found.view;
}

// A logarithmic axis of several decades has a tick for each, and none between them.
function scale(spec, channel, options, axis = {}, shown = []) {
  const decades = Math.log10(Math.max(...shown) / Math.min(...shown));
  if (options.type === "log" && decades >= 2) axis = { tickCount: Math.min(6, Math.floor(decades)), ...axis };
  for (const { encoding } of spec.layer) if (encoding[channel]) {
    encoding[channel].scale = { ...encoding[channel].scale, ...options };
    if (options.type === "log") delete encoding[channel].scale.zero;
    if (encoding[channel].axis) Object.assign(encoding[channel].axis, axis);
  }
}

const copy = kind => structuredClone(SPECS[kind]);
const number = value => value === null ? "diverged" : String(Number(value.toPrecision(4)));

// Controls above a chart; each is made once, and `change` is called with all their values.
function select(figure, words, options, change) {
  const label = document.createElement("label"), menu = document.createElement("select");
  label.append(words + " ", menu);
  for (const [value, text] of options) menu.append(new Option(text, value));
  menu.addEventListener("change", change);
  figure.querySelector(".controls").append(label);
  return menu;
}

function refill(menu, options) {
  const was = menu.value;
  menu.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === was)) menu.value = was;
  menu.parentElement.hidden = options.length < 2;
}

const same = list => [...new Set(list)].map(value => [String(value), String(value)]);

function evidence(figure, strip) {
  return () => {
    const { text, ink, config } = look(figure), spec = copy("evidence");
    scale(spec, "x", { type: strip.log ? "log" : "linear", domain: strip.domain }, {}, strip.domain);
    scale(spec, "y", { domain: [-1, Math.max(...strip.datasets.seeds.map(row => row.seed), 0) + 1] });
    const said = { "mean and 95 % interval": strip.interval, p: strip.p, outcome: strip.outcome };
    const seeds = strip.datasets.seeds.map(row => ({ ...row, seed: row.seed, difference: row.words, ...said }));
    spec.datasets = { ...strip.datasets, seeds };
    return embed(figure, spec, { ink: ink(figure.dataset.look), text }, { config });
  };
}

// Rates of networks that were trained at several; the first choice is the one they are compared at.
const BEST = "best";
function rates(lines, best) {
  const all = [...new Set(lines.filter(line => "rate" in line).map(line => line.rate))].sort((a, b) => a - b);
  return all.length < 2 ? [[BEST, BEST]] : [[BEST, "each where it is " + best], ...all.map(rate => [String(rate), String(rate)])];
}
const chosen = (lines, rate) => lines.filter(
  line => !("rate" in line) || (rate === BEST ? line.compared : String(line.rate) === rate));

function lines(figure, { views, best }) {
  const again = () => { fill(); drawn.get(figure)(); };
  const view = select(figure, "Show", views.map((each, i) => [String(i), `${each.name}, by ${each.x}`]), again);
  const group = select(figure, "of", [], () => { fill(); drawn.get(figure)(); });
  const rate = select(figure, "at learning rate", [], again);
  const fill = () => {
    refill(group, same(views[view.value].lines.map(line => line.group)).map(([v]) => [v, v || "all networks"]));
    refill(rate, rates(views[view.value].lines.filter(line => line.group === group.value), best));
  };
  fill();
  view.parentElement.hidden = false;
  return async () => {
    const { text, palette, config } = look(figure), spec = copy("lines"), shown = views[view.value];
    const kept = chosen(shown.lines.filter(line => line.group === group.value), rate.value);
    const names = [...new Set(shown.lines.filter(line => line.group === group.value).map(line => line.label))];
    const words = value => value === null ? "diverged" :
      shown.format.endsWith("%") ? (100 * value).toFixed(2) + " %" : number(value);
    const below = value => shown.logY && !(value > 0) ? null : value;
    spec.datasets = { points: kept.flatMap(line => line.x.map((x, i) => ({
      network: line.label, x, mean: below(line.mean[i]), low: below(line.low[i]), high: below(line.high[i]),
      chosen: line.chosen === i, at: `${shown.x} ${number(x)}` + ("rate" in line ? `, learning rate ${line.rate}` : ""),
      "mean over seeds": words(line.mean[i]),
      "95 % interval": line.half[i] === null || line.mean[i] === null ? "–" :
        `${words(line.mean[i] - line.half[i])} to ${words(line.mean[i] + line.half[i])}`,
      seeds: line.mean[i] === null ? `${line.seeds}` : `${line.seeds}, from ${words(line.low[i])} to ${words(line.high[i])}`,
    }))) };
    const width = figure.querySelector(".plot").clientWidth;
    const columns = Math.max(1, Math.floor(width / (60 + 7 * Math.max(...names.map(name => name.length)))));
    for (const [channel, range] of [["color", palette], ["strokeDash", DASHES]])
      for (const { encoding } of spec.layer) if (encoding[channel]) Object.assign(encoding[channel],
        { scale: { domain: names, range: names.map((_, i) => range[i % range.length]) }, legend: names.length > 1 ? { columns } : null });
    scale(spec, "x", { type: shown.logX ? "log" : "linear" }, { title: shown.x + (shown.logX ? " (log scale)" : "") },
      kept.flatMap(line => line.x));
    scale(spec, "y", { type: shown.logY ? "log" : "linear" }, shown.format.endsWith("%") ? { format: "~%" } : {},
      spec.datasets.points.map(row => row.low).filter(value => value > 0));
    return embed(figure, spec, { text }, { config });
  };
}

function spread(figure, { spreads, best }) {
  const again = () => { fill(); drawn.get(figure)(); };
  const network = select(figure, "Network", same(spreads.map(line => line.network)), again);
  const rate = select(figure, "at learning rate", [], again);
  const slider = document.createElement("input"), shown = document.createElement("output"), play = document.createElement("button");
  const label = document.createElement("label");
  Object.assign(slider, { type: "range", min: 0 });
  Object.assign(play, { type: "button", textContent: "▶ Play" });
  label.append("Training step ", slider, shown);
  figure.querySelector(".controls").append(label, play);
  const fill = () => {
    refill(rate, rates(spreads.filter(line => line.network === network.value), best));
    slider.max = line().x.length - 1;
  };
  const line = () => chosen(spreads.filter(each => each.network === network.value), rate.value)[0];
  fill();
  slider.value = slider.max;
  const rows = () => Object.entries(line().values).flatMap(([name, layers]) => Object.entries(layers).map(([layer, steps]) => {
    const values = Object.fromEntries(PERCENTILES.map((p, i) => [p, steps[slider.value][i]]));
    return { ...values, name, layer, of: name, median: number(values.p50),
      "25 % to 75 %": `${number(values.p25)} to ${number(values.p75)}`, "5 % to 95 %": `${number(values.p5)} to ${number(values.p95)}` };
  }));
  let view, timer;
  const move = () => {
    shown.textContent = " " + line().x[slider.value];
    if (view) view.data("bars", rows()).runAsync();
  };
  const stop = () => { clearInterval(timer); timer = undefined; play.textContent = "▶ Play"; };
  slider.addEventListener("input", move);
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "■ Stop";
    if (slider.value === slider.max) slider.value = 0;
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      move();
      if (slider.value === slider.max) stop();
    }, 200);
  });
  return async () => {
    const { text, palette, config } = look(figure), spec = copy("spread");
    const all = Object.values(line().values).flatMap(layers => Object.values(layers).flat(2)).filter(value => value !== null);
    const names = Object.keys(line().values), least = Math.min(...all), most = Math.max(...all), log = least > 0 && most > 10 * least;
    spec.datasets = { bars: rows() };
    for (const { encoding } of spec.layer)
      Object.assign(encoding.color, { scale: { domain: names, range: names.map((_, i) => palette[(i + 1) % palette.length]) },
        legend: names.length > 1 ? { symbolType: "circle", symbolSize: 110 } : null });
    scale(spec, "y", { type: log ? "log" : "linear", domain: [least, most], nice: true },
      { title: names.join(", ") + (log ? " (log scale)" : "") }, [least, most]);
    view = await embed(figure, spec, { text }, { config });
    move();
  };
}

const KINDS = { evidence, lines, spread };
async function draw(figure) {
  await ready();
  const again = KINDS[figure.dataset.kind](figure, await dataOf(figure));
  drawn.set(figure, again);
  await again();
  resized.observe(figure);
}

// Vega follows the window; a figure may get another width by itself, beside a sidebar that opens.
const widths = new WeakMap();
const resized = new ResizeObserver(entries => {
  const moved = entries.filter(({ target, contentRect: { width } }) => {
    const was = widths.get(target);
    widths.set(target, width);
    return was !== undefined && was !== width;
  });
  if (moved.length) dispatchEvent(new Event("resize"));
});

const seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) {
    seen.unobserve(target);
    draw(target);
  }
}, { rootMargin: "300px" });
document.querySelectorAll("figure.chart").forEach(figure => seen.observe(figure));

const redraw = () => drawn.forEach(again => again());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
