// What is drawn around the curves: attempts, events, levels, lost numbers. Needs uPlot.

const MARK_REACH = 6; // CSS pixels between pointer and event mark that still count as a hit

/** Shades every second attempt and numbers them, above the plot where no curve runs. */
function drawAttempts(plot, attempts, axis) {
  const { ctx } = plot, { left, top, width, height } = plot.bbox, ratio = uPlot.pxRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, 0, width, top + height);
  ctx.clip();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left"; // uPlot leaves its own alignment behind
  ctx.textBaseline = "alphabetic";
  attempts.forEach((band, place) => {
    if (band.first[axis] === null) return;
    // Steps and tokens leave no room between attempts; only on the time axis there are gaps to see.
    const next = attempts[place + 1];
    const end = axis === "seconds" || !next ? band.last[axis] : next.first[axis];
    const from = plot.valToPos(band.first[axis], "x", true), to = plot.valToPos(end, "x", true);
    ctx.fillStyle = colour("band");
    if (place % 2) ctx.fillRect(from, top, to - from, height);
    ctx.fillStyle = colour("faint");
    const text = `attempt ${band.attempt}`;
    const start = Math.max(from, left);
    if (Math.min(to, left + width) - start > ctx.measureText(text).width + 8 * ratio) ctx.fillText(text, start, top - 6 * ratio);
  });
  ctx.restore();
}

/** Events as lines on the axis (saved checkpoints as ticks), levels as labelled lines, lost numbers as triangles. */
function drawMarks(plot, levels, state, events, lost) {
  const { ctx } = plot, { left, top, width, height } = plot.bbox, ratio = uPlot.pxRatio, bottom = top + height;
  const visible = (x) => x >= left - 1 && x <= left + width + 1;
  ctx.save();
  ctx.lineWidth = ratio;
  for (const event of events) {
    const x = Math.round(plot.valToPos(event[state.axis], "x", true));
    if (!visible(x)) continue;
    // Between several runs the line says whose event it is, the dot how grave it is.
    ctx.strokeStyle = colour(state.visible.size > 1 ? `run-${event.run % RUN_COLOURS}` : event.tone);
    ctx.fillStyle = colour(event.tone);
    ctx.setLineDash(event.tone === "tick" ? [] : [4 * ratio, 3 * ratio]);
    ctx.globalAlpha = event.tone === "calm" ? 0.6 : 1;
    ctx.beginPath();
    ctx.moveTo(x, event.tone === "tick" ? bottom - 7 * ratio : top);
    ctx.lineTo(x, bottom);
    ctx.stroke();
    if (event.tone === "tick") continue;
    ctx.beginPath();
    ctx.arc(x, bottom, 3.5 * ratio, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.globalAlpha = 1;
  for (const level of levels) {
    const y = Math.round(plot.valToPos(level.value, "y", true));
    if (y < top || y > bottom) continue;
    ctx.strokeStyle = ctx.fillStyle = colour("level");
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
    ctx.font = `${11.5 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "left"; // where a curve that falls to the level is still far above it
    ctx.textBaseline = "alphabetic";
    ctx.setLineDash([]);
    ctx.lineWidth = 4 * ratio;
    ctx.lineJoin = "round";
    ctx.strokeStyle = colour("surface"); // a halo, so that curves behind the words do not cross them
    const words = [`${level.label}: ${compact(level.value)}`, left + 6 * ratio, y - 6 * ratio];
    ctx.strokeText(...words);
    ctx.fillText(...words);
  }
  ctx.fillStyle = colour("bad");
  for (const place of lost) {
    const x = plot.valToPos(place, "x", true);
    if (!visible(x)) continue;
    ctx.beginPath();
    ctx.moveTo(x - 5 * ratio, top);
    ctx.lineTo(x + 5 * ratio, top);
    ctx.lineTo(x, top + 8 * ratio);
    ctx.fill();
  }
  ctx.restore();
}

/** Shows what happened at the mark under the pointer. */
function explainMarks(plot, figure, state, events, lost, runs) {
  const bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.hidden = true;
  figure.append(bubble);
  plot.over.addEventListener("mouseleave", () => (bubble.hidden = true));
  plot.over.addEventListener("mousemove", (pointer) => {
    const near = (x) => Math.abs(plot.valToPos(x, "x") - pointer.offsetX) <= MARK_REACH;
    const lines = events.filter((event) => near(event[state.axis])).map((event) => {
      const whose = runs.length > 1 ? `${runs[event.run].label}: ` : "";
      return [`${whose}${event.title} · ${placeText(state.axis, event[state.axis])}`, event.detail];
    });
    if (pointer.offsetY < 12) {
      const place = lost.find(near);
      if (place !== undefined) lines.push([`not finite · ${placeText(state.axis, place)}`, ""]);
    }
    bubble.hidden = !lines.length;
    if (!lines.length) return;
    bubble.replaceChildren(...lines.slice(0, 4).flatMap(([head, text]) => {
      const bold = document.createElement("b");
      bold.textContent = head;
      return [bold, text];
    }));
    const room = figure.clientWidth - bubble.offsetWidth - 8;
    const edge = plot.over.getBoundingClientRect().left - figure.getBoundingClientRect().left;
    bubble.style.left = `${Math.max(8, Math.min(room, edge + pointer.offsetX + 14))}px`;
    bubble.style.top = `${plot.root.offsetTop + 18}px`;
  });
}
