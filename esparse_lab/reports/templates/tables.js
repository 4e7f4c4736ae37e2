// Tables sort by a click on a heading: up, down, and back as they were. [data-filter] controls
// hide the rows that do not fit: a select wants the row's word, an input a part of it.
{
  const natural = new Intl.Collator("en", {numeric: true});
  const NUMBER = /^[-−+]?([\d,]*\.?\d+(e[-+]?\d+)?|inf)(?=$|[\s%])/i;
  const word = cell => (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  const missing = text => ["", "–", "nan", "None"].includes(text);
  const size = text =>
    parseFloat(text.replace("−", "-").replaceAll(",", "").replace("inf", "Infinity"));

  // A cell that spans rows must be in each of them before they can part.
  const unspan = rows => rows.forEach((row, place) => [...row.cells].forEach((cell, column) => {
    const below = rows.slice(place + 1, place + cell.rowSpan);
    cell.rowSpan = 1;
    for (const other of below) other.insertBefore(cell.cloneNode(true), other.cells[column]);
  }));

  const order = (rows, column, direction) => {
    const words = new Map(rows.map(row => [row, word(row.cells[column])]));
    const numbers = [...words.values()].every(text => missing(text) || NUMBER.test(text));
    return [...rows].sort((a, b) => {
      const [x, y] = [words.get(a), words.get(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);  // last, either way
      return direction * (numbers ? size(x) - size(y) : natural.compare(x, y));
    });
  };

  for (const table of document.querySelectorAll("table:not(.run-record)")) {
    const body = table.tBodies[0];
    if (!table.tHead || !body || table.tBodies.length > 1 || body.rows.length < 2) continue;
    const above = [];  // column -> the lowest heading of that column alone
    for (const row of table.tHead.rows) {
      let column = 0;
      for (const cell of row.cells) {
        if (cell.colSpan === 1 && cell.textContent.trim()) above[column] = cell;
        column += cell.colSpan;
      }
    }
    let asWritten = null;
    above.forEach((heading, column) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        if (!asWritten) unspan(asWritten = [...body.rows]);
        const next = {ascending: "descending", descending: null}[heading.ariaSort];
        const sorted = next === undefined ? "ascending" : next;
        for (const other of above) if (other) other.ariaSort = null;
        heading.ariaSort = sorted;
        const direction = sorted === "ascending" ? 1 : -1;
        body.append(...(sorted ? order(asWritten, column, direction) : asWritten));
      });
    });
  }

  const controls = [...document.querySelectorAll("[data-filter]")];
  const fits = (row, control) => {
    const [wanted, found] = [control.value.toLowerCase(), row.dataset[control.dataset.filter]];
    if (wanted === "" || found === undefined) return true;
    return control.tagName === "SELECT" ? control.value === found
      : found.toLowerCase().includes(wanted);
  };
  const filter = () => {
    for (const count of document.querySelectorAll("[data-count]")) {
      const rows = [...document.getElementById(count.dataset.count).tBodies[0].rows];
      for (const row of rows) row.hidden = !controls.every(control => fits(row, control));
      count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} shown`;
    }
  };
  for (const control of controls) control.addEventListener("input", filter);
  if (controls.length) filter();  // a browser keeps what was chosen over a reload
}
