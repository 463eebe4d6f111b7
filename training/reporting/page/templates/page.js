"use strict";
const ROWS = 12;  // of a chart with many curves: more would cover it
// Shows the values of a chart where the pointer is, a finger touches, or the arrow keys go. Without it the page still reads.
for (const plot of document.querySelectorAll(".plot")) {
  const chart = JSON.parse(plot.querySelector("script").textContent);
  const [low, high] = chart.x, series = chart.series.filter((one) => one.x.length);
  if (!series.length) continue;
  const cursor = added("div", "cursor"), tip = added("div", "tip");
  tip.setAttribute("role", "status");
  // where points have names, each can be reached, and is shown at its own place only
  const stops = series.some((one) => one.names) ? [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b)
    : series.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
  let at = -1;

  function added(tag, name) {
    const element = plot.appendChild(document.createElement(tag));
    element.className = name;
    element.hidden = true;
    return element;
  }
  function nearest(xs, x) {
    let a = 0, b = xs.length - 1;
    while (b - a > 1) {
      const middle = (a + b) >> 1;
      if (xs[middle] < x) a = middle; else b = middle;
    }
    return Math.abs(xs[a] - x) <= Math.abs(xs[b] - x) ? a : b;
  }
  function text(value) {
    if (chart.share) return (100 * value).toPrecision(3) + "%";
    return Math.abs(value) >= 1e5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
  }
  function xText(x) {
    if (chart.xNames) return chart.xNames[Math.round(x)];
    return Number.isInteger(x) ? x.toLocaleString("en") : String(Number(x.toPrecision(4)));
  }
  function share(x) { return chart.log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low); }
  function valueAt(part) { return chart.log ? low * (high / low) ** part : low + part * (high - low); }
  function line(one, place, shown) {
    const row = document.createElement("div"), dot = document.createElement("i");
    dot.className = "colour-" + one.colour;
    const value = document.createElement("b");
    value.textContent = text(one.y[place]);
    const where = one.x[place] === shown ? "" : " at " + xText(one.x[place]);
    row.append(dot, (one.names ? one.names[place] : one.name) + " ", value, where);
    return row;
  }
  function linesAt(x) {
    const told = new Map(), points = [];
    for (const one of series) {
      if (one.names) one.x.forEach((at, place) => { if (at === x) points.push([one.y[place], line(one, place, x)]); });
      else if (share(one.x[0]) - 0.02 <= share(x) && share(x) <= share(one.x[one.x.length - 1]) + 0.02) {
        told.set(one.name, line(one, nearest(one.x, x), x));  // it has points around here
      }
    }
    return [...points.sort((a, b) => a[0] - b[0]).map((point) => point[1]), ...told.values()];
  }
  function show(place) {
    at = Math.max(0, Math.min(stops.length - 1, place));
    const x = stops[at], rows = linesAt(x);
    const head = document.createElement("div"), rest = document.createElement("div");
    head.textContent = chart.xName + " " + xText(x);
    rest.textContent = "and " + (rows.length - ROWS) + " more";
    tip.replaceChildren(head, ...rows.slice(0, ROWS), ...(rows.length > ROWS ? [rest] : []));
    cursor.style.left = 100 * share(x) + "%";
    cursor.hidden = tip.hidden = false;
    const room = plot.clientWidth - tip.offsetWidth, left = share(x) * plot.clientWidth;
    tip.style.left = Math.max(0, Math.min(room, left > plot.clientWidth / 2 ? left - tip.offsetWidth - 10 : left + 10)) + "px";
  }
  function hide() { cursor.hidden = tip.hidden = true; }
  function follow(event) {
    const box = plot.getBoundingClientRect();
    show(nearest(stops, valueAt((event.clientX - box.left) / box.width)));
  }
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? Math.ceil(stops.length / 20) : 1;
    const to = { ArrowRight: at + far, ArrowLeft: at - far, Home: 0, End: stops.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
  plot.tabIndex = 0;
}
