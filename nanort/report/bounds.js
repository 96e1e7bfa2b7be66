/* Bounds: how far the makespan is from what no schedule can beat, and from what was planned. */

{
  const MOST_ROWS = 500; // more than a person reads

  const build = (root, data) => {
    const makespan = data.makespan_ns;
    const {serial, ...lower} = data.limits;
    const bounds = Object.entries(lower).map(([name, seconds]) => ({name, ns: seconds * 1e9, kind: "bound"})).sort((a, b) => a.ns - b.ns);
    const nearest = bounds[bounds.length - 1];
    const stopped = data.end.some((end) => end < 0);
    const planned = data.plan_ns ?? 0;
    const rows = [...bounds, {name: data.kind === "planned" ? "this plan" : "this run", ns: makespan, kind: "run"}];
    if (planned) rows.push({name: "its plan", ns: planned, kind: "plan"});
    if (serial) rows.push({name: "one operator after the other", ns: serial * 1e9, kind: "serial"});
    rows.sort((a, b) => a.ns - b.ns);
    const facts = [fact("Makespan", format.ns(makespan, 4))];
    const held = (name, figure, more) => facts.push(fact(name, stopped ? "–" : figure, stopped ? "the run stopped" : more));
    if (nearest) held("Above the least possible", change(part(makespan - nearest.ns, nearest.ns)), `${nearest.name}: ${format.ns(nearest.ns)}`);
    if (serial && makespan) held("As fast as serial", format.ratio((serial * 1e9) / makespan), format.ns(serial * 1e9));
    if (planned) held("Against its plan", data.foreign ? "–" : change(part(makespan - planned, planned)), data.foreign ? "made for another device" : format.ns(planned));
    root.append(el("div", {class: "cards"}, ...facts), gauge(rows, nearest, makespan));
    if (!bounds.length) root.append(nothing("This timeline came without bounds: a schedule's, and those of the runs of its program, have them."));
    root.append(el("h3", {text: "Plan against actual"}));
    if (data.foreign) root.append(nothing("The plan was made for another device: its times say nothing about this run."));
    if (!data.planStart) root.append(nothing("This timeline came without a plan to hold it against."));
    else root.append(operators(data), activities(data));
    return undefined;
  };

  const COLOR = {bound: () => color.css("--faint"), run: () => color.css("--accent"), plan: () => color.css("--muted"), serial: () => color.css("--muted")};

  /** Every time as a bar from zero; a line marks the bound that is nearest to the makespan. */
  const gauge = (rows, nearest, makespan) => {
    const most = rows.reduce((longest, row) => Math.max(longest, row.ns), 1);
    const lines = rows.map((row) => {
      const bar = barred(row.ns / most, COLOR[row.kind]);
      if (nearest) {
        const mark = el("span", {class: "mark"});
        mark.style.left = `${(100 * nearest.ns) / most}%`;
        bar.append(mark);
      }
      return el("tr", {class: row.kind}, el("th", {scope: "row", text: row.name}), el("td", {class: "wide"}, bar),
        el("td", {class: "n", text: format.ns(row.ns, 4)}),
        el("td", {class: "n muted", text: row.kind === "run" ? "" : `${format.ratio(part(row.ns, makespan))}`}));
    });
    return el("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": "Makespan and bounds"},
      el("table", {class: "gauge"}, el("caption", {text: "No schedule can beat a bound"}),
        el("thead", {}, el("tr", {}, el("th", {scope: "col", text: "time of"}), el("th", {scope: "col"}), el("th", {scope: "col", class: "n", text: "time"}),
          el("th", {scope: "col", class: "n", text: "of the makespan"}))), el("tbody", {}, ...lines)));
  };

  const columns = (first, widest) => [
    first,
    {title: "planned", by: (row) => row.planned, cell: (row) => format.ns(row.planned)},
    {title: "actual", by: (row) => row.actual, cell: (row) => format.ns(row.actual)},
    {title: "difference", by: (row) => row.actual - row.planned, cell: (row) => signed(row.actual - row.planned)},
    {title: "", wide: true, cell: (row) => swing(part(row.actual - row.planned, widest))},
    {title: "ratio", by: (row) => part(row.actual, row.planned), cell: (row) => (row.planned ? format.ratio(row.actual / row.planned) : "–")},
  ];

  const widest = (rows) => rows.reduce((most, row) => Math.max(most, Math.abs(row.actual - row.planned)), 0);
  const worst = (a, b) => Math.abs(b.actual - b.planned) - Math.abs(a.actual - a.planned);

  /** Seconds of each operator, of the launches that both have. */
  const operators = (data) => {
    const rows = data.operators.map((operator) => ({name: data.text(operator.name), planned: 0, actual: 0}));
    for (let index = 0; index < data.count; index++) {
      if (data.end[index] < 0 || data.planEnd[index] < 0) continue;
      const row = rows[data.operatorAt[index]];
      row.planned += data.planEnd[index] - data.planStart[index];
      row.actual += data.end[index] - data.start[index];
    }
    rows.sort(worst);
    return sortable("By operator, worst first", columns({title: "operator", by: (row) => row.name, cell: (row) => operatorKey(data, row.name)}, widest(rows)), rows);
  };

  /** Each launch by itself: those of one name, such as a step's in every step, are not added up. */
  const activities = (data) => {
    const rows = [];
    for (let index = 0; index < data.count; index++) {
      if (data.end[index] < 0 || data.planEnd[index] < 0) continue;
      rows.push({index, planned: data.planEnd[index] - data.planStart[index], actual: data.end[index] - data.start[index]});
    }
    const most = rows.sort(worst).slice(0, MOST_ROWS);
    const first = {title: "launch", by: (row) => data.name(row.index), cell: (row) => toLanes(data, row.index)};
    return sortable("By launch, worst first", columns(first, widest(most)), most, {most: 20});
  };

  views.push({id: "bounds", title: "Bounds", build});
}
