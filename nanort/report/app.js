/* What all views share: the selection, the theme, which view is shown, and the stretch of time that is in sight. */

const views = [];

/** A list of listeners. */
function hub() {
  const listeners = [];
  return {on: (listener) => listeners.push(listener), tell: (...what) => listeners.forEach((one) => one(...what))};
}

const events = {selected: hub(), theme: hub(), time: hub(), matches: hub()};

const app = {
  data: null,
  selected: -1,
  shown: "",
  theme: "light",
  format,
  color,
  onSelect: events.selected.on,
  onTheme: events.theme.on,

  /** Makes an activity the selected one; -1 for none. */
  select(index) {
    if (index === app.selected) return;
    app.selected = index;
    events.selected.tell(index);
    say(index < 0 ? "Nothing selected" : `Selected ${format.name(app.data.name(index))}`);
  },

  /** Selects an activity and shows it in the lanes. */
  reveal(index) {
    app.select(index);
    app.show("timeline");
    time.show(index);
  },

  /** Shows the view of this id, built the first time. */
  show(id) {
    const view = views.find((one) => one.id === id);
    if (!view || app.shown === id) return;
    app.shown = id;
    for (const one of views) {
      const here = one === view;
      one.section.hidden = !here;
      one.tab.setAttribute("aria-selected", String(here));
      one.tab.tabIndex = here ? 0 : -1;
    }
    build(view);
    location.replace(`#${id}`);
  },

  use(theme) {
    app.theme = theme;
    document.documentElement.dataset.theme = theme;
    color.use(theme);
    events.theme.tell(theme);
    redraw();
  },
};

/** Builds a view if it was not yet, and draws it. */
function build(view) {
  view.drawing ??= view.build(view.section, app.data, app) ?? {};
  view.drawing.draw?.();
}

/** Draws again what is in sight. */
function redraw() {
  for (const view of views) if (view.drawing && !view.section.hidden) view.drawing.draw?.();
}

/** Tells those who listen to the page rather than look at it. */
function say(words) {
  document.getElementById("said").textContent = words;
}

/** The tabs and the empty section of every view. */
function furnish() {
  const tabs = document.getElementById("tabs");
  const main = document.getElementById("views");
  views.forEach((view, number) => {
    view.tab = el("button", {
      type: "button", role: "tab", id: `tab-${view.id}`, "aria-controls": `view-${view.id}`, text: view.title,
      title: number < 9 ? `${view.title} (${number + 1})` : view.title, onclick: () => app.show(view.id),
    });
    view.section = el("section", {
      role: "tabpanel", id: `view-${view.id}`, class: `view ${view.id}`, "aria-labelledby": `tab-${view.id}`,
      hidden: true,
    }, el("h2", {text: view.title}));
    tabs.append(view.tab);
    main.append(view.section);
  });
  tabs.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1, Home: -views.length, End: views.length}[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const at = views.findIndex((view) => view.id === app.shown) + step;
    const next = views[Math.abs(step) > 1 ? Math.max(0, Math.min(views.length - 1, at)) : (at + views.length) % views.length];
    app.show(next.id);
    next.tab.focus();
  });
}
