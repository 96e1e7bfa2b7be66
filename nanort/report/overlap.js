/* Overlap: what ran beside something else, what did not, and what stood in the way. */

{
  const PAIRS = 6;

  const build = (root, data) => {
    if (!data.overlap.length) return void root.append(nothing("Nothing ran to its end, so nothing overlapped."));
    const [alone, beside] = data.overlap.reduce(([a, b], [, exclusive, hidden]) => [a + exclusive, b + hidden], [0, 0]);
    const pairs = data.overlap.flatMap(([name, , , others]) => others.map(([other, ns, why]) => ({name, other, ns, why})));
    root.append(
      el("p", {class: "muted", text: "Hidden time is what an operator spends beside others on other lanes; the rest of its time it runs by itself. Two operators could still overlap where no path of the graph orders some of their launches, and yet these never ran together."}),
      el("div", {class: "cards"},
        fact("Hidden", format.percent(part(beside, alone + beside)), `${format.ns(beside)} of ${format.ns(alone + beside)}`),
        fact("By itself", format.ns(alone), format.percent(part(alone, alone + beside))),
        data.needs === null ? fact("Pairs that could overlap", "–", "nothing says what needs what")
          : fact("Pairs that could overlap", format.count(new Set(pairs.map(unordered)).size), "of operators")),
      sortable("By operator", [
        {title: "operator", by: ([name]) => name, cell: ([name]) => operatorKey(data, name)},
        {title: "exclusive", by: ([, exclusive]) => exclusive, cell: ([, exclusive]) => format.ns(exclusive)},
        {title: "hidden", by: ([, , hidden]) => hidden, cell: ([, , hidden]) => format.ns(hidden)},
        {title: "share hidden", by: ([, exclusive, hidden]) => part(hidden, exclusive + hidden), cell: ([, exclusive, hidden]) => format.percent(part(hidden, exclusive + hidden))},
        {title: "", wide: true, cell: ([name, exclusive, hidden]) => barred(part(hidden, exclusive + hidden), () => operatorColor(data, name))},
        {title: "could still overlap with", wide: true, cell: ([, , , others]) => possible(data, others)},
      ], data.overlap),
    );
    return undefined;
  };

  const unordered = (pair) => [pair.name, pair.other].sort().join("\n");

  /** The operators that could run beside, each with the time it would hide and what is in the way. */
  const possible = (data, others) => {
    if (!others.length) return el("span", {class: "muted", text: data.needs === null ? "not known" : "nothing more"});
    const item = ([other, ns, why]) => el("li", {}, operatorKey(data, other), ` ${format.ns(ns)}`, el("span", {class: "chip", text: why}));
    const list = el("ul", {class: "possible"}, ...others.slice(0, PAIRS).map(item));
    if (others.length > PAIRS) {
      const more = el("button", {type: "button", class: "more", text: `and ${others.length - PAIRS} more`, onclick: () => {
        list.append(...others.slice(PAIRS).map(item));
        more.remove();
      }});
      return el("div", {}, list, more);
    }
    return list;
  };

  views.push({id: "overlap", title: "Overlap", build});
}
