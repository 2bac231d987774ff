// Media types: how a result can be shown, and how its file is called.

// A browser takes longer than the blink of an eye to lay out more text, above all more lines, or a larger page.
const SHOWN_BYTES = 100_000;
const SHOWN_LINES = 2_000;
const FRAME_BYTES = 500_000;

const SUFFIXES = {
  "application/epub+zip": "epub",
  "application/gzip": "gz",
  "application/javascript": "js",
  "application/json": "json",
  "application/pdf": "pdf",
  "application/x-ndjson": "ndjson",
  "application/x-tar": "tar",
  "application/xhtml+xml": "xhtml",
  "application/xml": "xml",
  "application/yaml": "yaml",
  "application/zip": "zip",
  "audio/mpeg": "mp3",
  "audio/ogg": "ogg",
  "audio/wav": "wav",
  "font/woff2": "woff2",
  "image/avif": "avif",
  "image/bmp": "bmp",
  "image/gif": "gif",
  "image/jpeg": "jpg",
  "image/png": "png",
  "image/svg+xml": "svg",
  "image/tiff": "tiff",
  "image/webp": "webp",
  "text/calendar": "ics",
  "text/css": "css",
  "text/csv": "csv",
  "text/html": "html",
  "text/javascript": "js",
  "text/markdown": "md",
  "text/tab-separated-values": "tsv",
  "text/xml": "xml",
  "video/mp4": "mp4",
  "video/webm": "webm",
};

// A transform of bytes that declares no media type has this one.
const isUnknown = (type) => !type || type === "application/octet-stream";
const isTextual = (type) => isUnknown(type) || /^text\/|[/+](json|xml|yaml|javascript|x-ndjson)$/.test(type);

function suffixOf({ type, text }) {
  const general = /\+(json|xml|zip)$/.exec(type)?.[1];
  return SUFFIXES[type] ?? general ?? (text !== null && isTextual(type) ? "txt" : "bin");
}

// The ways to show a result, the best one first.
function viewsOf({ type, text, blob }) {
  const plain = text === null ? "Bytes" : "Source";
  if (type.startsWith("image/")) return ["Picture", plain];
  if (type === "text/html" && text !== null && blob.size <= FRAME_BYTES) return ["Page", plain];
  if (!isTextual(type)) return ["File", plain];
  return [text === null ? "Bytes" : "Text"];
}

// Returns the text up to the end of the last line that is shown.
function firstLines(text) {
  let end = 0;
  for (let line = 0; line < SHOWN_LINES; line += 1) {
    end = text.indexOf("\n", end) + 1;
    if (!end) return text;
  }
  return text.slice(0, end);
}

function sizeOf(bytes) {
  if (bytes < 10_000) return count(bytes, "byte");
  const [unit, name] = bytes < 1_000_000 ? [1_000, "KB"] : [1_000_000, "MB"];
  return `${(bytes / unit).toLocaleString("en", { maximumSignificantDigits: 3 })} ${name}`;
}
