/* Numbers and names as a person reads them. */

const LONGEST_NAME = 160;
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu; // controls, bidi marks, lone surrogates, line separators

/** What a table has for a key; nothing for what every object inherits, such as "constructor". */
const entry = (table, key) => (Object.hasOwn(table, key) ? table[key] : undefined);

const format = {
  /** Three digits, or as many as are asked for, without zeros that say nothing. */
  figure(value, digits = 3) {
    if (!Number.isFinite(value)) return "–";
    const places = value ? Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value)) + 1e-9)) : 0;
    return value.toLocaleString("en-US", {maximumFractionDigits: Math.min(places, 12)});
  },
  scaled(value, units, digits) {
    const [size, unit] = units.find(([least]) => Math.abs(value) >= least * 0.9995) ?? units[units.length - 1];
    return `${format.figure(value / size, digits)} ${unit}`;
  },
  ns(value, digits = 3) {
    if (!value) return "0 s";
    return format.scaled(value, [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]], digits);
  },
  si(value, unit, digits = 3) {
    if (!value) return `0 ${unit}`;
    return format.scaled(value, [[1e15, `P${unit}`], [1e12, `T${unit}`], [1e9, `G${unit}`], [1e6, `M${unit}`], [1e3, `k${unit}`], [1, unit]], digits);
  },
  bytes: (value) => format.si(value, "B"),
  flops: (value) => format.si(value, "FLOP"),
  rate: (value, unit) => format.si(value, `${unit}/s`),
  percent: (share) => `${format.figure(100 * share, Math.abs(share) < 0.1 ? 2 : 3)} %`,
  ratio: (value) => `${format.figure(value)}×`,
  count: (value) => value.toLocaleString("en-US"),
  /** A name that comes from a user: what does not show, or turns the text round, in words; cut where it is long. */
  name(text, longest = LONGEST_NAME) {
    const cut = text.length > longest ? `${text.slice(0, longest)}…` : text;
    return cut.replace(UNSEEN, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`) || "(no name)";
  },
};
