/* What was used of each resource over time, against what there is; under it, which of them binds. */

const CURVES = {
  sms: {title: "SMs in use", fill: 6, say: (value) => format.figure(value)},
  hbm: {title: "Device memory", fill: 5, say: (value) => format.rate(value, "B")},
  h2d: {title: "PCIe down", fill: 2, say: (value) => format.rate(value, "B")},
  d2h: {title: "PCIe up", fill: 0, say: (value) => format.rate(value, "B")},
};
const TRACK = 50; // CSS pixels of a curve
const SPACE = 8;
const BAND = 16;

/** A value over time that stays until the next time. */
class Curve {
  constructor({t, v}) {
    this.t = t;
    this.v = v;
    this.sum = new Float64Array(t.length);
    for (let k = 1; k < t.length; k++) this.sum[k] = this.sum[k - 1] + v[k - 1] * (t[k] - t[k - 1]);
    this.most = v.reduce((a, b) => Math.max(a, b), 0);
  }

  at(moment) {
    const k = first(this.t, moment + 1e-9) - 1;
    return k < 0 ? 0 : this.v[k];
  }

  /** The sum of value times time from the beginning to a moment. */
  until(moment) {
    const k = first(this.t, moment + 1e-9) - 1;
    return k < 0 ? 0 : this.sum[k] + this.v[k] * (moment - this.t[k]);
  }

  mean(from, to) {
    return (this.until(to) - this.until(from)) / (to - from);
  }

  /** Steps in sight as [left, right, value] in whole CSS pixels: every change, or the mean of a bin where they crowd. */
  *steps(sight) {
    const place = (moment) => Math.round((moment - sight.from) * sight.scale);
    const low = Math.max(first(this.t, sight.from) - 1, 0);
    const high = first(this.t, sight.to);
    if (high - low <= sight.width / BIN) {
      for (let k = low; k < high; k++) {
        const until = k + 1 < this.t.length ? place(this.t[k + 1]) : sight.width;
        yield [Math.max(place(this.t[k]), 0), Math.min(until, sight.width), this.v[k]];
      }
      return;
    }
    const bin = BIN / sight.scale;
    let at = Math.floor(sight.from / bin) * bin;
    let x = place(at);
    for (let before = this.until(at); at < sight.to; at += bin, x += BIN) {
      const after = this.until(at + bin);
      yield [x, x + BIN, (after - before) / bin];
      before = after;
    }
  }
}

/** What a curve is called: cores stand for SMs on a CPU. */
const curveTitle = (data, name) => (name === "sms" && data.device === "cpu" ? "Cores in use" : CURVES[name].title);

/** The tracks of a run: those of which something is known. */
function tracksOf(data) {
  return Object.keys(CURVES)
    .filter((name) => name in data.curves || name in (data.curves.plan ?? {}))
    .map((name, number) => {
      const [actual, plan] = [data.curves, data.curves.plan ?? {}].map((set) => (set[name] ? new Curve(set[name]) : null));
      const capacity = data.capacity[name];
      const most = Math.max(capacity, actual?.most ?? 0, plan?.most ?? 0) * 1.06 || 1;
      return {...CURVES[name], title: curveTitle(data, name), name, actual, plan, capacity, most, y: number * (TRACK + SPACE) + SPACE};
    });
}

const curvesHeight = (tracks) => tracks.length * (TRACK + SPACE) + SPACE;

function drawCurves(canvas, tracks, width) {
  const context = surface(canvas, width, curvesHeight(tracks));
  const sight = {from: time.from, to: time.to, scale: width / time.span(), width};
  context.fillStyle = color.css("--grid");
  for (const tick of ticks(sight)) {
    context.fillRect(Math.round((tick - sight.from) * sight.scale), 0, 1, curvesHeight(tracks));
  }
  for (const track of tracks) {
    const fill = color.nth(track.fill);
    const level = (value) => track.y + TRACK - (value / track.most) * TRACK;
    if (track.plan) {
      context.fillStyle = color.css("--muted");
      stairs(context, track.plan, sight, level, 1);
    }
    if (track.actual) {
      context.fillStyle = fill;
      context.globalAlpha = 0.25;
      for (const [left, right, value] of track.actual.steps(sight)) {
        const y = level(value);
        context.fillRect(left, y, right - left, track.y + TRACK - y);
      }
      context.globalAlpha = 1;
      stairs(context, track.actual, sight, level, 1.5);
    }
    if (track.capacity) {
      context.strokeStyle = color.css("--text");
      context.lineWidth = 1;
      context.setLineDash([6, 4]);
      context.beginPath();
      context.moveTo(0, Math.round(level(track.capacity)) + 0.5);
      context.lineTo(width, Math.round(level(track.capacity)) + 0.5);
      context.stroke();
    }
    context.setLineDash([]);
    context.fillStyle = color.css("--line");
    context.fillRect(0, track.y + TRACK, width, 1);
  }
}

/** The curve as a line of boxes, which are cheaper by far than a stroke with as many corners; a thin one stays thin. */
function stairs(context, curve, sight, level, thick) {
  let before = level(0);
  for (const [left, right, value] of curve.steps(sight)) {
    const y = level(value);
    if (right - left <= BIN && thick > 1) {
      context.fillRect(left, Math.min(y, before) - thick / 2, right - left, Math.abs(y - before) + thick);
    } else {
      if (right - left > BIN) context.fillRect(left, Math.min(y, before), 1, Math.abs(y - before));
      context.fillRect(left, y - thick / 2, right - left, thick);
    }
    before = y;
  }
}

/** The band: what binds at each time. */
function drawBand(canvas, data, width) {
  const context = surface(canvas, width, BAND);
  const {t, name} = data.roof;
  if (t.length < 2) return;
  const scale = width / time.span();
  for (let k = Math.max(first(t, time.from) - 1, 0); k < name.length && t[k] < time.to; ) {
    const left = Math.max((t[k] - time.from) * scale, 0);
    // Of those that share a pixel, the one at its end is seen.
    const next = Math.max(k + 1, first(t, t[k] + 1 / scale, k + 1) - 1);
    const at = next - 1;
    context.fillStyle = color.bound(data.text(name[at]));
    context.fillRect(left, 0, Math.min((t[at + 1] - time.from) * scale, width) - left, BAND);
    k = next;
  }
}
