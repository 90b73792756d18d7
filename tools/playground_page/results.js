// What each kind of answer looks like.

import { make, shown } from "./dom.js";

const NUM_TINTS = 8;

/** Elements that show an answer of the server. */
export function render(answer) {
  return RENDERERS[answer.kind](answer);
}

const RENDERERS = {
  number: ({ score }) => [
    make("p", { className: "number" }, shown(score)),
    make("p", { className: "hint" }, "The score of a regression, in its own unit."),
  ],
  scores: ({ items }) => [bars(items)],
  words: renderWords,
  answer: renderAnswer,
  masks: renderMasks,
  tokens: ({ tokens }) => [
    make("p", { className: "chips" }, ...tokens.map(tokenChip)),
    make("p", { className: "hint" }, "The probability of each token to have been replaced."),
  ],
};

/** A list of labels with their scores as bars, the largest first. */
function bars(items) {
  const sorted = [...items].sort((one, other) => other.score - one.score);
  const rows = sorted.map(({ label, score }, place) =>
    make(
      "li",
      { className: place ? "" : "best", data: { label } },
      make("span", { className: "label" }, visible(label)),
      make("span", { className: "value" }, shown(score)),
      make(
        "span",
        { className: "bar", ariaHidden: "true" },
        make("span", { style: { width: `${Math.max(0, Math.min(1, score)) * 100}%` } }),
      ),
    ),
  );
  return make("ol", { className: "bars" }, ...rows);
}

/** A text that may be nothing but spaces, as something to see. */
function visible(text) {
  return text.trim() ? text : "\u2423".repeat(text.length || 1);
}

function renderWords({ words, entities }) {
  if (entities === null) {
    return [make("p", { className: "chips" }, ...words.map(wordChip))];
  }
  const types = [...new Set(entities.map(({ type }) => type))].sort();
  const tint = (type) => `tint-${types.indexOf(type) % NUM_TINTS}`;
  const text = make("p", { className: "marked" });
  let at = 0;
  const plain = (end) => {
    for (; at < end; at++) {
      const { text: word, label } = words[at];
      text.append(label ? word : make("span", { className: "unread" }, word), " ");
    }
  };
  for (const { type, start, end } of entities) {
    plain(start);
    const inside = words.slice(start, end).map((word) => word.text).join(" ");
    const badge = make("span", { className: "badge" }, type);
    const mark = make("mark", { className: tint(type), data: { type } }, inside, " ", badge);
    text.append(mark, " ");
    at = end;
  }
  plain(words.length);
  if (!entities.length) {
    return [text, make("p", { className: "hint" }, "No entity was found.")];
  }
  const rows = entities.map(({ type, start, end, score }) =>
    make(
      "tr",
      {},
      make("td", {}, words.slice(start, end).map((word) => word.text).join(" ")),
      make("td", {}, make("span", { className: `badge ${tint(type)}` }, type)),
      make("td", { className: "value" }, shown(score)),
    ),
  );
  const heads = ["Entity", "Type", "Score"].map((name) => make("th", { scope: "col" }, name));
  return [
    text,
    make(
      "table",
      { className: "entities" },
      make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...rows),
    ),
    make("p", { className: "hint" }, "The score of an entity is the least of its words'."),
  ];
}

function wordChip({ text, label, score }) {
  return chip(text, label, score, label ? "" : "unread");
}

function tokenChip({ label, score }) {
  const element = chip(label, shown(score), score, "shaded");
  element.style.setProperty("--share", `${Math.round(score * 100)}%`);
  return element;
}

function chip(text, below, score, name) {
  return make(
    "span",
    { className: `chip ${name}`, title: shown(score, 4), data: { text } },
    make("span", {}, text),
    make("small", {}, below || "\u2013"),
  );
}

function renderAnswer(answer) {
  const [before, found, after] = answer.parts;
  const context = make("p", { className: "marked" }, before);
  if (found) context.append(make("mark", { className: "tint-0" }, found));
  context.append(after);
  const threshold = answer.no_answer_threshold;
  const rule =
    threshold === null
      ? "this model always answers"
      : `above ${shown(threshold)} there is no answer`;
  const margin = `${shown(answer.no_answer_score)} (${rule})`;
  return [
    make("p", { className: found ? "found" : "found none" }, found || "No answer"),
    context,
    make(
      "dl",
      { className: "facts" },
      make("dt", {}, "Score of the likeliest span"),
      make("dd", {}, shown(answer.score)),
      make("dt", {}, "\u201cNo answer\u201d scores more by"),
      make("dd", {}, margin),
    ),
  ];
}

function renderMasks({ parts, masks }) {
  const text = make("p", { className: "marked" }, parts[0]);
  masks.forEach((candidates, place) => {
    const best = make("mark", { className: `tint-${place % NUM_TINTS}` }, visible(candidates[0].label));
    text.append(best, parts[place + 1]);
  });
  const lists = masks.map((candidates, place) =>
    make(
      "section",
      { className: "mask" },
      make("h3", {}, masks.length > 1 ? `Mask ${place + 1}` : "Candidates"),
      bars(candidates),
    ),
  );
  return [text, make("div", { className: "masks" }, ...lists)];
}
