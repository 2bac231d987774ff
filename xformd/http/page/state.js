// The page's state, kept in the URL's fragment: "#wrap:width=40+upper&poem=The%20Owl". A change of the pipeline adds an
// entry to the browser's history; typing does not.

const LINK_POEM_CHARACTERS = 4000;
const WRITE_DELAY_MS = 300;
const SAMPLE = `The Owl and the Pussy-cat went to sea
In a beautiful pea-green boat,
They took some honey, and plenty of money,
Wrapped up in a five-pound note.

The Owl looked up to the stars above,
And sang to a small guitar,
"O lovely Pussy! O Pussy, my love,
What a beautiful Pussy you are!"
`;

// steps: {id, name, options}; a step keeps its id when it moves. A poem is {text, hex}, or {file} if it is large.
const state = { steps: [], poem: { text: SAMPLE, hex: false } };
// The history can refer to a file, but cannot keep it.
const openedFiles = [];
let lastId = 0;
let writing;

// Without a prototype: an option may be called "constructor".
const makeOptions = (options) => Object.assign(Object.create(null), options);

function makeStep(name, options = {}) {
  lastId += 1;
  return { id: lastId, name, options: makeOptions(options) };
}

// Returns what is sent: the file or bytes; null if the text is not hexadecimal.
function poemBody() {
  return state.poem.file ?? poemBytes();
}

function poemBytes() {
  return state.poem.hex ? fromHex(state.poem.text) : new TextEncoder().encode(state.poem.text);
}

function isPoemInLink() {
  if (state.poem.file || state.poem.text.length > LINK_POEM_CHARACTERS) return false;
  return encodeURIComponent(state.poem.text.toWellFormed()).length <= LINK_POEM_CHARACTERS;
}

function printFragment() {
  const spec = `#${printSpec(state.steps)}`;
  if (!isPoemInLink()) return spec;
  return `${spec}&${state.poem.hex ? "hex" : "poem"}=${encodeURIComponent(state.poem.text.toWellFormed())}`;
}

// Returns whether there was a fragment.
function readFragment() {
  const fragment = location.hash.slice(1);
  if (!fragment) return false;
  const [spec, rest] = cut(fragment, "&");
  state.steps = parseSpec(spec).map(({ name, options }) => makeStep(name, options));
  const [kind, text] = cut(rest ?? "", "=");
  if (kind === "poem" || kind === "hex") state.poem = { text: decodeLoosely(text ?? ""), hex: kind === "hex" };
  else state.poem = rememberedPoem() ?? state.poem; // it was too long for the fragment
  return true;
}

function rememberedPoem() {
  const poem = history.state?.poem;
  if (poem?.fileNumber === undefined) return poem;
  const file = openedFiles[poem.fileNumber]; // after a reload there is none
  return file && { file };
}

function poemToRemember() {
  const { file } = state.poem;
  if (!file) return state.poem;
  if (!openedFiles.includes(file)) openedFiles.push(file);
  return { fileNumber: openedFiles.indexOf(file) };
}

function decodeLoosely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// The history entry has the poem too, for when it is too long for the fragment.
function remember(how) {
  clearTimeout(writing);
  writing = undefined;
  const fragment = printFragment();
  if (how === "pushState" && fragment === location.hash) return;
  try {
    history[how]({ poem: poemToRemember() }, "", fragment);
  } catch {
    history[how](null, "", fragment); // the poem is too long for the history
  }
}

// Browsers limit how often a page may change its URL.
function rememberSoon() {
  clearTimeout(writing);
  writing = setTimeout(() => remember("replaceState"), WRITE_DELAY_MS);
}

function rememberNow() {
  if (writing !== undefined) remember("replaceState"); // so that the back button restores what was typed
}
