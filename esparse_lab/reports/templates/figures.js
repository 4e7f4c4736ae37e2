// Draws the figures. Their titles and captions are text of the page, so that they fit its width;
// a figure that is saved has them inside.
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
  const save = format => graph => {
    const whole = words && {title: layout.title, margin: layout.margin, height: layout.height,
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
