// Poems as bytes, shown as text where they are UTF-8 without control characters, else as hexadecimal.

const HEX_SHOWN_BYTES = 16384;
const ROW_BYTES = 16;

// Returns the bytes as text, or null if they are not text. Where more follows, the last character may be cut.
function decodeText(bytes, isWhole = true) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes, { stream: !isWhole });
    return /[\0-\x08\x0e-\x1a\x1c-\x1f]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

const toHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");

// Parses "c3 a9"; returns null if it is not hexadecimal.
function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

// Examples of bytes transforms are Latin-1: each character is the byte with its code.
const fromLatin1 = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

// Shows the beginning; the size is that of all bytes.
function hexDump(bytes, size = bytes.length) {
  const rows = [];
  for (let at = 0; at < Math.min(bytes.length, HEX_SHOWN_BYTES); at += ROW_BYTES) {
    const row = bytes.subarray(at, at + ROW_BYTES);
    const signs = Array.from(row, (byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    rows.push(`${at.toString(16).padStart(6, "0")}  ${toHex(row).padEnd(3 * ROW_BYTES)} ${signs}`);
  }
  if (size > HEX_SHOWN_BYTES) rows.push(`… ${count(size - HEX_SHOWN_BYTES, "more byte")}`);
  return rows.join("\n");
}
