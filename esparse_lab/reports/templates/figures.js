// Draws the figures. Their titles and captions are text of the page, so that they fit its width;
// a figure that is saved has them inside.
const NARROW = 600, APART = 84;  // pixels: of the page; between panels, for titles and ticks
// In a narrow window panels that are side by side go below each other, each as high as it was.
// Left as they are, to be scrolled: panels of different widths, which belong together, tables, and
// colour bars in places of their own. Returns null for these, and for a single column.
const inOneColumn = (data, layout) => {
  const name = (letter, ref) => `${letter}axis${(ref ?? letter).slice(1)}`;
  const pairs = new Map(data.map(trace => [`${trace.xaxis} ${trace.yaxis}`, trace]));
  const panels = [...pairs.values()].map(({xaxis, yaxis}) => ({x: name("x", xaxis), y: name("y", yaxis)}));
  const spans = panels.map(({x, y}) => ({x: layout[x]?.domain ?? [0, 1], y: layout[y]?.domain ?? [0, 1]}));
  const widths = spans.map(({x: [from, to]}) => to - from);
  const bars = [...Object.keys(layout).filter(key => key.startsWith("coloraxis")).map(key => layout[key]),
    ...data.flatMap(trace => [trace, trace.marker ?? {}])].filter(each => each.colorbar?.x !== undefined);
  const single = new Set(spans.map(({x}) => x[0])).size < 2;
  const whole = data.every(trace => trace.type !== "table") && !bars.length;
  if (single || !whole || Math.max(...widths) > 1.2 * Math.min(...widths)) return null;
  const shown = layout.height - layout.margin.t - layout.margin.b;
  const order = panels.map((_, i) => i).sort((a, b) => spans[b].y[1] - spans[a].y[1] || spans[a].x[0] - spans[b].x[0]);
  const heights = order.map(i => (spans[i].y[1] - spans[i].y[0]) * shown);
  const total = heights.reduce((sum, height) => sum + height) + APART * (order.length - 1);
  const stacked = {...layout, height: layout.height + total - shown};
  let top = total;
  order.forEach((i, place) => {
    const {x, y} = panels[i];
    stacked[x] = {...stacked[x], domain: [0, 1], showticklabels: true};
    stacked[y] = {...stacked[y], domain: [(top - heights[place]) / total, top / total], showticklabels: true};
    for (const [axis, ref] of [[x, y], [y, x]]) stacked[axis].anchor = ref.replace("axis", "");
    top -= heights[place] + APART;
  });
  return stacked;
};
for (const element of document.querySelectorAll(".plot")) {
  const id = element.dataset.figure;
  const {data, layout, frames} = JSON.parse(document.getElementById(id).textContent);
  const words = layout.meta?.caption_height === undefined ? null : layout.meta;
  const isCaption = annotation => annotation.name === "caption";
  const bare = {...layout, autosize: true};
  if (words) {
    delete bare.title;
    bare.annotations = layout.annotations?.filter(each => !isCaption(each));
    bare.margin = {...layout.margin, t: layout.margin.t - words.title_height,
      b: layout.margin.b - words.caption_height};
    bare.height = layout.height - words.title_height - words.caption_height;
  }
  const column = innerWidth < NARROW ? inOneColumn(data, bare) : null;
  if (column) {
    Object.assign(bare, column);
    element.style.height = `${bare.height}px`;
  }
  element.classList.toggle("fits", column !== null);
  const save = format => graph => {
    const whole = words && {...column && layout, title: layout.title, margin: layout.margin, height: layout.height,
      annotations: [...graph.layout.annotations ?? [], ...layout.annotations.filter(isCaption)]};
    const name = location.pathname.split("/").pop().replace(".html", "");
    return Plotly.downloadImage(
      {data: graph.data, layout: {...graph.layout, ...whole}},
      {format, filename: `${name}-${id}`, width: 960, scale: format === "png" ? 2 : 1,
        height: words ? layout.height : graph.offsetHeight});
  };
  const button = (format, icon) => ({name: format, title: `Save as ${format.toUpperCase()}`, icon,
    click: save(format)});
  Plotly.newPlot(element, data, bare, {
    responsive: true, displaylogo: false,
    showSendToCloud: false, plotlyServerURL: "",  // plotly's default button uploads the figure
    modeBarButtonsToRemove: ["toImage"],
    modeBarButtonsToAdd: [button("png", Plotly.Icons.camera), button("svg", Plotly.Icons.disk)],
  }).then(() => frames.length ? Plotly.addFrames(element, frames) : null);
}
// A browser would print a figure as wide as the window; the style sheet fits this width to A4.
const resized = width => () => {
  for (const element of document.querySelectorAll(".plot")) Plotly.relayout(element, {width});
};
addEventListener("beforeprint", resized(900));
addEventListener("afterprint", resized(null));
