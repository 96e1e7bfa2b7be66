/* The difference between this run and another one, matched by the names of nodes. */

{
  const build = (root, data) => {
    const {diff} = data;
    if (!diff) {
      root.append(nothing("No other run was given: “nanort trace view a.json --diff b.json” shows here how a run differs from another, “nanort trace diff a.json b.json” prints it."));
      return undefined;
    }
    const delta = data.makespan_ns - diff.makespan_ns;
    root.append(
      el("p", {class: "muted"}, "This run against ", bdi(diff.title), ": what is negative is faster here."),
      el("div", {class: "cards"},
        fact("This run", format.ns(data.makespan_ns, 4)),
        fact("The other run", format.ns(diff.makespan_ns, 4)),
        fact("Difference", change(part(delta, diff.makespan_ns)), signed(delta))),
    );
    const others = [diff.moved, diff.missing, diff.extra];
    if (!delta && !diff.shifted && !diff.operators.length && others.every(({count}) => !count)) {
      root.append(nothing("No difference: both ran the same launches in the same places, at the same times."));
      return undefined;
    }
    root.append(
      table("What the difference is made of: time on the critical path", diff.path, "operator", ([name]) => operatorKey(data, name)),
      table("By operator", diff.operators, "operator", ([name]) => operatorKey(data, name)),
      table("By lane, busy time", diff.lanes, "lane", ([name]) => bdi(name)),
      table("By launch, the most different first", diff.rows, "launch", ([name]) => bdi(name)),
      el("h3", {text: "Launches"}),
      el("p", {class: "muted", text: `${format.count(diff.shifted)} ran at another time.`}),
      ...others.map(({count, names}, at) => named(PLACES[at], count, names)),
    );
    return undefined;
  };

  const PLACES = ["on another lane, or with other SMs", "only in this run", "only in the other run"];
  const NAMES = 60;

  /** Names in a fold; nothing where there are none. */
  const named = (words, count, names) => count ? el("details", {class: "card names"},
    el("summary", {text: `${format.count(count)} ${words}`}),
    el("ul", {}, ...names.slice(0, NAMES).map((name) => el("li", {}, bdi(name)))),
    count > NAMES ? el("p", {class: "muted", text: `and ${format.count(count - NAMES)} more`}) : null) : "";

  const time = (ns) => (ns < 0 ? el("span", {class: "muted", text: "not there"}) : format.ns(ns));
  const gap = ([, here, there]) => Math.max(here, 0) - Math.max(there, 0);

  const table = (caption, rows, first, cell) => {
    if (!rows.length) return "";
    const widest = rows.reduce((most, row) => Math.max(most, Math.abs(gap(row))), 0);
    return sortable(caption, [
      {title: first, by: ([name]) => name, cell},
      {title: "this run", by: ([, here]) => here, cell: ([, here]) => time(here)},
      {title: "the other", by: ([, , there]) => there, cell: ([, , there]) => time(there)},
      {title: "this − the other", by: gap, cell: (row) => signed(gap(row))},
      {title: "", wide: true, cell: (row) => swing(part(gap(row), widest))},
      {title: "ratio", by: ([, here, there]) => part(here, there), cell: ([, here, there]) => (here >= 0 && there > 0 ? format.ratio(here / there) : "–")},
    ], rows, {most: 20});
  };

  views.push({id: "diff", title: "Difference", build});
}
