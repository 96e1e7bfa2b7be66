/* The graph: every launch and what it needs, in rows from top to bottom; it pans and zooms, and the arrow keys walk it. */

{
  const [BOX, HIGH, ROW, SPACE] = [184, 24, 56, 18]; // pixels at full size, as in Graph.save_svg
  const READABLE = 0.5; // the scale from which on names are drawn
  const [LEAST, MOST] = [0.02, 3];

  const build = (root, data) => {
    if (!data.graph) {
      const why = data.needs === null ? "what each launch needs is not known" : `a graph of ${format.count(data.count)} launches is too large to read, 2,000 are the most`;
      root.append(nothing(`There is no graph to draw: ${why}.`));
      return undefined;
    }
    const picture = pictured(data);
    const canvas = el("canvas", {class: "dag", tabindex: "0", role: "img",
      "aria-label": `${format.count(data.count)} launches and what they need: arrow keys walk along the edges, plus and minus zoom, f fits, Enter shows the launch in the lanes`});
    const legend = el("ul", {class: "legend row"});
    let by = "bound";
    const buttons = Object.entries(COLORED).map(([kind, {title}]) => el("button", {type: "button", text: title, "aria-pressed": String(kind === by), onclick: (event) => {
      by = kind;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      draw();
    }}));
    const choice = el("div", {class: "segmented", role: "group", "aria-label": "Colour by"}, ...buttons);
    const told = el("output", {class: "told muted"});
    const frame = el("div", {class: "drawn"}, canvas);
    const zoom = (factor) => zoomed(sight, factor, size().map((length) => length / 2));
    const act = (text, words, action) => el("button", {type: "button", text, title: words, "aria-label": words, onclick: () => (action(), draw())});
    const zooms = el("div", {class: "segmented"}, act("−", "Zoom out (-)", () => zoom(0.8)), act("+", "Zoom in (+)", () => zoom(1.25)), act("Fit", "All of the graph (f)", () => fit()));
    root.append(el("div", {class: "bar"}, el("span", {class: "muted", text: "Colour by"}), choice, legend, zooms), frame, told);

    const sight = {x: 0, y: 0, scale: 0};
    const size = () => [frame.clientWidth, Math.max(320, Math.min(innerHeight - 260, 900))];

    const whole = () => {
      const [wide, high] = size();
      const scale = Math.min(1, Math.max(LEAST, Math.min(wide / (picture.width + 40), high / (picture.height + 40))));
      return {scale, x: picture.width / 2 - wide / 2 / scale, y: picture.height / 2 - high / 2 / scale};
    };
    const fit = () => Object.assign(sight, whole());
    const center = (index) => {
      const [wide, high] = size();
      sight.scale = Math.max(sight.scale, READABLE * 1.6);
      sight.x = picture.x[index] - wide / 2 / sight.scale;
      sight.y = picture.y[index] - high / 2 / sight.scale;
    };
    /** All of it where names can be read then, else its top at a scale where they can. */
    const begin = () => {
      fit();
      if (sight.scale >= READABLE) return;
      const [wide] = size();
      sight.scale = Math.max(READABLE * 1.4, Math.min(1, wide / (picture.width + 40)));
      sight.x = Math.min(-20, picture.width / 2 - wide / 2 / sight.scale);
      sight.y = -20;
      if (app.selected >= 0) center(app.selected);
    };

    const draw = () => {
      const [wide, high] = size();
      if (!wide) return;
      if (!sight.scale) begin();
      legend.replaceChildren(...COLORED[by].legend(data).map(([words, mix]) => el("li", {}, key(words, mix))));
      const shown = document.documentElement.classList.contains("printing") ? whole() : sight;
      paintGraph(surface(canvas, wide, high), data, picture, shown, wide, high, (index) => COLORED[by].of(data, index));
    };
    walk(canvas, data, picture, sight, {draw, fit, center});
    app.onSelect((index) => {
      told.textContent = index < 0 ? "Nothing selected." : about(data, picture, index);
      if (!root.hidden && index >= 0 && !within(picture, sight, size(), index)) center(index);
      draw();
    });
    events.matches.on(draw);
    told.textContent = app.selected < 0 ? "Nothing selected." : about(data, picture, app.selected);
    return {draw};
  };

  const COLORED = {
    bound: {
      title: "What binds it",
      of: (data, index) => color.bound(data.text(data.columns.bound[index])),
      legend: (data) => distinct(data.columns.bound).map((text) => [data.text(text) || "not known", () => color.bound(data.text(text))]),
    },
    operator: {
      title: "Operator",
      of: (data, index) => color.operator(data.operatorAt[index]),
      legend: (data) => data.operators.slice(0, 12).map((operator, at) => [bdi(data.text(operator.name)), () => color.operator(at)]),
    },
    piece: {
      title: "Nano-batch",
      of: (data, index) => color.piece(data.columns.piece[index]),
      legend: (data) => distinct(data.columns.piece).slice(0, 12).map((piece) => [`nano-batch ${piece}`, () => color.piece(piece)]),
    },
  };

  const distinct = (column) => [...new Set(column)].sort((a, b) => a - b);

  /** Places in pixels at full size, the edges as points, and who stands before and after whom. */
  const pictured = (data) => {
    const {x, y, edges} = data.graph;
    const across = (place) => BOX / 2 + place * (BOX + SPACE);
    const down = (row) => HIGH / 2 + row * ROW;
    const [before, after] = [x.map(() => []), x.map(() => [])];
    const rows = [];
    y.forEach((row, index) => (rows[row] ??= []).push(index));
    rows.forEach((row) => row.sort((a, b) => x[a] - x[b]));
    const lines = edges.map(([from, to, bends]) => {
      before[to].push(from);
      after[from].push(to);
      const points = [[across(x[from]), down(y[from]) + HIGH / 2]];
      bends.forEach((bend, at) => {
        const middle = down(y[from] + 1 + at);
        points.push([across(bend), middle - HIGH / 2], [across(bend), middle + HIGH / 2]);
      });
      points.push([across(x[to]), down(y[to]) - HIGH / 2]);
      return {from, to, points};
    });
    const bends = lines.flatMap((line) => line.points.map(([place]) => place));
    return {x: x.map(across), y: y.map(down), lines, before, after, rows, row: y, labels: [],
      width: Math.max(0, ...x.map(across), ...bends.slice(0, 50000)) + BOX / 2, height: down(rows.length - 1) + HIGH / 2};
  };

  const within = (picture, sight, [wide, high], index) => {
    const [x, y] = [(picture.x[index] - sight.x) * sight.scale, (picture.y[index] - sight.y) * sight.scale];
    return x > 0 && x < wide && y > 0 && y < high;
  };

  const about = (data, picture, index) => {
    const count = (others, what) => `${format.count(others.length)} ${what}`;
    return `${format.name(data.name(index))}: ${format.name(data.text(data.columns.operator[index]))}, needs ${count(picture.before[index], "others")}, needed by ${format.count(picture.after[index].length)}`;
  };

  const paintGraph = (context, data, picture, sight, wide, high, mix) => {
    const {scale} = sight;
    context.setTransform(context.getTransform().scale(scale, scale).translate(-sight.x, -sight.y));
    const [left, top, right, bottom] = [sight.x - BOX, sight.y - ROW, sight.x + wide / scale + BOX, sight.y + high / scale + ROW];
    const chosen = app.selected;
    for (const marked of [false, true]) {
      context.beginPath();
      context.strokeStyle = color.css(marked ? "--accent" : "--faint");
      context.lineWidth = (marked ? 2 : 1) / Math.max(scale, 0.5);
      for (const line of picture.lines) {
        if ((line.from === chosen || line.to === chosen) !== marked) continue;
        const {points} = line;
        if (points[points.length - 1][1] < top || points[0][1] > bottom) continue;
        trace(context, points);
      }
      context.stroke();
    }
    for (let index = 0; index < data.count; index++) {
      const [x, y] = [picture.x[index], picture.y[index]];
      if (x < left || x > right || y < top || y > bottom) continue;
      context.globalAlpha = paint.flags && !paint.flags[index] ? 0.35 : 1; // what a search did not find
      box(context, data, picture, index, mix(index), scale, index === chosen);
    }
  };

  const trace = (context, points) => {
    let [[x, y]] = points;
    context.moveTo(x, y);
    for (let at = 1; at < points.length; at++) {
      const [to, below] = points[at];
      const half = (below - y) / 2;
      if (at % 2) context.bezierCurveTo(x, y + half, to, below - half, to, below);
      else context.lineTo(to, below);
      [x, y] = [to, below];
    }
    context.moveTo(x - 3.5, y - 6);
    context.lineTo(x, y);
    context.lineTo(x + 3.5, y - 6);
  };

  const box = (context, data, picture, index, mix, scale, chosen) => {
    const [x, y] = [picture.x[index] - BOX / 2, picture.y[index] - HIGH / 2];
    context.beginPath();
    context.roundRect(x, y, BOX, HIGH, 4);
    context.fillStyle = color.css("--panel");
    context.fill();
    const seen = context.globalAlpha;
    context.globalAlpha = seen * (scale < READABLE ? 0.8 : 0.2);
    context.fillStyle = mix;
    context.fill();
    context.globalAlpha = seen;
    context.strokeStyle = chosen ? color.css("--text") : mix;
    context.lineWidth = chosen ? 3 : 1.2;
    context.stroke();
    if (scale < READABLE) return;
    context.font = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    context.textAlign = "center";
    context.fillStyle = color.css("--text");
    picture.labels[index] ??= fitted(context, format.name(data.name(index), 60));
    context.fillText(picture.labels[index], picture.x[index], picture.y[index] + 4);
  };

  /** The name with its middle left out, as far as a box needs that. */
  const fitted = (context, name) => {
    let keep = name.length;
    let shown = name;
    while (keep > 2 && context.measureText(shown).width > BOX - 12) {
      keep -= 1;
      shown = `${name.slice(0, Math.ceil(keep / 2))}…${name.slice(name.length - Math.floor(keep / 2))}`;
    }
    return shown;
  };

  /** Makes everything `factor` times as large; the point `around` stays where it is. */
  const zoomed = (sight, factor, [x, y]) => {
    const next = Math.min(MOST, Math.max(LEAST, sight.scale * factor));
    sight.x += x / sight.scale - x / next;
    sight.y += y / sight.scale - y / next;
    sight.scale = next;
  };

  /** What pointers, wheel and keys do. */
  const walk = (canvas, data, picture, sight, {draw, fit, center}) => {
    const held = new Map();
    let moved = 0;
    const at = (event) => {
      const frame = canvas.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    const zoom = (factor, around) => {
      zoomed(sight, factor, around);
      draw();
    };
    const under = ([x, y]) => {
      const [a, b] = [sight.x + x / sight.scale, sight.y + y / sight.scale];
      const row = picture.rows[Math.round((b - HIGH / 2) / ROW)] ?? [];
      return row.find((index) => Math.abs(picture.x[index] - a) <= BOX / 2 && Math.abs(picture.y[index] - b) <= HIGH / 2) ?? -1;
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), at(event));
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, at(event));
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId);
      if (!last) return;
      const now = at(event);
      const others = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const [dx, dy] = [now[0] - last[0], now[1] - last[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      held.set(event.pointerId, now);
      sight.x -= dx / sight.scale / held.size;
      sight.y -= dy / sight.scale / held.size;
      if (others.length) {
        const apart = ([x, y]) => Math.hypot(x - others[0][0], y - others[0][1]);
        zoom(part(apart(now), apart(last)) || 1, [(now[0] + others[0][0]) / 2, (now[1] + others[0][1]) / 2]);
      } else draw();
    });
    const release = (event) => {
      if (held.delete(event.pointerId) && event.type === "pointerup" && moved < 5 && !held.size) app.select(under(at(event)));
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("dblclick", (event) => under(at(event)) >= 0 && app.reveal(under(at(event))));
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
      const acts = {
        "+": () => zoom(1.25, middle), "=": () => zoom(1.25, middle), "-": () => zoom(0.8, middle),
        f: () => (fit(), draw()),
        Enter: () => app.selected >= 0 && app.reveal(app.selected),
        ArrowUp: () => step((index) => picture.before[index][0]),
        ArrowDown: () => step((index) => picture.after[index][0]),
        ArrowLeft: () => step((index) => beside(index, -1)),
        ArrowRight: () => step((index) => beside(index, 1)),
      };
      if (!acts[event.key]) return;
      acts[event.key]();
      event.preventDefault();
      event.stopPropagation();
    });
    const beside = (index, way) => {
      const row = picture.rows[picture.row[index]];
      return row[row.indexOf(index) + way];
    };
    const step = (next) => {
      const index = app.selected < 0 ? picture.rows[0][0] : next(app.selected);
      if (index === undefined) return;
      app.select(index);
      center(index);
      draw();
    };
  };

  views.push({id: "graph", title: "Graph", build});
}
