/* The data of the page: columns as typed arrays, names by index, edges by activity. */

const ARRAYS = {
  u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, i32: Int32Array, f32: Float32Array, f64: Float64Array,
};

/** A column: little-endian numbers in base64, or one number for all rows. */
function typed(column) {
  if ("same" in column) return new Float64Array(column.count).fill(column.same);
  const letters = atob(column.base64);
  const bytes = new Uint8Array(letters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = letters.charCodeAt(k);
  return new ARRAYS[column.type](bytes.buffer);
}

/** What the page knows of the run; every time is in nanoseconds, -1 for one that never came. */
function decoded(json) {
  const data = JSON.parse(json);
  const columns = data.columns;
  for (const name of Object.keys(columns)) columns[name] = typed(columns[name]);
  for (const name of ["needs", "needs_at", "waits", "waits_at", "waits_reason"]) {
    if (data[name] !== null) data[name] = typed(data[name]);
  }
  const curves = [data.curves, data.curves.plan ?? {}].flatMap((set) => Object.values(set).filter((curve) => curve.t));
  for (const curve of curves) Object.assign(curve, {t: typed(curve.t), v: typed(curve.v)});
  Object.assign(data.roof, {t: typed(data.roof.t), name: typed(data.roof.name)});
  data.count = columns.start.length;
  data.start = columns.start;
  data.end = columns.end;
  data.planStart = columns.plan_start ?? null;
  data.planEnd = columns.plan_end ?? null;
  data.until = data.planEnd ? data.planEnd.reduce((a, b) => Math.max(a, b), data.makespan_ns) : data.makespan_ns;
  data.text = (index) => data.strings[index];
  data.name = (index) => data.strings[columns.name[index]];
  data.operatorAt = positions(columns.operator, data.operators.map((operator) => operator.name));
  data.streamAt = positions(columns.stream, data.streams.map((stream) => stream.name));
  data.needsOf = (index) =>
    data.needs === null ? null : data.needs.subarray(data.needs_at[index], data.needs_at[index + 1]);
  data.waitsOf = (index) => {
    const found = [];
    for (let at = data.waits_at[index]; at < data.waits_at[index + 1]; at++) {
      found.push([data.waits[at], data.text(data.waits_reason[at])]);
    }
    return found;
  };
  let followers = null;
  data.followersOf = (index) => {
    followers ??= inverted(data);
    return followers.to.subarray(followers.at[index], followers.at[index + 1]);
  };
  return data;
}

/** For each row, where the string that it holds stands in a list of strings. */
function positions(column, listed) {
  const place = new Map(listed.map((string, position) => [string, position]));
  return Int32Array.from(column, (string) => place.get(string));
}

/** Every edge the other way round: which activities need or wait for each one. */
function inverted(data) {
  const pairs = [];
  for (let index = 0; index < data.count; index++) {
    const before = new Set(data.needsOf(index) ?? []);
    for (const [waited] of data.waitsOf(index)) before.add(waited);
    for (const one of before) pairs.push(one, index);
  }
  const at = new Int32Array(data.count + 1);
  for (let k = 0; k < pairs.length; k += 2) at[pairs[k] + 1]++;
  for (let k = 0; k < data.count; k++) at[k + 1] += at[k];
  const to = new Int32Array(pairs.length / 2);
  const next = at.slice();
  for (let k = 0; k < pairs.length; k += 2) to[next[pairs[k]]++] = pairs[k + 1];
  return {at, to};
}
