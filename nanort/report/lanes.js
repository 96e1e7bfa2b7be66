/* Drawing lanes: boxes where there is room, and where there is none, what ran in each small bin of time. */

const BIN = 2; // CSS pixels that short activities share
const WIDE = 2; // CSS pixels from which on an activity has a box of its own
const LABEL = 26; // CSS pixels from which on a box carries text
const FONT = '500 11px "Inter", system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

/* How activities are coloured: a small number each, and a colour for each number; flags are what a search found. */
const paint = {mode: "operator", codes: new Uint16Array(0), fills: [], flags: null, stamp: 0};

/** Colours every activity anew. */
function mix() {
  const {data} = app;
  const {piece, layer, bound} = data.columns;
  paint.fills = [];
  const known = new Map();
  const code = (key, make) => {
    if (!known.has(key)) {
      known.set(key, paint.fills.length);
      paint.fills.push(make());
    }
    return known.get(key);
  };
  const modes = {
    operator: (index) => code(data.operatorAt[index], () => color.operator(data.operatorAt[index])),
    bound: (index) => code(bound[index], () => color.bound(data.text(bound[index]))),
    piece(index) {
      const step = layer[index] < 0 ? 0 : layer[index] % 3;
      return code(piece[index] * 3 + step, () => color.shade(color.piece(piece[index]), step * 1.1));
    },
  };
  paint.codes = Uint16Array.from({length: data.count}, (_, index) => modes[paint.mode](index));
}

/** Boxes of one colour that touch, drawn as one. */
class Brush {
  constructor(context) {
    this.context = context;
    this.code = -1;
    this.alpha = -1;
    this.left = this.right = this.top = this.height = 0;
  }

  box(left, right, top, height, code, alpha) {
    if (code === this.code && alpha === this.alpha && top === this.top && left - this.right < 0.05 && left >= this.left) {
      this.right = Math.max(this.right, right);
      return;
    }
    this.flush();
    Object.assign(this, {code, alpha, left, right, top, height});
  }

  flush() {
    if (this.right <= this.left) return;
    const {context} = this;
    const fill = paint.fills[this.code];
    if (context.fillStyle !== fill) context.fillStyle = fill;
    if (context.globalAlpha !== this.alpha) context.globalAlpha = this.alpha;
    context.fillRect(this.left, this.top, this.right - this.left, this.height);
    this.left = this.right = 0;
  }
}

/** Draws what a row has within `sight` ({from, to, scale}), and gives back the boxes that have room for a name. */
function drawRow(brush, row, top, height, sight, strength = 1) {
  const {start, end, index, busy, hits} = row;
  const {from, to, scale} = sight;
  const bin = BIN / scale;
  const {codes, flags} = paint;
  const roomy = [];
  for (let k = first(end, from); k < index.length && start[k] < to; ) {
    const left = (start[k] - from) * scale;
    const right = (end[k] - from) * scale;
    if (right - left >= WIDE) {
      const alpha = strength * (flags && !flags[index[k]] ? 0.18 : 1);
      const [seen, until] = [Math.max(left, -8), Math.min(right, sight.width + 8)];
      brush.box(seen, until - (right - left > 4 ? 1 : 0.5), top, height, codes[index[k]], alpha);
      if (until - seen >= LABEL) roomy.push(k);
      k++;
      continue;
    }
    const edge = (Math.floor(start[k] / bin) + 1) * bin;
    let next = first(start, edge, k + 1);
    if (next - k > 1 && (end[next - 1] - start[next - 1]) * scale >= WIDE) next--;
    const share = (busy[next] - busy[k]) / bin;
    const found = !hits || hits[next] > hits[k];
    const alpha = strength * (0.4 + 0.15 * Math.ceil(4 * Math.min(share, 1))) * (found ? 1 : 0.18);
    const x = next - k === 1 ? left : (edge - bin - from) * scale;
    brush.box(x, Math.max(x + 0.75, next - k === 1 ? right : x + BIN), top, height, codes[index[(k + next - 1) >> 1]], alpha);
    k = next;
  }
  brush.flush();
  brush.context.globalAlpha = 1;
  return roomy;
}

/** Draws what `scroll` has of the lanes: a canvas as high as all of them may be higher than a browser can make. */
function drawLanes(canvas, layout, width, scroll) {
  const context = surface(canvas, width, scroll.bottom - scroll.top);
  context.translate(0, -scroll.top);
  const sight = {from: time.from, to: time.to, scale: width / time.span(), width};
  context.font = FONT;
  context.textBaseline = "middle";
  drawGround(context, layout, sight);
  const brush = new Brush(context);
  for (const row of layout.rows) {
    if (row.y + row.height < scroll.top || row.y > scroll.bottom) continue;
    const roomy = drawRow(brush, row, row.y, row.height, sight, row.planned ? 0.62 : 1);
    if (row.height > 12) for (const k of roomy) label(context, row, k, sight);
    if (!row.planned) unfinished(context, row, sight);
  }
  outline(context, layout, sight, app.selected, color.css("--text"));
  drawArrows(context, layout, sight);
}

/** What lies under the lanes: stripes, and where the run ended. */
function drawGround(context, layout, sight) {
  layout.lanes.forEach((lane, number) => {
    context.fillStyle = color.css(number % 2 ? "--stripe" : "--panel");
    context.fillRect(0, lane.y, sight.width, lane.height);
  });
  context.fillStyle = color.css("--line");
  for (const heading of layout.headings) context.fillRect(0, heading.y + HEADING - 1, sight.width, 1);
  context.fillStyle = color.css("--grid");
  for (const tick of ticks(sight)) context.fillRect(Math.round((tick - sight.from) * sight.scale), 0, 1, layout.height);
}

const widths = new Map(); // of texts in FONT, in CSS pixels

function wide(context, text) {
  if (!widths.has(text)) widths.set(text, context.measureText(text).width);
  return widths.get(text);
}

/** Writes a name into its box: whole, or without what leads to it, or cut. */
function label(context, row, k, sight) {
  const index = row.index[k];
  const left = Math.max((row.start[k] - sight.from) * sight.scale, 0) + 4;
  const room = Math.min((row.end[k] - sight.from) * sight.scale, sight.width) - left - 4;
  const text = format.name(app.data.name(index), 80);
  const short = text.replace(/^.*\.(?=\D)/, "");
  let shown = [text, short].find((one) => wide(context, one) <= room);
  if (!shown) {
    const letters = Math.floor(room / (wide(context, short) / short.length)) - 1;
    if (letters < 2) return;
    shown = `${short.slice(0, letters)}…`;
  }
  context.globalAlpha = paint.flags && !paint.flags[index] ? 0.3 : 1;
  context.fillStyle = row.planned ? color.css("--text") : color.on(paint.fills[paint.codes[index]]);
  context.save();
  context.beginPath();
  context.rect(left - 4, row.y, room + 8, row.height);
  context.clip();
  context.fillText(shown, left, row.y + row.height / 2 + 0.5);
  context.restore();
  context.globalAlpha = 1;
}

/** Stripes over what began and never ended. */
function unfinished(context, row, sight) {
  const {data} = app;
  const last = row.index.length - 1;
  for (let k = last; k >= 0 && row.end[k] >= data.makespan_ns; k--) {
    if (data.end[row.index[k]] >= 0) continue;
    const left = Math.max((row.start[k] - sight.from) * sight.scale, 0);
    const right = Math.min((row.end[k] - sight.from) * sight.scale, sight.width);
    context.save();
    context.beginPath();
    context.rect(left, row.y, right - left, row.height);
    context.clip();
    context.strokeStyle = color.css("--bad");
    context.lineWidth = 3;
    context.beginPath();
    for (let x = left - row.height; x < right; x += 9) {
      context.moveTo(x, row.y + row.height);
      context.lineTo(x + row.height, row.y);
    }
    context.stroke();
    context.restore();
  }
}

/** A frame round an activity, in its plan too. */
function outline(context, layout, sight, chosen, stroke) {
  if (chosen < 0) return;
  const {data} = app;
  for (const row of layout.lanes[data.streamAt[chosen]].rows) {
    const k = row.index.indexOf(chosen);
    if (k < 0) continue;
    const left = (row.start[k] - sight.from) * sight.scale;
    const right = Math.max((row.end[k] - sight.from) * sight.scale, left + 2);
    if (right < 0 || left > sight.width) continue;
    context.strokeStyle = stroke;
    context.lineWidth = row.planned ? 1.5 : 2;
    context.strokeRect(Math.max(left, -4) - 0.5, row.y - 0.5, Math.min(right, sight.width + 4) - Math.max(left, -4), row.height + 1);
  }
}
