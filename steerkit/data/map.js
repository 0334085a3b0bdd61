// The map of `steerkit map -o map.html`. Points are reached with Tab and the arrow keys; the wheel zooms only once
// the map is in use, so that the page still scrolls. What users wrote is set as text, never as markup.
const $ = id => document.getElementById(id), map = $("map"), dots = [...map.querySelectorAll(".dot")];
const W = map.viewBox.baseVal.width, H = map.viewBox.baseVal.height;
let view = [0, 0, W], drag = null, layer = map.dataset.layer, held = null;
const between = (x, low, high) => Math.min(high, Math.max(low, x));
function look(x, y, width) {
  const w = between(width, W / 16, W), h = w * H / W;
  view = [between(x, 0, W - w), between(y, 0, H - h), w];
  map.setAttribute("viewBox", [view[0], view[1], w, h].join(" "));
  map.style.setProperty("--k", (w / W) ** .8);
  map.classList.toggle("near", w < W * .4);
}
function zoom(by, x = view[0] + view[2] / 2, y = view[1] + view[2] * H / W / 2) {
  const w = between(view[2] * by, W / 16, W), part = w / view[2];
  look(x - (x - view[0]) * part, y - (y - view[1]) * part, w);
}
const place = event => new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
const at = dot => (dot.dataset.at.split(" ")[layer] || dot.dataset.at).split(",").map(Number);
function show(dot) {
  if (held) held.classList.remove("on");
  (held = dot).classList.add("on");
  $("top").setAttribute("href", "#" + dot.id);
  for (const key of ["name", "family", "summary", "numbers", "reply"]) $("card-" + key).textContent = dot.dataset[key];
  $("card-reply").hidden = !dot.dataset.reply;
}
function reveal(dot) {
  const [x, y] = at(dot), w = view[2], h = w * H / W;
  if (x < view[0] || y < view[1] || x > view[0] + w || y > view[1] + h) look(x - w / 2, y - h / 2, w);
  show(dot);
}
function pick(dot) { dots.forEach(one => one.tabIndex = one === dot ? 0 : -1); reveal(dot); }
map.addEventListener("focusin", event => { const dot = event.target.closest(".dot"); if (dot) pick(dot); });
map.addEventListener("pointerover", event => { const dot = event.target.closest(".dot"); if (dot && !drag) show(dot); });
map.addEventListener("wheel", event => {
  if (!event.ctrlKey && !map.contains(document.activeElement)) return;
  event.preventDefault();
  const point = place(event);
  zoom(1.0016 ** event.deltaY, point.x, point.y);
}, {passive: false});
map.addEventListener("pointerdown", event => { drag = [event.clientX, event.clientY, ...view]; });
addEventListener("pointermove", event => {
  if (!drag) return;
  const unit = view[2] / map.clientWidth;
  look(drag[2] - (event.clientX - drag[0]) * unit, drag[3] - (event.clientY - drag[1]) * unit, view[2]);
  map.classList.add("dragging");
});
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { drag = null; map.classList.remove("dragging"); });
map.addEventListener("keydown", event => {
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? .7 : 1 / .7);
  if (event.key === "0") look(0, 0, W);
  if (!way) return;
  event.preventDefault();
  const here = document.activeElement.closest(".dot") || dots[0], [x, y] = at(here);
  const far = dot => {
    const [a, b] = at(dot), on = (a - x) * way[0] + (b - y) * way[1], off = Math.abs((a - x) * way[1] + (b - y) * way[0]);
    return dot !== here && on > 0 && dot.getClientRects().length ? on + 2.5 * off : Infinity;
  };
  const next = dots.reduce((best, dot) => far(dot) < far(best) ? dot : best, here);
  if (far(next) < Infinity) next.focus({preventScroll: true});
});
$("closer").onclick = () => zoom(.7);
$("wider").onclick = () => zoom(1 / .7);
$("whole").onclick = () => look(0, 0, W);
const keys = [...document.querySelectorAll(".key button")];
function press(on) {
  keys.forEach((key, i) => key.setAttribute("aria-pressed", on(key, i)));
  dots.forEach(dot => dot.classList.toggle("off", keys[dot.dataset.key]?.getAttribute("aria-pressed") === "false"));
}
keys.forEach(key => {
  key.onclick = () => press(one => (one.getAttribute("aria-pressed") === "true") !== (one === key));
  key.ondblclick = () => press(one => one === key);
});
$("all").onclick = () => press(() => true);
$("find").oninput = event => {
  const text = event.target.value.trim().toLowerCase().replaceAll(" ", "_");
  map.classList.toggle("seeking", text !== "");
  dots.forEach(dot => dot.classList.toggle("found", dot.dataset.name.toLowerCase().replaceAll(" ", "_").includes(text)));
  const found = map.querySelectorAll(".found");
  if (text && found.length) reveal(found[0]);
};
if ($("layer")) $("layer").oninput = event => {
  layer = event.target.value;
  dots.forEach(dot => { const [x, y] = at(dot); dot.style.transform = `translate(${x}px, ${y}px)`; });
  const said = $("axis").dataset, [x1, y1, x2, y2] = said.at.split(" ")[layer].split(",");
  for (const [key, x] of Object.entries({x1, y1, x2, y2})) $("axis").setAttribute(key, x);
  $("side-x").textContent = said.x.split("|")[layer];
  $("side-y").textContent = said.y.split("|")[layer];
  $("layer-name").textContent = said.layers.split(",")[layer];
  map.classList.toggle("away", layer !== map.dataset.layer);
};
