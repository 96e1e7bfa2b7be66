/* The first view: lanes and resource curves on one axis of time. */

const GUTTER = 172; // CSS pixels left of the canvases
const MODES = {piece: "Nano-batch", operator: "Operator", bound: "What binds"};

const stage = {layout: null, tracks: [], scroll: () => {}};

views.push({id: "timeline", title: "Timeline", build: buildTimeline});

function buildTimeline(root, data) {
  const canvas = (name, words) => el("canvas", {class: name, tabindex: words ? 0 : null, role: "img", "aria-label": words ?? name});
  const gutter = (...children) => el("div", {class: "gutter"}, ...children);
  const parts = {
    legend: el("ul", {class: "legend", "aria-label": "Legend"}),
    map: canvas("map"),
    ruler: canvas("ruler"),
    lanes: canvas("lanes", "Lanes over time. w and s zoom, a and d pan, comma and dot go from one activity to the next, Enter selects."),
    curves: canvas("curves", "Resource use over time"),
    band: canvas("band"),
    cursor: el("div", {class: "cursor", hidden: true}),
    tip: el("div", {class: "tip", role: "presentation", hidden: true}),
    readings: [],
  };
  stage.layout = arranged(data);
  stage.tracks = tracksOf(data);
  paint.mode = data.columns.piece.some((piece) => piece !== data.columns.piece[0]) ? "piece" : "operator";
  parts.box = el("div", {class: "box"}, gutter(...laneLabels(data)), parts.lanes);
  parts.box.firstChild.style.height = `${stage.layout.height}px`;
  const stretch = [
    el("div", {class: "strip"}, gutter(el("span", {class: "muted", text: "whole run"})), parts.map),
    el("div", {class: "strip"}, gutter(), parts.ruler),
    parts.box,
    el("div", {class: "strip tracks", hidden: !stage.tracks.length}, gutter(...trackLabels(parts)), parts.curves),
    el("div", {class: "strip", hidden: !data.roof.name.length}, gutter(el("span", {class: "muted", text: "what binds"})), parts.band),
  ];
  root.append(toolbar(data, parts), el("div", {class: "stage"}, ...stretch, parts.cursor, parts.tip), roofs(data));
  return wire(data, parts);
}

/** The buttons above the lanes. */
function toolbar(data, parts) {
  const modes = Object.entries(MODES).map(([mode, title]) => {
    const button = el("button", {type: "button", "aria-pressed": String(mode === paint.mode), text: title});
    button.addEventListener("click", () => {
      paint.mode = mode;
      for (const one of button.parentElement.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button));
      redraw();
    });
    return button;
  });
  const act = (text, words, action) => el("button", {type: "button", text, title: words, "aria-label": words, onclick: action});
  return el("div", {class: "toolbar"},
    el("span", {class: "muted", id: "colour-by", text: "Colour by"}),
    el("span", {class: "segmented", role: "group", "aria-labelledby": "colour-by"}, ...modes),
    parts.legend,
    el("span", {class: "segmented"},
      act("−", "Zoom out (s)", () => time.glide(...time.zoomed(1 / 0.6, focus()))),
      act("+", "Zoom in (w)", () => time.glide(...time.zoomed(0.6, focus()))),
      act("Fit", "All of the run (f)", () => time.fit())));
}

/** The names left of the lanes. */
function laneLabels(data) {
  const {layout} = stage;
  const placed = (node, y, height) => {
    node.style.top = `${y}px`;
    if (height) node.style.height = `${height}px`;
    return node;
  };
  const headings = layout.headings.map(({y, text}) => placed(el("div", {class: "group", title: text}, el("span", {class: "grow", text})), y, HEADING));
  const lanes = layout.lanes.map((lane) => {
    const sms = data.streams[lane.position].sms;
    const name = format.name(lane.name, 60);
    const words = sms ? unitsOf(data, sms) : entry(ENGINES, lane.name) ?? "";
    const small = layout.size === SIZES.many;
    const label = el("div", {class: "lane", title: `${name} ${words}`},
      el("span", {class: "who"}, el("b", {text: name}), small ? null : el("span", {class: "muted", text: words})));
    if (data.planStart && !small) {
      const plan = el("span", {text: "planned"});
      plan.style.height = `${lane.planHeight}px`;
      label.append(el("span", {class: "which muted"}, plan, el("span", {text: "actual"})));
    }
    return placed(label, lane.y, lane.height);
  });
  return [...headings, ...lanes];
}

/** The names left of the curves, with the value under the pointer. */
function trackLabels(parts) {
  return stage.tracks.map((track) => {
    const reading = el("span", {class: "figure"});
    parts.readings.push(reading);
    const of = track.capacity ? `of ${track.say(track.capacity)}` : "";
    const label = el("div", {class: "track"}, el("b", {text: track.title}), el("span", {class: "muted"}, reading, of));
    label.style.top = `${track.y}px`;
    label.style.height = `${TRACK}px`;
    return label;
  });
}

/** What the colours of the band mean, with how long each binds. */
function roofs(data) {
  const {t, name} = data.roof;
  const spent = new Map();
  for (let k = 0; k < name.length; k++) spent.set(name[k], (spent.get(name[k]) ?? 0) + t[k + 1] - t[k]);
  const list = el("ul", {class: "legend roofs", "aria-label": "How long each resource binds"});
  const lines = [
    ...(stage.tracks.some((track) => track.capacity) ? ["dashed: what there is"] : []),
    ...(stage.tracks.some((track) => track.plan) ? ["grey: the plan"] : []),
  ];
  const fill = () => list.replaceChildren(...[...spent].sort((a, b) => b[1] - a[1]).map(([roof, ns]) =>
    el("li", {}, swatch(color.bound(data.text(roof))), `${data.text(roof)} `, el("span", {class: "figure", text: format.percent(ns / Math.max(data.makespan_ns, 1))}))),
    ...(lines.length ? [el("li", {class: "muted hints", text: lines.join(", ")})] : []));
  fill();
  events.theme.on(fill);
  return list;
}

/** The legend of the colours. */
function fillLegend(list, data) {
  const {columns} = data;
  const entries = {
    operator: () => data.operators.map((operator, position) => [color.operator(position), data.text(operator.name)]),
    bound: () => [...new Set(columns.bound)].map((bound) => [color.bound(data.text(bound)), data.text(bound) || "not known"]),
    piece: () => [...new Set(columns.piece)].sort((a, b) => a - b).map((piece) => [color.piece(piece), `nano-batch ${piece}`]),
  }[paint.mode]();
  const most = 8;
  const layered = paint.mode === "piece" && columns.layer.some((layer) => layer > 0);
  list.replaceChildren(
    ...entries.slice(0, most).map(([fill, words]) => el("li", {title: words}, swatch(fill), format.name(words, 28))),
    entries.length > most ? el("li", {class: "muted", text: `and ${entries.length - most} more`}) : "",
    layered ? el("li", {class: "muted", text: "shade: layer"}) : "");
}

/** Joins drawing to what changes it. */
function wire(data, parts) {
  const {layout, tracks} = stage;
  let asked = false;
  let width = 0;
  const paintAll = () => {
    asked = false;
    if (width <= 0) return;
    const {box} = parts;
    const all = document.documentElement.classList.contains("printing");
    drawMap(parts.map, layout, width);
    drawRuler(parts.ruler, width);
    drawLanes(parts.lanes, layout, width, all ? {top: 0, bottom: layout.height} : {top: box.scrollTop, bottom: Math.min(box.scrollTop + box.clientHeight, layout.height)});
    drawCurves(parts.curves, tracks, width);
    drawBand(parts.band, data, width);
  };
  const ask = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(paintAll);
  };
  const draw = () => {
    width = Math.floor(parts.box.clientWidth - GUTTER);
    mix();
    fillLegend(parts.legend, data);
    paintAll();
  };
  stage.scroll = (by) => parts.box.scrollBy(0, by);
  parts.box.addEventListener("scroll", ask, {passive: true});
  events.time.on(ask);
  events.selected.on((index) => {
    const row = index < 0 ? null : layout.rows[layout.rowOf[index]];
    const {scrollTop, clientHeight} = parts.box;
    if (row && (row.y < scrollTop || row.y + row.height > scrollTop + clientHeight)) parts.box.scrollTop = row.y - clientHeight / 2;
    ask();
  });
  events.matches.on((flags) => {
    for (const row of layout.rows) row.mark(flags);
    ask();
  });
  const point = pointing(data, parts);
  for (const canvas of [parts.lanes, parts.curves, parts.ruler, parts.band]) {
    handle(canvas, {
      hover: (event, moment) => point(canvas === parts.lanes ? event.offsetY + parts.box.scrollTop : NaN, event, moment),
      leave: () => point(NaN, null, NaN),
      click: (event, moment) => canvas === parts.lanes && app.select(under(event.offsetY + parts.box.scrollTop, moment, width)),
      scroll: (by) => stage.scroll(by),
    });
  }
  handleMap(parts.map);
  parts.lanes.addEventListener("keydown", (event) => {
    if (event.key === "Enter") app.select(under(parts.box.scrollTop + parts.box.clientHeight / 2, (time.from + time.to) / 2, 0));
  });
  return {draw};
}

/** The activity at a height of the lanes and a moment; -1 for none. With no `width`, the nearest that there is. */
function under(y, moment, width) {
  const {layout} = stage;
  const slack = width ? (3 * time.span()) / width : Infinity;
  let found = -1;
  let least = Infinity;
  for (const row of layout.rows) {
    const away = Math.max(row.y - y, y - row.y - row.height, 0);
    if (away >= least || (width && away > 2)) continue;
    const k = row.at(moment, slack);
    if (k >= 0) [found, least] = [row.index[k], away];
  }
  return found;
}

/** The cross-hair, what is under it, and the readings of the curves. */
function pointing(data, parts) {
  const {tracks} = stage;
  return (y, event, moment) => {
    const inside = event && moment >= 0 && moment <= data.until;
    parts.cursor.hidden = parts.tip.hidden = !inside;
    tracks.forEach((track, number) => {
      const curve = track.actual ?? track.plan;
      parts.readings[number].textContent = inside ? `${track.say(curve.at(moment))} ` : "";
    });
    if (!inside) return;
    const frame = parts.cursor.parentElement.getBoundingClientRect();
    parts.cursor.style.left = `${event.clientX - frame.left}px`;
    const index = Number.isNaN(y) ? -1 : under(y, moment, parts.lanes.clientWidth);
    parts.tip.replaceChildren(...tip(data, index, moment));
    const right = event.clientX - frame.left > frame.width * 0.65;
    parts.tip.style.left = right ? "" : `${event.clientX - frame.left + 14}px`;
    parts.tip.style.right = right ? `${frame.right - event.clientX + 14}px` : "";
    parts.tip.style.top = `${event.clientY - frame.top + 14}px`;
  };
}

function tip(data, index, moment) {
  const at = el("span", {class: "muted", text: format.ns(moment, 6)});
  if (index < 0) return [at];
  const length = data.end[index] >= 0 ? format.ns(data.end[index] - data.start[index], 4) : "never ended";
  const planned = data.planEnd && data.planEnd[index] >= 0 ? `planned ${format.ns(data.planEnd[index] - data.planStart[index], 4)}` : "";
  return [
    el("b", {text: format.name(data.name(index), 80)}),
    el("span", {text: [format.name(data.text(data.columns.operator[index]), 40), length, planned].filter(Boolean).join(" · ")}),
    at,
  ];
}
