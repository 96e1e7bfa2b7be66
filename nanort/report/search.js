/* Search: by a part of a name, an operator, labels or a source line. */

const found = {words: "", list: [], at: -1};
const SEARCHED = ["name", "operator", "where", "scope"];

/** Marks every activity that says `words`; none for no words. */
function search(words) {
  const {data} = app;
  const wanted = words.trim().toLowerCase();
  Object.assign(found, {words, list: [], at: -1});
  paint.flags = null;
  if (wanted) {
    const fits = Uint8Array.from(data.strings, (text) => (text.toLowerCase().includes(wanted) ? 1 : 0));
    const columns = SEARCHED.map((name) => data.columns[name]);
    paint.flags = new Uint8Array(data.count);
    for (let index = 0; index < data.count; index++) {
      if (!columns.some((column) => fits[column[index]])) continue;
      paint.flags[index] = 1;
      found.list.push(index);
    }
    found.list.sort((a, b) => (ran(a)?.[0] ?? Infinity) - (ran(b)?.[0] ?? Infinity) || a - b);
  }
  const count = found.list.length;
  if (!count) paint.flags = null;
  paint.stamp++;
  document.getElementById("found").textContent = wanted ? (count ? format.count(count) : "none") : "";
  events.matches.tell(paint.flags);
}

/** Goes to the next of what was found, or to the one before. */
function step(by) {
  const {list} = found;
  if (!list.length) return;
  found.at = found.at < 0 ? (by > 0 ? 0 : list.length - 1) : (found.at + by + list.length) % list.length;
  document.getElementById("found").textContent = `${format.count(found.at + 1)} of ${format.count(list.length)}`;
  app.reveal(list[found.at]);
}

function listenToSearch() {
  const field = document.getElementById("query");
  const look = () => field.value === found.words || search(field.value);
  let timer = 0;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, app.data.count > 20000 ? 120 : 0);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    clearTimeout(timer);
    look();
    if (event.key === "Enter") return void step(event.shiftKey ? -1 : 1);
    escape();
    field.blur();
  });
  document.getElementById("search").addEventListener("submit", (event) => event.preventDefault());
}
