"use strict";
// Shows the values of a chart where the pointer is, a finger touches, or the arrow keys go. Without it the page still reads.
for (const plot of document.querySelectorAll(".plot")) {
  const chart = JSON.parse(plot.querySelector("script").textContent);
  const [low, high] = chart.x, series = chart.series.filter((one) => one.x.length);
  if (!series.length) continue;
  const cursor = added("div", "cursor"), tip = added("div", "tip");
  tip.setAttribute("role", "status");
  const main = series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
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
  function line(one, shown) {
    const place = nearest(one.x, shown), row = document.createElement("div"), dot = document.createElement("i");
    dot.className = "colour-" + one.colour;
    const value = document.createElement("b");
    value.textContent = text(one.y[place]);
    const where = one.x[place] === shown ? "" : " at " + one.x[place].toLocaleString("en");
    row.append(dot, one.name + " ", value, where);
    return row;
  }
  function show(place) {
    at = Math.max(0, Math.min(main.x.length - 1, place));
    const x = main.x[at], share = (x - low) / (high - low), told = new Map();
    const slack = 0.02 * (high - low);
    for (const one of series) {  // those that have points around here
      if (one.x[0] - slack <= x && x <= one.x[one.x.length - 1] + slack) told.set(one.name, line(one, x));
    }
    const head = document.createElement("div");
    head.textContent = chart.xName + " " + x.toLocaleString("en");
    tip.replaceChildren(head, ...told.values());
    cursor.style.left = 100 * share + "%";
    cursor.hidden = tip.hidden = false;
    const room = plot.clientWidth - tip.offsetWidth, left = share * plot.clientWidth;
    tip.style.left = Math.max(0, Math.min(room, left > plot.clientWidth / 2 ? left - tip.offsetWidth - 10 : left + 10)) + "px";
  }
  function hide() { cursor.hidden = tip.hidden = true; }
  function follow(event) {
    const box = plot.getBoundingClientRect();
    show(nearest(main.x, low + ((event.clientX - box.left) / box.width) * (high - low)));
  }
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? Math.ceil(main.x.length / 20) : 1;
    const to = { ArrowRight: at + far, ArrowLeft: at - far, Home: 0, End: main.x.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
  plot.tabIndex = 0;
}
