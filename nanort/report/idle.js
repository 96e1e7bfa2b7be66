/* Idle time: what each lane waits for while it runs nothing. */

{
  const ABOUT = {
    dependency: "its next launch waits for one of its needs, which runs",
    resource: "its needs have ended; it waits for an order that only resources ask for",
    "launch gap": "all that it waits for has ended, and it has not started",
    "copy queue": "it waits for a copy, or for a copy engine",
    unfinished: "something began whose end is not known",
    "nothing left": "after its last launch",
  };
  const COLOR = {dependency: 1, resource: 3, "launch gap": 7, "copy queue": 2, unfinished: 5}; // of the palette

  const mix = (cause) => () => (cause in COLOR ? color.nth(COLOR[cause]) : color.css("--line"));
  const busy = () => color.css("--accent");

  const build = (root, data) => {
    const {lanes} = data.idle;
    if (!lanes.length) return void root.append(nothing("No lane was used."));
    const sum = (cause) => lanes.reduce((all, [, lane]) => all + (lane[cause] ?? 0), 0);
    const all = data.makespan_ns * lanes.length;
    const causes = data.idle.causes.filter((cause) => sum(cause) > 0).sort((a, b) => sum(b) - sum(a));
    const idle = causes.reduce((total, cause) => total + sum(cause), 0);
    root.append(
      el("p", {class: "muted", text: "Every nanosecond in which a lane runs nothing has one cause. Busy and idle time add up to the makespan on each lane, exactly."}),
      ...(data.unknown ? [el("p", {class: "muted", text: data.unknown})] : []),
      el("div", {class: "cards"},
        fact("Idle, all lanes", format.percent(part(idle, all)), `${format.ns(idle)} of ${format.ns(all)}`),
        ...causes.slice(0, 3).map((cause) => fact(cause, format.percent(part(sum(cause), all)), format.ns(sum(cause))))),
      el("ul", {class: "legend"}, el("li", {}, key("busy", busy)),
        ...causes.map((cause) => el("li", {}, key(cause, mix(cause)), el("span", {class: "muted", text: ABOUT[cause] ?? ""})))),
    );
    const waited = (lane) => causes.reduce((total, cause) => total + (lane[cause] ?? 0), 0);
    const rows = lanes.map(([name, lane]) => ({name, lane, ns: waited(lane), all: data.makespan_ns}));
    if (rows.length > 1) rows.push({name: null, lane: Object.fromEntries(causes.map((cause) => [cause, sum(cause)])), ns: idle, all});
    const share = (row, cause) => part(row.lane[cause] ?? 0, row.all);
    root.append(sortable("By lane", [
      {title: "lane", by: (row) => row.name ?? "", cell: (row) => (row.name === null ? el("strong", {text: "all lanes"}) : bdi(row.name))},
      {title: "time", wide: true, cell: (row) => stacked([
        [`busy ${format.ns(row.all - row.ns)}`, 1 - part(row.ns, row.all), busy],
        ...causes.map((cause) => [`${cause} ${format.ns(row.lane[cause] ?? 0)}`, share(row, cause), mix(cause)])])},
      {title: "busy", by: (row) => 1 - part(row.ns, row.all), cell: (row) => format.percent(1 - part(row.ns, row.all))},
      ...causes.map((cause) => ({title: cause, by: (row) => row.lane[cause] ?? 0, cell: (row) => figure(row.lane[cause] ?? 0, share(row, cause))})),
    ], rows));
    return undefined;
  };

  const figure = (ns, share) => (ns ? el("span", {title: format.ns(ns, 6)}, format.ns(ns), " ", el("span", {class: "muted", text: format.percent(share)})) : "");

  views.push({id: "idle", title: "Idle time", build});
}
