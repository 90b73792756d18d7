// A heat map of tokens by tokens on a canvas, with a cell that pointer or keys choose.

const FONT = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
const GAP = 8;
const MAX_LABEL = 110;
const MIN_CELL = 13;
const MAX_CELL = 40;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class HeatMap {
  /** `onCell` is called with [query, key] whenever a cell is chosen or has new numbers. */
  constructor(canvas, scroller, onCell) {
    Object.assign(this, { canvas, scroller, onCell, cell: [0, 0] });
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.paint()).observe(scroller);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  /** Draws a matrix; colours go to `limit`, from 0 where it `isShare`, else from its negative. */
  draw(tokens, matrix, limit, isShare) {
    Object.assign(this, { tokens, matrix, limit, isShare });
    const last = tokens.length - 1;
    this.cell = this.cell.map((one) => Math.min(one, last));
    this.paint();
    this.onCell(this.cell);
  }

  paint() {
    if (!this.tokens) return;
    const { canvas, tokens, scroller } = this;
    const context = canvas.getContext("2d");
    context.font = FONT;
    const widths = tokens.map((token) => context.measureText(token).width);
    const label = Math.min(MAX_LABEL, Math.ceil(Math.max(...widths)) + GAP);
    const room = Math.floor((scroller.clientWidth - label - 2) / tokens.length);
    this.size = Math.max(MIN_CELL, Math.min(MAX_CELL, room));
    this.origin = label;
    const side = label + this.size * tokens.length + 2;
    const scale = window.devicePixelRatio || 1;
    canvas.style.width = canvas.style.height = `${side}px`;
    canvas.width = canvas.height = Math.round(side * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    this.colours = readColours();
    this.paintCells(context);
    this.paintLabels(context);
    this.paintChoice(context);
  }

  paintCells(context) {
    const { size, origin, matrix } = this;
    const gap = size > 20 ? 1 : 0.5;
    matrix.forEach((row, query) => {
      row.forEach((value, key) => {
        context.fillStyle = this.colourOf(value);
        context.fillRect(origin + key * size, origin + query * size, size - gap, size - gap);
      });
    });
  }

  colourOf(value) {
    const { neutral, negative, positive, share } = this.colours;
    const end = this.isShare ? share : value < 0 ? negative : positive;
    const weight = Math.min(1, Math.abs(value) / this.limit);
    const mixed = neutral.map((one, i) => Math.round(one + (end[i] - one) * weight));
    return `rgb(${mixed.join(" ")})`;
  }

  paintLabels(context) {
    const { tokens, size, origin, cell, colours } = this;
    context.font = FONT;
    context.textBaseline = "middle";
    tokens.forEach((token, place) => {
      const text = shortened(context, token, origin - GAP);
      const middle = origin + (place + 0.5) * size;
      context.fillStyle = place === cell[0] ? colours.strong : colours.text;
      context.textAlign = "right";
      context.fillText(text, origin - GAP / 2, middle);
      context.fillStyle = place === cell[1] ? colours.strong : colours.text;
      context.save();
      context.translate(middle, origin - GAP / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(text, 0, 0);
      context.restore();
    });
  }

  paintChoice(context) {
    const { size, origin, cell: [query, key], colours } = this;
    context.strokeStyle = colours.strong;
    context.lineWidth = 2;
    context.strokeRect(origin + key * size, origin + query * size, size - 1, size - 1);
  }

  point(event) {
    if (!this.tokens) return;
    const box = this.canvas.getBoundingClientRect();
    const at = (offset) => Math.floor((offset - this.origin) / this.size);
    this.choose(at(event.clientY - box.top), at(event.clientX - box.left));
  }

  step(event) {
    const step = STEPS[event.key];
    if (!step || !this.tokens) return;
    event.preventDefault();
    this.choose(this.cell[0] + step[0], this.cell[1] + step[1]);
    this.reveal();
  }

  choose(query, key) {
    const isCell = (one) => one >= 0 && one < this.tokens.length;
    const [oldQuery, oldKey] = this.cell;
    if (!isCell(query) || !isCell(key) || (query === oldQuery && key === oldKey)) return;
    this.cell = [query, key];
    this.paint();
    this.onCell(this.cell);
  }

  /** Scrolls sideways to the chosen cell where it is out of sight. */
  reveal() {
    const left = this.origin + this.cell[1] * this.size;
    const { scrollLeft, clientWidth } = this.scroller;
    if (left < scrollLeft + this.origin) this.scroller.scrollLeft = left - this.origin;
    if (left + this.size > scrollLeft + clientWidth) {
      this.scroller.scrollLeft = left + this.size - clientWidth;
    }
  }
}

function shortened(context, text, room) {
  let short = text;
  while (short.length > 1 && context.measureText(short).width > room) {
    short = `${short.replace(/\u2026$/, "").slice(0, -1)}\u2026`;
  }
  return short;
}

/** The colours of the style sheet: those that are mixed as [r, g, b]. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const text = (name) => style.getPropertyValue(`--${name}`).trim();
  const mixed = (name) => [1, 3, 5].map((at) => parseInt(text(name).slice(at, at + 2), 16));
  return {
    neutral: mixed("neutral"),
    negative: mixed("negative"),
    positive: mixed("positive"),
    share: mixed("share"),
    text: text("muted"),
    strong: text("text"),
  };
}
