// The request language of docs/wire.md: prints steps as "wrap:width=40+upper", and parses that.

function encodeValue(text) {
  const encode = (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
  return encodeURIComponent(text.toWellFormed()).replace(/[.!*'()]/g, encode);
}

// A step is {name, options}. Options are strings, printed in alphabetical order.
function printStep({ name, options }) {
  const pairs = Object.keys(options).sort().map((key) => `${key}=${encodeValue(options[key])}`);
  return pairs.length ? `${name}:${pairs.join(",")}` : name;
}

const printSpec = (steps) => steps.map(printStep).join("+");

// A server takes no more steps, and no pipeline needs as many options: each is a field to draw.
const MAX_STEPS = 32;
const MAX_OPTIONS = 128;

// Anybody can write a link: one that does not parse has no steps, and of a long one only the start is read.
function parseSpec(text) {
  let room = MAX_OPTIONS;
  const parse = (part) => {
    const step = parseStep(part, room);
    room -= Object.keys(step.options).length;
    return step;
  };
  try {
    return text ? text.split("+", MAX_STEPS).map(parse) : [];
  } catch {
    return [];
  }
}

const NAME = /^[a-z][a-z0-9_-]{0,63}$/;

function parseStep(text, maxOptions) {
  const [name, rest] = cut(text, ":");
  const pairs = rest === undefined ? [] : rest.split(",", maxOptions).map((pair) => cut(pair, "="));
  for (const word of [name, ...pairs.map(([key]) => key)]) {
    if (!NAME.test(word)) throw new SyntaxError(`invalid name: ${word}`);
  }
  return { name, options: Object.fromEntries(pairs.map(([key, value = ""]) => [key, decodeURIComponent(value)])) };
}

function cut(text, separator) {
  const at = text.indexOf(separator);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}
