/* Near those of Okabe and Ito, at 3 to 1 or more against the background; no two nearer than 10 (CIE76) to any eye. */

const PALETTE = {
  dark: ["#56b4e9", "#e69f00", "#1fb38a", "#ba77b5", "#f0e442", "#e8702a", "#5b7cf0", "#a3adb8"],
  light: ["#298bcb", "#b27f1c", "#1c8965", "#a4568d", "#7a8734", "#b53a00", "#0964a4", "#9d8595"],
};
/* Which of them stands for what binds: an operator alone, or the device at a time. */
const BOUND = {
  compute: 6, SMs: 6, memory: 5, "device memory": 5, pcie: 2, "PCIe down": 2, "PCIe up": 0, network: 3, launch: 7,
};

const color = {
  theme: "light",
  cache: new Map(),
  /** Sets the theme and forgets what was mixed for the other. */
  use(theme) {
    color.theme = theme;
    color.cache.clear();
  },
  /** A CSS variable's value. */
  css(variable) {
    return color.cached(variable, () => getComputedStyle(document.documentElement).getPropertyValue(variable).trim());
  },
  /** The k-th colour: the eight, then the eight again lighter or darker. */
  nth(k) {
    const palette = PALETTE[color.theme];
    return color.shade(palette[k % palette.length], Math.floor(k / palette.length) * 1.4);
  },
  operator: (position) => color.nth(position),
  piece: (number) => color.nth(number),
  bound(name) {
    return Object.hasOwn(BOUND, name) ? PALETTE[color.theme][BOUND[name]] : color.css("--faint");
  },
  /** A colour some steps further from the background. */
  shade(base, steps) {
    if (!steps) return base;
    return color.cached(`${base}${steps}`, () => {
      const toward = color.theme === "dark" ? 255 : 0;
      const share = 1 - 0.82 ** steps;
      return hex(channels(base).map((channel) => channel + (toward - channel) * share));
    });
  },
  /** Black or white, whichever reads better on a colour. */
  on(base) {
    return color.cached(`on ${base}`, () => (luminance(base) > 0.2 ? "#0b0e12" : "#ffffff"));
  },
  cached(key, make) {
    if (!color.cache.has(key)) color.cache.set(key, make());
    return color.cache.get(key);
  },
};

function channels(base) {
  return [1, 3, 5].map((at) => parseInt(base.slice(at, at + 2), 16));
}

function hex(rgb) {
  return `#${rgb.map((channel) => Math.round(channel).toString(16).padStart(2, "0")).join("")}`;
}

/** How light a colour is, 0 to 1, as WCAG has it. */
function luminance(base) {
  const [r, g, b] = channels(base).map((c) => (c <= 10 ? c / 3294 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
