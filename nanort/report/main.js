/* The start: data in, views furnished, the first one shown. */

function start() {
  app.data = decoded(document.getElementById("data").textContent);
  time.begin(app.data.until);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  furnish();
  app.use(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => app.use(dark.matches ? "dark" : "light"));
  const first = views.find((view) => `#${view.id}` === location.hash) ?? views[0];
  // The lanes are what all views lead to and what the panel asks: they are always built.
  build(views[0]);
  app.show(first.id);
  events.selected.on(showPanel);
  events.theme.on(() => showPanel(app.selected));
  showPanel(-1);
  listenToKeys();
  listenToSearch();
  listenToPrinter();
  document.getElementById("theme").addEventListener("click", () => app.use(app.theme === "dark" ? "light" : "dark"));
  document.getElementById("help").addEventListener("click", help);
  new ResizeObserver(redraw).observe(document.getElementById("views"));
  document.documentElement.dataset.ready = "true";
}

/** On paper: light, all views one below the other, all of the run in sight. */
function listenToPrinter() {
  let before = null;
  const begin = () => {
    if (before) return;
    before = {theme: app.theme, from: time.from, to: time.to};
    document.documentElement.classList.add("printing");
    time.set(...time.room());
    for (const view of views) view.section.hidden = false;
    for (const view of views) build(view);
    app.use("light");
  };
  const over = () => {
    if (!before) return;
    document.documentElement.classList.remove("printing");
    for (const view of views) view.section.hidden = view.id !== app.shown;
    time.set(before.from, before.to);
    app.use(before.theme);
    before = null;
  };
  const printed = matchMedia("print");
  printed.addEventListener("change", () => (printed.matches ? begin() : over()));
  window.addEventListener("beforeprint", begin);
  window.addEventListener("afterprint", over);
}

start();
