/* Hands on the lanes: wheel, drag, pinch and keys. */

const CLICK = 4; // CSS pixels of movement up to which a press is a click
const STEP = 0.12; // of what is in sight, that a key pans
const FINE = 1.002; // factor per pixel of the wheel

/** Makes a canvas that spans the time in sight pan and zoom; `tell` gets clicks, double clicks and where the pointer is. */
function handle(canvas, tell) {
  const fingers = new Map();
  let travelled = 0;
  let pinch = null;
  const momentAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return time.from + ((event.clientX - box.left) / box.width) * time.span();
  };
  const perPixel = () => time.span() / canvas.getBoundingClientRect().width;

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    cancelAnimationFrame(time.frame);
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      time.pan((event.deltaX || event.deltaY) * lines * perPixel());
    } else {
      time.zoom(FINE ** (event.deltaY * lines * (event.ctrlKey ? 4 : 1)), momentAt(event));
    }
  }, {passive: false});

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({preventScroll: true});
    fingers.set(event.pointerId, event);
    cancelAnimationFrame(time.frame);
    travelled = fingers.size > 1 ? Infinity : 0;
    pinch = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) {
      tell.hover?.(event, momentAt(event));
      return;
    }
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()].map((finger) => finger.clientX);
      const [low, high] = [Math.min(a, b), Math.max(a, b)];
      const box = canvas.getBoundingClientRect();
      pinch ??= {from: momentAt({clientX: low}), to: momentAt({clientX: high})};
      // The two moments under the fingers stay under them.
      const scale = (pinch.to - pinch.from) / Math.max(high - low, 12);
      const from = pinch.from - (low - box.left) * scale;
      time.set(from, from + box.width * scale);
      return;
    }
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled <= CLICK) return;
    canvas.classList.add("dragged");
    time.pan(-dx * perPixel());
    tell.scroll?.(-dy);
  });
  const release = (event) => {
    const was = fingers.delete(event.pointerId);
    canvas.classList.remove("dragged");
    pinch = null;
    if (was && event.type === "pointerup" && travelled <= CLICK) tell.click?.(event, momentAt(event));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => tell.leave?.());
  canvas.addEventListener("dblclick", () => app.selected >= 0 && time.show(app.selected));
}

/** The map: pressing or dragging on it moves what is in sight there. */
function handleMap(canvas) {
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    const [from, to] = time.room();
    const middle = from + ((event.clientX - box.left) / box.width) * (to - from);
    time.set(middle - time.span() / 2, middle + time.span() / 2);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    move(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && move(event));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    time.zoom(FINE ** event.deltaY);
  }, {passive: false});
}

/* What each key does, in the words of the help. */
const KEYS = [
  ["w, +", "zoom in", ["w", "+", "="], () => time.glide(...time.zoomed(0.6, focus()))],
  ["s, −", "zoom out", ["s", "-"], () => time.glide(...time.zoomed(1 / 0.6, focus()))],
  ["a, ←", "earlier", ["a", "ArrowLeft"], () => time.glide(time.from - STEP * time.span(), time.to - STEP * time.span())],
  ["d, →", "later", ["d", "ArrowRight"], () => time.glide(time.from + STEP * time.span(), time.to + STEP * time.span())],
  ["↑, ↓", "other lanes, where not all fit", ["ArrowUp", "ArrowDown"], (key) => stage.scroll(key === "ArrowUp" ? -40 : 40)],
  ["f", "all of the run", ["f"], () => time.fit()],
  ["z", "the selected activity", ["z"], () => app.selected >= 0 && time.show(app.selected)],
  [", and .", "the activity before or after on its lane", [",", "."], (key) => neighbour(key === "." ? 1 : -1)],
  ["Enter", "on the lanes: the activity in the middle", [], null],
  ["Esc", "select nothing, search for nothing", ["Escape"], () => escape()],
  ["/", "search; Enter and Shift+Enter go through what is found", ["/"], () => document.getElementById("query").focus()],
  ["1 to 9", "the views", [], null],
  ["t", "dark or light", ["t"], () => app.use(app.theme === "dark" ? "light" : "dark")],
  ["?", "these keys", ["?"], () => help()],
];
const IN_TIMELINE = "ws+-=ad,.fz";

/** The moment that zooming by key keeps in place: the selected activity if it is in sight, else the middle. */
function focus() {
  const stretch = app.selected >= 0 ? ran(app.selected) : null;
  const middle = stretch ? (Math.max(stretch[0], time.from) + Math.min(stretch[1], time.to)) / 2 : NaN;
  return middle >= time.from && middle <= time.to ? middle : (time.from + time.to) / 2;
}

/** Selects the activity before or after the selected one on its row. */
function neighbour(step) {
  const {layout} = stage;
  if (app.selected < 0) return;
  const row = layout.rows[layout.rowOf[app.selected]];
  const next = row?.index[row.index.indexOf(app.selected) + step];
  if (next === undefined) return;
  app.select(next);
  keep(next);
}

/** Pans just so far that an activity is in sight. */
function keep(index) {
  const [start, end] = ran(index);
  if (end > time.to || start < time.from) {
    const middle = (start + end) / 2;
    time.glide(middle - time.span() / 2, middle + time.span() / 2);
  }
}

function escape() {
  document.getElementById("query").value = "";
  search("");
  app.select(-1);
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    const digit = Number(event.key);
    if (digit >= 1 && digit <= views.length) return void app.show(views[digit - 1].id);
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = KEYS.find(([, , keys]) => keys.includes(key));
    if (!found) return;
    const arrows = key.startsWith("Arrow");
    if ((arrows || IN_TIMELINE.includes(key)) && app.shown !== "timeline") return;
    if (arrows && event.target.closest("aside, table")) return;
    event.preventDefault();
    found[3](key);
  });
}

/** The keys in a dialog. */
function help() {
  let dialog = document.getElementById("keys");
  if (!dialog) {
    const rows = KEYS.map(([keys, what]) => el("tr", {}, el("th", {scope: "row"}, el("kbd", {text: keys})), el("td", {text: what})));
    dialog = el("dialog", {id: "keys", "aria-label": "Keys"},
      el("h2", {text: "Keys"}),
      el("table", {}, el("tbody", {}, ...rows)),
      el("p", {class: "muted", text: "The wheel zooms, with Shift it pans; dragging pans; two fingers pinch."}),
      el("form", {method: "dialog"}, el("button", {text: "Close"})));
    document.body.append(dialog);
  }
  dialog.showModal();
}
