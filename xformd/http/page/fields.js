// One option of a step as a form field. A field shows the default as its value; a step keeps only what differs from
// the default, so that its spec stays short.

const TRUE = new Set(["true", "yes", "on", "1"]);
const SELF_EVIDENT = new Set(["", "a whole number", "a number", "true or false", "a string"]);

// The text of a value in a spec: that of a list has commas, or is a JSON array where an item could be read otherwise.
function optionText(value) {
  if (!Array.isArray(value)) return String(value ?? "");
  const items = value.map(String);
  const text = items.join(",");
  const isAmbiguous = text.startsWith("[") || (!text && items.length) || items.some((item) => item.includes(","));
  return isAmbiguous ? JSON.stringify(items) : text;
}

const shownDefault = (option) => optionText(option.default);

const isOptional = (option) => !option.required && option.default === undefined;

function helpOf({ description = "", type, list, takes = "" }) {
  const isEvident = SELF_EVIDENT.has(takes) || (type === "choice" && !list);
  return [isEvident ? "" : takes, description].filter(Boolean).join(": ");
}

// change(problem, now) is called when the step's options have changed; now is true after a click.
function optionField(step, option, change) {
  const id = `step-${step.id}-${option.name}`;
  const control = ((!option.list && CONTROLS[option.type]) || textControl)(step, option, change);
  const help = helpOf(option) ? [element("p", { id: `${id}-help`, class: "help fine" }, helpOf(option))] : [];
  const describedBy = `${help.length ? `${id}-help ` : ""}${id}-error`;
  setUp(control, { id, "aria-describedby": describedBy, "aria-required": option.required ? "true" : null }, []);
  const label = element("label", { for: id }, option.name);
  if (option.required) label.append(element("span", { class: "required" }, " required"));
  const error = element("p", { id: `${id}-error`, class: "error", hidden: true });
  const isCheckbox = control.type === "checkbox";
  const attributes = { class: isCheckbox ? "field field-bool" : "field", "data-option": option.name };
  return element("div", attributes, ...(isCheckbox ? [control, label] : [label, control]), ...help, error);
}

function setOption(step, option, text) {
  if (!option.required && text === shownDefault(option)) delete step.options[option.name];
  else step.options[option.name] = text;
}

const currentValue = (step, option) => step.options[option.name] ?? shownDefault(option);

function rangeControl(step, option, change) {
  const [min, max] = ["minimum", "maximum"].map((end) => option[end] ?? option[`exclusive_${end}`]);
  const size = { int: option.multiple_of ?? 1, float: "any" }[option.type];
  const attributes = { type: size ? "number" : "date", min, max, step: size, placeholder: shownDefault(option) };
  const control = element("input", { ...attributes, autocomplete: "off" });
  control.value = currentValue(step, option);
  // A link may hold a value that such a field would not show.
  if (control.value !== currentValue(step, option)) return textControl(step, option, change);
  control.addEventListener("input", () => {
    if (control.value === "") delete step.options[option.name];
    else setOption(step, option, control.value);
    const detail = `${step.name}: option '${option.name}' takes ${option.takes}`;
    change(control.validity.badInput ? new Problem({ code: "bad-options", detail }) : null);
  });
  return control;
}

function textControl(step, option, change) {
  const control = element("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  control.value = currentValue(step, option);
  control.addEventListener("input", () => {
    setOption(step, option, control.value);
    change(null);
  });
  return control;
}

function checkControl(step, option, change) {
  if (isOptional(option)) return choiceControl(step, { ...option, choices: [true, false] }, change);
  const control = element("input", { type: "checkbox" });
  control.checked = TRUE.has(currentValue(step, option).toLowerCase());
  control.addEventListener("change", () => {
    setOption(step, option, String(control.checked));
    change(null, true);
  });
  return control;
}

function choiceControl(step, option, change) {
  const values = (option.choices ?? []).map(String);
  const current = currentValue(step, option);
  if (!values.includes(current)) values.unshift(current); // from a link; the server rejects it with a reason
  if (isOptional(option) && !values.includes("")) values.unshift("");
  const none = option.required ? "choose…" : "none";
  const control = element("select", {}, ...values.map((value) => element("option", { value }, value || none)));
  control.value = current;
  control.addEventListener("change", () => {
    if (control.value) setOption(step, option, control.value);
    else delete step.options[option.name];
    change(null, true);
  });
  return control;
}

const CONTROLS = { int: rangeControl, float: rangeControl, date: rangeControl, bool: checkControl, choice: choiceControl };
