/* Elements made from text only: nothing that comes as data is ever read as markup. */

/** An element; children are elements or strings. `on...` are listeners, `text` its text, the rest attributes. */
function el(tag, props = {}, ...children) {
  return dressed(document.createElement(tag), props, children);
}

/** The same for SVG. */
function svg(tag, props = {}, ...children) {
  return dressed(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function dressed(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A small square of a colour, as a legend has it. */
function swatch(fill) {
  const square = el("span", {class: "swatch", "aria-hidden": "true"});
  square.style.backgroundColor = fill;
  return square;
}

/** The 2D context of a canvas made `width` by `height` CSS pixels, cleared. */
function surface(canvas, width, height) {
  const density = Math.min(window.devicePixelRatio || 1, 2);
  const [across, down] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== across || canvas.height !== down) {
    Object.assign(canvas, {width: across, height: down});
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
