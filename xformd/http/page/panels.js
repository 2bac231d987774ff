// The smaller panels: examples to click, the calls to copy, the poem's size, the theme.

const EXAMPLE_CHARACTERS = 22;
const THEMES = ["auto", "light", "dark"];

let call = "curl";

// The examples of the first step, which gets the poem.
function drawExamples(known, use) {
  const examples = (known?.examples ?? []).filter(({ poem }) => poem !== "");
  byId("examples-section").hidden = !examples.length;
  byId("examples-title").textContent = `Try ${known?.name}`;
  byId("examples").replaceChildren(...examples.map((example) => element("li", {}, drawExample(example, use))));
}

function drawExample(example, use) {
  const options = Object.entries(example.options).map(([name, value]) => `${name}=${value}`).join(", ");
  const parts = [
    element("span", {}, clip(example.poem)),
    element("span", { class: "arrow", "aria-hidden": "true" }, "→"),
    element("span", {}, clip(example.result)),
  ];
  if (options) parts.push(element("span", { class: "fine" }, clip(options)));
  return element("button", { type: "button", class: "example", click: () => use(example) }, ...parts);
}

function clip(text) {
  const line = text.replace(/\r?\n/g, "⏎");
  return line.length > EXAMPLE_CHARACTERS ? `${line.slice(0, EXAMPLE_CHARACTERS - 1)}…` : line;
}

function drawCalls(find) {
  byId("call").textContent = state.steps.length ? CALLS[call](state.steps, state.poem, find) : "";
}

function makeCallTabs(find) {
  const tabs = Object.keys(CALLS).map((name) =>
    element("button", { type: "button", role: "tab", "aria-controls": "call", click: () => choose(name) }, name),
  );
  const choose = (name) => {
    call = name;
    for (const tab of tabs) {
      const isChosen = tab.textContent === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
    drawCalls(find);
  };
  byId("call-tabs").append(...tabs);
  byId("call-tabs").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(document.activeElement) + step) % tabs.length);
    choose(next.textContent);
    next.focus();
  });
  choose(call);
}

// A large file is not put into the text field, which would take seconds to lay it out.
function drawPoem(closeFile) {
  const { file, text = "", hex = false } = state.poem;
  const area = byId("poem");
  if (area.value !== text) area.value = text;
  area.hidden = Boolean(file);
  byId("hex").checked = hex;
  byId("hex").disabled = Boolean(file);
  byId("poem-file").hidden = !file;
  byId("poem-file").replaceChildren(...(file ? [poemCard(file, closeFile)] : []));
  drawPoemSize();
}

function poemCard(file, close) {
  const suffix = /\.(\w{1,5})$/.exec(file.name)?.[1] ?? "file";
  return fileCard(suffix, file.name, [`${sizeOf(file.size)}, sent as it is`], button("Close the file", close));
}

function drawPoemSize() {
  const size = poemBody()?.size ?? poemBody()?.length;
  byId("poem-size").textContent = size === undefined ? "" : count(size, "byte");
}

// Switching between text and hexadecimal keeps the bytes where possible.
function switchHex(hex) {
  const bytes = poemBytes();
  if (hex) state.poem = { text: toHex(bytes), hex };
  else if (bytes) state.poem = { text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes), hex };
  else state.poem.hex = hex;
}

async function poemFromFile(file) {
  if (file.size > SHOWN_BYTES) return { file };
  const poem = poemFrom(new Uint8Array(await file.arrayBuffer()));
  const isLong = poem.hex ? file.size > HEX_SHOWN_BYTES : firstLines(poem.text) !== poem.text;
  return isLong ? { file } : poem;
}

function poemFrom(bytes) {
  const text = decodeText(bytes);
  return text === null ? { text: toHex(bytes), hex: true } : { text, hex: false };
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  byId("theme").title = `Theme: ${theme}`;
  byId("theme-name").textContent = `Theme: ${theme}`;
}

function drawLinks() {
  const links = [["API (openapi.json)", serverUrl("openapi.json")]];
  const documentation = setting("xformd-documentation");
  if (/^https?:/.test(documentation)) links.push(["Documentation", documentation]);
  byId("links").replaceChildren(...links.map(([text, href]) => element("a", { href }, text)));
}

// Storage may be disabled, in which case the browser raises an exception.
function startTheme() {
  const stored = ignoringErrors(() => localStorage.getItem("theme"));
  let theme = THEMES.includes(stored) ? stored : "auto";
  setTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setTheme(theme);
    ignoringErrors(() => localStorage.setItem("theme", theme));
  });
}

function ignoringErrors(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
