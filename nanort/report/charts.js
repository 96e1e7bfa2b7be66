/* What the views that are made of tables and bars share. */

const dyes = [];
app.onTheme(() => dyes.forEach((dye) => dye()));

/** Gives an element a colour that follows the theme. */
function dyed(node, property, mix) {
  const dye = () => {
    node.style[property] = mix();
  };
  dye();
  dyes.push(dye);
  return node;
}

/** The colour of an operator by its name. */
function operatorColor(data, name) {
  const at = data.operators.findIndex((operator) => data.text(operator.name) === name);
  return at < 0 ? color.css("--faint") : color.operator(at);
}

/** A user's name, kept apart from the direction of the text round it. */
function bdi(name) {
  return el("bdi", {text: format.name(name), class: "user"});
}

/** A colour and what it stands for. */
function key(words, mix) {
  return el("span", {class: "key"}, dyed(el("span", {class: "swatch", "aria-hidden": "true"}), "backgroundColor", mix), words);
}

/** An operator with its colour. */
function operatorKey(data, name) {
  return key(bdi(name), () => operatorColor(data, name));
}

/** A share of one as a bar. */
function barred(share, mix = () => color.css("--accent")) {
  const fill = dyed(el("span", {class: "fill"}), "backgroundColor", mix);
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return el("span", {class: "barred", "aria-hidden": "true"}, fill);
}

/** Parts of a whole side by side: [[words, share, mix]...]. */
function stacked(parts) {
  const bar = el("span", {class: "stack", "aria-hidden": "true"});
  for (const [words, share, mix] of parts) {
    if (!(share > 0)) continue;
    const part = dyed(el("span", {title: words}), "backgroundColor", mix);
    part.style.width = `${100 * share}%`;
    bar.append(part);
  }
  return bar;
}

/** What was more (to the right) or less than planned, as a bar from the middle. */
function swing(share) {
  const fill = dyed(el("span", {class: "fill"}), "backgroundColor", () => color.css(share > 0 ? "--bad" : "--good"));
  const wide = 50 * Math.min(Math.abs(share), 1);
  fill.style.left = `${share > 0 ? 50 : 50 - wide}%`;
  fill.style.width = `${wide}%`;
  return el("span", {class: "swing", "aria-hidden": "true"}, fill);
}

/** A figure with its name, for the head of a view. */
function fact(words, figure, more = "") {
  return el("div", {class: "card fact"}, el("span", {class: "muted", text: words}), el("span", {class: "number", text: figure}),
    more ? el("span", {class: "muted", text: more}) : null);
}

/** A change in percent with its sign. */
function change(share) {
  if (!Number.isFinite(share)) return "–";
  const shown = format.percent(Math.abs(share));
  return share < 0 ? `−${shown}` : share > 0 ? `+${shown}` : "0 %";
}

/** Nanoseconds with their sign. */
function signed(ns) {
  return ns < 0 ? `−${format.ns(-ns)}` : ns > 0 ? `+${format.ns(ns)}` : "0 s";
}

/** A share that is 0 where there is nothing to share. */
function part(some, all) {
  return all > 0 ? some / all : 0;
}

/**
 * A table that its heads sort. A column is {title, cell(row), by(row)}: what it shows, and the figure or text that it is
 * sorted by; without `by` it is not. `wide` marks a column of words. The rows come sorted as they are to be shown first.
 */
function sortable(caption, columns, rows, {most = 40} = {}) {
  const body = el("tbody");
  const made = new Map();
  let [shown, order] = [most, rows];
  const line = (row) => {
    if (!made.has(row)) {
      made.set(row, el("tr", {}, ...columns.map((column, at) => {
        const cell = column.cell(row);
        return el(at ? "td" : "th", at ? {class: column.wide ? null : "n"} : {scope: "row"}, cell);
      })));
    }
    return made.get(row);
  };
  const more = el("button", {type: "button", class: "more", onclick: () => {
    shown = rows.length;
    fill();
  }});
  const fill = () => {
    body.replaceChildren(...order.slice(0, shown).map(line));
    more.hidden = shown >= rows.length;
    more.textContent = `Show all ${format.count(rows.length)}`;
  };
  const heads = columns.map((column, at) => {
    const head = el("th", {scope: "col", class: column.wide || !at ? null : "n"});
    if (!column.by) {
      head.textContent = column.title;
      return head;
    }
    head.append(el("button", {type: "button", text: column.title, onclick: () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order = rows.map((row) => [column.by(row), row]);
      order.sort(([a], [b]) => (down ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0));
      order = order.map(([, row]) => row);
      fill();
    }}));
    return head;
  });
  fill();
  return el("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": caption},
    el("table", {}, el("caption", {text: caption}), el("thead", {}, el("tr", {}, ...heads)), body), more);
}

/** A button that shows an activity in the lanes; its words are the activity's name. */
function toLanes(data, index) {
  return el("button", {type: "button", class: "link", title: "Show in the lanes", onclick: () => app.reveal(index)},
    bdi(data.name(index)));
}

/** What is said where there is nothing to show. */
function nothing(words) {
  return el("p", {class: "card muted nothing", text: words});
}
