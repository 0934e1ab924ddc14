// The page: what is drawn, over which axis, in which colours.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const chartGrid = document.getElementById("chart-grid");
const axisButtons = document.querySelectorAll("#axis button");
const roleButtons = document.querySelectorAll("#roles button");
const smoothing = document.getElementById("smoothing");
const showEvents = document.getElementById("show-events");
const NARROW = 680; // CSS pixels, as in page.css
const PRINTED_WIDTH = 318; // CSS pixels of a chart in two columns on A4 and Letter

let axis = data.axes[0];
let role = "both";
let figures = [];
const visible = new Set(data.runs.keys());

/** First and last place on the current axis, over the curves and events of the runs that are drawn. */
function extent() {
  let low = Infinity, high = -Infinity;
  const see = (value) => {
    if (value === null || value === undefined) return;
    low = Math.min(low, value);
    high = Math.max(high, value);
  };
  for (const chart of data.charts) {
    for (const series of chart.series) if (visible.has(series.run)) series[axis]?.forEach(see);
  }
  data.events.forEach((event) => visible.has(event.run) && see(event[axis]));
  if (low > high) return [0, 1];
  return low < high ? [low, high] : [low, low + 1];
}

/** The slider's place as a time constant in steps: fine at the left, up to a fifth of the run. */
function timeConstant() {
  const steps = data.charts.flatMap((chart) => chart.series.map((series) => series.step)).filter(Boolean);
  const longest = Math.max(1, ...steps.map((column) => column.at(-1) - column[0]));
  return longest * 0.2 * (smoothing.value / 100) ** 2;
}

function build(spec) {
  const figure = document.createElement("figure");
  figure.className = spec.large ? "chart large" : "chart";
  const head = document.createElement("div");
  head.className = "head";
  const title = document.createElement("h3");
  const unit = document.createElement("small");
  unit.textContent = spec.unit;
  title.append(spec.title, unit);
  head.append(title);
  const entry = { spec, figure, plot: null, logarithmic: spec.logarithmic };
  if (spec.large) {
    const label = document.createElement("label");
    label.className = "log";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = spec.logarithmic;
    box.addEventListener("change", () => {
      entry.logarithmic = box.checked;
      draw(entry, extent());
    });
    label.append(box, "log scale");
    head.append(label);
  }
  figure.append(head);
  if (spec.note) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = spec.note;
    figure.append(note);
  }
  for (const series of spec.series) {
    if (!series.nonfinite) continue;
    const count = document.createElement("p");
    count.className = "bad-count";
    const name = data.runs.length > 1 ? `${data.runs[series.run].label}, ${series.label}` : series.label;
    const steps = `${series.nonfinite.toLocaleString("en")} logged step${series.nonfinite === 1 ? "" : "s"}`;
    count.textContent = `▼ ${name}: not finite at ${steps}`;
    figure.append(count);
  }
  chartGrid.append(figure);
  return entry;
}

/** The last row filled: three charts in a row, two or one in what is left over. */
function fillRows() {
  for (const large of [true, false]) {
    const group = figures.filter((entry) => entry.spec.large === large);
    if (group.length === 1) group[0].figure.classList.add("wide");
    const halves = large || group.length < 2 ? 0 : [0, 4, 2][group.length % 3];
    group.slice(group.length - halves).forEach((entry) => entry.figure.classList.add("half"));
  }
}

function draw(entry, span) {
  // What is zoomed to stays; a plot that was never painted has no range yet.
  const before = entry.plot?.scales.x.min != null && entry.axis === axis ? entry.plot.scales.x : null;
  const hidden = entry.plot ? entry.plot.series.filter((series) => !series.show).map((series) => series.label) : [];
  entry.plot?.destroy();
  entry.figure.querySelector(".bubble")?.remove();
  const style = getComputedStyle(entry.figure);
  const room = entry.figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const printing = root.classList.contains("printing");
  const narrow = innerWidth <= NARROW;
  entry.axis = axis;
  entry.plot = drawChart(entry.figure, entry.spec, {
    axis,
    tau: timeConstant(),
    role,
    visible,
    showEvents: showEvents.checked,
    logarithmic: entry.logarithmic,
    width: printing ? PRINTED_WIDTH : room,
    height: printing ? 190 : entry.spec.large ? (narrow ? 240 : 300) : 190,
    extent: span,
  }, data);
  entry.plot.series.forEach((series, place) => {
    if (place && hidden.includes(series.label)) entry.plot.setSeries(place, { show: false });
  });
  if (before && (before.min > span[0] || before.max < span[1])) {
    entry.plot.setScale("x", { min: before.min, max: before.max });
  }
}

function drawAll() {
  palette.clear();
  const tau = timeConstant();
  document.getElementById("smoothing-steps").textContent = tau ? `${compact(+tau.toPrecision(2))} steps` : "off";
  const span = extent();
  figures.forEach((entry) => draw(entry, span));
}

function press(buttons, wanted) {
  buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === wanted)));
}

function setTheme(theme) {
  root.dataset.theme = theme;
  const buttons = document.querySelectorAll("#theme button");
  press(buttons, [...buttons].find((button) => button.dataset.theme === theme));
}

function themeOfAddress() {
  const wanted = location.hash.slice(1);
  if (wanted === "light" || wanted === "dark") setTheme(wanted);
}

document.querySelectorAll("#theme button").forEach((button) => {
  button.addEventListener("click", () => {
    setTheme(button.dataset.theme);
    drawAll();
  });
});
addEventListener("hashchange", () => {
  themeOfAddress();
  drawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
themeOfAddress();

if (data.charts.length) {
  document.querySelectorAll(".controls, .hint").forEach((element) => (element.hidden = false));
  axisButtons.forEach((button) => {
    button.hidden = !data.axes.includes(button.dataset.axis);
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      press(axisButtons, button);
      drawAll();
    });
  });
  const kinds = data.charts.map((chart) => new Set(chart.series.map((series) => series.role)));
  document.getElementById("roles").hidden = data.runs.length === 1 || kinds.every((set) => set.size < 2);
  roleButtons.forEach((button) => {
    button.addEventListener("click", () => {
      role = button.dataset.role;
      press(roleButtons, button);
      drawAll();
    });
  });
  const chips = document.querySelectorAll("#chips button");
  chips.forEach((chip) => {
    const run = Number(chip.dataset.run);
    chip.addEventListener("click", () => {
      if (!visible.delete(run)) visible.add(run);
      if (!visible.size) data.runs.forEach((_, place) => visible.add(place)); // nothing to see: all come back
      chips.forEach((other) => other.setAttribute("aria-pressed", String(visible.has(Number(other.dataset.run)))));
      drawAll();
    });
  });
  showEvents.checked = data.runs.length === 1;
  let waiting = 0;
  smoothing.addEventListener("input", () => {
    cancelAnimationFrame(waiting); // a slider moves faster than many long curves are drawn
    waiting = requestAnimationFrame(drawAll);
  });
  showEvents.addEventListener("change", drawAll);
  document.getElementById("reset").addEventListener("click", () => {
    const [min, max] = extent();
    figures.forEach((entry) => entry.plot.setScale("x", { min, max }));
  });
  figures = data.charts.map(build);
  fillRows();
  drawAll();
  let width = chartGrid.clientWidth;
  new ResizeObserver(() => {
    if (chartGrid.clientWidth === width || root.classList.contains("printing")) return;
    width = chartGrid.clientWidth;
    drawAll();
  }).observe(chartGrid);
}

// Canvases do not reflow: paper gets its own drawing, in light colours, and folded parts are opened.
let folded = [];
addEventListener("beforeprint", () => {
  root.classList.add("printing");
  folded = [...document.querySelectorAll("details:not([open], .sample-step)")];
  folded.forEach((details) => (details.open = true));
  drawAll();
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  folded.forEach((details) => (details.open = false));
  drawAll();
});
