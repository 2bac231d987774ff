// One option of a step as a form field. A field shows the default as its value; a step keeps only what differs from
// the default, so that its spec stays short.

const TRUE = new Set(["true", "yes", "on", "1"]);
const EXPECTED = { int: "a whole number", float: "a number" };

const shownDefault = (option) => (option.required ? "" : String(option.default));

// change(problem, now) is called when the step's options have changed; now is true after a click.
function optionField(step, option, change) {
  const id = `step-${step.id}-${option.name}`;
  const control = (CONTROLS[option.type] ?? textControl)(step, option, change);
  const help = option.description ? [element("p", { id: `${id}-help`, class: "help fine" }, option.description)] : [];
  const describedBy = `${help.length ? `${id}-help ` : ""}${id}-error`;
  setUp(control, { id, "aria-describedby": describedBy, "aria-required": option.required ? "true" : null }, []);
  const label = element("label", { for: id }, option.name);
  if (option.required) label.append(element("span", { class: "required" }, " required"));
  const error = element("p", { id: `${id}-error`, class: "error", hidden: true });
  const parts = option.type === "bool" ? [control, label] : [label, control];
  return element("div", { class: `field field-${option.type}`, "data-option": option.name }, ...parts, ...help, error);
}

function setOption(step, option, text) {
  if (!option.required && text === shownDefault(option)) delete step.options[option.name];
  else step.options[option.name] = text;
}

const currentValue = (step, option) => step.options[option.name] ?? shownDefault(option);

function numberControl(step, option, change) {
  const attributes = { type: "number", step: option.type === "int" ? "1" : "any", placeholder: shownDefault(option) };
  const control = element("input", { ...attributes, autocomplete: "off" });
  control.value = currentValue(step, option);
  // A link may hold a value that a number field would not show.
  if (control.value !== currentValue(step, option)) return textControl(step, option, change);
  control.addEventListener("input", () => {
    if (control.value === "") delete step.options[option.name];
    else setOption(step, option, control.value);
    const detail = `${step.name}: option '${option.name}' takes ${EXPECTED[option.type]}`;
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
  const control = element("select", {}, ...values.map((value) => element("option", { value }, value || "choose…")));
  control.value = current;
  control.addEventListener("change", () => {
    if (control.value) setOption(step, option, control.value);
    else delete step.options[option.name];
    change(null, true);
  });
  return control;
}

const CONTROLS = { int: numberControl, float: numberControl, bool: checkControl, choice: choiceControl };
