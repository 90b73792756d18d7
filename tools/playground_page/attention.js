// The attention of one head: what is chosen, asked of the server, and read out.

import { byId, make, request, say, shown } from "./dom.js";
import { HeatMap } from "./heatmap.js";

const NAMES = {
  c2c: "content\u2013content",
  c2p: "content\u2013position",
  p2c: "position\u2013content",
  sum: "sum",
  probabilities: "probability",
};
const EXPLANATIONS = {
  c2c: "What the query is about times what the key is about.",
  c2p: "What the query is about times how far the key stands from it.",
  p2c: "How far the query stands from the key times what the key is about.",
  sum: "The score of a pair, all terms together. The softmax over a row of it is the attention.",
  probabilities: "How much of its attention each query, a row, gives to each key. A row sums to 1.",
};
// A slider passes many values on its way.
const PAUSE_MS = 60;

export class AttentionPanel {
  constructor(model) {
    this.model = model;
    this.found = new Map();
    this.terms = [...model.terms, "sum", "probabilities"];
    this.map = new HeatMap(byId("heatmap"), byId("scroller"), (pair) => this.read(pair));
    byId("terms").append(...this.terms.map((term) => segment(term, term === "probabilities")));
    byId("readout").replaceChildren(...this.terms.map(readoutRow));
    byId("same-scale").closest("label").hidden = model.terms.length < 2;
    for (const [name, count] of [["layer", model.num_layers], ["head", model.num_heads]]) {
      byId(name).max = count;
      byId(name).disabled = count === 1;
      byId(name).addEventListener("input", () => this.choose());
    }
    byId("row").addEventListener("change", () => this.choose());
    byId("terms").addEventListener("change", () => this.draw());
    byId("same-scale").addEventListener("change", () => this.draw());
    byId("attention-controls").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Shows the attention over other inputs. */
  open(inputs) {
    this.inputs = inputs;
    this.found.clear();
    byId("row").replaceChildren();
    byId("attention").hidden = false;
    this.choose(0);
  }

  /** Asks, after a pause, for what the controls say, and draws it. */
  choose(pause = PAUSE_MS) {
    const layer = byId("layer").valueAsNumber;
    const head = byId("head").valueAsNumber;
    byId("layer-number").textContent = `${layer} of ${this.model.num_layers}`;
    byId("head-number").textContent = `${head} of ${this.model.num_heads}`;
    clearTimeout(this.timer);
    this.asking?.abort();
    this.asking = null;
    const body = {
      inputs: this.inputs,
      row: Math.max(0, byId("row").selectedIndex),
      layer: layer - 1,
      head: head - 1,
    };
    const key = `${body.row}/${body.layer}/${body.head}`;
    if (this.found.has(key)) {
      this.show(key);
    } else {
      this.timer = setTimeout(() => this.ask(key, body), pause);
    }
  }

  async ask(key, body) {
    const controller = (this.asking = new AbortController());
    byId("figure").setAttribute("aria-busy", "true");
    try {
      const answer = await request("api/attention", body, controller.signal);
      if (controller !== this.asking) return;
      answer.terms.sum = total(this.model.terms.map((term) => answer.terms[term]));
      this.found.set(key, answer);
      this.show(key);
    } catch (error) {
      if (controller !== this.asking || error.name === "AbortError") return;
      say(byId("attention-error"), error.message);
      byId("figure").setAttribute("aria-busy", "false");
    }
  }

  show(key) {
    this.key = key;
    this.answer = this.found.get(key);
    const { tokens, num_tokens, rows } = this.answer;
    say(byId("attention-error"), null);
    const notes = [this.model.attention_note];
    if (tokens.length < num_tokens) {
      notes.push(`The first ${tokens.length} of ${num_tokens} tokens are shown; the model reads them all.`);
    }
    say(byId("attention-notice"), notes.join(" ").trim());
    if (!byId("row").options.length) {
      byId("row").replaceChildren(...rows.map((name) => make("option", {}, name)));
    }
    byId("row-control").hidden = rows.length < 2;
    byId("figure").setAttribute("aria-busy", "false");
    this.draw();
  }

  draw() {
    if (!this.answer) return;
    const term = byId("terms").querySelector("input:checked").value;
    const { tokens, terms } = this.answer;
    const isShare = term === "probabilities";
    const alike = byId("same-scale").checked && !isShare;
    const compared = alike ? this.terms.filter((one) => one !== "probabilities") : [term];
    const limit = Math.max(...compared.map((one) => largest(terms[one]))) || 1;
    byId("same-scale").disabled = isShare;
    byId("explanation").textContent = EXPLANATIONS[term];
    byId("scale").className = isShare ? "scale share" : "scale";
    byId("scale-low").textContent = isShare ? "0" : shown(-limit, 2);
    byId("scale-middle").textContent = isShare ? "" : "0";
    byId("scale-high").textContent = shown(limit, 2);
    const canvas = byId("heatmap");
    canvas.setAttribute(
      "aria-label",
      `${NAMES[term]}, layer ${byId("layer").value}, head ${byId("head").value}: a heat map of ${tokens.length} by ${tokens.length} tokens`,
    );
    this.map.draw(tokens, terms[term], limit, isShare);
    canvas.dataset.shown = `${this.key}/${term}`;
    for (const row of byId("readout").rows) {
      row.classList.toggle("chosen", row.dataset.term === term);
    }
  }

  /** Reads the numbers of a pair out, [query, key]. */
  read([query, key]) {
    const { tokens, terms } = this.answer;
    byId("readout-pair").replaceChildren(
      make("b", {}, tokens[query]),
      make("span", { className: "place" }, ` ${query + 1}`),
      " looks at ",
      make("b", {}, tokens[key]),
      make("span", { className: "place" }, ` ${key + 1}`),
    );
    for (const row of byId("readout").rows) {
      row.lastChild.textContent = shown(terms[row.dataset.term][query][key], 4);
    }
  }
}

function segment(term, checked) {
  const input = make("input", { type: "radio", name: "term", value: term, checked });
  return make("label", {}, input, make("span", {}, NAMES[term]));
}

function readoutRow(term) {
  const head = make("th", { scope: "row" }, NAMES[term]);
  return make("tr", { data: { term } }, head, make("td", {}));
}

function total([first, ...others]) {
  return first.map((row, query) =>
    row.map((value, key) => others.reduce((sum, one) => sum + one[query][key], value)),
  );
}

function largest(matrix) {
  return Math.max(...matrix.map((row) => Math.max(...row.map(Math.abs))));
}
