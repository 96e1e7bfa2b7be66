/* Arrows of the selected activity: from what it waited for, and to what waited for it. */

const MOST_ARROWS = 60;

function drawArrows(context, layout, sight) {
  const {data, selected} = app;
  if (selected < 0 || layout.rowOf[selected] < 0) return;
  const waits = data.waitsOf(selected);
  const awaited = new Set(waits.map(([index]) => index));
  const others = [...(data.needsOf(selected) ?? [])].filter((index) => !awaited.has(index));
  for (const index of others.slice(0, MOST_ARROWS)) arrow(context, layout, sight, index, selected, "--muted", [3, 3]);
  for (const index of data.followersOf(selected).slice(0, MOST_ARROWS)) {
    arrow(context, layout, sight, selected, index, "--after", []);
  }
  for (const [index] of waits.slice(0, MOST_ARROWS)) arrow(context, layout, sight, index, selected, "--before", []);
}

/** A curve from the end of one activity to the start of another. */
function arrow(context, layout, sight, source, target, variable, dashes) {
  const [from, to] = [ran(source), ran(target)];
  if (!from || !to || layout.rowOf[source] < 0 || layout.rowOf[target] < 0) return;
  const middle = (index) => layout.rows[layout.rowOf[index]].y + layout.rows[layout.rowOf[index]].height / 2;
  const clamp = (x) => Math.min(Math.max(x, -4000), sight.width + 4000);
  const [x0, y0] = [clamp((from[1] - sight.from) * sight.scale), middle(source)];
  const [x1, y1] = [clamp((to[0] - sight.from) * sight.scale), middle(target)];
  if (Math.max(x0, x1) < 0 || Math.min(x0, x1) > sight.width) return;
  const bend = Math.max(24, Math.min(90, Math.abs(x1 - x0) / 2));
  const tip = x1 - 6;
  context.save();
  context.setLineDash(dashes);
  for (const [width, stroke] of [[4.5, "--panel"], [2, variable]]) {
    context.lineWidth = width;
    context.strokeStyle = color.css(stroke);
    context.beginPath();
    context.moveTo(x0, y0);
    context.bezierCurveTo(x0 + bend, y0, tip - bend, y1, tip, y1);
    context.stroke();
  }
  context.setLineDash([]);
  context.fillStyle = color.css(variable);
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x1 - 8, y1 - 4.5);
  context.lineTo(x1 - 8, y1 + 4.5);
  context.fill();
  context.beginPath();
  context.arc(x0, y0, 3, 0, 7);
  context.fill();
  context.restore();
}
