// Elements made by hand: what a model says is text, never HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties, `data` and `style` among them, and children. */
export function make(tag, properties = {}, ...children) {
  const { data = {}, style = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(style)) {
    element.style.setProperty(name, value);
  }
  element.append(...children);
  return element;
}

/** Shows a sentence in an element, or hides it where there is none. */
export function say(element, sentence) {
  element.textContent = sentence ?? "";
  element.hidden = !sentence;
}

/** What the server answers to a request; throws an Error with its sentence. */
export async function request(path, body, signal) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  let answer;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server answered ${response.status}, and no JSON.`);
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** A number for people: with a true minus, and so many decimals. */
export function shown(number, decimals = 3) {
  const text = Math.abs(number).toFixed(decimals);
  return number < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}
