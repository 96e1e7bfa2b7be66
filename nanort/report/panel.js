/* The panel beside the views: the run as a whole, or the selected activity. */

const MOST_LISTED = 8;
const REASONS = {
  data: "its data", state: "state", resource: "a resource", after: "told to", need: "its data", stream: "its turn",
};

function showPanel(index) {
  const panel = document.getElementById("panel");
  panel.replaceChildren(...(index < 0 ? overview() : selection(index)));
  panel.scrollTop = 0;
}

/** A list of what is known: a word and its value; what is empty is left out. */
function facts(pairs) {
  const list = el("dl");
  for (const [word, value] of pairs) {
    if (value === "" || value === null || value === undefined) continue;
    list.append(el("dt", {text: word}), typeof value === "string" ? el("dd", {text: value}) : el("dd", {}, value));
  }
  return list;
}

/** A share as a bar with its figure. */
function meter(share, fill) {
  const bar = el("span", {class: "meter"}, el("span"));
  bar.firstChild.style.width = `${Math.min(100, 100 * share)}%`;
  bar.firstChild.style.backgroundColor = fill;
  return el("span", {class: "metered"}, bar, el("span", {class: "figure", text: format.percent(share)}));
}

function overview() {
  const {data} = app;
  const {utilization, limits} = data;
  const times = Object.entries(limits).sort((a, b) => b[1] - a[1]).map(([name, seconds]) => {
    const words = name === "serial" ? "one after the other" : `bound by ${name}`;
    return [words, format.ns(seconds * 1e9)];
  });
  const used = Object.keys(CURVES).filter((name) => name in utilization);
  const operators = data.operators.slice(0, 12).map((operator, position) =>
    el("li", {}, swatch(color.operator(position)), el("span", {class: "grow", text: format.name(data.text(operator.name), 60)}),
      el("span", {class: "figure", text: format.ns(operator.seconds * 1e9)})));
  const more = data.operators.length - operators.length;
  return [
    el("h2", {text: "The run"}),
    facts([
      ["times are", data.kind],
      ["device", format.name(data.device, 60)],
      ["activities", format.count(data.count)],
      ["not recorded", data.lost ? format.count(data.lost) : ""],
      ["makespan", format.ns(data.makespan_ns, 4)],
      ["planned", data.plan_ns === null ? "" : format.ns(data.plan_ns, 4)],
      ...times,
    ]),
    ...(data.failure ? [el("p", {class: "alarm", text: format.name(data.failure, 400)})] : []),
    ...(data.foreign ? [el("p", {class: "alarm", text: "Planned for another device: its times say nothing about this one."})] : []),
    ...(used.length ? [el("h3", {text: "Used of what there is"})] : []),
    facts(used.map((name) => [curveTitle(data, name), meter(utilization[name], color.nth(CURVES[name].fill))])),
    el("h3", {text: "Operators"}),
    el("ul", {class: "plain"}, ...operators),
    ...(more > 0 ? [el("p", {class: "muted", text: `and ${format.count(more)} more`})] : []),
    el("p", {class: "muted", text: "Select an activity to see what it is and what it waited for. Press ? for the keys."}),
  ];
}

function selection(index) {
  const {data} = app;
  const {columns} = data;
  const text = (name) => data.text(columns[name][index]);
  const {flops, hbm_bytes: hbm, h2d_bytes: down, d2h_bytes: up, sms, piece} = columns;
  const bound = text("bound");
  return [
    el("h2", {}, el("bdi", {text: format.name(data.name(index), 400)})),
    el("p", {class: "chips"},
      el("span", {class: "chip"}, swatch(color.operator(data.operatorAt[index])), format.name(text("operator"), 60)),
      bound ? el("span", {class: "chip"}, swatch(color.bound(bound)), `bound by ${format.name(bound, 30)}`) : null),
    times(index),
    facts([
      ["stream", format.name(text("stream"), 60)],
      [`${unitOf(data)}s`, sms[index] ? String(sms[index]) : "none"],
      ["nano-batch", String(piece[index])],
      ["labels", text("scope") && format.name(text("scope"))],
      ["shapes", text("shapes") && format.name(text("shapes"), 400)],
      ["kernel", text("kernel") && format.name(text("kernel"))],
      ["computes", flops[index] ? format.flops(flops[index]) : ""],
      ["device memory", hbm[index] ? format.bytes(hbm[index]) : ""],
      ["PCIe down", down[index] ? format.bytes(down[index]) : ""],
      ["PCIe up", up[index] ? format.bytes(up[index]) : ""],
      ["intensity", flops[index] && hbm[index] ? `${format.figure(flops[index] / hbm[index])} FLOP/byte` : ""],
      ["source", text("where") && el("code", {text: format.name(text("where"), 400)})],
    ]),
    ...waited(index),
    ...followers(index),
    el("p", {class: "actions"},
      el("button", {type: "button", text: "Show in the lanes", onclick: () => app.reveal(index)}),
      el("button", {type: "button", text: "Close", onclick: () => app.select(-1)})),
  ];
}

/** Planned beside actual. */
function times(index) {
  const {data} = app;
  const came = (value) => (value >= 0 ? format.ns(value, 6) : "never");
  const length = (from, to) => (from >= 0 && to >= 0 ? to - from : NaN);
  const actual = [data.start[index], data.end[index], length(data.start[index], data.end[index])];
  const alone = data.columns.alone_ns[index];
  const word = data.kind === "planned" ? "planned" : "actual";
  const rows = ["start", "end", "length"].map((name, k) => {
    const cells = [el("th", {scope: "row", text: name})];
    if (data.planStart) {
      const plan = [data.planStart[index], data.planEnd[index], length(data.planStart[index], data.planEnd[index])];
      const off = actual[k] >= 0 && plan[k] >= 0 ? actual[k] - plan[k] : NaN;
      cells.push(el("td", {class: "n", text: came(plan[k])}), el("td", {class: "n", text: came(actual[k])}));
      cells.push(el("td", {class: `n ${off > 0 ? "late" : ""}`, text: Number.isNaN(off) ? "" : `${off > 0 ? "+" : off < 0 ? "−" : "±"}${format.ns(Math.abs(off))}`}));
    } else {
      cells.push(el("td", {class: "n", text: came(actual[k])}));
    }
    return el("tr", {}, ...cells);
  });
  const heads = data.planStart ? ["", "planned", word, "off"] : ["", word];
  const table = el("table", {class: "times"},
    el("thead", {}, el("tr", {}, ...heads.map((head) => (head ? el("th", {scope: "col", class: "n", text: head}) : el("td"))))),
    el("tbody", {}, ...rows));
  const share = actual[2] > 0 && alone > 0 ? ` (${format.ratio(actual[2] / alone)} of that here)` : "";
  return el("div", {}, table, alone ? el("p", {class: "muted", text: `Alone on its ${unitOf(data)}s it is predicted to take ${format.ns(alone)}${share}.`}) : null);
}

/** What an activity waited for, the last to end first, and what its lane did meanwhile. */
function waited(index) {
  const {data} = app;
  const {layout} = stage;
  const start = data.start[index];
  const reasons = new Map([...(data.needsOf(index) ?? [])].map((one) => [one, "need"]));
  for (const [one, reason] of data.waitsOf(index)) reasons.set(one, reason);
  const row = layout.rows[layout.rowOf[index]];
  const before = row && start >= 0 ? row.index[row.index.indexOf(index) - 1] : undefined;
  if (before !== undefined && !reasons.has(before)) reasons.set(before, "stream");
  const blockers = [...reasons].sort(([a], [b]) => data.end[b] - data.end[a]);
  if (!blockers.length) return [el("h3", {text: "Waited for"}), el("p", {class: "muted", text: data.needs ? "Nothing: it could start at once." : "Nothing that the trace knows of."})];
  const items = blockers.slice(0, MOST_LISTED).map(([one, reason]) => {
    const away = start >= 0 && data.end[one] >= 0 ? start - data.end[one] : NaN;
    const when = Number.isNaN(away) ? "did not end" : away >= 0 ? `ended ${format.ns(away)} before` : `ended ${format.ns(-away)} after its start`;
    return linked(one, `${entry(REASONS, reason) ?? format.name(reason, 20)}, ${when}`);
  });
  return [el("h3", {text: "Waited for"}), el("p", {text: gap(start, before, blockers[0][0])}), el("ul", {class: "plain"}, ...items), rest(blockers.length)];
}

/** How long the lane stood still before an activity, and how much of that was waiting. */
function gap(start, before, last) {
  const {data} = app;
  if (start < 0) return "It never started.";
  const free = before === undefined ? 0 : Math.min(data.end[before], start);
  if (start <= free) return "It started as soon as its lane was free.";
  const until = Math.min(Math.max(data.end[last], free), start);
  const parts = [];
  if (until > free) parts.push(`${format.ns(until - free)} until ${format.name(data.name(last), 60)} had ended`);
  if (start > until) parts.push(`${format.ns(start - until)} until it was launched`);
  return `Its lane stood still for ${parts.join(", then ")}.`;
}

function followers(index) {
  const after = app.data.followersOf(index);
  if (!after.length) return [];
  const items = [...after.slice(0, MOST_LISTED)].map((one) => linked(one, format.name(app.data.text(app.data.columns.stream[one]), 30)));
  return [el("h3", {text: "Waited for it"}), el("ul", {class: "plain"}, ...items), rest(after.length)];
}

const rest = (count) => (count > MOST_LISTED ? el("p", {class: "muted", text: `and ${format.count(count - MOST_LISTED)} more`}) : el("span"));

/** An activity that can be gone to. */
function linked(index, words) {
  const name = format.name(app.data.name(index), 80);
  return el("li", {},
    el("button", {type: "button", class: "link", text: name, onclick: () => { app.select(index); keep(index); }}),
    el("span", {class: "muted", text: words}));
}
