// The curves of a chart out of the page's data.

const RUN_COLOURS = 6; // as in page.css; further runs take them again, dashed

/** Mean of what came before, weights falling by e every `tau` steps; `mean.count` values stand behind a point. */
function smoothed(mean, tau, geometric) {
  let sum = 0, weight = 0, before = mean.step[0];
  return mean.value.map((value, place) => {
    const decay = Math.exp(-(mean.step[place] - before) / tau);
    before = mean.step[place];
    sum = sum * decay + (geometric ? Math.log(value) : value) * mean.count[place];
    weight = weight * decay + mean.count[place];
    return geometric ? Math.exp(sum / weight) : sum / weight;
  });
}

/** uPlot wants x to ascend, which time does not where an evaluation came late. */
function ascending(xs, ys) {
  const order = xs.map((_, place) => place).sort((a, b) => xs[a] - xs[b]);
  return [order.map((place) => xs[place]), order.map((place) => ys[place])];
}

/** A curve with a hole where no attempt ran, which only the time axis can show. */
function withPauses([xs, ys], attempts, axis) {
  if (axis !== "seconds") return [xs, ys];
  const starts = attempts.slice(1).map((attempt) => attempt.first.seconds).filter((start) => start !== null);
  const whole = [[], []];
  xs.forEach((x, place) => {
    if (place && starts.some((start) => xs[place - 1] < start && start <= x)) {
      whole[0].push((xs[place - 1] + x) / 2);
      whole[1].push(null);
    }
    whole[0].push(x);
    whole[1].push(ys[place]);
  });
  return whole;
}

/** Whether a series is drawn: its run is switched on, and so is its kind where the chart has both kinds. */
function isDrawn(series, spec, state) {
  const both = spec.series.some((other) => other.role !== series.role);
  return state.visible.has(series.run) && (!both || state.role === "both" || state.role === series.role);
}

/** Places on the axis where a figure was not finite. */
function lostPlaces(spec, state) {
  return spec.series.filter((series) => isDrawn(series, spec, state))
    .flatMap((series) => (series[state.axis] ?? []).filter((_, place) => series.value[place] === null));
}

/** Colour, dashes and name of a series: by kind and dataset where the page has one run, by run where it has several. */
function lookOf(series, spec, data, evaluations) {
  const training = series.role === "train";
  if (data.runs.length === 1) {
    return { label: series.label, stroke: colour(training ? "train" : `eval-${evaluations % 4}`) };
  }
  const { label } = data.runs[series.run];
  const dash = series.run >= RUN_COLOURS ? [10, 3] : undefined;
  const stroke = colour(`run-${series.run % RUN_COLOURS}`);
  const alone = spec.series.filter((other) => other.run === series.run && other.role === "eval").length === 1;
  return { label: training ? label : `${label}, ${alone ? "validation" : series.label}`, stroke, dash };
}

/** The curves to draw: {label, table: [xs, ys], stroke, dash, width, faint, dots}. */
function curvesOf(spec, state, data) {
  const curves = [];
  const evaluations = new Map(); // of each run so far
  for (const series of spec.series) {
    const known = evaluations.get(series.run) ?? 0;
    if (series.role === "eval") evaluations.set(series.run, known + 1);
    if (!isDrawn(series, spec, state)) continue;
    const attempts = data.attempts.filter((attempt) => attempt.run === series.run);
    const tableOf = (xs, ys) => withPauses(ascending(xs, ys), attempts, state.axis);
    const positive = (value) => (state.logarithmic && value !== null && value <= 0 ? undefined : value);
    const look = lookOf(series, spec, data, known);
    const xs = series[state.axis];
    if (series.role === "eval") {
      const dash = data.runs.length > 1 ? [3, 3] : undefined;
      if (xs) curves.push({ ...look, dash, width: 1.75, dots: true, table: tableOf(xs, series.value.map(positive)) });
      continue;
    }
    const smooth = state.tau > 0 && series.mean && series.mean[state.axis] && series.mean.value.length > 2;
    // Noise of several runs over each other hides the curves: there it is drawn without smoothing only.
    if (xs && !(smooth && data.runs.length > 1)) {
      const faint = { label: "as logged", stroke: colour("train-faint"), width: 1, faint: true };
      curves.push({ ...(smooth ? faint : { ...look, width: 1.5 }), table: tableOf(xs, series.value.map(positive)) });
    }
    if (smooth) {
      const values = smoothed(series.mean, state.tau, spec.geometric).map(positive);
      curves.push({ ...look, width: 2, table: tableOf(series.mean[state.axis], values) });
    }
  }
  return curves;
}
