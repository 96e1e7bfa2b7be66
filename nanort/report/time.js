/* The stretch of time in sight: all canvases of the timeline show it, every input moves it. */

const SHORTEST = 20; // nanoseconds in sight at the deepest zoom
const GLIDE = 140; // milliseconds

const time = {
  from: 0,
  to: 1,
  whole: 1,
  frame: 0,

  /** Starts with all of a run in sight. */
  begin(makespan) {
    time.whole = Math.max(makespan, 1);
    [time.from, time.to] = time.room();
  },
  /** All of the run with a margin. */
  room: () => [-0.008 * time.whole, 1.008 * time.whole],
  span: () => time.to - time.from,

  /** Shows this stretch, at once; it stays within the run. */
  set(from, to) {
    const [least, most] = time.room();
    const span = Math.min(Math.max(to - from, Math.min(SHORTEST, most - least)), most - least);
    const middle = (from + to) / 2;
    time.from = Math.min(Math.max(middle - span / 2, least), most - span);
    time.to = time.from + span;
    events.time.tell();
  },
  pan: (ns) => time.set(time.from + ns, time.to + ns),
  /** Shows `factor` times as much around a moment. */
  zoom(factor, around = (time.from + time.to) / 2) {
    time.set(...time.zoomed(factor, around));
  },
  zoomed(factor, around) {
    const span = Math.min(Math.max(time.span() * factor, SHORTEST), time.room()[1] - time.room()[0]);
    const share = (around - time.from) / time.span();
    return [around - share * span, around + (1 - share) * span];
  },
  /** The same as set, in a short movement that the eye can follow. */
  glide(from, to) {
    cancelAnimationFrame(time.frame);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return time.set(from, to);
    const [a, b, began] = [time.from, time.to, performance.now()];
    const step = (now) => {
      const share = Math.min(1, Math.max(0, now - began) / GLIDE);
      const eased = share * (2 - share);
      time.set(a + (from - a) * eased, b + (to - b) * eased);
      if (share < 1) time.frame = requestAnimationFrame(step);
    };
    time.frame = requestAnimationFrame(step);
    return undefined;
  },
  fit: () => time.glide(...time.room()),
  /** Brings an activity into sight, some of its neighbours with it. */
  show(index) {
    const stretch = ran(index);
    if (!stretch) return;
    const [start, end] = stretch;
    const length = Math.max(end - start, SHORTEST / 2);
    if (length > time.span() * 0.02 && length < time.span() * 0.6 && start > time.from && end < time.to) return;
    const around = Math.max(length * 6, SHORTEST);
    time.glide((start + end) / 2 - around, (start + end) / 2 + around);
  },
};

/** When an activity ran, or would have by the plan: [start, end], or null for one that never did. */
function ran(index) {
  const {data} = app;
  if (data.start[index] >= 0) return [data.start[index], data.end[index] >= 0 ? data.end[index] : data.makespan_ns];
  if (data.planStart && data.planStart[index] >= 0) return [data.planStart[index], data.planEnd[index]];
  return null;
}
