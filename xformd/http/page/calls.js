// The same call for the command line and for Python, to copy. Poems and options must reach the server unchanged, and
// nothing that a terminal would interpret, or that displays as something else, may be part of the text to paste.

const INLINE_POEM_CHARACTERS = 2000;
const DEFAULT_SERVER = "127.0.0.1:11000";
// Control characters, and those that change the direction of text.
const UNSAFE = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/;
// Names of files that mean the same to every program: no option, no "-", no folder.
const PLAIN_FILE_NAME = /^[\w.][\w .,+@-]*$/;

const shellQuote = (text) => (/^[\w@%+=:,.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function pythonQuote(text) {
  const escape = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text.toWellFormed()).replace(new RegExp(UNSAFE, "g"), escape);
}

// A short poem of safe characters is part of the command; any other is read from a file.
function inlinePoem(poem) {
  return !poem.file && !poem.hex && poem.text.length <= INLINE_POEM_CHARACTERS && !UNSAFE.test(poem.text)
    ? poem.text.toWellFormed()
    : null;
}

const fileName = ({ file }) => (file && PLAIN_FILE_NAME.test(file.name) ? file.name : "poem.txt");

const transformPath = (steps) => `transform/${printSpec(steps)}`;

// The first of the server's addresses; empty if it has not told any. One that listens everywhere is where the page is.
function netstringAddress() {
  const [address] = setting("xformd-netstring-address").split(" ");
  return address.replace(/^(tls:)?(0\.0\.0\.0|\[::\])(?=:\d+$)/, (_, tls = "") => tls + location.hostname);
}

// The file for a result that a terminal cannot show; empty if it is text, as far as is known.
function outputName(steps, find) {
  const type = (find(steps.at(-1).name)?.media_type ?? "").split(";")[0].trim().toLowerCase();
  return isTextual(type) ? "" : `result.${suffixOf({ type, text: null })}`;
}

function curlCall(steps, poem, find) {
  const text = inlinePoem(poem);
  const body = text === null ? `--data-binary ${shellQuote(`@${fileName(poem)}`)}` : `--data-raw ${shellQuote(text)}`;
  const output = outputName(steps, find);
  const token = givenToken ? ' \\\n  -H "Authorization: Bearer $XFORMD_TOKEN"' : "";
  return `curl ${shellQuote(serverUrl(transformPath(steps)))}${token} \\\n  ${body}${output && ` \\\n  --output ${output}`}`;
}

function sendCall(steps, poem, find) {
  const text = inlinePoem(poem);
  const address = netstringAddress();
  const server = address ? ` --server ${shellQuote(address)}` : "";
  const command = `xformd send ${shellQuote(printSpec(steps))}${server}`;
  const output = outputName(steps, find);
  const call = text === null ? `${command} ${shellQuote(fileName(poem))}` : `printf %s ${shellQuote(text)} |\n  ${command}`;
  return output ? `${call} > ${output}` : call;
}

function pythonCall(steps, poem, find) {
  const text = inlinePoem(poem);
  const output = outputName(steps, find);
  // A result is of the poem's type here, and one of these two is not text.
  const last = find(steps.at(-1).name);
  const isBytes = poem.hex || (last?.result_kind ?? last?.kind) === "bytes" || find(steps[0].name)?.kind === "bytes";
  const read = `    poem = Path(${pythonQuote(fileName(poem))}).read_bytes()${isBytes ? "" : ".decode()"}`;
  const argument = text === null ? "poem" : `${pythonQuote(text)}${isBytes ? ".encode()" : ""}`;
  const token = givenToken ? ', token=os.environ["XFORMD_TOKEN"]' : "";
  const result = `await proxy.xform(${pythonArguments(steps, argument, find)})`;
  return [
    ...(givenToken ? ["import os"] : []),
    ...(text === null || output ? ["from pathlib import Path"] : []),
    ...(givenToken || text === null || output ? [""] : []),
    "from twisted.internet.task import react",
    "",
    "from xformd import TransformProxy",
    "",
    "",
    "async def main(reactor):",
    ...(text === null ? [read] : []),
    `    async with TransformProxy(${pythonQuote(netstringAddress() || DEFAULT_SERVER)}${token}) as proxy:`,
    `        ${output ? `Path("${output}").write_bytes(${result})` : `print(${result})`}`,
    "",
    "",
    "react(main)",
  ].join("\n");
}

// A single step with known options gets keywords; anything else is a spec. "timeout" is a parameter of xform() itself.
function pythonArguments(steps, poem, find) {
  const [{ name, options }] = steps;
  const known = find(name)?.options ?? [];
  const keywords = Object.keys(options).map((key) => known.find((option) => option.name === key && key !== "timeout"));
  if (steps.length > 1 || keywords.includes(undefined)) return `${pythonQuote(printSpec(steps))}, ${poem}`;
  const pairs = keywords.map((option) => `${option.name}=${pythonValue(option, options[option.name])}`);
  return [pythonQuote(name), poem, ...pairs].join(", ");
}

function pythonValue(option, text) {
  if (option.type === "bool" && /^(true|false)$/.test(text)) return text === "true" ? "True" : "False";
  if (option.type === "int" && /^-?(0|[1-9]\d{0,17})$/.test(text)) return text;
  if (option.type === "float" && /^-?(0|[1-9]\d{0,17})(\.\d+)?$/.test(text)) return text;
  return pythonQuote(text);
}

const CALLS = { curl: curlCall, "xformd send": sendCall, Python: pythonCall };
