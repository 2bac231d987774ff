// Elements are created here alone, from strings that stay text: nothing on this page parses markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

const setting = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

function element(tag, attributes = {}, ...children) {
  return setUp(document.createElement(tag), attributes, children);
}

function svgElement(tag, attributes = {}, ...children) {
  return setUp(document.createElementNS(SVG, tag), attributes, children);
}

function setUp(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function button(label, click, attributes = {}) {
  return element("button", { type: "button", class: "quiet", click, ...attributes }, label);
}

// Tells screen readers what has changed on the page. A repeated text is announced again.
function announce(text) {
  const announcer = byId("announcer");
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}

function count(number, thing) {
  return `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
}

async function copyText(text, from) {
  const label = from.dataset.label ?? (from.dataset.label = from.textContent);
  const done = await copyToClipboard(text);
  from.textContent = done ? "Copied" : "Not copied";
  announce(done ? "Copied" : "The browser did not allow copying");
  clearTimeout(from.restoring);
  from.restoring = setTimeout(() => (from.textContent = label), 1500);
}

// Over plain HTTP from another machine there is no navigator.clipboard.
async function copyToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyWithExecCommand(text);
  }
}

function copyWithExecCommand(text) {
  const focused = document.activeElement;
  const hidden = element("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  hidden.value = text;
  document.body.append(hidden);
  hidden.select();
  const done = document.execCommand("copy");
  hidden.remove();
  focused?.focus();
  return done;
}
