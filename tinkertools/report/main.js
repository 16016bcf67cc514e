// Fills the parts of the page that need the script, and draws the charts anew where the room for them changes.

const charts = document.getElementById("charts");
const pictures = make("div", { class: "pictures" });
const told = make("output", { class: "told" });

const describe = (row) =>
  `example ${counted(row.position)}: ${view.unit} ${fixed(row.a)} → ${fixed(row.b)} (${signed(row.difference)}) ` +
  short(visible(messageText(row.item.prompt.at(-1) ?? {})).replace(/\s+/g, " "), 80);

const tell = (text) => (told.textContent = text);

function drawLikelihood() {
  const points = rows.filter((row) => row.difference !== null);
  reveal("charts", points.length > 0 && view.left !== view.right);
  if (charts.hidden) return;
  const width = roomFor(pictures);
  const names = [view.left, view.right].map((model) => visible(model.name));
  const pick = (range) => ((view.range = range), (view.page = 0), show(), document.getElementById("examples").scrollIntoView());
  const better = points.filter((row) => row.difference < 0).length;
  const worse = points.filter((row) => row.difference > 0).length;
  pictures.replaceChildren(
    make(
      "figure",
      null,
      scatter(points, names, view.unit, width, (row) => tell(describe(row)), (row) => goTo(row.item)),
      make("figcaption", null, isolated(view.right.name), ` is better below the line: ${counted(better)} better, ${counted(worse)} worse.`),
    ),
    make(
      "figure",
      null,
      histogram(points.map((row) => row.difference), view.unit, width, (text) => tell(`difference ${text}`), pick),
      make("figcaption", null, isolated(view.right.name), " minus ", isolated(view.left.name), ": left of 0 is better. A bar shows its examples."),
    ),
  );
}

function drawTraining() {
  const runs = trainings();
  reveal("training", runs.length > 0);
  if (!runs.length) return;
  const heard = make("output", { class: "told" }, "Point at a curve to read it.");
  const place = make("figure", { class: "curves" });
  const legend = make("figcaption", { class: "legend" });
  runs.forEach((run, index) => legend.append(make("span", { class: `key series${index % 6}` }, isolated(run.name))));
  legend.append(make("small", null, "line: loss of a step, smoothed where there are many; dots: evaluations"));
  document.getElementById("training").append(place, heard);
  const redraw = (width) => place.replaceChildren(legend, curves(runs, width, (text) => (heard.textContent = visible(text))));
  whenRoomChanges(place, redraw);
}

// Two charts stand side by side where there is room.
function roomFor(element) {
  const all = element.clientWidth || 640;
  return Math.max(Math.min(all >= 720 ? Math.floor((all - 24) / 2) : all, 620), 260);
}

function whenRoomChanges(element, redraw) {
  let before = 0;
  const look = () => {
    const width = Math.max(element.clientWidth, 260);
    if (width !== before) redraw((before = width));
  };
  look();
  addEventListener("resize", look);
}

function reveal(id, there) {
  document.getElementById(id).hidden = !there;
  document.querySelector(`nav a[href="#${id}"]`).hidden = !there;
}

function pairChanged() {
  compute();
  refreshControls();
  show();
  tell("Point at an example to read it; a click shows it below.");
  drawLikelihood();
}

charts.append(pictures, told);
document.getElementById("examples").append(controls, chips, status, pagers[0], make("div", { class: "list" }, table), pagers[1]);
reveal("examples", items.length > 0);
charts.hidden = false; // so that its room can be measured
pairChanged();
let room = roomFor(pictures);
addEventListener("resize", () => {
  if (room !== roomFor(pictures)) drawLikelihood();
  room = roomFor(pictures);
});
drawTraining();
document.body.getBoundingClientRect(); // lays the page out, so that the mark below counts it
performance.mark("shown");
