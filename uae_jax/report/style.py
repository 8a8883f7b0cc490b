"""How a report looks, and the little that moves in it."""

STYLE = """
:root { --ink: #1d1f24; --paper: #fff; --card: #8880; --good: #1f6fb8; --bad: #b3590a;
  --c0: #3b78c9; --c1: #d9730d; --c2: #2a8f6d; --c3: #a8559b; --c4: #8a6d1f; --c5: #6670c8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --paper: #15171b; --good: #6db3f2; --bad: #f0a35e;
  --c0: #6ea3ea; --c1: #f09a4a; --c2: #54bf9a; --c3: #d488c7; --c4: #cbae5c; --c5: #9aa3f0; } }
body { color: var(--ink); background: var(--paper); margin-bottom: 6rem; }
h1 { font-size: 1.6rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; font-weight: 650; margin: 3.2rem 0 .4rem; padding-top: 1.2rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h2 small { color: var(--soft); font-weight: 400; font-size: .95rem; margin-left: .5em; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.8rem 0 .7rem; }
h4 { font-size: .92rem; font-weight: 600; margin: 1.2rem 0 .3rem; }
a { color: var(--c0); text-decoration: none; } a:hover { text-decoration: underline; }
small { color: var(--soft); font-size: .85em; }
.note { display: block; color: var(--soft); font-size: .78rem; font-weight: 400; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { font-size: .88rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: .78rem; vertical-align: bottom; }
th, td { padding: .42rem 1.6rem .42rem 0; }
td:last-child, th:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
td.number { white-space: nowrap; }
.stages td { white-space: nowrap; overflow-wrap: normal; } .summary td:first-child { overflow-wrap: normal; }
.stages th:nth-child(n+4):nth-child(-n+5), .headline th:nth-child(n+2), .summary th:nth-child(n+2) {
  text-align: right; }
.headline td:first-child { min-width: 13rem; max-width: 46rem; padding-right: 3rem; }
.summary td { vertical-align: baseline; }
.change { white-space: nowrap; font-size: .92em; }
.summary .change, .tile .change { font-size: .82rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.good small, .bad small { color: inherit; }
.done { color: var(--good); } .going { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.4rem 0 .4rem; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1.2rem; min-width: 11rem; }
.tile h3 { margin: 0; font-size: .8rem; font-weight: 500; color: var(--soft); }
.tile b { font-size: 1.75rem; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.tile b small { font-size: .5em; font-weight: 400; letter-spacing: 0; }
.tile p { margin: 0; font-size: .82rem; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 1.4rem 1.6rem;
  grid-auto-flow: dense; }
@media (min-width: 1300px) {
  .groups { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 1.6rem; }
  .columns1 { grid-column: span 1; } .columns2 { grid-column: span 2; } .columns3 { grid-column: span 3; }
  .columns1 .charts { grid-template-columns: 1fr; } .columns2 .charts { grid-template-columns: 1fr 1fr; }
}
.chart { margin: 0; display: flex; flex-direction: column; min-width: 0; }
@media (min-width: 900px) { .chart.wide { grid-column: span 2; } }
@media (max-width: 899px) { .chart.wide { overflow-x: auto; } .chart.wide > svg { min-width: 640px; } }
.chart figcaption { font-size: .9rem; } .chart figcaption b { font-weight: 600; overflow-wrap: anywhere; }
.chart > svg { overflow: visible; width: 100%; height: auto; margin-top: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .76rem; color: var(--soft); margin: .2rem 0; }
.legend span { white-space: nowrap; } .legend svg { vertical-align: -1px; margin-right: .3em; }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg path.raw { stroke-width: 1; opacity: .3; stroke-dasharray: none; }
svg path.grid { stroke: var(--line); stroke-width: 1; stroke-linecap: butt; }
svg path.span { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; stroke-linecap: butt; }
svg circle { stroke: var(--paper); stroke-width: 1.2; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
path.c0 { stroke: var(--c0); } path.c1 { stroke: var(--c1); } path.c2 { stroke: var(--c2); }
path.c3 { stroke: var(--c3); } path.c4 { stroke: var(--c4); } path.c5 { stroke: var(--c5); }
circle.c0 { fill: var(--c0); } circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); }
circle.c3 { fill: var(--c3); } circle.c4 { fill: var(--c4); } circle.c5 { fill: var(--c5); }
path.d1 { stroke-dasharray: 7 4; } path.d2 { stroke-dasharray: 1.5 4; } path.d3 { stroke-dasharray: 9 4 1.5 4; }
path.d4 { stroke-dasharray: 3 3; } path.d5 { stroke-dasharray: 12 3; }
details { margin: .6rem 0; } details > .charts { margin: .9rem 0 1.6rem; }
summary { cursor: pointer; color: var(--soft); font-size: .88rem; }
pre { font: 12px/1.5 ui-monospace, monospace; overflow-x: auto; padding: .8rem 1rem; border: 1px solid var(--line);
  border-radius: 8px; max-height: 34rem; }
.ends { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 1.2rem;
  align-items: start; max-width: 1200px; }
.ends figure, .viewer figure { margin: 0; }
.film figcaption { color: var(--soft); font-size: .8rem; margin: .3rem 0; }
.film .counts { font-size: .8rem; }
.film img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
.viewer { margin: 1rem 0; max-width: 1200px; }
.viewer label { margin: .7rem 0; display: flex; gap: 1rem; align-items: center; font-size: .85rem; color: var(--soft); }
.viewer input { flex: 1; max-width: 480px; accent-color: var(--c0); }
.viewer output { font-variant-numeric: tabular-nums; min-width: 7em; }
@media print { details:not([open]) > :not(summary) { display: none; } .viewer { display: none; } }
"""

# Turns the folded frames of a film into one picture with a slider; it takes the images that are there already.
SCRIPT = """
for (const film of document.querySelectorAll(".film")) {
  const strip = film.querySelector(".strip");
  if (!strip) continue;
  const frames = [...film.querySelectorAll("img[data-step]")].sort((a, b) => a.dataset.step - b.dataset.step);
  if (frames.length < 2) continue;
  const viewer = document.createElement("div");
  viewer.className = "viewer";
  viewer.innerHTML = '<details><summary></summary><label><input type="range" min="0" value="0">' +
    '<output></output></label><figure><img alt=""></figure></details>';
  const [slider, output, image] = ["input", "output", "img"].map((kind) => viewer.querySelector(kind));
  viewer.querySelector("summary").textContent = "all " + frames.length + " steps, with a slider";
  slider.max = frames.length - 1;
  slider.setAttribute("aria-label", "step");
  const show = () => {
    const frame = frames[slider.value];
    image.src = frame.src;
    image.alt = frame.alt;
    output.textContent = "step " + Number(frame.dataset.step).toLocaleString("en");
  };
  slider.addEventListener("input", show);
  show();
  strip.replaceWith(viewer);
}
"""
