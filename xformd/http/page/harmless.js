// Makes a result's HTML harmless: nothing is left in it that could run, be loaded, or lead elsewhere. It is shown in a
// sandbox under this page's own policy, which forbid all that too. But before they do, browsers connect to the host of a
// frame or of a link that was clicked, and report on the console what they have forbidden.

const HARMFUL = [
  ...["animate", "applet", "audio", "base", "embed", "fencedframe", "frame", "frameset", "iframe", "link", "meta"],
  ...["object", "portal", "script", "set", "source", "style", "template", "track", "video"],
];
const HARMFUL_ATTRIBUTE = /^(on.*|style|target|ping|srcdoc|srcset|imagesrcset|http-equiv|autofocus)$/i;
const URL_ATTRIBUTE = /^(.*:)?(href|src|action|formaction|background|cite|data|longdesc|manifest|poster|profile)$/i;
const HARMLESS_URL = /^(#|data:image\/(png|gif|jpeg|webp|avif|bmp)[;,])/i;

// Returns the HTML of a document that has only the harmless parts of a blob's.
async function readHarmless(blob) {
  const made = await parseHtml(blob);
  for (const node of made.querySelectorAll(HARMFUL.map((name) => `*|${name}`).join())) node.remove();
  // In a sandbox not even a link within the document works: it shows where it would lead.
  for (const link of made.querySelectorAll("*|a, *|area")) {
    link.setAttribute("title", link.getAttribute("href") ?? "");
    link.removeAttribute("href");
  }
  for (const node of made.querySelectorAll("*")) {
    for (const { name, value } of Array.from(node.attributes)) {
      if (isHarmful(name, value)) node.removeAttribute(name);
    }
  }
  return made.documentElement?.outerHTML ?? "";
}

const isHarmful = (name, value) =>
  HARMFUL_ATTRIBUTE.test(name) || (URL_ATTRIBUTE.test(name) && !HARMLESS_URL.test(value.trim()));

// A document that is parsed in this way runs nothing and loads nothing, and needs no exception from Trusted Types.
function parseHtml(blob) {
  const url = URL.createObjectURL(blob);
  const request = new XMLHttpRequest();
  request.open("GET", url);
  request.responseType = "document";
  request.overrideMimeType("text/html; charset=utf-8");
  return new Promise((parsed, failed) => {
    request.onload = () => parsed(request.response);
    request.onerror = failed;
    request.onloadend = () => URL.revokeObjectURL(url);
    request.send();
  });
}
