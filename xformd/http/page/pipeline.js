// The steps, each a card with its options, and the errors at the step or option where they belong.

const PLAIN_TYPES = "text/plain → text/plain";
const STEP_CODES = new Set(["bad-options", "no-such-transform", "ambiguous-transform", "unavailable"]);

// actions: {find, move, remove, replace, edited}
function drawSteps(actions) {
  const cards = state.steps.map((step, index) => drawStep(step, index, actions));
  if (!cards.length) cards.push(element("li", { class: "none" }, "No steps yet: choose a transform."));
  byId("steps").replaceChildren(...cards);
}

function drawStep(step, index, actions) {
  const transform = actions.find(step.name);
  const card = element("li", { class: "step", id: `step-${step.id}`, keydown: (event) => moveByKey(event, step, actions) });
  const title = element("span", { class: "step-name" }, step.name);
  const head = element("div", { class: "step-head" }, element("span", { class: "number" }, String(index + 1)), title);
  head.append(...marks(transform), element("span", { class: "gap" }), ...stepButtons(step, index, actions));
  const fields = element("div", { class: "fields" });
  for (const option of fieldsOf(step, transform)) {
    fields.append(optionField(step, option, (problem, now) => actions.edited(problem, now)));
  }
  card.append(head);
  if (transform?.summary) card.append(element("p", { class: "fine summary" }, transform.summary));
  if (fields.childElementCount) card.append(fields);
  card.append(element("div", { class: "step-error error", hidden: true }));
  return card;
}

// The transform's options, and any others from a link: shown as text, so that the server's error has a place.
function fieldsOf(step, transform) {
  const options = transform?.options ?? [];
  const unknown = Object.keys(step.options).filter((name) => !options.some((option) => option.name === name));
  return [...options, ...unknown.map((name) => ({ name, type: "str", required: false, default: "" }))];
}

function marks(transform) {
  const found = [];
  const types = transform?.accepts ? `${transform.accepts.join(", ")} → ${transform.produces}` : PLAIN_TYPES;
  if (types !== PLAIN_TYPES) found.push(element("span", { class: "mark" }, types));
  if (transform?.state === "quarantined") found.push(element("span", { class: "mark warn" }, "quarantined"));
  return found;
}

function stepButtons(step, index, actions) {
  const place = `${step.name}, step ${index + 1} of ${state.steps.length}`;
  const isLast = index === state.steps.length - 1;
  const make = (sign, label, click, disabled, key) =>
    button(sign, click, { class: "quiet icon", "aria-label": label, title: label, disabled, "data-action": key });
  return [
    make("←", `Move earlier: ${place}`, () => actions.move(step, -1, "earlier"), index === 0, "earlier"),
    make("→", `Move later: ${place}`, () => actions.move(step, 1, "later"), isLast, "later"),
    make("×", `Remove: ${place}`, () => actions.remove(step), false, "remove"),
  ];
}

function moveByKey(event, step, actions) {
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  // In a field these keys have another meaning.
  if (!event.altKey || !by || event.target.matches("input, select")) return;
  event.preventDefault(); // the browser's own Alt+Left is Back
  actions.move(step, by, by < 0 ? "earlier" : "later");
}

// A button that has just been disabled cannot keep the focus.
function focusStep(step, action) {
  const card = step && byId(`step-${step.id}`);
  const wanted = card?.querySelector(`[data-action="${action}"]:enabled`) ?? card?.querySelector("[data-action]:enabled");
  (wanted ?? byId("add-step")).focus();
}

// Where a problem belongs: {step, option}, {step}, or {} for the result.
function locateProblem(problem, steps) {
  if (!STEP_CODES.has(problem.code)) return {};
  const named = steps.map((step) => [wordAt(problem.message, step.name), step]).filter(([at]) => at >= 0);
  if (!named.length) return {};
  const first = Math.min(...named.map(([at]) => at));
  const alike = named.filter(([at]) => at === first).map(([, step]) => step);
  const option = problem.code === "bad-options" ? /option '([a-z0-9_-]+)'/.exec(problem.message)?.[1] : undefined;
  const isQuoted = (step) => option in step.options && problem.message.includes(`not '${step.options[option]}'`);
  return { step: alike.find(isQuoted) ?? alike[0], option };
}

function wordAt(text, word) {
  return text.search(new RegExp(`(?<![a-z0-9_-])${word}(?![a-z0-9_-])`));
}

function clearStepErrors() {
  for (const error of document.querySelectorAll("#steps .error")) {
    error.hidden = true;
    error.replaceChildren();
  }
  for (const control of document.querySelectorAll("#steps [aria-invalid]")) control.removeAttribute("aria-invalid");
}

// Returns whether there is a card to show it on.
function showAtStep(problem, { step, option }, replace) {
  const card = step && byId(`step-${step.id}`);
  if (!card) return false;
  const field = option && card.querySelector(`[data-option="${option}"]`);
  const error = (field ?? card).querySelector(field ? ".error" : ".step-error");
  error.replaceChildren(problem.message);
  if (field) field.querySelector("input, select").setAttribute("aria-invalid", "true");
  if (problem.nearest) error.append(" ", button(`Use ${problem.nearest}`, () => replace(step, problem.nearest)));
  error.hidden = false;
  return true;
}
