// Elements are made here alone, from strings that stay text: nothing in this page parses markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function furnish(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function button(label, click, attributes = {}) {
  return element("button", { type: "button", class: "quiet", click, ...attributes }, label);
}

// For screen readers: what has changed elsewhere on the page. The same words twice are said twice.
function announce(text) {
  const announcer = byId("announcer");
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}

function count(number, thing) {
  return `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
}

async function copyText(text, from) {
  const label = from.dataset.label ?? (from.dataset.label = from.textContent);
  const done = await putOnClipboard(text);
  from.textContent = done ? "Copied" : "Not copied";
  announce(done ? "Copied" : "The browser did not let it be copied");
  clearTimeout(from.restoring);
  from.restoring = setTimeout(() => (from.textContent = label), 1500);
}

// Over plain HTTP from another machine there is no navigator.clipboard.
async function putOnClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyTheOldWay(text);
  }
}

function copyTheOldWay(text) {
  const focused = document.activeElement;
  const hidden = element("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
  hidden.value = text;
  document.body.append(hidden);
  hidden.select();
  const done = document.execCommand("copy");
  hidden.remove();
  focused?.focus();
  return done;
}
