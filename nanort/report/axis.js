/* The ruler above the lanes, and the map of the whole run above the ruler. */

const TICK = 96; // CSS pixels between two figures, at least
const RULER = 24;
const MAP = 40;
const UNITS = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];

/** The distance of ticks: 1, 2 or 5 times a power of ten of nanoseconds. */
function stepOf(sight) {
  const least = TICK / sight.scale;
  const power = 10 ** Math.floor(Math.log10(least));
  return Math.max(1, power * [1, 2, 5, 10].find((factor) => power * factor >= least));
}

/** The times of the ticks in sight. */
function* ticks(sight) {
  const step = stepOf(sight);
  const last = Math.min(sight.to, app.data.until);
  for (let k = Math.max(0, Math.ceil(sight.from / step)); k * step <= last; k++) yield k * step;
}

/** A moment with as many digits as tell it from the next tick. */
function moment(ns, step, largest) {
  const [size, unit] = UNITS.find(([least]) => largest >= least) ?? [1, "ns"];
  const places = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
  return `${(ns / size).toFixed(places)} ${unit}`;
}

function drawRuler(canvas, width) {
  const context = surface(canvas, width, RULER);
  const sight = {from: time.from, to: time.to, scale: width / time.span(), width};
  const step = stepOf(sight);
  context.font = FONT;
  context.textBaseline = "middle";
  for (const tick of ticks(sight)) {
    const x = Math.round((tick - sight.from) * sight.scale);
    context.fillStyle = color.css("--faint");
    context.fillRect(x, RULER - 6, 1, 6);
    context.fillStyle = color.css("--muted");
    const text = moment(tick, step, Math.min(sight.to, app.data.until));
    const half = wide(context, text) / 2;
    context.fillText(text, Math.min(Math.max(x - half, 1), width - 2 * half - 1), RULER / 2 - 2);
  }
}

const map = {picture: null, made: ""};

/** All lanes, small; the stretch in sight is light. */
function drawMap(canvas, layout, width) {
  const [from, to] = time.room();
  const whole = {from, to, scale: width / (to - from), width};
  const about = `${width} ${app.theme} ${paint.mode} ${paint.stamp} ${window.devicePixelRatio}`;
  if (map.made !== about) {
    map.picture ??= document.createElement("canvas");
    const context = surface(map.picture, width, MAP);
    const actual = layout.rows.filter((row) => !row.planned);
    const each = (MAP - 6) / Math.max(actual.length, 1);
    const brush = new Brush(context);
    actual.forEach((row, number) => drawRow(brush, row, 3 + number * each, Math.max(each - 1, 0.5), whole));
    map.made = about;
  }
  const context = surface(canvas, width, MAP);
  context.drawImage(map.picture, 0, 0, width, MAP);
  const [left, right] = [(time.from - from) * whole.scale, (time.to - from) * whole.scale];
  context.fillStyle = color.css("--shade");
  context.fillRect(0, 0, left, MAP);
  context.fillRect(right, 0, width - right, MAP);
  context.strokeStyle = color.css("--accent");
  context.lineWidth = 2;
  context.strokeRect(left + 1, 1, Math.max(right - left - 2, 2), MAP - 2);
  if (app.selected >= 0 && ran(app.selected)) {
    context.fillStyle = color.css("--text");
    context.fillRect((ran(app.selected)[0] - from) * whole.scale - 1, 0, 2, MAP);
  }
}
