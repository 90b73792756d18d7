// The form, and what is asked and shown when it is sent.

import { AttentionPanel } from "./attention.js";
import { byId, make, request, say } from "./dom.js";
import { render } from "./results.js";

let model;
let panel;
let running;

async function start() {
  try {
    model = await request("api/model");
  } catch (error) {
    say(byId("error"), error.message);
    return;
  }
  document.title = `${model.name} \u2013 ${model.title}`;
  byId("title").textContent = model.title;
  byId("name").textContent = model.name;
  byId("facts").textContent = facts();
  byId("fields").replaceChildren(...model.fields.map(fieldOf));
  byId("examples").replaceChildren(...model.examples.map(exampleOf));
  panel = new AttentionPanel(model);
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
  });
  inputOf(model.fields[0]).focus({ preventScroll: true });
}

function facts() {
  const millions = model.num_parameters / 1e6;
  const size =
    millions >= 0.1
      ? `${millions.toFixed(1)} M parameters`
      : `${model.num_parameters.toLocaleString("en")} parameters`;
  return [
    size,
    counted(model.num_layers, "layer"),
    counted(model.num_heads, "head"),
    `up to ${model.max_tokens} tokens`,
  ].join(" \u00b7 ");
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function fieldOf(field) {
  const id = `field-${field.name}`;
  const hint = make("span", { className: "hint", id: `${id}-hint` }, field.hint);
  const label = make("label", { htmlFor: id }, field.label);
  if (!field.required) label.append(make("span", { className: "optional" }, "optional"));
  const area = make("textarea", {
    id,
    name: field.name,
    rows: field.height,
    required: field.required,
    spellcheck: false,
    autocomplete: "off",
  });
  if (!field.min_lines) area.maxLength = model.max_characters;
  if (field.hint) area.setAttribute("aria-describedby", hint.id);
  return make("div", { className: "field" }, label, hint, area);
}

const inputOf = (field) => byId(`field-${field.name}`);

/** The inputs of the form; of a field of lines those that are not blank. */
function readInputs() {
  const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
  return Object.fromEntries(
    model.fields.map((field) => {
      const { value } = inputOf(field);
      return [field.name, field.min_lines ? lines(value) : value];
    }),
  );
}

function exampleOf(example) {
  const values = model.fields.map(({ name }) => example[name]).filter(Boolean);
  const text = values.map((one) => [one].flat().join(" / ")).join(" \u2014 ");
  const button = make("button", { type: "button", className: "example" }, text);
  button.addEventListener("click", () => {
    for (const field of model.fields) {
      inputOf(field).value = [example[field.name] ?? ""].flat().join("\n");
    }
    run();
  });
  return make("li", {}, button);
}

async function run() {
  running?.abort();
  const controller = (running = new AbortController());
  const inputs = readInputs();
  say(byId("error"), null);
  busy(true);
  try {
    const answer = await request("api/answer", { inputs }, controller.signal);
    if (controller !== running) return;
    byId("result").replaceChildren(...render(answer));
    const notices = answer.notices.map((one) => make("li", {}, one));
    byId("notices").replaceChildren(...notices);
    byId("notices").hidden = !notices.length;
    panel.open(inputs);
  } catch (error) {
    if (controller !== running) return;
    say(byId("error"), error.message);
  } finally {
    if (controller === running) busy(false);
  }
}

function busy(is) {
  byId("answer").setAttribute("aria-busy", String(is));
  byId("status").textContent = is ? "Working\u2026" : "";
}

start();
