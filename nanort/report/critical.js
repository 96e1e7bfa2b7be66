/* The critical path: what the makespan is made of, and what it would be were an operator twice as fast. */

{
  const HEIGHT = 44;

  const build = (root, data) => {
    const {segments, what_if: answers} = data.critical;
    if (!segments.length) return void root.append(nothing("Nothing ran, so there is no critical path."));
    const gaps = segments.reduce((sum, [index, start, end]) => sum + (index < 0 ? end - start : 0), 0);
    const nodes = segments.filter(([index]) => index >= 0).length;
    root.append(
      el("p", {class: "muted", text: "What ran when, and what that waited for, back from the end to the start. The run takes as long as this path, so only what is on it can make it shorter."}),
      ...(data.unknown ? [el("p", {class: "muted", text: data.unknown})] : []),
      el("div", {class: "cards"},
        fact("Length", format.ns(data.makespan_ns, 4), "the makespan"),
        fact("Launches on the path", format.count(nodes), `of ${format.count(data.count)}`),
        fact("Gaps on the path", format.ns(gaps), format.percent(part(gaps, data.makespan_ns)))),
    );
    const strip = ribbon(root, data, segments);
    root.append(operators(data, segments, answers, gaps), steps(data, segments));
    return strip;
  };

  /** All segments to scale on one canvas, which the pointer and the arrow keys walk. */
  const ribbon = (root, data, segments) => {
    const canvas = el("canvas", {class: "ribbon", tabindex: "0", role: "img",
      "aria-label": "The critical path to scale: arrow keys walk along it, Enter shows a launch in the lanes"});
    const told = el("output", {class: "told muted", text: "Point at a part of the path to see what it is."});
    const frame = el("div", {class: "drawn"}, canvas);
    root.append(frame, told);
    let at = -1;
    const tell = (next) => {
      at = Math.max(0, Math.min(segments.length - 1, next));
      const [index, start, end, reason] = segments[at];
      const what = index < 0 ? "a gap" : format.name(data.name(index));
      told.textContent = `${format.ns(start, 5)}: ${what}, ${format.ns(end - start)}, ${because(reason)}`;
      draw();
    };
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const moment = ((event.clientX - box.left) / box.width) * data.makespan_ns;
      let [low, high] = [0, segments.length];
      while (low + 1 < high) {
        const middle = (low + high) >> 1;
        if (segments[middle][1] <= moment) low = middle;
        else high = middle;
      }
      return low;
    };
    const open = () => at >= 0 && segments[at][0] >= 0 && app.reveal(segments[at][0]);
    canvas.addEventListener("pointermove", (event) => tell(under(event)));
    canvas.addEventListener("click", (event) => {
      tell(under(event));
      open();
    });
    canvas.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1, Home: -segments.length, End: segments.length}[event.key];
      if (step) tell(at + step);
      else if (event.key === "Enter") open();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const draw = () => {
      const wide = frame.clientWidth;
      if (!wide) return;
      const context = surface(canvas, wide, HEIGHT);
      const scale = part(wide, data.makespan_ns);
      context.fillStyle = color.css("--raised");
      context.fillRect(0, 0, wide, HEIGHT);
      segments.forEach(([index, start, end], place) => {
        if (index < 0) return;
        context.fillStyle = color.operator(data.operatorAt[index]);
        const width = Math.max((end - start) * scale - ((end - start) * scale > 4 ? 1 : 0), 0.5);
        context.fillRect(start * scale, 0, width, HEIGHT - 8);
        if (place === at || index === app.selected) {
          context.fillStyle = color.css("--text");
          context.fillRect(start * scale, HEIGHT - 6, Math.max(width, 3), 6);
        }
      });
    };
    app.onSelect(draw);
    return {draw};
  };

  const REASONS = {
    start: "from the start of the run",
    stream: "after the launch before it on its stream",
    need: "after what it needs",
    "launch gap": "all that it waits for has ended",
  };

  const because = (reason) => entry(REASONS, reason) ?? `after a wait (${reason})`;

  /** Time on the path by operator, with the answers to "what if". */
  const operators = (data, segments, answers, gaps) => {
    const rows = new Map();
    for (const [index, start, end] of segments) {
      if (index < 0) continue;
      const name = data.text(data.operators[data.operatorAt[index]].name);
      if (!rows.has(name)) rows.set(name, {name, count: 0, ns: 0, faster: null, factor: 0});
      rows.get(name).count += 1;
      rows.get(name).ns += end - start;
    }
    for (const [name, factor, makespan] of answers) {
      if (rows.has(name)) Object.assign(rows.get(name), {faster: makespan - data.makespan_ns, factor});
    }
    if (gaps) rows.set(null, {name: null, count: 0, ns: gaps, faster: null});
    const sorted = [...rows.values()].sort((a, b) => b.ns - a.ns);
    const share = (row) => part(row.ns, data.makespan_ns);
    const factor = answers.length ? answers[0][1] : 2;
    return sortable("By operator", [
      {title: "operator", by: (row) => row.name ?? "", cell: (row) => (row.name === null ? key("gaps", () => color.css("--faint")) : operatorKey(data, row.name))},
      {title: "launches", by: (row) => row.count, cell: (row) => (row.name === null ? "" : format.count(row.count))},
      {title: "on the path", by: (row) => row.ns, cell: (row) => format.ns(row.ns)},
      {title: "share", by: share, cell: (row) => format.percent(share(row))},
      {title: "", wide: true, cell: (row) => barred(share(row), () => (row.name === null ? color.css("--faint") : operatorColor(data, row.name)))},
      {title: factor === 2 ? "twice as fast" : `${format.ratio(factor)} as fast`, by: (row) => row.faster ?? 1,
        cell: (row) => (row.faster === null ? "–" : el("strong", {text: change(part(row.faster, data.makespan_ns))}))},
      {title: "makespan", by: (row) => row.faster ?? 1, cell: (row) => (row.faster === null ? "–" : format.ns(data.makespan_ns + row.faster, 4))},
    ], sorted);
  };

  const steps = (data, segments) => sortable("Step by step", [
    {title: "launch", cell: ([index]) => (index < 0 ? el("span", {class: "muted", text: "gap"}) : toLanes(data, index))},
    {title: "from", by: ([, start]) => start, cell: ([, start]) => format.ns(start, 5)},
    {title: "for", by: ([, start, end]) => end - start, cell: ([, start, end]) => format.ns(end - start)},
    {title: "because", wide: true, cell: ([, , , reason]) => because(reason)},
  ], segments);

  views.push({id: "critical", title: "Critical path", build});
}
