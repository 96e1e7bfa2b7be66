/* The roofline: how near each operator comes to what the device's arithmetic and memory allow. */

{
  const MARGIN = {left: 76, right: 24, top: 16, bottom: 44};
  const HEIGHT = 460;
  const NAMED = 12; // operators that have their name beside their point, where it fits

  const build = (root, data) => {
    const {flops, hbm} = data.capacity;
    const rows = data.roofline.map(([name, intensity, rate, seconds, count]) => ({name, intensity, rate, seconds, count}));
    const drawn = rows.filter((row) => row.intensity > 0 && row.rate > 0);
    root.append(el("p", {class: "muted", text: "An operator can do no more than the device's arithmetic (the flat roof) and than its memory feeds (the slope). A point far below the roof has room, or runs beside others and shares it. Areas are proportional to time."}));
    if (!rows.length) return void root.append(nothing("Nothing that ran to its end states arithmetic or bytes of device memory, so there is nothing to hold against the roof."));
    const chart = el("figure", {class: "roofline"});
    if (drawn.length) root.append(chart);
    else root.append(nothing("No operator states both arithmetic and bytes of device memory, so there is no point to draw."));
    const roof = (row) => Math.min(flops || Infinity, hbm && row.intensity !== null ? row.intensity * hbm : Infinity);
    const share = (row) => (Number.isFinite(roof(row)) ? part(row.rate, roof(row)) : 0);
    root.append(sortable("By operator", [
      {title: "operator", by: (row) => row.name, cell: (row) => operatorKey(data, row.name)},
      {title: "launches", by: (row) => row.count, cell: (row) => format.count(row.count)},
      {title: "time", by: (row) => row.seconds, cell: (row) => format.ns(row.seconds * 1e9)},
      {title: "FLOP per byte", by: (row) => row.intensity ?? Infinity, cell: (row) => (row.intensity === null ? "no bytes" : format.figure(row.intensity))},
      {title: "achieved", by: (row) => row.rate, cell: (row) => format.rate(row.rate, "FLOP")},
      {title: "of its roof", by: share, cell: (row) => (row.rate > 0 && share(row) ? format.percent(share(row)) : "–")},
      {title: "", wide: true, cell: (row) => barred(share(row), () => operatorColor(data, row.name))},
    ], rows));
    return {draw: () => drawn.length && draw(chart, data, drawn, flops, hbm)};
  };

  /** A scale of decades: figures of `low` to `high` to pixels of `from` to `to`. */
  const decades = (low, high, from, to) => {
    const [a, b] = [Math.floor(Math.log10(low) - 0.05), Math.ceil(Math.log10(high) + 0.05)];
    const place = (figure) => from + ((Math.log10(figure) - a) / (b - a)) * (to - from);
    return {place, low: 10 ** a, high: 10 ** b, ticks: Array.from({length: b - a + 1}, (_, step) => 10 ** (a + step))};
  };

  const draw = (chart, data, rows, flops, hbm) => {
    const wide = chart.clientWidth;
    if (!wide) return;
    const ridge = flops && hbm ? flops / hbm : 0;
    const of = (field, more) => [...rows.map((row) => row[field]), ...more.filter((figure) => figure > 0)];
    const xs = of("intensity", [ridge]);
    const ys = of("rate", [flops]);
    const x = decades(Math.min(...xs), Math.max(...xs), MARGIN.left, wide - MARGIN.right);
    const y = decades(Math.min(...ys), Math.max(...ys), HEIGHT - MARGIN.bottom, MARGIN.top);
    const picture = svg("svg", {viewBox: `0 0 ${wide} ${HEIGHT}`, width: wide, height: HEIGHT, role: "img",
      "aria-label": "Operators by FLOP per byte and FLOP per second, under the device's roof; the table below has the figures"});
    axes(picture, x, y, wide);
    if (flops || hbm) picture.append(roofed(x, y, flops, hbm, ridge));
    const longest = Math.max(...rows.map((row) => row.seconds));
    const points = svg("g");
    const spots = rows.slice().sort((a, b) => b.seconds - a.seconds)
      .map((row) => ({row, cx: x.place(row.intensity), cy: y.place(row.rate), r: 4 + 16 * Math.sqrt(part(row.seconds, longest))}));
    const taken = spots.map(({cx, cy, r}) => [cx - r, cy - r, cx + r, cy + r]);
    spots.forEach(({row, cx, cy, r}, rank) => {
      const fill = operatorColor(data, row.name);
      const told = `${format.name(row.name)}: ${format.figure(row.intensity)} FLOP per byte, ${format.rate(row.rate, "FLOP")}, ${format.ns(row.seconds * 1e9)}`;
      points.append(svg("circle", {cx, cy, r, fill, "fill-opacity": 0.55, stroke: fill, "stroke-width": 1.5, tabindex: 0, "aria-label": told, role: "img"},
        svg("title", {text: told})));
      if (rank < NAMED) beside(points, format.name(row.name, 28), cx, cy, r, wide, taken);
    });
    picture.append(points);
    chart.replaceChildren(picture);
  };

  /** The name beside a point, on the side and at the height where no other stands. */
  const beside = (points, name, cx, cy, r, wide, taken) => {
    const length = 6.6 * name.length;
    const places = [[cx + r + 5, cy + 4], [cx - r - 5 - length, cy + 4], [cx - length / 2, cy - r - 6], [cx - length / 2, cy + r + 14]];
    const place = places.find(([left, base]) => left > MARGIN.left && left + length < wide - 4 && base > 14 &&
      taken.every(([x1, y1, x2, y2]) => left > x2 || left + length < x1 || base - 9 > y2 || base + 2 < y1));
    if (!place) return;
    taken.push([place[0], place[1] - 9, place[0] + length, place[1] + 2]);
    points.append(svg("text", {x: place[0], y: place[1], class: "label", text: name}));
  };

  const axes = (picture, x, y, wide) => {
    const grid = svg("g", {class: "grid-lines"});
    for (const tick of x.ticks) {
      grid.append(svg("line", {x1: x.place(tick), x2: x.place(tick), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom}),
        svg("text", {x: x.place(tick), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle", text: format.figure(tick)}));
    }
    for (const tick of y.ticks) {
      grid.append(svg("line", {x1: MARGIN.left, x2: wide - MARGIN.right, y1: y.place(tick), y2: y.place(tick)}),
        svg("text", {x: MARGIN.left - 8, y: y.place(tick) + 4, "text-anchor": "end", text: format.si(tick, "")}));
    }
    grid.append(svg("text", {x: (MARGIN.left + wide - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle", text: "FLOP per byte of device memory"}),
      svg("text", {transform: `translate(14 ${(HEIGHT - MARGIN.bottom + MARGIN.top) / 2}) rotate(-90)`, "text-anchor": "middle", text: "FLOP per second"}));
    picture.append(grid);
  };

  const roofed = (x, y, flops, hbm, ridge) => {
    const points = [];
    if (hbm) {
      const low = Math.max(x.low, y.low / hbm);
      const high = ridge || Math.min(x.high, y.high / hbm);
      if (low < high) points.push([low, low * hbm], [high, high * hbm]);
    }
    if (flops) points.push([Math.max(ridge, x.low), flops], [x.high, flops]);
    const group = svg("g", {class: "roof"}, svg("polyline", {points: points.map(([a, b]) => `${x.place(a)},${y.place(b)}`).join(" ")}));
    if (flops) {
      group.append(svg("text", {x: x.place(x.high) - 4, y: y.place(flops) - 7, "text-anchor": "end", text: `arithmetic ${format.rate(flops, "FLOP")}`}));
    }
    if (hbm && points.length > 1) {
      const [[a, b], [c, d]] = points;
      const angle = (Math.atan2(y.place(d) - y.place(b), x.place(c) - x.place(a)) * 180) / Math.PI;
      const at = `translate(${(x.place(a) + x.place(c)) / 2} ${(y.place(b) + y.place(d)) / 2 - 10}) rotate(${angle})`;
      group.append(svg("text", {transform: at, "text-anchor": "middle", text: `memory ${format.rate(hbm, "B")}`}));
    }
    return group;
  };

  views.push({id: "roofline", title: "Roofline", build});
}
