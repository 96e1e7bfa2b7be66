/* The rows of the lanes: for each stream its plan above what became of it, in order of time for binary search. */

const ENGINES = {h2d: "PCIe down", d2h: "PCIe up"};
const SIZES = {few: {plan: 16, actual: 38, gap: 14}, some: {plan: 13, actual: 26, gap: 10}, many: {plan: 6, actual: 15, gap: 5}};
const HEADING = 22; // CSS pixels
const [FEW, MANY] = [3, 16]; // streams up to which rows are high, and from which on they are low

/** The first position from `low` on whose value is `least` or more. */
function first(values, least, low = 0) {
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Activities of one stream that follow each other without overlap. */
class Row {
  constructor(indices, begin, finish, planned) {
    this.planned = planned;
    this.index = Int32Array.from(indices);
    this.start = Float64Array.from(indices, (index) => begin[index]);
    this.end = Float64Array.from(indices, (index) => finish(index));
    this.busy = new Float64Array(indices.length + 1);
    for (let k = 0; k < indices.length; k++) this.busy[k + 1] = this.busy[k] + this.end[k] - this.start[k];
    this.hits = null;
  }

  /** Counts what a search found, so that a stretch can be asked whether anything in it was. */
  mark(flags) {
    this.hits = flags && new Int32Array(this.index.length + 1);
    if (flags) for (let k = 0; k < this.index.length; k++) this.hits[k + 1] = this.hits[k] + flags[this.index[k]];
  }

  /** The position of what runs at a moment, or of what is nearest within `slack`; -1 for nothing. */
  at(moment, slack) {
    const next = first(this.end, moment);
    let found = -1;
    let least = slack;
    for (const k of [next - 1, next, next + 1]) {
      if (k < 0 || k >= this.index.length) continue;
      const away = Math.max(this.start[k] - moment, moment - this.end[k], 0);
      if (away < least || (away === 0 && found < 0)) [found, least] = [k, away];
    }
    return found;
  }
}

/** Indices sorted by start, dealt to as few rows as it takes for none to overlap on its row. */
function dealt(indices, begin, finish) {
  for (let k = 1; k < indices.length; k++) {
    if (begin[indices[k]] < begin[indices[k - 1]]) {
      indices.sort((a, b) => begin[a] - begin[b] || finish(a) - finish(b) || a - b);
      break;
    }
  }
  const rows = [];
  const free = [];
  for (const index of indices) {
    let at = free.findIndex((until) => until <= begin[index]);
    if (at < 0) at = rows.push([]) - 1;
    rows[at].push(index);
    free[at] = finish(index);
  }
  return rows;
}

/** Lanes, headings and rows with their places in CSS pixels from the top. */
function arranged(data) {
  const size = SIZES[data.streams.length <= FEW ? "few" : data.streams.length < MANY ? "some" : "many"];
  const members = data.streams.map(() => []);
  for (let index = 0; index < data.count; index++) members[data.streamAt[index]].push(index);
  const layout = {lanes: [], headings: [], rows: [], rowOf: new Int32Array(data.count).fill(-1), height: 0, size};
  const finish = (index) => (data.end[index] >= 0 ? data.end[index] : data.makespan_ns);
  const planned = (index) => data.planEnd[index];
  const add = (lane, indices, begin, until, isPlan) => {
    for (const row of dealt(indices.filter((index) => begin[index] >= 0), begin, until)) {
      const made = new Row(row, begin, until, isPlan);
      Object.assign(made, {y: layout.height, height: isPlan ? size.plan : size.actual, lane});
      layout.height += made.height + 2;
      for (const index of row) if (!isPlan || layout.rowOf[index] < 0) layout.rowOf[index] = layout.rows.length;
      layout.rows.push(made);
      lane.rows.push(made);
    }
  };
  let group = null;
  data.streams.forEach((stream, position) => {
    const heading = titleOf(data, stream);
    if (heading !== group) {
      layout.headings.push({y: layout.height, text: heading});
      layout.height += HEADING;
      group = heading;
    }
    const lane = {name: data.text(stream.name), position, y: layout.height, rows: [], planHeight: 0};
    layout.height += size.gap / 2;
    if (data.planStart) add(lane, members[position], data.planStart, planned, true);
    lane.planHeight = layout.height - lane.y - size.gap / 2;
    add(lane, members[position], data.start, finish, false);
    if (lane.rows.every((row) => row.planned)) layout.height += size.actual;
    layout.height += size.gap / 2;
    lane.height = layout.height - lane.y;
    layout.lanes.push(lane);
  });
  return layout;
}

/** What stands above the lanes of a group. */
function titleOf(data, stream) {
  if (entry(ENGINES, data.text(stream.name))) return "Copy engines";
  const group = data.text(stream.group);
  if (!group) return "Streams";
  const sms = Math.max(...data.streams.filter((one) => one.group === stream.group).map((one) => one.sms));
  const one = data.device === "cpu" ? "Group" : "SM group";
  return `${group === "whole" ? "Whole device" : `${one} ${format.name(group, 40)}`} · ${unitsOf(data, sms)}`;
}

/** What groups of this device are made of. */
const unitOf = (data) => (data.device === "cpu" ? "core" : "SM");

const unitsOf = (data, count) => `${count} ${unitOf(data)}${count === 1 ? "" : "s"}`;
